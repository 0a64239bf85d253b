"""TIFF files as arrays: each page is a channel, or the three of RGB.

Pillow reads them, which no exported graph can: a server takes the `.npy` files that this makes.
"""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from deit_tf.config import CHANNELS, MAX_CHANNELS, MAX_PIXELS
from deit_tf.data.npy import encode_npy

MAGICS = (b"II*\0", b"MM\0*")
_HIGH_BYTE = 256  # of 16 bits, as of PNG files
_MODES = ("L", "RGB", "RGBA", "I;16", "I;16B", "I;16L")


def tiff_pixels(content: bytes) -> np.ndarray:
    """The pages of a TIFF file, uint8 [H, W, channels], in their order; of 16 bits the high ones.

    Raises:
        ValueError: If a page has another size or mode than these, or there are too many pixels.
        OSError: If it is cut short.
    """
    pages = []
    with Image.open(io.BytesIO(content)) as file:
        for number in range(min(file.n_frames, MAX_CHANNELS + 1)):
            file.seek(number)
            if file.width * file.height > MAX_PIXELS or file.mode not in _MODES:
                raise ValueError(
                    f"A page of a TIFF file has up to {MAX_PIXELS:,} pixels, in one of the modes "
                    f"{', '.join(_MODES)}. Received: page {number + 1} of {file.width} x "
                    f"{file.height}, {file.mode}"
                )
            page = np.asarray(file)
            page = page if page.dtype == np.uint8 else (page // _HIGH_BYTE).astype(np.uint8)
            pages.append(page if page.ndim == 3 else page[..., None])

    if len({page.shape[:2] for page in pages}) != 1:
        raise ValueError("The pages of a TIFF file are channels of one picture, of one size.")
    return np.concatenate(pages, axis=-1)


def read_picture(path: tf.Tensor, channels: int) -> tf.Tensor:
    """The bytes of a file, tf.string [], as `decode_channels` takes them: unless there are three
    channels, of a TIFF file a `.npy` file of its pages.
    """
    content = tf.io.read_file(path)
    if channels == CHANNELS:
        return content

    def as_array() -> tf.Tensor:
        made = tf.numpy_function(lambda tiff: encode_npy(tiff_pixels(tiff)), [content], tf.string)
        return tf.ensure_shape(made, [])

    is_tiff = tf.reduce_any(tf.strings.substr(content, 0, len(MAGICS[0])) == tf.constant(MAGICS))
    return tf.cond(is_tiff, as_array, lambda: content)
