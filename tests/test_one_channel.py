"""Images that are not RGB: gray ones from training to the phone, and multispectral ones."""

import json

import numpy as np
import pytest
import tensorflow as tf

import deit_tf
from deit_tf.config import (
    AugmentConfig,
    DataConfig,
    DistillConfig,
    OptimConfig,
    StudentConfig,
    TrainConfig,
)
from deit_tf.evaluation.evaluate import evaluate
from deit_tf.evaluation.report import write_report
from deit_tf.exporting.litert import load_tflite
from deit_tf.runs import load_run
from deit_tf.train import train

GRAY = {"mean": (0.3,), "std": (0.4,)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A few steps on gray digits."""
    config = TrainConfig(
        model=StudentConfig("deit_test", image_size=16, depth=1),
        data=DataConfig("digits", batch_size=256, **GRAY),
        augment=AugmentConfig("none"),
        distill=DistillConfig(kind="none"),
        optim=OptimConfig(warmup_epochs=0),
        epochs=1,
        out=str(tmp_path_factory.mktemp("gray") / "run"),
    )
    return train(config)


def test_a_gray_run_is_evaluated_and_reported(run):
    student = load_run(run)
    assert student.model.input_shape == (None, 16, 16, 1) and student.processor.num_channels == 1
    assert evaluate(str(run))["images"] == 360
    page = write_report(run).read_text()
    assert "data:image/png" in page


def test_a_gray_run_becomes_a_saved_model(run, tmp_path):
    student = load_run(run)
    version = deit_tf.export_saved_model(
        student.model,
        tmp_path,
        processor=student.processor,
        labels=student.labels,
        images=student.samples[:4],
        batch_sizes=(1,),
    )
    described = json.loads((version / "assets.extra" / "model.json").read_text())
    assert described["num_channels"] == 1 and described["input"]["layout"] == "B, H, W, gray"
    serve = tf.saved_model.load(str(version)).signatures["serving_default"]
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    answers = serve(tf.constant([tf.io.encode_png(rgb).numpy()]))["logits"]
    expected = student.model(student.processor.batch([rgb]))
    np.testing.assert_allclose(answers, expected, atol=1e-5)  # two graphs of one float32 network


def test_a_gray_run_becomes_a_tflite_file(run, tmp_path):
    student = load_run(run)
    file = deit_tf.export_tflite(
        student.model,
        tmp_path / "gray.tflite",
        input_type="uint8",
        processor=student.processor,
        labels=student.labels,
        images=student.samples[:4],
    )
    described = json.loads((tmp_path / "gray.json").read_text())
    assert described["num_channels"] == 1 and described["mean"] == [0.3]
    assert described["input"]["layout"] == "1, H, W, gray"
    logits = load_tflite(tmp_path / "gray.tflite")(student.samples[:2], student.processor)
    np.testing.assert_allclose(logits, student.model(student.samples[:2]), atol=1e-4)
    assert file is not None
