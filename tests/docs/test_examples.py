"""The examples run, on tiny settings, and leave what they promise."""

import re
import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import deit_tf

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ("--model", "deit_test", "--image-size", "32", "--batch-size", "8", "--epochs", "1")
COLORS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def run(name, *arguments):
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir()
        for i in range(10):
            pixels = np.clip(np.array(color) + rng.normal(0, 20, (40, 48, 3)), 0, 255).astype(
                np.uint8
            )
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    keras.utils.set_random_seed(0)
    file = tmp_path_factory.mktemp("model") / "model.keras"
    deit_tf.create_model("deit_test", num_classes=3).save(file)
    return file


def test_finetune_folder(folder, model, tmp_path, capsys):
    given = ("--batch-size", 8, "--epochs", 1, "--weights", model)  # whose shape is in the file
    run("finetune_folder.py", folder, *given, "--out", tmp_path / "pets.keras")
    assert "3 classes: blue, green, red" in capsys.readouterr().out
    tuned, before = (keras.saving.load_model(file) for file in (tmp_path / "pets.keras", model))
    moved = np.abs(tuned.get_layer("head").kernel - before.get_layer("head").kernel).max()
    assert (
        0 < moved < 0.01
    )  # three steps at 1e-6 or so: from the weights given, and not where they were


def test_distill_your_teacher(folder, tmp_path):
    teacher = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=3, classifier_activation=None, alpha=0.35
    )
    teacher.save(tmp_path / "teacher.keras")
    half, out = ("0.5",) * 3, tmp_path / "student.keras"
    normalization = ("--mean", *half, "--std", *half)
    run(
        "distill_your_teacher.py",
        folder,
        tmp_path / "teacher.keras",
        *TINY,
        *normalization,
        "--out",
        out,
    )
    student = keras.saving.load_model(out)
    assert student.output_shape == (None, 3) and set(deit_tf.heads(student).output) == {
        "cls",
        "dist",
    }


def test_train_your_teacher(folder, tmp_path):
    run(
        "train_your_teacher.py",
        folder,
        "--batch-size",
        "8",
        "--epochs",
        "1",
        "--out",
        tmp_path / "teacher.keras",
    )
    network = keras.saving.load_model(tmp_path / "teacher.keras")
    network.trainable = False
    deit_tf.Teacher(network).check(classes=3, image_shape=(32, 32, 3))


def test_export_and_ask_server(folder, model, tmp_path, capfd):
    pictures = [folder / "red" / "0.png", folder / "blue" / "1.png"]
    run("export_and_ask_server.py", model, *pictures, "--out", tmp_path / "served")
    assert (tmp_path / "served" / "model" / "1" / "saved_model.pb").is_file()
    out = capfd.readouterr().out
    images = np.stack([deit_tf.ImageProcessor(32)(picture.read_bytes()) for picture in pictures])
    probabilities = np.asarray(keras.ops.softmax(keras.saving.load_model(model)(images)))
    for picture, row in zip(pictures, probabilities, strict=True):
        assert re.search(rf"{re.escape(str(picture))}\n +{row.max():.1%}  {row.argmax()}\n", out), (
            out
        )
    with pytest.raises(SystemExit, match="Not exported: .* Take the next `version`"):
        run("export_and_ask_server.py", model, *pictures, "--out", tmp_path / "served")
    (tmp_path / "note.png").write_text("no picture")
    with pytest.raises(SystemExit, match="1"):
        run(
            "export_and_ask_server.py",
            model,
            tmp_path / "note.png",
            "--out",
            tmp_path / "served",
            "--version",
            2,
        )
    assert (tmp_path / "served" / "model" / "2" / "saved_model.pb").is_file()
    assert "note.png is no picture that can be decoded" in capfd.readouterr().err


def test_retrieval(folder, model, capsys):
    run("retrieval.py", folder, model, "--k", "4")
    out = capsys.readouterr().out
    precision, chance = map(
        float, re.search(r"precision at 4: ([\d.]+) % .* chance ([\d.]+) %", out).groups()
    )
    assert chance == pytest.approx(100 * 9 / 29, abs=0.05)  # of 29 others 9 are of the same class
    assert precision > 90  # plain colors: any projection of the patches tells them apart


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_they_are_short(path):
    assert len(path.read_text().splitlines()) <= 65
