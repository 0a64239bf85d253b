"""Bicubic resampling against Pillow's, and that it rounds alike in every graph."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from deit_tf.data.bicubic import resize, shift_columns, shift_rows


def difference(result: np.ndarray, reference: np.ndarray) -> np.ndarray:
    assert result.dtype == np.uint8 and result.shape == reference.shape
    return np.abs(result.astype(int) - reference.astype(int))


def pillow_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's two passes, the horizontal one first."""
    wide = Image.fromarray(image).resize((size[1], image.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (224, 224), (100, 500), (427, 640), (1, 1)])
def test_resize(size):
    photo = load_sample_images().images[0]
    off = difference(resize(tf.constant(photo), size).numpy(), pillow_resize(photo, size))
    # float32 weights beside Pillow's fixed point, in two passes; tf.image.resize has a mean of 0.18
    assert off.max() <= 2 and off.mean() < 0.01


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (5, 3)])
def test_resize_from_almost_nothing(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    resized = resize(tf.constant(image), (32, 48)).numpy()
    assert difference(resized, pillow_resize(image, (32, 48))).max() <= 2


@pytest.mark.parametrize("shift", [shift_rows, shift_columns])
def test_shifts_round_alike_in_every_graph(shift):
    """Eagerly, with a size known or not, and after other products, which take its names."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    shifts = random.uniform(-30, 30, (40, 64)).astype(np.float32)
    fill = tf.constant([124.0, 116.0, 104.0])

    def after_products(images, shifts):
        for _ in range(8):
            shifts = shifts * tf.cast(tf.shape(images)[0] // 40, tf.float32)  # 1
        return shift(images, shifts, fill)

    eager = shift(tf.constant(images), tf.constant(shifts), fill)
    for size in (64, None):
        spec = [tf.TensorSpec([None, size, size, 3], tf.uint8), tf.TensorSpec([None, size])]
        for function in (lambda images, shifts: shift(images, shifts, fill), after_products):
            graph = tf.function(function, input_signature=spec, autograph=False)
            np.testing.assert_array_equal(graph(images, shifts), eager)
