"""The comparison of every artifact on the same pictures: it agrees where they do, and fails where
one does not."""

import os
import runpy
import shutil
from argparse import Namespace
from pathlib import Path

import check
import keras
import numpy as np
import pytest
import yaml
from grpc_api import serve_grpc
from pictures import held_out, training
from rich.console import Console
from versions import Models

import deit_tf
from deit_tf.config import DataConfig
from deit_tf.data import open_sources, sample
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.tflite import export_tflite
from deit_tf.runs import Run, load_run

SCRIPT = Path(check.__file__)
# Names an interpreter with TensorFlow 2.15 (requirements-tfa.txt); serving fleets lag.
OTHER = os.environ.get("DEIT_TF_OTHER_PYTHON")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on the digits, untrained but with logits that count, and its exports."""
    root = tmp_path_factory.mktemp("check")
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_test", num_classes=10, image_size=16)
    for name in ("head", "head_dist"):
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 20)
    run = root / "run"
    run.mkdir()
    model.save(run / "student.keras")
    config = {
        "model": {"name": "deit_test", "image_size": 16},
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


def test_a_run_in_bfloat16_agrees_with_its_exports(tmp_path):
    """What is exported computes in float32, and so does what it is compared with."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = deit_tf.create_model("deit_test", num_classes=10, image_size=16)
    keras.config.set_dtype_policy("float32")
    run = Run("student", model, deit_tf.ImageProcessor(16, crop_ratio=1.0), None, None)
    pictures = held_out(run, 8, "digits")
    export_tflite(model, tmp_path / "student.tflite", images=pictures.images)
    answers = list(
        check.found(Namespace(exports=[tmp_path], python=None, server=None), run, pictures)
    )
    rows, good = check.compare(run, pictures, answers)
    assert good and len(rows) == 2


def test_pictures_of_which_none_decodes(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(b"no picture")
    arguments = ["--exports", folder / "exports", "--source", tmp_path / "photos"]
    assert "no image that can be decoded" in run_script(monkeypatch, folder / "run", *arguments)


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


def run_script(monkeypatch, *arguments):
    """Exit status, or message, of the script."""
    monkeypatch.setattr("sys.argv", [str(argument) for argument in (SCRIPT, *arguments)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return exit_.value.code


def rows(printed):
    """Cells of the table's rows, whose first column is not a continuation."""
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_everything_agrees(folder, server, monkeypatch, capsys):
    arguments = [
        "--exports",
        folder / "exports",
        "--server",
        server,
        "--model",
        "run",
        "--pictures",
        40,
    ]
    assert not run_script(monkeypatch, folder / "run", *arguments)
    table = rows(capsys.readouterr().out)
    assert [row[0] for row in table] == [
        "Keras",
        "exports/run/1, serving_default",
        "exports/run/1, images",
        "exports/dynamic_int8.tflite",
        "exports/float32.tflite",
        "server, serving_default",
        "server, images",
    ]
    assert {row[-1] for row in table[1:]} == {"agrees"}
    assert {row[5].split()[0] for row in table[1:] if "int8" not in row[0]} == {"40/40"}
    assert len({row[8] for row in table if "int8" not in row[0]}) == 1  # the same accuracy


def test_another_model_disagrees(folder, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    model = keras.models.load_model(run / "student.keras")
    bias = model.get_layer("head").bias
    bias.assign_add(np.linspace(0, 0.1, 10))
    model.save(run / "student.keras")
    assert run_script(monkeypatch, run, "--exports", folder / "exports", "--pictures", 8) == 1
    # 0.05 on the logits: too much for float32, within the limit of eight bits
    verdicts = {row[0]: row[-1] for row in rows(capsys.readouterr().out)[1:]}
    assert set(verdicts.values()) == {"DISAGREES", "agrees"}
    assert verdicts["exports/dynamic_int8.tflite"] == "agrees"


def test_what_does_not_answer_is_a_row(folder, tmp_path, monkeypatch, capsys):
    exports = shutil.copytree(folder / "exports", tmp_path / "exports")
    (exports / "run" / "1" / "saved_model.pb").write_bytes(b"broken")
    (exports / "float32.json").unlink()
    arguments = ["--exports", exports, "--server", "localhost:9", "--pictures", 4]
    assert run_script(monkeypatch, folder / "run", *arguments) == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILS") == 5 and printed.count("agrees") == 1


def test_nothing_to_compare(folder, tmp_path, monkeypatch):
    assert "Nothing to compare" in run_script(monkeypatch, folder / "run", "--exports", tmp_path)
    assert "no folder" in run_script(monkeypatch, folder / "run", "--exports", tmp_path / "nothing")
    shutil.copy(folder / "run" / "student.keras", tmp_path / "m.keras")
    assert "not at hand" in run_script(
        monkeypatch, tmp_path / "m.keras", "--exports", folder / "exports"
    )


def test_pictures_come_from_all_over_the_data(folder):
    run = load_run(folder / "run")
    some, others = held_out(run, 50), training(run, 50)
    assert len(some.images) == len(some.encoded) == 50
    assert len(set(some.labels)) == len(set(others.labels)) == 10
    assert not set(some.encoded) & set(others.encoded)
    np.testing.assert_array_equal(some.images[3], run.processor(some.encoded[3]))
    assert len(held_out(run, 10**6).images) == 360  # all there are


def test_another_interpreter_that_fails_is_told(folder, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no tensorflow here >&2\nexit 3\n")
    script.chmod(0o755)
    pictures = held_out(load_run(folder / "run"), 2)
    with pytest.raises(ExportError, match="no tensorflow here"):
        check.elsewhere(str(script), folder / "exports" / "run" / "1", pictures)


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
