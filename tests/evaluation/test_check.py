"""The comparison of every artifact on the same pictures: it agrees where they do, and fails where
one does not."""

import os
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from rich.console import Console

import deit_tf
from deit_tf.config import DataConfig
from deit_tf.data import open_sources, sample
from deit_tf.evaluation import check
from deit_tf.evaluation.check import compare_exports
from deit_tf.evaluation.pictures import held_out, training
from deit_tf.exporting import accelerators
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.tflite import export_tflite
from deit_tf.runs import Run, load_run

sys.path.insert(0, str(Path(__file__).parents[2] / "export"))
from grpc_api import serve_grpc
from versions import Models

# Names an interpreter with TensorFlow 2.15 (requirements-tfa.txt); serving fleets lag.
OTHER = os.environ.get("DEIT_TF_OTHER_PYTHON")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on the digits, untrained but with logits that count, and its exports."""
    root = tmp_path_factory.mktemp("check")
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_test", num_classes=10, image_size=16, depth=1)
    for name in ("head", "head_dist"):
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 20)
    run = root / "run"
    run.mkdir()
    model.save(run / "student.keras")
    config = {
        "model": {"name": "deit_test", "image_size": 16, "depth": 1},
        "data": {"source": "digits", "crop_ratio": 1.0},
    }
    run.joinpath("config.yaml").write_text(yaml.safe_dump(config))
    run.joinpath("labels.txt").write_text("".join(f"{i}\n" for i in range(10)))
    loaded = load_run(run)
    images = held_out(loaded, 8).images
    described = {"processor": loaded.processor, "labels": loaded.labels, "images": images}
    deit_tf.export_saved_model(model, root / "exports", name="run", batch_sizes=(1,), **described)
    for variant in ("float32", "dynamic_int8"):
        export_tflite(model, root / "exports" / f"{variant}.tflite", variant=variant, **described)
    return root


def test_no_pictures_are_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="`--pictures` counts from 1. Received: 0"):
        compare_exports("no run", pictures=0)


def test_a_run_in_bfloat16_agrees_with_its_exports(tmp_path):
    """What is exported computes in float32, and so does what it is compared with."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = deit_tf.create_model("deit_test", num_classes=10, image_size=16)
    keras.config.set_dtype_policy("float32")
    run = Run("student", model, deit_tf.ImageProcessor(16, crop_ratio=1.0), None, None)
    pictures = held_out(run, 8, "digits")
    export_tflite(model, tmp_path / "student.tflite", images=pictures.images)
    answers = list(check.find_answers(run, pictures, [tmp_path]))
    verdicts = check.compare(run, pictures, answers)
    assert all(verdict.good for verdict in verdicts) and len(verdicts) == 2


def test_pictures_of_which_none_decodes(folder, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no image that can be decoded"):
        compare_exports(folder / "run", [folder / "exports"], source=str(tmp_path / "photos"))


def test_pictures_come_from_all_over(folder):
    """Folders hold one class after the other: neither the first pictures alone, nor the same
    twice."""
    pictures = held_out(load_run(folder / "run"), 200)
    assert len(set(pictures.encoded)) > 190 and set(pictures.labels) == set(range(10))
    source, processor = open_sources(DataConfig("digits"))[1], deit_tf.ImageProcessor(16)
    indices = [item["index"] for item, _ in sample(source, processor, 200)]
    assert len(set(indices)) == 200 and max(indices) > 340 and min(indices) < 20


@pytest.fixture(scope="module")
def server(folder):
    models = Models(folder / "exports")
    models.refresh()
    server, port = serve_grpc(models, 0)
    yield f"localhost:{port}"
    server.stop(None)


def cells(verdicts):
    """The rows of the table, as text."""
    table = check.verdict_table(verdicts)
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_everything_agrees(folder, server):
    verdicts = compare_exports(
        folder / "run", [folder / "exports"], server=server, model="run", pictures=40
    )
    assert [verdict.name for verdict in verdicts] == [
        "Keras",
        "exports/run/1, serving_default",
        "exports/run/1, images",
        "exports/dynamic_int8.tflite",
        "exports/float32.tflite",
        "server, serving_default",
        "server, images",
    ]
    assert all(verdict.good for verdict in verdicts)
    exact = [verdict for verdict in verdicts if "int8" not in verdict.name]
    assert {verdict.agreed["top1"]["hits"] for verdict in exact[1:]} == {40}
    assert len({verdict.accuracy for verdict in exact}) == 1
    table = cells(verdicts)
    assert {row[-1] for row in table[1:]} == {"agrees"}
    assert {row[5].split()[0] for row in table[1:] if "int8" not in row[0]} == {"40/40"}

    taken = [row[-2] for row in table if row[0].endswith(".tflite")]
    assert len(taken) == 2 and all(cell.startswith("whole, ") for cell in taken)
    assert {row[-2] for row in table if not row[0].endswith(".tflite")} == {""}


def test_a_gpu_that_disagrees_is_a_row(folder, monkeypatch):
    """The float32 file as a GPU would compute it that adds 1 to the first logit."""
    compile_for = accelerators.compile_for

    def compiled(file, device, images):
        taken = compile_for(file, "cpu", images)
        taken.logits[:, 0] += device == "gpu"
        return taken

    monkeypatch.setattr(accelerators, "compile_for", compiled)
    verdicts = compare_exports(folder / "run", [folder / "exports"], pictures=4)
    assert [verdict.good for verdict in verdicts] == [True, True, True, False, False]
    assert verdicts[-1].excess.startswith("on the GPU, max_difference")
    assert "DIFFERS" in cells(verdicts)[-1][-2]
    assert check.untried_text(verdicts) == ""


def test_why_no_gpu_was_tried(folder, monkeypatch):
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, "none.json")
    verdicts = compare_exports(folder / "run", [folder / "exports"], pictures=4)
    assert all(verdict.good for verdict in verdicts)
    assert "no GPU adapter was found" in check.untried_text(verdicts)


