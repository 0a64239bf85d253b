"""`model.name: keras:NAME`, a convnet of keras.applications as student, through the commands.

A few layers stand in for a network of keras.applications; one slow test has a real one.
"""

import json
import re
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from deit_tf.cli import main
from deit_tf.data import ImageProcessor
from deit_tf.evaluation.predict import open_model
from deit_tf.runs import load_run
from deit_tf.zoo import create_application

SMALL = ["--data.source", "digits", "--data.batch_size", "256", "--augment.recipe", "none"]
STUDENT = ["train", *SMALL, "--model.name", "keras:MobileNetV3Small", "--model.image_size", "32"]
ALONE = ["--distill.kind", "none", "--optim.warmup_epochs", "0", "--optim.lr", "1e-2"]


def tiny(include_top, weights, pooling, input_shape):
    """As MobileNetV3Small, which normalizes pixels itself."""
    assert (include_top, pooling) == (False, "avg")
    if input_shape[0] < 32:
        raise ValueError(f"Input size must be at least 32x32; Received: {input_shape}")
    if weights == "imagenet":
        keras.utils.set_random_seed(9)
    image = keras.Input(input_shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = keras.layers.Conv2D(12, 4, strides=4, activation="relu")(x)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)  # of few steps
    x = keras.layers.Dropout(0.1)(x)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(x), name="trunk")


@pytest.fixture(scope="module")
def tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, "MobileNetV3Small", tiny)
        yield


@pytest.fixture(scope="module")
def run(tiny_network, tmp_path_factory):
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "convnet"
    main([*STUDENT, *ALONE, "--epochs", "2", "--out", str(folder)])
    return folder


def test_it_trains_with_its_own_preprocessing(run):
    network = load_run(run).model
    assert network.output_shape == (None, 10) and network.name == "MobileNetV3Small"
    # pixels 0 and 255, normalized by the run, reach the network as such
    processor = load_run(run).processor
    edges = np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)])
    inside = keras.Model(network.inputs, network.get_layer("renormalize").output)
    expected = edges.astype("float32")
    np.testing.assert_allclose(inside(processor.normalize(edges)), expected, atol=1e-3)  # of 255
    # The last epoch has learned something: ten classes, drawn by chance 10 %.
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["val_accuracy"] > 0.15


def test_every_command_takes_its_run(run, tmp_path, capsys):
    main(["evaluate", str(run), "--json"])
    figures = json.loads(capsys.readouterr().out)
    stored = json.loads((run / "summary.json").read_text())
    assert figures["top1"] == pytest.approx(stored["evaluation"]["accuracy"], abs=1e-6)
    assert "top1_cls" not in figures

    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "black.png")
    main(["predict", str(run), str(tmp_path / "black.png"), "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert sum(each["probability"] for each in answer["classes"]) <= 1

    main(["report", str(run)])
    page = (run / "report.html").read_text()
    assert "MobileNetV3Small" in page and "attention rollout" not in page.lower()


def test_its_exports_are_checked(run, tmp_path, capsys):
    main(["export", "saved-model", str(run), "--out", str(tmp_path), "--pictures", "4"])
    main(["export", "tflite", str(run), "--out", str(tmp_path), "--pictures", "4"])
    main(["export", "check", str(run), "--exports", str(tmp_path), "--pictures", "4"])
    assert capsys.readouterr().out.count("agrees") == 3
    opened = open_model(str(tmp_path / "convnet" / "1"))
    assert list(opened.predict(np.zeros((1, 32, 32, 3), "float32"))) == ["mean"]


def test_what_it_has_not_is_refused_in_a_line(run, tmp_path, capsys):
    for command, message in (
        (["convert", str(run), "--out", str(tmp_path / "out")], "a DeiT or RegNetY"),
        (["export", "saved-model", str(run), "--out", str(tmp_path), "--rollout"], "takes a DeiT"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(command)
        shown = capsys.readouterr().err
        assert stop.value.code == 2 and message in shown and shown.strip().count("\n") == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model.depth", "4"], "model.depth=4"),
        (["--model.patch_size", "8", "--model.remat", "true"], "model.patch_size=8, model.remat"),
        (["--model.drop_path_rate", "0.2"], "model.drop_path_rate=0.2"),
        (["--model.trainable", "attention"], "model.trainable='attention'"),
        (["--distill.kind", "none", "--distill.train_heads", "cls"], "distill.train_heads='cls'"),
        (["--optim.layer_decay", "0.7"], "optim.layer_decay=0.7"),
        (["--task", "masked"], "task='masked'"),
        (["--data.mean", "[0.5]", "--data.std", "[0.2]"], "takes RGB images"),
        (["--model.name", "keras:ResNet51", *ALONE], "no network 'ResNet51'"),
        (["--model.image_size", "8", *ALONE], "images of 8 x 8 pixels.*at least 32x32"),
        (["--model.weights", "nowhere.keras", *ALONE], "nowhere.keras is no .keras file"),
    ],
)
def test_refusals(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main([*STUDENT, *arguments, "--out", str(tmp_path / "run")])
    shown = capsys.readouterr().err
    assert re.search(message, shown), shown
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_goes_on_with_the_same_bits(run, tiny_network, tmp_path):
    """Also with what Keras's own dropout draws next: as if killed in the second epoch."""
    stopped = shutil.copytree(run, tmp_path / "stopped")
    for name in ("summary.json", "student.keras"):
        (stopped / name).unlink()
    *_, last = sorted((stopped / "checkpoints").glob("*.safetensors"))
    last.unlink()

    main([*STUDENT, *ALONE, "--epochs", "2", "--out", str(stopped)])
    for ours, theirs in zip(
        *(load_run(each).model.weights for each in (stopped, run)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_of_another_run_are_taken(run, tiny_network):
    options = {"num_classes": 10, "processor": ImageProcessor(32)}
    trained = load_run(run).model
    again = create_application("MobileNetV3Small", weights=run, **options)
    for ours, theirs in zip(again.weights, trained.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    others = create_application("MobileNetV3Small", weights=run, **{**options, "num_classes": 3})
    np.testing.assert_array_equal(others.weights[0], trained.weights[0])
    assert others.output_shape == (None, 3)


def test_weights_of_another_network_are_refused(tiny_network, tmp_path):
    keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()]).save(tmp_path / "o.keras")
    with pytest.raises(ValueError, match="must hold a keras:MobileNetV3Small"):
        create_application(
            "MobileNetV3Small",
            num_classes=10,
            processor=ImageProcessor(32),
            weights=tmp_path / "o.keras",
        )


def test_a_real_network_learns_from_a_teacher(tmp_path):
    teacher = ["train-teacher", *SMALL, "--teacher.name", "resnet8", "--teacher.epochs", "1"]
    main([*teacher, "--model.image_size", "32", "--out", str(tmp_path / "teacher")])
    student = [*STUDENT, *ALONE, "--distill.kind", "hard", "--epochs", "1"]
    student += ["--model.name", "keras:MobileNetV2", "--distill.teacher", str(tmp_path / "teacher")]
    run = tmp_path / "student"
    main([*student, "--out", str(run)])
    # That of keras.applications without its top, and a head of ten classes on 1280 channels.
    assert load_run(run).model.count_params() == 2_257_984 + 1280 * 10 + 10
    main(["export", "tflite", str(run), "--out", str(tmp_path / "m.tflite"), "--pictures", "8"])
