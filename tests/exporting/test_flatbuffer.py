"""A .tflite file is read as it is, and changed to one that gives the same numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from deit_tf.exporting.flatbuffer import dequantize_pixels, op_counts
from deit_tf.exporting.quantize import quantize_int8
from deit_tf.exporting.tflite import convert, save_fixed_batch

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def casts(tmp_path_factory):
    """A float32 file that casts the pixels that it takes; the same in int8."""
    image = keras.Input(SHAPE)
    model = keras.Model(image, keras.layers.Dense(5)(keras.layers.Flatten()(image)))
    folder = tmp_path_factory.mktemp("casts")
    save_fixed_batch(
        model, lambda x: model(tf.cast(x, "float32") / 255), np.dtype("uint8"), str(folder)
    )
    content = convert(folder)
    return {"float32": content, "int8": quantize_int8(content, pixels(8))}


def pixels(count):
    return np.random.default_rng(count).integers(0, 256, (count, *SHAPE), np.uint8)


def outputs(content):
    interpreter = Interpreter(model_content=content)
    run = interpreter.get_signature_runner()
    return interpreter.get_input_details()[0], [run(images=each[None]) for each in pixels(3)]


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_pixels_are_dequantized_to_the_same_numbers(casts, variant):
    before = casts[variant]
    after = dequantize_pixels(before)
    assert "CAST" in op_counts(before) and "CAST" not in op_counts(after)
    (fed, expected), (fed_after, found) = outputs(before), outputs(after)
    assert fed["dtype"] == fed_after["dtype"] == np.uint8
    assert fed_after["quantization"] == (1.0, 0)  # a pixel means itself
    np.testing.assert_array_equal(
        [each["logits"] for each in found], [each["logits"] for each in expected]
    )
    assert dequantize_pixels(after) == after


def test_a_file_that_takes_no_pixels_stays_as_it_is(tmp_path):
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten()])
    save_fixed_batch(model, model, np.dtype("float32"), str(tmp_path))
    content = convert(tmp_path)
    assert dequantize_pixels(content) == content


def test_operations_are_counted_by_name(casts):
    counts = op_counts(casts["float32"])
    assert counts["FULLY_CONNECTED"] == 1 and sum(counts.values()) == len(
        Interpreter(model_content=casts["float32"])._get_ops_details()
    )
