"""Exports of a run: made on its own pictures, opened again with what they know of themselves."""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image

import deit_tf
from deit_tf.cli import main
from deit_tf.config import DataConfig, StudentConfig, TrainConfig
from deit_tf.data.folders import hold_out, scan
from deit_tf.evaluation import exports
from deit_tf.evaluation.evaluate import evaluate
from deit_tf.evaluation.exports import (
    export_run_saved_model,
    export_run_tflite,
    ops_text,
    saved_model_text,
    tflite_table,
    untried_text,
)
from deit_tf.evaluation.predict import open_model
from deit_tf.exporting.formats import find_export
from deit_tf.exporting.saved_model import export_saved_model, load_saved_model
from deit_tf.exporting.tflite import VARIANTS, export_tflite
from deit_tf.runs import load_run, write_config

NAMES = ("ant", "bee", "cat")
# Far from the original's, so that a wrong guess shows.
DATA = DataConfig(
    "nowhere", mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5), crop_ratio=1.0, batch_size=8
)
CONFIG = TrainConfig(model=StudentConfig("deit_test", image_size=16), data=DATA)


def photos(folder, count=6):
    """Pictures of three classes whose colors tell them apart, `count` of each."""
    random = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (20, 28, 3))
            pixels[..., number] //= 2
            Image.fromarray(np.uint8(pixels)).save(folder / name / f"{i}.png")
    return folder


