"""One small model and its exports, for the tests of what is known about exports."""

import keras
import numpy as np
import pytest
from export_samples import CLASS_NAMES, HAS_ONNX, PROCESSOR

import deit_tf
from deit_tf.exporting.onnx_file import export_onnx
from deit_tf.exporting.saved_model import export_saved_model
from deit_tf.exporting.tflite import export_tflite


@pytest.fixture(scope="session")
def small_model():
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_test", num_classes=len(CLASS_NAMES), image_size=16, depth=1)
    for name in ("head", "head_dist"):  # fresh heads give logits of 0.1
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 20)
    return model


@pytest.fixture(scope="session")
def small_exports(small_model, tmp_path_factory):
    """`served/small/1`, `phone/small.tflite`, which takes pixels, and `onnx/small.onnx` where the
    packages are there."""
    folder = tmp_path_factory.mktemp("exports")
    options = {"processor": PROCESSOR, "labels": CLASS_NAMES}
    export_saved_model(small_model, folder / "served", name="small", batch_sizes=(1,), **options)
    export_tflite(small_model, folder / "phone" / "small.tflite", input_type="uint8", **options)
    if HAS_ONNX:
        export_onnx(small_model, folder / "onnx" / "small.onnx", **options)
    return folder


@pytest.fixture(scope="session")
def small_images():
    """Normalized images of whole gray levels, float32 [3, 16, 16, 3]."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    return PROCESSOR.normalize(pixels).numpy()
