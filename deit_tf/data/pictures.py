"""Pictures of any kind as pixels, outside of tf.data: paths, bytes, arrays, images of Pillow."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from deit_tf.config import MAX_PIXELS
from deit_tf.data.channels import gray
from deit_tf.data.decode import CHANNELS, decode_channels, decode_image
from deit_tf.data.npy import MAGIC, encode_npy
from deit_tf.data.tiff import MAGICS, tiff_pixels

_HIGH_BYTE = 256  # of 16 bits: what a decoder of files keeps too


def pixels_of(image: Any, name: str, upright: bool = True, channels: int = CHANNELS) -> tf.Tensor:
    """One image as uint8 [H, W, channels], 0..255.

    Args:
        image: A path; the bytes of a file; an image of Pillow; or a uint8 array [H, W, 3],
            [H, W, 1] or [H, W].
        name: What to call it in errors; a path is its own name.
        upright: Whether files and images of Pillow are turned as their Exif tag says.
        channels: 3 for RGB, 1 for gray, which others are converted to; of another number an image
            is a `.npy` file, or an array of so many.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    if isinstance(image, (str, Path)):
        name, image = str(image), Path(image).read_bytes()
    is_picture = channels in (1, CHANNELS)
    if isinstance(image, bytes) and image.startswith(MAGICS) and channels != CHANNELS:
        image = _of_pages(image, name)
    if isinstance(image, bytes):
        if image.startswith(MAGIC) and channels != CHANNELS or not is_picture:
            return _decode_array(image, name, channels)
        pixels = _decode(image, name, upright)
    elif isinstance(image, Image.Image) and is_picture:
        pixels = _from_array(_from_pillow(image, name, upright), name)
    elif is_picture:
        pixels = _from_array(image, name)
    else:
        return _of_channels(image, name, channels)
    return gray(pixels) if channels == 1 else pixels


def _decode(content: bytes, name: str, upright: bool) -> tf.Tensor:
    """Decode by TensorFlow, as in training; BMP files, some of which it misreads, by Pillow."""
    try:
        with Image.open(io.BytesIO(content)) as file:  # reads the header alone
            width, height = file.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"{name} has {width} x {height} pixels; at most {MAX_PIXELS:,} are read."
                )
            if file.format == "WEBP" and file.is_animated:
                raise ValueError(
                    f"{name} is a WebP file that moves. Save one frame of it as a file."
                )
            if file.format == "BMP":
                return _from_array(_from_pillow(file, name, upright), name)
        return decode_image(content, upright)
    except (
        tf.errors.InvalidArgumentError,
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(
            f"{name} is no image that can be decoded; it may be cut short, or a thin line."
        ) from error


def _from_pillow(image: Image.Image, name: str, upright: bool) -> np.ndarray:
    """Pixels uint8 of an image in any mode; of 16 bits the high ones, as decoders of files do."""
    image = ImageOps.exif_transpose(image) if upright else image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= _HIGH_BYTE**2:
            raise ValueError(
                f"{name} is an image of mode {image.mode} with values from {values.min()} to "
                f"{values.max()}; those of 16 bits are taken, 0..65535. Scale it to 0..255."
            )
        return (values // _HIGH_BYTE).astype(np.uint8)
    if image.mode == "F":
        raise ValueError(
            f"{name} is an image of mode F, whose values have no range of their own. Scale it to "
            "0..255 and convert it to mode L or RGB."
        )

    return np.asarray(image.convert("RGB"))


def _decode_array(content: bytes, name: str, channels: int) -> tf.Tensor:
    """Decode a `.npy` file."""
    try:
        return decode_channels(content, channels)
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        raise ValueError(
            f"{name} is no .npy file of uint8 [H, W, {channels}], or cut short."
        ) from error


def _of_pages(content: bytes, name: str) -> bytes:
    """A TIFF file as a `.npy` file."""
    try:
        return encode_npy(tiff_pixels(content))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is no TIFF file that can be read: {error}") from error


def _of_channels(image: Any, name: str, channels: int) -> tf.Tensor:
    """An array of exactly so many channels."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != channels:
        raise ValueError(
            f"{name} must be a .npy file or an array, uint8 [H, W, {channels}], 0..255. "
            f"Received: {type(image).__name__} {pixels.dtype} {pixels.shape}"
        )
    return tf.constant(pixels)


def _from_array(image: Any, name: str) -> tf.Tensor:
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    three_axes = pixels.ndim == 3 and pixels.shape[-1] in (1, CHANNELS) and 0 not in pixels.shape
    if pixels.dtype != np.uint8 or not three_axes:
        raise ValueError(
            f"{name} must be a path, bytes, a PIL image or a uint8 array [H, W, 3], 0..255. "
            f"Received: {type(image).__name__} {pixels.dtype} {pixels.shape}"
        )
    return tf.constant(np.broadcast_to(pixels, (*pixels.shape[:2], CHANNELS)))
