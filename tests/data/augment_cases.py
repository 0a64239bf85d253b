"""Pictures, seeds and laws that the tests of the augmentation share."""

import io
import math

import numpy as np
import tensorflow as tf
from PIL import Image

DRAWS = 20_000
KEY = tf.constant([3, 1], tf.int64)
THIRDS = (3 / 4, 4 / 3)
SIZE = (32, 48)
# Four standard errors of a share p of 20,000 draws: 4 * sqrt(p (1 - p) / 20,000), at most 0.0141.
HALF = 0.0141
RANDOM = np.random.default_rng(0)
PIXELS = np.repeat(
    np.repeat(RANDOM.integers(0, 256, (15, 20, 3), dtype=np.uint8), 4, 0), 4, 1
)  # [60, 80, 3]


def encode(pixels: np.ndarray, mode: str = "RGB", file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, file_format, **options)
    return buffer.getvalue()


def pillow_resize(image: Image.Image) -> np.ndarray:
    """Pillow's two passes to SIZE, the horizontal one first."""
    wide = image.resize((SIZE[1], image.height), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(int)


def draw(function, count: int = DRAWS):
    """`function(seed)` for `count` seeds, stacked."""
    seeds = tf.data.Dataset.range(count).map(lambda i: tf.random.fold_in(KEY, i))
    drawn = next(iter(seeds.map(function, num_parallel_calls=2).batch(count)))
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), drawn)


def area_law(height: int, width: int, scale, ratio, spare: int, count: int = 100_000) -> np.ndarray:
    """Relative areas by timm's law, written out: the first of ten rectangles that leaves `spare`
    pixels."""
    random = np.random.default_rng(2)
    area = height * width * random.uniform(*scale, (count, 10))
    aspect = np.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1]), (count, 10)))
    w, h = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (w <= width - spare) & (h <= height - spare)
    first = fits.argmax(1)[:, None]
    return np.take_along_axis(w * h / (height * width), first, 1)[fits.any(1), 0]
