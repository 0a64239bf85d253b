"""One image from file to tensor, with no randomness: the only copy, for evaluation and for serving.

Follows Pillow, as the original's evaluation does (facebookresearch/deit datasets.py, build_transform).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from deit_tf.config import IMAGENET_MEAN, IMAGENET_STD, Size, Triple

CHANNELS = 3


def height_width(size: Size) -> tuple[int, int]:
    """`(height, width)` of a size given as one number or as a pair.

    Raises:
        ValueError: If it is neither, or not positive.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"`image_size` takes a positive whole number or a pair (height, width). Received: {size!r}")
    return pair


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decode a JPEG, PNG, GIF (first frame), BMP or WebP file to uint8 [H, W, 3], 0..255.

    Grey images get three equal channels; an alpha channel is dropped.

    Args:
        encoded: tf.string [], the bytes of the file.
    Raises:
        tf.errors.InvalidArgumentError: When run, if the bytes are no image or cut short.
    """

    def jpeg() -> tf.Tensor:
        # TensorFlow's default IDCT is off by up to 21 grey levels from libjpeg's own, which Pillow uses.
        return tf.io.decode_jpeg(encoded, CHANNELS, dct_method="INTEGER_ACCURATE")

    def other() -> tf.Tensor:
        return tf.io.decode_image(encoded, CHANNELS, expand_animations=False)

    return tf.ensure_shape(tf.cond(tf.io.is_jpeg(encoded), jpeg, other), [None, None, CHANNELS])


def resize(image: tf.Tensor, size: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Resize uint8 [H, W, 3] to uint8 [*size, 3], bicubic with antialias, within one grey level of Pillow.

    One axis after the other, rounded in between, as Pillow does; both at once is off by up to 15
    levels at sharp edges, where the kernel overshoots, and without antialias by up to 106.
    """
    height = tf.shape(image)[0]
    for target in ([height, size[1]], size):
        resized = tf.image.resize(image, target, "bicubic", antialias=True)
        image = tf.saturate_cast(tf.round(resized), tf.uint8)
    return image


def resize_short_side(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resize uint8 [H, W, 3] so that its short side has `size` pixels; the long side is rounded down."""
    height, width = tf.unstack(tf.shape(image)[:2])
    short = tf.minimum(height, width)
    return resize(image, [size * height // short, size * width // short])


def center_crop(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Cut [*size, 3] out of the middle of [H, W, 3], rounding half to even as torchvision does."""
    excess = tf.shape(image)[:2] - size
    top, left = tf.unstack(tf.cast(tf.round(tf.cast(excess, tf.float32) / 2.0), tf.int32))
    return tf.ensure_shape(image[top : top + size[0], left : left + size[1]], [*size, CHANNELS])


def normalize(image: tf.Tensor, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD) -> tf.Tensor:
    """Map uint8 [..., 3], 0..255, to float32 with `mean` at 0 and one `std` at 1 (both of pixels in 0..1)."""
    scale = [1.0 / (255.0 * s) for s in std]
    offset = [m / s for m, s in zip(mean, std, strict=True)]
    return tf.cast(image, tf.float32) * scale - offset


@dataclass(frozen=True)
class ImageProcessor:
    """What a model expects of its images; evaluation, prediction and the serving signature share it.

    Args:
        image_size: Height and width of the result in pixels, or one number for a square.
        crop_ratio: The image is first resized to image_size / crop_ratio (short side; both sides
            where the result is not square), then cropped in the centre. 0.875 is the original's.
        mean: Mean of the pixels scaled to 0..1, per channel.
        std: Their standard deviation, per channel.
    Raises:
        ValueError: If a size is not positive or `crop_ratio` lies outside (0, 1].
    """

    image_size: Size = 224
    crop_ratio: float = 0.875
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self):
        height_width(self.image_size)
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"`crop_ratio` lies in (0, 1]; 1 crops nothing. Received: {self.crop_ratio}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        return height_width(self.image_size)

    def crop(self, image: tf.Tensor) -> tf.Tensor:
        """Resize and centre-crop uint8 [H, W, 3] to uint8 [*size, 3]."""
        height, width = self.size
        if height == width:
            return center_crop(resize_short_side(image, int(height / self.crop_ratio)), self.size)
        return center_crop(resize(image, [int(side / self.crop_ratio) for side in self.size]), self.size)

    def __call__(self, encoded: tf.Tensor) -> tf.Tensor:
        """Turn the bytes of an image file, tf.string [], into float32 [*size, 3], normalised."""
        return normalize(self.crop(decode_image(encoded)), self.mean, self.std)