def write_run(folder, config, names=NAMES):
    """A run that was never trained, with logits that count."""
    folder.mkdir()
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_test", num_classes=len(names), image_size=16, depth=1)
    for name in ("head", "head_dist"):
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 40)
    model.save(folder / "student.keras")
    write_config(replace(config, out=str(folder)), folder / "config.yaml")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on photographs, and its exports elsewhere, made by the functions of the command."""
    root = tmp_path_factory.mktemp("made")
    photos(root / "photos")
    data = replace(DATA, source=str(root / "photos"))
    run = write_run(root / "run", replace(CONFIG, data=data))
    export_run_saved_model(str(run), str(root / "served"), version=2)
    export_run_tflite(str(run), str(root / "phone"), variants=["float32"], input_type="uint8")
    return root


FORMS = ["served/run/2", "served/run", "phone/run_float32_uint8.tflite"]


@pytest.mark.parametrize("form", FORMS)
def test_an_export_opens_with_what_it_was_exported_with(made, form, caplog):
    """Far from its run, from the folder of its versions as well: it was right on 47.91 % of the
    pictures where the run, REST and gRPC are on 53.66 %."""
    run, opened = load_run(made / "run"), open_model(str(made / form))
    assert opened.labels == NAMES and not opened.assumed and opened.config is None
    assert "assumed" not in caplog.text
    pictures = sorted((made / "photos").rglob("*.png"))
    images = opened.processor.batch(pictures)
    np.testing.assert_array_equal(images, run.processor.batch(pictures))
    np.testing.assert_allclose(opened.predict(images)["mean"], run.model(images), atol=1e-4)


def test_every_form_is_right_as_often_as_its_run(made):
    photos_of_all = str(made / "photos")
    expected = evaluate(str(made / "run"), source=photos_of_all)
    assert 0 < expected["top1"] < 1
    for form in FORMS:
        figures = evaluate(str(made / form), source=photos_of_all)
        assert (figures["top1"], figures["protocol"]) == (expected["top1"], "own")
        assert figures["preprocessing"] == expected["preprocessing"]


def test_an_onnx_file_of_a_run(made, capsys):
    """By the command, then as `predict` and `evaluate` take it, far from its run."""
    pytest.importorskip("tf2onnx", reason="pip install 'deit_tf[onnx]'")
    main(["export", "onnx", str(made / "run"), "--out", str(made / "onnx"), "--pictures", "6"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "on 3 held-out images" in shown and "run.onnx" in shown and "3/3" in shown
    file, source = str(made / "onnx" / "run.onnx"), str(made / "photos")
    opened = open_model(file)
    assert opened.labels == NAMES and not opened.assumed
    assert set(opened.predict(np.zeros((2, 16, 16, 3), np.float32))) == {"mean", "cls", "dist"}
    expected = evaluate(str(made / "run"), source=source)
    assert evaluate(file, source=source)["top1"] == expected["top1"]


def test_an_older_run_is_evaluated_on_what_it_held_out(tmp_path):
    """Its folder was split by another rule, by which it has not trained on others."""
    source = photos(tmp_path / "photos", count=15)
    run = write_run(tmp_path / "run", replace(CONFIG, data=replace(DATA, source=str(source))))
    (run / "facts.json").write_text("{}")
    held_out = load_run(run).sources[1]
    by_threshold = hold_out(scan(source), DATA.holdout)[1]
    assert held_out.size != sum(map(len, by_threshold.values()))
    assert evaluate(str(run))["images"] == held_out.size


def test_an_old_saved_model_opens_and_says_what_is_assumed(made, tmp_path, caplog):
    """One without a sidecar, and with the class names of its graph."""
    version = shutil.copytree(made / "served" / "run" / "2", tmp_path / "run" / "1")
    (version / "assets.extra" / "model.json").unlink()
    opened = open_model(str(tmp_path / "run"))
    assert opened.assumed and opened.labels == NAMES
    assert (
        "does not say what images it expects: the original's preprocessing is assumed, short"
        in (" ".join(caplog.text.split()))
    )
    figures = evaluate(str(tmp_path / "run"), source=str(made / "photos"))
    assert figures["protocol"] == "assumed"

    caplog.clear()
    opened = open_model(str(tmp_path / "run"), run=str(made / "run"))
    assert not opened.assumed and "assumed" not in caplog.text
    assert opened.processor == load_run(made / "run").processor


def test_an_export_is_not_taken_for_that_of_the_run_it_lies_in(made, tmp_path):
    other = write_run(tmp_path / "other", CONFIG, names=("x", "y", "z"))
    for form in ("served/run", "phone"):
        shutil.copytree(made / form, other / form)
    for form in FORMS:
        opened = open_model(str(other / form))
        assert opened.labels == NAMES
        assert opened.processor.mean == DATA.mean
        assert opened.config is not None  # where its data is, the run around it tells


def test_an_old_export_in_a_run_takes_the_runs_word_and_says_so(made, tmp_path, caplog):
    run = shutil.copytree(made / "run", tmp_path / "run")
    version = shutil.copytree(made / "served" / "run" / "2", run / "export" / "1")
    (version / "assets.extra" / "model.json").unlink()
    opened = open_model(str(version))
    assert opened.processor == load_run(run).processor and not opened.assumed
    assert "those of the run that it lies in, run, are assumed" in " ".join(caplog.text.split())


def test_a_run_that_is_named_wins_with_a_warning(made, tmp_path, caplog):
    data = replace(DATA, mean=(0.5, 0.5, 0.5))
    other = write_run(tmp_path / "other", replace(CONFIG, data=data), names=("x", "y", "z"))
    opened = open_model(str(made / "served" / "run"), run=str(other))
    assert opened.processor.mean == (0.5, 0.5, 0.5) and opened.labels == ("x", "y", "z")
    assert "was exported for other images than" in caplog.text


def test_a_file_without_a_run_knows_less_than_the_export(made, tmp_path, caplog):
    shutil.copy(made / "run" / "student.keras", tmp_path / "m.keras")
    opened = open_model(str(made / "served" / "run"), run=str(tmp_path / "m.keras"))
    assert opened.processor.mean == DATA.mean and opened.labels == NAMES


def test_pixels_go_to_a_file_as_they_are_whatever_normalizes_them(made, tmp_path):
    """A file that takes pixels, under another run's mean and deviation, or under none known."""
    pictures = sorted((made / "photos").rglob("*.png"))
    run = load_run(made / "run")
    expected = np.asarray(run.model(run.processor.batch(pictures)))
    data = replace(DATA, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    other = write_run(tmp_path / "other", replace(CONFIG, data=data))
    alone = shutil.copy(made / FORMS[2], tmp_path / "alone.tflite")
    for opened in (
        open_model(str(made / FORMS[2]), run=str(other)),
        replace(
            open_model(str(alone)),
            processor=replace(open_model(str(alone)).processor, crop_ratio=1.0),
        ),
    ):
        logits = opened.predict(opened.processor.batch(pictures))["mean"]
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_what_does_not_fit_the_export_is_refused(made, tmp_path):
    large = replace(CONFIG, model=StudentConfig("deit_test"))
    folder = tmp_path / "large"
    folder.mkdir()
    deit_tf.create_model("deit_test", num_classes=3).save(folder / "student.keras")
    write_config(replace(large, out=str(folder)), folder / "config.yaml")
    (folder / "labels.txt").write_text("a\nb\nc\n")
    four = write_run(tmp_path / "four", CONFIG, names=("a", "b", "c", "d"))
    for form in FORMS:
        with pytest.raises(ValueError, match=r"takes images of \(16, 16\) pixels"):
            open_model(str(made / form), run=str(folder))
        with pytest.raises(ValueError, match="has 3 classes, and what describes it names 4"):
            open_model(str(made / form), run=str(four))


def test_a_damaged_description_is_one_error_and_never_a_guess(made, tmp_path):
    for form, json_file in ((FORMS[0], "assets.extra/model.json"), (FORMS[2], None)):
        copy = tmp_path / str(len(form))
        shutil.copytree((made / form) if json_file else (made / form).parent, copy)
        path = copy if json_file else copy / "run_float32_uint8.tflite"
        described, _ = find_export(path).format.described(path)
        described.write_text("[]")
        with pytest.raises(ValueError, match=f"{described} must hold a JSON object"):
            open_model(str(path))


def test_a_bare_model_is_exported_with_a_warning(made, tmp_path, caplog):
    """What is assumed goes into the graph, where nobody sees it. Class names come from a file."""
    model, names = tmp_path / "m.keras", tmp_path / "names.txt"
    shutil.copy(made / "run" / "student.keras", model)
    names.write_text("Ameise\nBär\nKatze\n", encoding="utf-8")
    version = export_run_saved_model(str(model), str(tmp_path / "served"), labels=str(names))
    assert "the original's preprocessing is assumed" in (" ".join(caplog.text.split()))
    assert "on noise" in saved_model_text(version)
    assert load_saved_model(version).class_names == ("Ameise", "Bär", "Katze")
    assert find_export(version).sidecar().class_names == ("Ameise", "Bär", "Katze")


def test_a_run_is_exported_without_one_and_a_version_only_once(made, caplog):
    with pytest.raises(FileExistsError, match="exists and is left as it is"):
        export_run_saved_model(str(made / "run"), str(made / "served"), version=2)
    assert "assumed" not in caplog.text


def test_a_saved_model_in_words(made, tmp_path):
    text = saved_model_text(made / "served" / "run" / "2")
    assert "on 3 held-out images" in text and "9 warm-up records replayed" in text
    assert [line.split()[0] for line in text.splitlines()[2:5]] == [
        "serving_default",
        "images",
        "heads",
    ]


def test_variants_are_compared_timed_and_told(made, tmp_path, monkeypatch):
    limits = replace(VARIANTS["float16"].limits, relative_rms=1e-9)
    monkeypatch.setitem(VARIANTS, "float16", replace(VARIANTS["float16"], limits=limits))
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, "none.json")
    files = export_run_tflite(
        str(made / "run"), str(tmp_path / "phone"), variants=["float32", "float16"]
    )
    assert list(files.reports) == ["float32"] and files.pictures == 3
    assert "relative_rms" in files.failures["float16"]
    names = [
        "labels.txt",
        "run_float16.tflite.rejected",
        "run_float32.check.json",
        "run_float32.json",
        "run_float32.tflite",
    ]
    assert sorted(path.name for path in (tmp_path / "phone").iterdir()) == names
    latency = json.loads((tmp_path / "phone" / names[3]).read_text())["verified"]["latency"]
    assert latency["of_float32"] > 0 and latency["threads"] == 1
    table = tflite_table(files)
    assert "on 3 held-out images" in table.title and table.row_count == 1
    cells = {column.header: next(iter(column.cells)) for column in table.columns}
    assert cells["CPU"].startswith("whole, ") and cells["GPU"] == "untried: whole"
    assert "no GPU adapter was found" in untried_text(files)
    assert "SOFTMAX 1" in ops_text(files)


