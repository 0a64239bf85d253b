"""A run folder keeps to one process, to what it was, and to what its classes are called."""

import json
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image

import deit_tf.runs.folder
from deit_tf import files
from deit_tf.config import DataConfig, DistillConfig, TrainConfig
from deit_tf.data import open_sources
from deit_tf.distillation.fingerprint import changing_facts
from deit_tf.distillation.label_files import LAYOUT_FACTS
from deit_tf.distillation.teacher_labels import labels_teacher
from deit_tf.files import write_json
from deit_tf.runs import (
    ModelFiles,
    RunFolder,
    class_order,
    load_model,
    load_run,
    read_config,
    write_config,
)

FACTS = {"labels": ["a", "b"], "steps_per_epoch": 3, "data.content": "0" * 64}


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped after a checkpoint."""
    folder = RunFolder(tmp_path / "run")
    folder.begin(TrainConfig(epochs=2), FACTS, overwrite=False)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-000000003.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/a.pth",
        "checkpoints/a.safetensors",
        "tensorboard/events",
        "pets.keras",
        "student.keras",
        "config.yaml",
        "labels.txt",
        "metrics.jsonl",
        "summary.json",
    ],
)
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, name, overwrite):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    held = name.split("/")[0]
    with pytest.raises(
        FileExistsError, match=f"is no run folder, and holds {held}. Choose another"
    ):
        RunFolder(tmp_path).check_free(FACTS, overwrite)
    assert file.read_text() == "mine"


def test_starting_anew_removes_what_a_run_made_alone(tmp_path):
    torn = "checkpoints/.step-1.partial.safetensors"
    made = [
        "student.keras",
        "teacher_best.keras",
        "masked_ema.keras",
        "metrics.jsonl",
        "summary.json",
        "checkpoints/step-1.safetensors",
        torn,
        ".student.partial.keras",
        "tensorboard/train/events",
    ]
    others = ["teacher_large.keras", "notes.txt", "labels/manifest.json", f"another_run/{torn}"]
    for name in (*made, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    RunFolder(tmp_path).begin(TrainConfig(), FACTS, overwrite=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*others, "config.yaml", "facts.json", "labels.txt"}


@pytest.mark.parametrize("name", ["write_json", "write_config", "write_class_names"])
def test_a_start_that_was_interrupted_starts_again(tmp_path, monkeypatch, name):
    folder = RunFolder(tmp_path / "run")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(deit_tf.runs.folder, name, interrupt)
        folder.begin(TrainConfig(), FACTS, overwrite=False)
    folder.check_free(FACTS, overwrite=False)
    folder.begin(TrainConfig(), FACTS, overwrite=False)
    assert folder.class_names.read_text() == "a\nb\n"


def test_other_steps_per_epoch_are_refused(stopped):
    with pytest.raises(ValueError, match="a stopped run of 3 steps per epoch.*Received: 4 steps"):
        stopped.check_free(FACTS | {"steps_per_epoch": 4}, overwrite=False)


# By the file alone: importing the package takes seconds.
HOLD = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[2])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.locked(pathlib.Path(sys.argv[1]), ".lock", "trains into", ""):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(folder.path), files.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=f"process {holder.pid} on .*choose another"):
            with folder.locked():
                pass
        holder.kill()  # a dead process holds nothing
        holder.wait()
    with folder.locked():
        pass


def test_a_lock_leaves_nothing_behind(tmp_path):
    with RunFolder(tmp_path / "run").locked():
        pass
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_same_goes_on(stopped):
    stopped.check_free(FACTS, overwrite=False)
    stopped.check_unchanged(TrainConfig(epochs=2), read_config(stopped.config), FACTS)


@pytest.mark.parametrize(
    "config, facts, named",
    [
        (TrainConfig(epochs=3), FACTS, "epochs: 2 then, 3 now"),
        (
            TrainConfig(epochs=2),
            FACTS | {"data.content": "1" * 64},
            "data.content: 0{12}.* then, 1",
        ),
        (TrainConfig(epochs=2), FACTS | {"labels": ["a", "c"]}, "labels: .*'b'.* then, .*'c'"),
    ],
)
def test_what_changed_behind_a_stopped_run_is_named(stopped, config, facts, named):
    with pytest.raises(ValueError, match=named):
        stopped.check_unchanged(config, read_config(stopped.config), facts)


def test_labels_of_another_teacher_are_another_run(tmp_path, stopped):
    """`distill.labels` may change where they lie, and not whose they are."""
    facts = {}
    for teacher in ("1", "2"):
        folder = tmp_path / teacher
        folder.mkdir()
        manifest = dict.fromkeys((*LAYOUT_FACTS, "steps_per_file"), 2)
        manifest |= {"software": {}, "data.classes": ["a"], "teacher.weights": teacher * 64}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        config = TrainConfig(epochs=2, distill=DistillConfig(labels=str(folder)))
        facts[teacher] = FACTS | labels_teacher(config)

    then = TrainConfig(epochs=2)
    write_json(facts["1"], stopped.facts)
    stopped.check_unchanged(then, then, facts["1"])
    stopped.check_unchanged(then, then, FACTS)  # the live teacher, which its own fact holds to
    with pytest.raises(ValueError, match="labels.teacher: 1{12}... then, 2{12}... now"):
        stopped.check_unchanged(then, then, facts["2"])
    assert labels_teacher(replace(config, distill=replace(config.distill, kind="none"))) == {}


def test_facts_that_an_older_run_did_not_keep_are_not_asked_for(stopped):
    then = read_config(stopped.config)
    stopped.check_unchanged(TrainConfig(epochs=2), then, FACTS | {"teacher.files": "2" * 64})


def test_other_pictures_of_the_same_count_are_another_content(tmp_path):
    def write(name, shade):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            picture = np.full((8 + shade, 8, 3), shade)
            keras.utils.save_img(tmp_path / "photos" / name / f"{i}.png", picture, scale=False)

    config = TrainConfig(data=DataConfig(str(tmp_path / "photos")))
    write("a", 1)
    write("b", 2)
    before = changing_facts(config, open_sources(config.data))
    write("b", 5)
    after = changing_facts(config, open_sources(config.data))
    assert before["data.content"] != after["data.content"]


def test_other_pictures_of_the_same_sizes_have_other_bytes(tmp_path):
    """BMP files of one size have as many bytes, whatever they show."""
    for name, shade in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8), (shade, i, 0)).save(tmp_path / name / f"{i}.bmp")
    config = TrainConfig(data=DataConfig(str(tmp_path)))
    before = changing_facts(config, open_sources(config.data))
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "b" / "1.bmp")
    after = changing_facts(config, open_sources(config.data))
    assert before["data.content"] == after["data.content"]
    assert before["data.bytes"] != after["data.bytes"]
    assert "data.bytes" not in changing_facts(TrainConfig(), open_sources(DataConfig("digits")))


def test_arrays_that_become_larger_are_another_content(tmp_path):
    """`.npy` files, which a folder of RGB pictures does not count."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            np.save(tmp_path / name / f"{i}.npy", np.full((8, 8, 5), i, np.uint8))
    data = DataConfig(str(tmp_path), mean=(0.5,) * 5, std=(0.2,) * 5)
    config = TrainConfig(data=data)
    before = changing_facts(config, open_sources(data))["data.content"]
    np.save(tmp_path / "b" / "1.npy", np.zeros((9, 8, 5), np.uint8))
    assert changing_facts(config, open_sources(data))["data.content"] != before


