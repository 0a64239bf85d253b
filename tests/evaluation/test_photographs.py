"""Pictures on pages are the model's crop, in as many pixels as their files have."""

import io

import numpy as np
import pytest
from PIL import Image

from deit_tf import ImageProcessor
from deit_tf.evaluation.photographs import photograph


def encoded(height, width):
    """A PNG file whose left half is black, its right half white, with a red frame."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    pixels[:4] = pixels[-4:] = (255, 0, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        (32, 40, 32),  # no more pixels than the model takes
        (71, 90, 32),  # not quite twice the 36 that it resizes to
        (72, 90, 64),
        (400, 300, 224),  # never more than a page shows
    ],
)
def test_a_picture_has_the_pixels_of_its_file(height, width, side):
    shown = photograph(ImageProcessor(32), encoded(height, width))
    assert shown.shape == (side, side, 3) and shown.dtype == np.uint8


@pytest.mark.parametrize("resize_to", [None, 48, (40, 44)])
def test_it_is_the_crop_that_the_model_sees(resize_to):
    processor = ImageProcessor(32, resize_to=resize_to)
    file = encoded(300, 400)
    small = processor.to_rgb(processor.batch([file]))[0].astype(float)
    large = photograph(processor, file).astype(float)
    factor = large.shape[0] // 32
    assert factor >= 4
    means = large.reshape(32, factor, 32, factor, 3).mean((1, 3))
    assert np.abs(means - small).mean() < 4  # bicubic overshoots at the edge, in one column of 32


def test_other_channels_are_looked_at_as_rgb():
    processor = ImageProcessor(32, mean=(0.5,), std=(0.5,))
    assert photograph(processor, encoded(200, 200)).shape == (160, 160, 3)
