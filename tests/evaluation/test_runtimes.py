"""A run's pictures by another runtime than Keras: made once, checked, and the same answers."""

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import deit_tf
from deit_tf.cli import main, parsers
from deit_tf.evaluation import runtimes
from deit_tf.evaluation.predict import predict_files
from deit_tf.evaluation.runtimes import FEW, runtime_path
from deit_tf.exporting.compare import ExportError

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model with class names beside it, and a picture."""
    folder = tmp_path_factory.mktemp("runtimes")
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_test", num_classes=3, image_size=16, depth=1)
    for name in ("head", "head_dist"):  # fresh heads are right by chance
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 20)
    model.save(folder / "student.keras")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


@pytest.fixture
def model(made, tmp_path, monkeypatch):
    monkeypatch.setenv("DEIT_TF_CACHE", str(tmp_path / "cache"))
    return f"{made}/student.keras"


def answers(made, model, runtime):
    (answer,) = predict_files(model, [f"{made}/picture.png"], top=3, runtime=runtime)
    return {found["label"]: found["probability"] for found in answer["classes"]}


@pytest.mark.parametrize("runtime", ["litert", "savedmodel"])
def test_each_runtime_answers_as_keras_and_is_made_once(made, model, monkeypatch, runtime):
    expected = answers(made, model, "keras")
    assert answers(made, model, runtime) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(runtimes, "_export", lambda *_: pytest.fail("made again"))
    assert answers(made, model, runtime) == pytest.approx(expected, abs=1e-5)


def test_litert_is_taken_for_few_pictures_where_it_is_whole(model):
    assert runtime_path(model, None, 1) == model
    file = Path(runtime_path(model, "litert", 1000))
    assert runtime_path(model, None, FEW) == str(file)
    assert runtime_path(model, None, FEW + 1) == runtime_path(model, "keras", 1) == model

    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")  # damaged: not taken, and made anew where it is asked for
    assert runtime_path(model, None, 1) == model
    assert runtime_path(model, "litert", 1) == str(file) and file.read_bytes() == whole


def test_another_model_or_other_class_names_get_an_export_of_their_own(made, model):
    before = runtimes._key(model)
    names = made / "labels.txt"
    content = names.read_text()
    names.write_text("a\nb\nc\n")
    assert runtimes._key(model) != before
    names.write_text(content)
    assert runtimes._key(model) == before


def test_one_that_differs_is_not_kept(model, monkeypatch):
    def differs(*_):
        raise ExportError("logits differ")

    monkeypatch.setattr(runtimes, "_export", differs)
    with pytest.raises(ExportError, match="logits differ"):
        runtime_path(model, "litert", 1)
    assert runtime_path(model, None, 1) == model


def test_the_command_knows_them_all():
    assert parsers.RUNTIMES == runtimes.Runtime


def test_an_export_has_its_own(made, tmp_path, capsys):
    (tmp_path / "student.tflite").write_bytes(b"whatever")
    with pytest.raises(ValueError, match="for a run or a .keras file; .* is neither"):
        runtime_path(str(tmp_path / "student.tflite"), "litert", 1)
    with pytest.raises(ValueError, match="`runtime` is keras, savedmodel, litert. Received: 'tpu'"):
        runtime_path("anything", "tpu", 1)
    with pytest.raises(SystemExit) as stop:
        main(["predict", "nowhere", f"{made}/picture.png", "--runtime", "tpu"])
    assert stop.value.code == 2 and "tpu" in capsys.readouterr().err
