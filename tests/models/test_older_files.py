"""`.keras` files of earlier versions load, and give what they gave.

They were made by tests/golden/make_older_files.py.
"""

from pathlib import Path

import keras
import numpy as np

import deit_tf
from deit_tf.models.older import keep_axes

GOLDEN = Path(__file__).parents[1] / "golden"
# The same arithmetic in another order: float32 rounding of outputs of order 0.1.
TOLERANCE = 1e-6


def older():
    with np.load(GOLDEN / "older_files.npz") as file:
        return dict(file)


def test_a_student_with_slices_that_drop_an_axis():
    arrays = older()
    model = keras.saving.load_model(GOLDEN / "older_student.keras")
    np.testing.assert_allclose(model(arrays["image"]), arrays["logits"], atol=TOLERANCE)
    both = deit_tf.heads(model)(arrays["image"])
    np.testing.assert_allclose((both["cls"] + both["dist"]) / 2, arrays["logits"], atol=TOLERANCE)


def test_a_masked_model():
    arrays = older()
    model = keras.saving.load_model(GOLDEN / "older_masked.keras")
    inputs = {"image": arrays["image"], "mask": arrays["mask"]}
    np.testing.assert_allclose(model(inputs), arrays["reconstruction"], atol=TOLERANCE)
    assert type(model) is type(deit_tf.create_model("deit_test"))  # it was a class of its own
    trainer = deit_tf.MaskedTrainer(model)
    trainer.compile("sgd")
    assert np.isfinite(trainer.fit(inputs, verbose=0).history["loss"]).all()


def test_slices_keep_their_axis():
    arrays = older()
    model = keras.saving.load_model(GOLDEN / "older_student.keras")
    today = keep_axes(model)
    np.testing.assert_allclose(today(arrays["image"]), arrays["logits"], atol=TOLERANCE)
    slices = [
        [op.output.shape for op in each.operations if type(op).__name__ == "GetItem"]
        for each in (model, today)
    ]
    assert slices == [[(None, 12)] * 2, [(None, 1, 12)] * 2]
    assert keep_axes(today) is today
    assert model.get_layer("norm").output is not None  # its layers are in no other graph


def test_an_index_from_the_end_and_an_ellipsis():
    image = keras.Input((4, 5, 3))
    model = keras.Model(image, image[:, -1, ..., 1])
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")
    today = keep_axes(model)
    assert today is not model
    np.testing.assert_array_equal(today(x), x[:, -1, :, 1])
