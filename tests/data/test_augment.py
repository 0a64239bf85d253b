"""The laws of the augmentation over 20,000 draws, its composition, and that it is a pure function
of the seed."""

import io
import math

import numpy as np
import pytest
import tensorflow as tf
from augment_cases import (
    DRAWS,
    HALF,
    KEY,
    PIXELS,
    SIZE,
    draw,
    encode,
    pillow_resize,
)
from PIL import Image

from deit_tf.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from deit_tf.data import augment
from deit_tf.data.pixel_ops import apply_operation

FILES = {
    "rgb": encode(PIXELS),
    "gray": encode(PIXELS, "L"),
    "cmyk": encode(PIXELS, "CMYK"),
    "progressive": encode(PIXELS, progressive=True),
    "png": encode(PIXELS, file_format="PNG"),
    "rgba": encode(PIXELS, "RGBA", "PNG"),
    "palette": encode(PIXELS, "P", "PNG"),
    "one pixel wide": encode(PIXELS[:, :1]),
    "one pixel high": encode(PIXELS[:1], file_format="PNG"),
    "one pixel": encode(PIXELS[:1, :1]),
    "smaller than the target": encode(PIXELS[:9, :7]),
}


def test_flip_share():
    image = tf.constant([[[0, 0, 0], [1, 1, 1]]], tf.uint8)
    flipped = draw(lambda seed: augment.random_flip(image, seed, 0.3)[0, 0, 0], 5000)
    assert abs(flipped.mean() - 0.3) < 0.026  # four standard errors of 5,000 draws
    np.testing.assert_array_equal(
        augment.random_flip(tf.constant(PIXELS), KEY, 1.0), PIXELS[:, ::-1]
    )


def test_three_augment_takes_each_a_third():
    image = tf.constant(
        np.stack([PIXELS[::4, ::4, 0], PIXELS[::4, ::4, 1], PIXELS[::4, ::4, 2]], -1)
    )
    gray, solarized = apply_operation("grayscale", image), apply_operation("solarize", image, 128)

    def which(seed):
        result = augment.three_augment(image, seed)
        return [
            tf.reduce_all(result == gray),
            tf.reduce_all(result == solarized),
            tf.reduce_all(result == image),
        ]

    is_gray, is_solarized, is_image = draw(lambda seed: tuple(which(seed)), 3000)
    # four standard errors of a third of 3,000 draws
    assert abs(is_gray.mean() - 1 / 3) < 0.035 and abs(is_solarized.mean() - 1 / 3) < 0.035
    assert is_image.mean() < 0.08  # a blur of less than 0.2 pixels may change nothing


def test_jitter_draws_the_law():
    factors, order = draw(lambda seed: augment.draw_jitter(seed, 0.3))
    assert (
        abs(factors.mean() - 1) < 0.004 and abs(factors.std() - 0.6 / math.sqrt(12)) < 0.003
    )  # U(0.7, 1.3)
    first = np.bincount(order[:, 0], minlength=3) / DRAWS
    assert np.abs(first - 1 / 3).max() < HALF and (np.sort(order, axis=1) == [0, 1, 2]).all()
    assert draw(lambda seed: augment.draw_jitter(seed, 2.0))[0].min() >= 0


def test_jitter_applies_what_was_drawn():
    image, seed = tf.constant(PIXELS), tf.constant([4, 2])
    factors, order = augment.draw_jitter(seed, 0.3)
    expected = image
    for i in order.numpy():
        expected = apply_operation(("brightness", "contrast", "color")[i], expected, factors[i])
    np.testing.assert_array_equal(augment.color_jitter(image, seed, 0.3), expected)


