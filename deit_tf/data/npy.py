"""Pictures as `.npy` files of NumPy, read in a graph, so that a server takes them too.

Format: numpy/lib/format.py, versions 1 and 2: a magic number, the length of the header, the header
as a Python literal, the values.
"""

import io

import numpy as np
import tensorflow as tf

from deit_tf.config import MAX_PIXELS

MAGIC = b"\x93NUMPY"
_FIXED, _HEAD = 12, 65536  # bytes before the header, and with it, at most
_SHAPE = r".*'shape': ?\((\d+), (\d+)(?:, (\d+))?,?\).*"


def encode_npy(pixels: np.ndarray) -> bytes:
    """The bytes of a `.npy` file of uint8 [H, W, C]."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    return buffer.getvalue()


def is_npy(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes of a file are those of an array, bool []."""
    return tf.strings.substr(encoded, 0, len(MAGIC)) == MAGIC


def decode_npy(encoded: tf.Tensor) -> tf.Tensor:
    """Turn the bytes of a `.npy` file into uint8 [H, W, C].

    Args:
        encoded: tf.string []; an array uint8 [H, W, C], or [H, W], which has one channel.
    Raises:
        tf.errors.InvalidArgumentError: When run, if it is another array, cut short, or has more
            than `MAX_PIXELS` pixels.
    """
    # Filled up with zeros: an error of TensorFlow's about a place beyond the end is no UTF-8.
    beginning = tf.strings.substr(encoded, 0, _HEAD) + tf.constant(bytes(_FIXED))
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(beginning, 0, _FIXED), tf.uint8), tf.int32)
    is_first = head[6] == 1  # versions differ in how many bytes tell the length
    length = head[8] + 256 * head[9] + tf.where(is_first, 0, 65536 * head[10])
    start = tf.where(is_first, 10, _FIXED)

    header = tf.strings.substr(beginning, start, tf.clip_by_value(length, 0, _HEAD))
    # Rows of bytes, one row after the other.
    fits = tf.strings.regex_full_match(header, r"(?s).*'descr': ?'\|u1'.*")
    fits &= tf.strings.regex_full_match(header, r"(?s).*'fortran_order': ?False.*")
    fits &= tf.strings.regex_full_match(header, "(?s)" + _SHAPE)
    message = "A .npy file of a picture is uint8, of height, width and channels, in C order."
    with tf.control_dependencies([tf.debugging.assert_equal(fits, True, message)]):
        sides = tf.strings.regex_replace(header, "(?s)" + _SHAPE, r"\1 \2 \3")

    shape = tf.strings.to_number(tf.strings.split(sides), tf.int64)
    shape = tf.cond(tf.size(shape) == 2, lambda: tf.concat([shape, [1]], 0), lambda: shape)
    many = tf.reduce_prod(tf.cast(shape[:2], tf.float64)) > MAX_PIXELS
    message = f"A picture has at most {MAX_PIXELS:,} pixels."
    with tf.control_dependencies([tf.debugging.assert_equal(many, False, message)]):
        size = tf.strings.length(encoded)
        content = tf.strings.substr(encoded, tf.minimum(start + length, size), size)
    pixels = tf.reshape(tf.io.decode_raw(content, tf.uint8), shape)
    return tf.ensure_shape(pixels, [None, None, None])
