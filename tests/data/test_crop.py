"""The random crops: their laws over many draws, and the pixels that one decodes of a JPEG."""

import io

import numpy as np
import pytest
import tensorflow as tf
from augment_cases import KEY, PIXELS, RANDOM, SIZE, THIRDS, area_law, draw, encode, pillow_resize
from PIL import Image

from deit_tf.config import AugmentConfig, DataConfig
from deit_tf.data import ImageProcessor, SimpleRandomCrop, open_sources, train_dataset
from deit_tf.data.crop import (
    decode_and_crop,
    random_resized_crop,
    random_resized_crop_box,
    simple_crop,
)

JPEG = encode(PIXELS)


def test_crop_draws_the_law():
    boxes = draw(lambda seed: random_resized_crop_box(375, 500, seed, (0.08, 1.0), THIRDS))
    top, left, height, width = boxes.T
    assert (
        (top >= 0).all()
        and (left >= 0).all()
        and (top + height <= 375).all()
        and (left + width <= 500).all()
    )
    area, law = height * width / (375 * 500), area_law(375, 500, (0.08, 1.0), THIRDS, 0)
    # timm: mean 0.431, deciles 0.147, 0.421, 0.730. tf.image's sampler: 0.370, 0.115, 0.333, 0.683;
    # keras-cv's: 0.534, 0.174, 0.541, 0.867. A quantile of 20,000 draws has a standard error of
    # 0.003.
    for quantile in (0.1, 0.5, 0.9):
        assert abs(np.quantile(area, quantile) - np.quantile(law, quantile)) < 0.012
    assert abs(area.mean() - 0.431) < 0.008
    aspect = (
        width / height
    )  # within the range up to the rounding of the sides; keras-cv's reaches 1.78
    assert 0.74 < aspect.min() < 0.76 and 1.31 < aspect.max() < 1.35
    assert abs(np.log(aspect).mean()) < 0.06  # log-uniform, slightly cut by the height
    spare = 375 - height
    assert abs((top[spare > 20] / spare[spare > 20]).mean() - 0.5) < 0.01  # uniform position


@pytest.mark.parametrize(
    ("shape", "box"),
    [((10, 300), (0, 143, 10, 13)), ((300, 1), (149, 0, 1, 1)), ((1, 1), (0, 0, 1, 1))],
)
def test_crop_falls_back_to_the_center(shape, box):
    boxes = draw(lambda seed: random_resized_crop_box(*shape, seed, (0.9, 1.0), THIRDS), 50)
    assert (boxes == box).all()


@pytest.mark.parametrize("draw_index", range(6))
def test_jpeg_window_equals_crop_of_the_whole(draw_index):
    seed = tf.constant([draw_index, 4])
    box = random_resized_crop_box(60, 80, seed, (0.2, 0.5), THIRDS).numpy()
    whole = Image.open(io.BytesIO(JPEG))
    plain = pillow_resize(whole.crop((box[1], box[0], box[1] + box[3], box[0] + box[2])))
    result = decode_and_crop(JPEG, SIZE, seed, (0.2, 0.5), THIRDS).numpy().astype(int)
    assert (
        np.abs(result - plain).max() <= 2
    )  # of the resize; TensorFlow's faster inverse DCT gives 9


@pytest.mark.parametrize("factor", [8, 20])
def test_a_large_jpeg_decoded_small_is_faithful(factor):
    photo = Image.fromarray(PIXELS).resize((48 * factor, 32 * factor), Image.Resampling.BICUBIC)
    grain = np.asarray(photo).astype(int) + RANDOM.integers(-12, 13, (32 * factor, 48 * factor, 1))
    encoded = encode(np.clip(grain, 0, 255).astype(np.uint8), quality=92)
    expected = pillow_resize(Image.open(io.BytesIO(encoded)))
    result = decode_and_crop(encoded, SIZE, KEY, (1.0, 1.0), (1.0, 1.0)).numpy().astype(int)
    off = np.abs(result - expected)
    assert (
        off.mean() < 0.8 and off.max() <= 8
    )  # measured 0.66 and 6; half the margin in the code gives 2 and 44