def run(
    config: AugmentConfig, files: list[bytes], parallel: int = 2, key=KEY, size=SIZE
) -> np.ndarray:
    def one(i, encoded):
        return augment.augment_image(
            encoded, tf.random.fold_in(key, i), config, size, IMAGENET_MEAN, IMAGENET_STD
        )

    dataset = (
        tf.data.Dataset.from_tensor_slices(files).enumerate().map(one, num_parallel_calls=parallel)
    )
    assert dataset.element_spec == tf.TensorSpec([*size, 3], tf.float32)
    return next(iter(dataset.batch(len(files)))).numpy()


@pytest.mark.parametrize(
    ("recipe", "crop"),
    [("deit", None), ("3-augment", None), ("3-augment", "simple"), ("light", None)],
)
def test_odd_files_in_every_recipe(recipe, crop):
    images = run(AugmentConfig(recipe=recipe, crop=crop).resolve(), list(FILES.values()) * 3)
    assert np.isfinite(images).all()
    pictures = (
        images if recipe != "deit" else np.clip(images, -2.2, 2.7)
    )  # noise of erasing lies outside
    assert pictures.min() >= -2.2 and pictures.max() <= 2.7  # 0 and 255 normalized: -2.12, 2.64


def test_none_resizes_the_whole_image():
    images = run(AugmentConfig(recipe="none").resolve(), list(FILES.values()))
    for name, image in zip(FILES, images, strict=True):
        if name == "cmyk":
            continue  # Pillow and libjpeg convert CMYK by different profiles
        picture = pillow_resize(Image.open(io.BytesIO(FILES[name])).convert("RGB"))
        expected = (picture / 255 - IMAGENET_MEAN) / IMAGENET_STD
        # two gray levels, for the two roundings of the resize
        np.testing.assert_allclose(image, expected, atol=2.1 / 255 / 0.224, err_msg=name)


def test_same_seed_same_bytes_at_any_parallelism():
    config, files = AugmentConfig(recipe="deit").resolve(), list(FILES.values()) * 4
    one = run(config, files, 1)
    np.testing.assert_array_equal(run(config, files, 8), one)
    again = one.reshape(4, len(FILES), *SIZE, 3)  # each file under four seeds
    several = [not name.startswith("one pixel") for name in FILES]  # those may well be equal
    assert (again[1:] != again[:1]).any(axis=(2, 3, 4))[:, several].all()


def test_the_trace_for_all_data_sets_gives_the_same_bytes():
    config = AugmentConfig(recipe="light", color_jitter=0.3).resolve()
    files = list(FILES.values())
    settings = (config, SIZE, IMAGENET_MEAN, IMAGENET_STD, False)
    traced = augment.traced_augmentation(*settings)
    for i, expected in enumerate(run(config, files)):
        np.testing.assert_array_equal(
            traced(files[i], tf.random.fold_in(KEY, tf.constant(i, tf.int64))), expected
        )
    assert augment.traced_augmentation(*settings) is traced
    assert traced.experimental_get_tracing_count() == 1


def test_jitter_is_off_beside_rand_augment(monkeypatch):
    jitter = dict(recipe="none", color_jitter=0.4)
    plain = run(AugmentConfig(recipe="none").resolve(), [FILES["rgb"]] * 2)
    assert (run(AugmentConfig(**jitter).resolve(), [FILES["rgb"]] * 2) != plain).any()
    monkeypatch.setattr(augment, "color_jitter", None)  # calling it would fail
    unchanged = run(
        AugmentConfig(**jitter, auto_augment="rand-n1-p0").resolve(), [FILES["rgb"]] * 2
    )
    np.testing.assert_array_equal(unchanged, plain)


def test_stock_rand_augment_runs():
    images = run(
        AugmentConfig(recipe="none", auto_augment="keras-cv").resolve(), [FILES["rgb"]] * 4
    )
    assert images.min() >= -2.2 and images.max() <= 2.7
    assert (images != run(AugmentConfig(recipe="none").resolve(), [FILES["rgb"]] * 4)).any()


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="auto_augment"):
        run(AugmentConfig(recipe="none", auto_augment="trivial").resolve(), [FILES["rgb"]])