def test_a_run_of_before_keeps_its_split(stopped):
    assert stopped.split_rule == "rank"
    facts = FACTS | {"split": "threshold"}
    stopped.facts.write_text(json.dumps(facts))
    assert stopped.split_rule == "threshold"


@pytest.mark.parametrize(
    "names, labels, classes, expected",
    [
        (("a", "b"), ("b", "a", "c"), 3, [1, 0]),
        (("0", "2"), None, 3, [0, 2]),
        (("1", "2"), ("1", "2", "3"), 3, [0, 1]),
        (("n00000001", "n00000002"), ("cat", "dog"), 2, [0, 1]),
    ],
)
def test_the_output_of_each_class(names, labels, classes, expected):
    assert class_order(names, labels, classes) == expected


@pytest.mark.parametrize(
    "names, labels",
    [
        (("0", "1", "2"), ("1", "2", "3")),  # numbered folders are names where the model knows some
        (tuple("012345"), tuple("123456")),
        (("0", "1"), ("cat", "dog")),
    ],
)
def test_numbers_are_no_outputs_where_the_model_knows_names(names, labels):
    with pytest.raises(ValueError, match="does not know these classes of the data: 0"):
        class_order(names, labels, len(labels))


def test_the_thousand_folders_of_imagenet_v2_are_outputs():
    numbers = tuple(sorted(map(str, range(1000))))
    words = tuple(f"class {i}" for i in range(1000))
    assert class_order(numbers, words, 1000) == [int(name) for name in numbers]


@pytest.mark.parametrize("names", ["a\nb\n", "a\nb\nc\nd\n", "a\n\nc\n"])
def test_class_names_that_do_not_fit_the_model_are_named(tmp_path, names):
    model = deit_tf.create_model(
        "deit_test", num_classes=3, image_size=16, patch_size=8, depth=1, embed_dim=24
    )
    model.save(tmp_path / "student.keras")
    (tmp_path / "labels.txt").write_text(names)
    with pytest.raises(ValueError, match=r"labels\.txt does not fit the model beside it"):
        load_run(tmp_path)


def test_a_damaged_model_file_is_one_clear_error(tmp_path):
    (tmp_path / "student.keras").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"student\.keras is damaged"):
        load_model(tmp_path)


def test_a_config_comes_back(tmp_path):
    config = TrainConfig(data=DataConfig("Bilder für später"), out="läufe")
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_of_the_models_of_epochs_the_best_stay(tmp_path):
    stays = {"student_epoch0002.keras", "student_epoch12345.keras", "mine_epoch0001.keras"}
    for name in (*stays, "student_epoch0001.keras", "student_epoch0010.keras"):
        (tmp_path / name).touch()
    ModelFiles(RunFolder(tmp_path), "student", writes=False, several_best=True).keep([2])
    assert len([*tmp_path.iterdir()]) == 5  # another process writes
    ModelFiles(RunFolder(tmp_path), "student", writes=True, several_best=True).keep([2, 12345])
    assert {file.name for file in tmp_path.iterdir()} == stays
