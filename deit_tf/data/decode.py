"""The bytes of an image file to pixels: the only decoder, for training, evaluation and serving."""

import functools

import tensorflow as tf

from deit_tf.config import CHANNELS, MAX_ASPECT, MAX_PIXELS
from deit_tf.data.channels import gray
from deit_tf.data.headers import has_palette, header_pixels
from deit_tf.data.npy import decode_npy, is_npy
from deit_tf.data.orientation import exif_orientation, turn
from deit_tf.data.tracing import traced_once


def decode_channels(encoded: tf.Tensor, channels: int, upright: bool = False) -> tf.Tensor:
    """Decode a picture of any kind to uint8 [H, W, channels], 0..255.

    Args:
        encoded: tf.string [], the bytes of a file as of `decode_image`, or, unless there are three
            channels, of a `.npy` file of uint8 [H, W, channels] or, for one, [H, W].
        channels: How many the model sees. For one, pictures become gray, as Pillow's mode L.
        upright: As of `decode_image`.
    Raises:
        tf.errors.InvalidArgumentError: As `decode_image`, and where a file has other channels.
    """
    if channels == CHANNELS:
        return decode_image(encoded, upright)

    def picture() -> tf.Tensor:
        image = decode_image(encoded, upright)
        if channels == 1:
            return gray(image)
        message = f"Pictures of {channels} channels are .npy files, uint8 [H, W, {channels}]."
        with tf.control_dependencies([_check(is_npy(encoded), message)]):  # which it is not
            return tf.tile(image[..., :1], [1, 1, channels])

    def array() -> tf.Tensor:
        image = decode_npy(encoded)
        if channels == 1:  # such as a TIFF file in color
            color = tf.shape(image)[-1] == CHANNELS
            image = tf.cond(color, lambda: gray(image), lambda: image)
        message = f"A .npy file of a picture is uint8 [H, W, {channels}]."
        with tf.control_dependencies([_check(tf.shape(image)[-1] == channels, message)]):
            return _checked_sides(image)

    image = tf.cond(is_npy(encoded), array, picture)
    return tf.ensure_shape(image, [None, None, channels])


def decode_image(encoded: tf.Tensor, upright: bool = False) -> tf.Tensor:
    """Decode a JPEG, PNG, GIF (first frame), BMP or WebP file to uint8 [H, W, 3], 0..255.

    Gray images get three equal channels; an alpha channel is dropped.

    Args:
        encoded: tf.string [], the bytes of the file.
        upright: Whether it is turned as its Exif tag says; only JPEG files are asked for it.
    Raises:
        tf.errors.InvalidArgumentError: When run, if the bytes are no image or cut short; if it has
            more than `MAX_PIXELS` pixels, or one side is more than `MAX_ASPECT` times the other; if
            it is a BMP file with a palette of colors, which TensorFlow decodes to its indices.
    """
    image = _decode_rgb(encoded)
    return turn(image, exif_orientation(encoded)) if upright else image


@functools.partial(traced_once, signature=[tf.TensorSpec([], tf.string)])
def _decode_rgb(encoded: tf.Tensor) -> tf.Tensor:
    branches = [functools.partial(decode, encoded) for decode in (_decode_jpeg, _decode_other)]
    image = tf.cond(tf.io.is_jpeg(encoded), *branches)
    return _checked_sides(tf.ensure_shape(image, [None, None, CHANNELS]))


def _checked_sides(image: tf.Tensor) -> tf.Tensor:
    """The image; resized by its short side, a line of pixels would fill the memory."""
    sides = tf.shape(image)[:2]
    thin = tf.reduce_max(sides) > MAX_ASPECT * tf.reduce_min(sides)
    message = f"A picture's long side is at most {MAX_ASPECT} times its short side."
    with tf.control_dependencies([_check(~thin, message)]):
        return tf.identity(image)


def _decode_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    sides = tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.float64)
    with tf.control_dependencies([_check_pixels(tf.reduce_prod(sides))]):
        # TensorFlow's default IDCT is off by up to 21 gray levels from libjpeg's own, which Pillow
        # uses.
        return tf.io.decode_jpeg(encoded, CHANNELS, dct_method="INTEGER_ACCURATE")


def _decode_other(encoded: tf.Tensor) -> tf.Tensor:
    message = "A BMP file with a palette is not read: save it as PNG."
    checks = [_check_pixels(header_pixels(encoded)), _check(~has_palette(encoded), message)]
    with tf.control_dependencies(checks):
        return tf.io.decode_image(encoded, CHANNELS, expand_animations=False)


def _check_pixels(pixels: tf.Tensor) -> tf.Operation:
    return _check(pixels <= MAX_PIXELS, f"A picture has at most {MAX_PIXELS:,} pixels.")


def _check(condition: tf.Tensor, message: str) -> tf.Operation:
    return tf.debugging.assert_equal(condition, True, message)