def test_another_model_disagrees(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    model = keras.models.load_model(run / "student.keras")
    bias = model.get_layer("head").bias
    bias.assign_add(np.linspace(0, 0.1, 10))
    model.save(run / "student.keras")
    verdicts = compare_exports(run, [folder / "exports"], pictures=8)
    # 0.05 on the logits: too much for float32, within the limit of eight bits
    assert [verdict.good for verdict in verdicts] == [True, False, False, True, False]
    assert [row[-1] for row in cells(verdicts)] == [
        "",
        "DISAGREES",
        "DISAGREES",
        "agrees",
        "DISAGREES",
    ]


def test_an_export_for_other_images_disagrees(folder, tmp_path):
    """Its graph is the same, and on the same tensors so are its logits: not on the same files."""
    run = load_run(folder / "run")
    other = deit_tf.ImageProcessor(16, mean=(0.1, 0.1, 0.1), std=(0.5, 0.5, 0.5))
    export_tflite(run.model, tmp_path / "m.tflite", processor=other)
    (_, verdict) = compare_exports(folder / "run", [tmp_path], pictures=4)
    assert not verdict.good and "exported for other images" in verdict.failure


def test_what_does_not_answer_is_a_row(folder, tmp_path):
    exports = shutil.copytree(folder / "exports", tmp_path / "exports")
    (exports / "run" / "1" / "saved_model.pb").write_bytes(b"broken")
    (exports / "float32.json").unlink()
    verdicts = compare_exports(folder / "run", [exports], server="localhost:9", pictures=4)
    failures = [verdict.failure for verdict in verdicts if verdict.failure]
    assert len(failures) == 5 and sum(verdict.good for verdict in verdicts[1:]) == 1
    assert "the checksum differs" in failures[0] and "no float32.json beside it" in failures[2]
    assert sum(row[-1].startswith("FAILS: ") for row in cells(verdicts)) == 5


def test_nothing_to_compare(folder, tmp_path):
    with pytest.raises(ValueError, match="Nothing to compare"):
        compare_exports(folder / "run", [tmp_path])
    with pytest.raises(FileNotFoundError, match="no folder"):
        compare_exports(folder / "run", [tmp_path / "nothing"])
    shutil.copy(folder / "run" / "student.keras", tmp_path / "m.keras")
    with pytest.raises(ValueError, match="not at hand"):
        compare_exports(tmp_path / "m.keras", [folder / "exports"])


def test_pictures_come_from_all_over_the_data(folder):
    run = load_run(folder / "run")
    some, others = held_out(run, 50), training(run, 50)
    assert len(some.images) == len(some.encoded) == 50
    assert len(set(some.labels)) == len(set(others.labels)) == 10
    assert not set(some.encoded) & set(others.encoded)
    np.testing.assert_array_equal(some.images[3], run.processor(some.encoded[3]))
    assert len(held_out(run, 10**6).images) == 360  # all there are


def test_another_interpreter_that_fails_is_told(folder, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no tensorflow here >&2\nexit 3\n")
    script.chmod(0o755)
    pictures = held_out(load_run(folder / "run"), 2)
    with pytest.raises(ExportError, match="no tensorflow here"):
        check.elsewhere(str(script), folder / "exports" / "run" / "1", pictures)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="no tensorflow here"):
        check.elsewhere("./python", folder / "exports" / "run" / "1", pictures)


@pytest.mark.skipif(
    not OTHER, reason="DEIT_TF_OTHER_PYTHON names no interpreter with another TensorFlow"
)
def test_another_tensorflow_loads_it(folder):
    run, version = load_run(folder / "run"), folder / "exports" / "run" / "1"
    pictures = held_out(run, 16)
    answers = check.elsewhere(OTHER, version, pictures)
    expected = np.asarray(run.model(pictures.images))
    Console().print(f"TensorFlow {answers.pop('version')}")
    assert len(answers) == 4  # two signatures, two loaders
    for key, logits in answers.items():
        # other versions of the same kernels; 4e-7 was seen with 2.15.1
        np.testing.assert_allclose(logits, expected, atol=1e-4, err_msg=key)
