"""What the first bytes of an image file tell, in a graph: its size, and whether it has a palette.

A picture is refused by its header, before its pixels fill the memory. Formats: PNG (ISO 15948),
GIF89a, BMP (BITMAPINFOHEADER), WebP (RFC 9649); JPEG has an operation of TensorFlow's.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

HEAD = 32  # bytes that hold the size of any of them
_PALETTE = 1024  # bytes of 256 entries: blue, green, red, 0


class _Side(NamedTuple):
    """Where a header tells a side of its picture: `bits` bits from bit `shift` on of the number in
    bytes `start` to `stop`, and `plus`.
    """

    start: int
    stop: int
    bits: int
    shift: int = 0
    plus: int = 0
    big: bool = False
    signed: bool = False


class _Format(NamedTuple):
    magic: bytes
    at: int
    width: _Side
    height: _Side


_FORMATS = (
    _Format(b"\x89PNG", 0, _Side(16, 20, 32, big=True), _Side(20, 24, 32, big=True)),
    _Format(b"GIF8", 0, _Side(6, 8, 16), _Side(8, 10, 16)),
    _Format(b"BM", 0, _Side(18, 22, 32, signed=True), _Side(22, 26, 32, signed=True)),
    _Format(b"VP8X", 12, _Side(24, 27, 24, plus=1), _Side(27, 30, 24, plus=1)),
    _Format(b"VP8 ", 12, _Side(26, 28, 14), _Side(28, 30, 14)),
    _Format(b"VP8L", 12, _Side(21, 25, 14, plus=1), _Side(21, 25, 14, shift=14, plus=1)),
)


def header_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """Height times width that the header of an image file tells, float64 []; 0 for no image.

    All formats at once: of twenty operations for each of them, a small picture would take longer
    than of its pixels.

    Args:
        encoded: tf.string [], the bytes of a file that is no JPEG.
    """
    head = _head(encoded)
    fits = tf.reduce_all((head == _MAGIC) | ~_IS_MAGIC, axis=1)  # [formats]

    numbers = tf.reduce_sum(head * _PLACES, axis=-1)  # [2, formats]
    numbers = tf.where(_SIGNED & (numbers >= 1 << 31), (1 << 32) - numbers, numbers)
    sides = numbers // _DIVISOR % _MODULUS + _PLUS
    pixels = tf.reduce_prod(tf.cast(sides, tf.float64), axis=0)  # [formats]
    return tf.reduce_sum(tf.where(fits, pixels, 0.0))


def _magic(kind: _Format) -> np.ndarray:
    """The bytes that a format begins with, int64 [HEAD], and -1 where it may have any."""
    expected = np.full(HEAD, -1)
    expected[kind.at : kind.at + len(kind.magic)] = list(kind.magic)
    return expected


def _places(side: _Side) -> np.ndarray:
    """What each byte of a head counts in the number of a side, int64 [HEAD]."""
    values = 256 ** np.arange(side.stop - side.start)
    places = np.zeros(HEAD, np.int64)
    places[side.start : side.stop] = values[::-1] if side.big else values
    return places


_MAGIC = np.stack([_magic(kind) for kind in _FORMATS])  # [formats, HEAD]
_IS_MAGIC = _MAGIC >= 0
_SIDES = [[kind.width for kind in _FORMATS], [kind.height for kind in _FORMATS]]
_PLACES = np.array([[_places(side) for side in sides] for sides in _SIDES])  # [2, formats, HEAD]
_SIGNED = np.array([[side.signed for side in sides] for sides in _SIDES])  # [2, formats]
_DIVISOR = np.array([[1 << side.shift for side in sides] for sides in _SIDES])
_MODULUS = np.array([[1 << side.bits for side in sides] for sides in _SIDES])
_PLUS = np.array([[side.plus for side in sides] for sides in _SIDES])


def has_palette(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a file is a BMP whose bytes stand for colors of a palette, bool [].

    A palette that is a ramp of grays stands for itself.
    """
    is_bmp = tf.strings.substr(encoded, 0, 2) == b"BM"
    return tf.cond(is_bmp, lambda: _bmp_has_palette(encoded), lambda: False)


def _bmp_has_palette(encoded: tf.Tensor) -> tf.Tensor:
    head = _head(encoded)
    bits = _little(head, 28, 2)
    start = 14 + tf.clip_by_value(_little(head, 14, 4), 0, 1 << 16)

    def is_ramp() -> tf.Tensor:
        spare = tf.cast(tf.strings.length(encoded), tf.int64) - start
        length = tf.clip_by_value(spare, 0, _PALETTE)
        entries = tf.io.decode_raw(tf.strings.substr(encoded, start, length), tf.uint8)
        colors = tf.reshape(entries[: length // 4 * 4], [-1, 4])[:, :3]  # [entries, 3]
        ramp = tf.cast(tf.range(tf.shape(colors)[0]), tf.uint8)[:, None]
        return tf.reduce_all(colors == ramp)

    few_bits = (bits < 8) & (bits > 0)
    return few_bits | tf.cond(bits == 8, lambda: ~is_ramp(), lambda: False)


def _head(encoded: tf.Tensor) -> tf.Tensor:
    """The first bytes as int64 [HEAD], zeros where there are less."""
    content = tf.io.decode_raw(tf.strings.substr(encoded, 0, HEAD), tf.uint8)
    content = tf.pad(content, [[0, HEAD - tf.size(content)]])
    return tf.ensure_shape(tf.cast(content, tf.int64), [HEAD])


def _little(head: tf.Tensor, at: int, length: int) -> tf.Tensor:
    return tf.reduce_sum(head[at : at + length] * 256 ** np.arange(length))
