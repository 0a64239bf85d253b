"""What the first bytes of an image file tell, in a graph: its size, and whether it has a palette.

A picture is refused by its header, before its pixels fill the memory. Formats: PNG (ISO 15948),
GIF89a, BMP (BITMAPINFOHEADER), WebP (RFC 9649); JPEG has an operation of TensorFlow's.
"""

import tensorflow as tf

HEAD = 32  # bytes that hold the size of any of them
_PALETTE = 1024  # bytes of 256 entries: blue, green, red, 0


def header_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """Height times width that the header of an image file tells, float64 []; 0 for no image.

    Args:
        encoded: tf.string [], the bytes of a file that is no JPEG.
    """
    head = _head(encoded)
    sizes = [
        (_begins(head, b"\x89PNG"), _big(head, 16, 4), _big(head, 20, 4)),
        (_begins(head, b"GIF8"), _little(head, 6, 2), _little(head, 8, 2)),
        (_begins(head, b"BM"), _little(head, 18, 4), abs(_little(head, 22, 4))),
        (_begins(head, b"VP8X", 12), _little(head, 24, 3) + 1, _little(head, 27, 3) + 1),
        (_begins(head, b"VP8 ", 12), _little(head, 26, 2) % 2**14, _little(head, 28, 2) % 2**14),
        (_begins(head, b"VP8L", 12), *_lossless_webp(head)),
    ]
    pixels = [
        tf.where(is_it, tf.cast(width, tf.float64) * tf.cast(height, tf.float64), 0.0)
        for is_it, width, height in sizes
    ]

    return tf.add_n(pixels)


def has_palette(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a file is a BMP whose bytes stand for colors of a palette, bool [].

    A palette that is a ramp of grays stands for itself.
    """
    head = _head(encoded)
    bits = _little(head, 28, 2)
    start = 14 + tf.clip_by_value(_little(head, 14, 4), 0, 1 << 16)

    def is_ramp() -> tf.Tensor:
        length = tf.clip_by_value(tf.strings.length(encoded) - start, 0, _PALETTE)
        entries = tf.io.decode_raw(tf.strings.substr(encoded, start, length), tf.uint8)
        colors = tf.reshape(entries[: length // 4 * 4], [-1, 4])[:, :3]  # [entries, 3]
        ramp = tf.cast(tf.range(tf.shape(colors)[0]), tf.uint8)[:, None]
        return tf.reduce_all(colors == ramp)

    few_bits = (bits < 8) & (bits > 0)
    is_bmp = _begins(head, b"BM")
    return is_bmp & (few_bits | tf.cond(is_bmp & (bits == 8), lambda: ~is_ramp(), lambda: False))


def _head(encoded: tf.Tensor) -> tf.Tensor:
    """The first bytes as int32 [HEAD], zeros where there are less."""
    content = tf.io.decode_raw(tf.strings.substr(encoded, 0, HEAD), tf.uint8)
    content = tf.pad(content, [[0, HEAD - tf.size(content)]])
    return tf.ensure_shape(tf.cast(content, tf.int32), [HEAD])


def _begins(head: tf.Tensor, magic: bytes, at: int = 0) -> tf.Tensor:
    return tf.reduce_all(head[at : at + len(magic)] == tuple(magic))


def _big(head: tf.Tensor, at: int, length: int) -> tf.Tensor:
    return sum(head[at + i] * 256 ** (length - 1 - i) for i in range(length))


def _little(head: tf.Tensor, at: int, length: int) -> tf.Tensor:
    return sum(head[at + i] * 256**i for i in range(length))


def _lossless_webp(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Width and height: 14 bits each, one less than they are."""
    bits = _little(head, 21, 4)
    return 1 + bits % 2**14, 1 + tf.bitwise.right_shift(bits, 14) % 2**14