def test_the_float32_file_is_made_once(made, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "converted", None)  # what makes another one, to time against
    files = export_run_tflite(str(made / "run"), str(tmp_path / "phone"))
    assert files.times["float32"]["of_float32"] > 0


def test_files_that_cannot_be_timed_are_kept(made, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no clock")

    monkeypatch.setattr(exports, "latencies", fail)
    files = export_run_tflite(str(made / "run"), str(tmp_path / "phone"))
    assert list(files.reports) == ["float32"] and not files.failures
    assert (tmp_path / "phone" / "run_float32.tflite").is_file()
    assert "could not be timed: no clock" in caplog.text
    assert tflite_table(files).title.endswith("not timed")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"out": "a.tflite", "variants": ["float32", "float16"]}, "`--out` must be a folder"),
        ({"variants": ["int4"]}, "`variant` is one of"),
        ({"threads": 0}, "`--threads` counts from 1"),
        ({"pictures": 0}, "`--pictures` counts from 1"),
    ],
)
def test_what_cannot_be_asked_for(made, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_run_tflite(str(made / "run"), **{"out": str(tmp_path / "phone"), **arguments})
    assert list(tmp_path.iterdir()) == []


def test_the_model_in_bfloat16_is_compared_in_float32(tmp_path):
    """The report as the check: what is exported computes in float32."""
    from deit_tf.evaluation.findings import Findings
    from deit_tf.files import write_json

    source = photos(tmp_path / "photos")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        run = write_run(tmp_path / "run", replace(CONFIG, data=replace(DATA, source=str(source))))
        numbers = dict.fromkeys(("parameters", "training_seconds", "evaluation_images"), 1)
        summary = {"kind": "none", "model": "deit_test", "evaluation": {}, **numbers}
        write_json(summary, run / "summary.json")
        (run / "metrics.jsonl").write_text("")
        loaded = load_run(run)
    finally:
        keras.config.set_dtype_policy("float32")
    assert loaded.model.get_layer("blocks.0").compute_dtype == "bfloat16"
    described = {"processor": loaded.processor, "labels": NAMES}
    export_saved_model(loaded.model, run / "served", name="m", batch_sizes=(1,), **described)
    export_tflite(loaded.model, run / "m.tflite", **described)
    (run / "foreign.tflite").write_bytes((run / "m.tflite").read_bytes())
    shutil.copy(run / "m.tflite", run / "wrong.tflite")
    shutil.copy(run / "m.json", run / "wrong.json")
    content = json.loads((run / "wrong.json").read_text()) | {"mean": [0.5, 0.5, 0.5]}
    (run / "wrong.json").write_text(json.dumps(content))

    foreign, lite, saved, wrong = Findings(run).artifacts

    for artifact in (saved, lite):
        assert artifact.deviation["max_difference"] < artifact.allowed == 1e-4
        assert not artifact.error
    assert foreign.allowed is None and foreign.deviation["max_difference"] < 1e-4
    assert wrong.deviation and "exported for other images" in wrong.error
