"""The numbers beside a .tflite file are what an app finds that was written from the page alone."""

import hashlib
import json

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

import deit_tf
from deit_tf.exporting.accelerators import compile_for
from deit_tf.exporting.app_check import FORMULA
from deit_tf.exporting.tflite import export_tflite

SIZE = (32, 48)
PROCESSOR = deit_tf.ImageProcessor(
    SIZE, crop_ratio=0.875, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
)


@pytest.fixture(scope="module", params=["float32", "uint8"])
def numbers(request, tmp_path_factory):
    """A file, and the numbers beside it."""
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_test", num_classes=10, image_size=SIZE, depth=1)
    for name in ("head", "head_dist"):  # fresh heads give logits of 0.1
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 20)
    file = tmp_path_factory.mktemp("app") / "m.tflite"
    export_tflite(model, file, input_type=request.param, processor=PROCESSOR)
    return file, json.loads(file.with_name("m.check.json").read_text())


def picture(height, width):
    """What an app makes of the formula: loops, and no line of the package's."""
    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            for c in range(3):
                t = (3 * y + 5 * x + 85 * c) % 512
                pixels.append(min(t, 511 - t))
    return bytes(pixels)


def test_the_picture_is_the_formula(numbers):
    _, told = numbers
    assert (
        told["picture"]
        == FORMULA
        == ("pixel[y, x, c] = min(t, 511 - t), t = (3 y + 5 x + 85 c) mod 512")
    )
    pixels = picture(told["input"]["height"], told["input"]["width"])
    assert hashlib.sha256(pixels).hexdigest() == told["input"]["pixels_sha256"]


def test_an_app_finds_the_logits(numbers):
    """By the old API and the new one; with other ways of feeding it, it does not."""
    file, told = numbers
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    pixels = np.frombuffer(picture(*SIZE), np.uint8).reshape(1, *SIZE, 3)

    interpreter = Interpreter(model_path=str(file))
    fed = pixels
    if interpreter.get_input_details()[0]["dtype"] == np.float32:
        described = json.loads(file.with_suffix(".json").read_text())
        fed = (pixels / np.float32(255) - np.float32(described["mean"])) / np.float32(
            described["std"]
        )
    np.testing.assert_allclose(fed.ravel()[:12], told["input"]["first"], rtol=1e-5)

    run = interpreter.get_signature_runner()
    expected, allowed = told["output"]["first_logits"], told["output"]["largest_difference"]["cpu"]
    for logits in (run(images=fed)["logits"][0], compile_for(file, "cpu", fed).logits[0]):
        assert np.abs(logits - expected).max() < allowed
        assert logits.argmax() == told["output"]["class"]

    for wrong in (fed[..., ::-1], fed[:, ::-1]):  # BGR; upside down
        assert np.abs(run(images=wrong)["logits"][0] - expected).max() > 5 * allowed


def test_an_app_finds_the_pixels(numbers):
    """Pillow stands for the app's own resizing."""
    told = numbers[1]["preparation"]
    height, width = told["from_height"], told["from_width"]
    image = Image.frombytes("RGB", (width, height), picture(height, width))
    rows, columns = json.loads(numbers[0].with_suffix(".json").read_text())["resize_to"]
    resized = image.resize((columns, rows), Image.BICUBIC)
    top, left = (resized.height - SIZE[0]) // 2, (resized.width - SIZE[1]) // 2
    found = np.asarray(resized.crop((left, top, left + SIZE[1], top + SIZE[0])), int)
    assert len(told["pixels"]) == 9
    for each in told["pixels"]:
        off = np.abs(found[each["y"], each["x"]] - each["rgb"]).max()
        assert off <= told["largest_difference"]


def test_without_a_processor_there_are_none(numbers, tmp_path):
    """And none of an earlier file stay."""
    image = keras.Input((*SIZE, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    file = tmp_path / "m.tflite"
    export_tflite(model, file, processor=PROCESSOR)
    assert file.with_name("m.check.json").exists()
    export_tflite(model, file)
    assert not file.with_name("m.check.json").exists()