def test_a_crop_of_pixels_is_that_of_their_file():
    png = encode(PIXELS, file_format="PNG")
    for i in range(4):
        seed = tf.constant([i, 9])
        of_file = decode_and_crop(png, SIZE, seed, (0.08, 1.0), THIRDS)
        of_pixels = random_resized_crop(tf.constant(PIXELS), SIZE, seed, (0.08, 1.0), THIRDS)
        np.testing.assert_array_equal(of_pixels, of_file)


@pytest.mark.parametrize(
    ("size", "covering"), [((24, 24), (24, 32)), ((32, 24), (32, 42)), ((16, 48), (36, 48))]
)
def test_a_simple_crop_is_a_window_of_the_mirrored_image(size, covering):
    resized = Image.fromarray(PIXELS).resize(covering[::-1], Image.Resampling.BICUBIC)
    padded = np.pad(np.asarray(resized).astype(int), ((4, 4), (4, 4), (0, 0)), "reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (*size, 3))[:, :, 0]
    for i in range(5):
        crop = simple_crop(tf.constant(PIXELS), size, tf.constant([i, 5])).numpy().astype(int)
        off = np.abs(windows - crop).max(axis=(2, 3, 4))
        assert (off <= 2).sum() == 1  # a level for each of the two roundings of the resize


def test_a_simple_crop_lies_anywhere():
    rows, columns = np.mgrid[0:32, 0:48].astype(np.uint8)
    image = tf.constant(np.stack([rows, columns, columns], axis=-1))  # its pixels say where
    corners = draw(lambda seed: simple_crop(image, (32, 48), seed)[8, 8, :2], 2000).astype(int)
    # four pixels of padding before and behind: windows begin at 0..8
    for begins in (corners - 4).T:
        shares = np.bincount(begins, minlength=9) / 2000
        assert len(shares) == 9 and np.abs(shares - 1 / 9).max() < 0.028  # four standard errors
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.09


def test_an_image_that_cannot_be_mirrored_is_refused():
    with pytest.raises(ValueError, match="simple crop takes images of more than 4.*\\(4, 8\\)"):
        SimpleRandomCrop((4, 8))
    source, data = open_sources(DataConfig("digits"))[0], DataConfig(batch_size=2)
    with pytest.raises(ValueError, match="more than 4 pixels"):
        augment = AugmentConfig("none", crop="simple")
        train_dataset(source, data, augment, ImageProcessor(4), epochs=1)
    SimpleRandomCrop((5, 8))


@pytest.mark.parametrize("crop", ["random_resized", "simple"])
def test_the_resize_is_the_one_or_the_other(crop):
    image = tf.constant(PIXELS)

    def cropped(interpolation, i):
        seed = tf.constant([i, 6])
        if crop == "simple":
            return simple_crop(image, (24, 24), seed, interpolation)
        return random_resized_crop(image, (24, 24), seed, (0.2, 1.0), THIRDS, interpolation)

    taken = []
    for i in range(24):
        bicubic, bilinear, either = (
            cropped(name, i).numpy().astype(int) for name in ("bicubic", "bilinear", "random")
        )
        assert 1 < np.abs(bicubic - bilinear).max()
        taken.append((either == bilinear).all())
        assert taken[-1] or (either == bicubic).all()
    assert 5 <= sum(taken) <= 19  # of 24 at half; outside once in 400 choices of seeds


def test_a_bilinear_resize_is_pillows():
    whole = random_resized_crop(tf.constant(PIXELS), SIZE, KEY, (1.0, 1.0), THIRDS, "bilinear")
    expected = Image.fromarray(PIXELS).resize(SIZE[::-1], Image.Resampling.BILINEAR)
    assert np.abs(whole.numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1
