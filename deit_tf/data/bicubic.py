"""Pillow's bicubic resampling: an image resized, and images read along shifted rows or columns.

Arithmetic on pixels alone; which window or which shift is drawn elsewhere (crop, rand_augment).
Source: Pillow, Resample.c (a = -0.5) and Geometry.c (a = -1).
"""

import tensorflow as tf

_RESIZE_BLOCK = 8  # output rows per small matrix product; 8 is the fastest of 8..56 at 224 pixels


def _blocks_of_weights(length: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Pillow's bicubic coefficients from `length` lines to `size`, in blocks of output lines.

    Returns:
        float32 [blocks, lines, K] and the source line of each of the K columns, int32 [blocks, K].
    """
    blocks = -(-size // _RESIZE_BLOCK)
    scale = tf.cast(length, tf.float32) / size
    stretch = tf.maximum(scale, 1.0)  # the kernel widens where the image shrinks: antialias

    # centers of the output lines, in source lines
    center = (tf.range(blocks * _RESIZE_BLOCK, dtype=tf.float32) + 0.5) * scale
    center = tf.reshape(center, [blocks, _RESIZE_BLOCK, 1])

    # the source lines that a block's outputs share
    start = tf.cast(tf.maximum(center[:, :1] - 2 * stretch + 0.5, 0.0), tf.int32)
    count = tf.math.ceil((_RESIZE_BLOCK - 1) * scale + 4 * stretch)
    source = start + tf.range(tf.cast(count, tf.int32) + 1)  # [blocks, 1, K]

    # Keys' kernel of the distance x, 0..2
    x = tf.minimum(tf.abs((tf.cast(source, tf.float32) + 0.5 - center) / stretch), 2.0)
    weights = tf.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights = weights * tf.cast(source < length, tf.float32)
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, -1, keepdims=True))
    return weights, tf.minimum(source[:, 0], length - 1)


def _resize_lines(lines: tf.Tensor, size: int) -> tf.Tensor:
    """Resize float32 [L, R] along its first axis to whole gray levels, float32 [size, R]."""
    weights, source = _blocks_of_weights(tf.shape(lines)[0], size)
    resized = tf.matmul(weights, tf.gather(lines, source))  # [blocks, lines, R]
    resized = tf.reshape(resized, [-1, tf.shape(lines)[1]])[:size]
    return tf.clip_by_value(tf.round(resized), 0.0, 255.0)


def resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resize uint8 [H, W, 3] to uint8 [*size, 3], antialiased where it shrinks (Image.resize).

    A product with a banded matrix per axis, in small dense blocks: closer to Pillow than
    tf.image.resize (mean error 0.18), and 1.4 instead of 1.9 CPU-ms per crop. Error: at most 2
    levels, mean below 0.01.

    Differs: the horizontal pass always comes first, and is rounded. Pillow 13 begins with the
        vertical one where that is cheaper: mean difference 0.2.
    """
    height, width = tf.unstack(tf.shape(image)[:2])

    # Not bytes are transposed, of which oneDNN complains. The graph optimizer moves a cast behind
    # the transpose that it feeds; a maximum, which changes no level, keeps it where it is.
    levels = tf.maximum(tf.cast(image, tf.float32), 0.0)
    columns = tf.transpose(levels, [1, 0, 2])
    columns = _resize_lines(tf.reshape(columns, [width, height * 3]), size[1])

    rows = tf.transpose(tf.reshape(columns, [size[1], height, 3]), [1, 0, 2])
    rows = _resize_lines(tf.reshape(rows, [height, size[1] * 3]), size[0])
    return tf.reshape(tf.cast(rows, tf.uint8), [*size, 3])


def _taps(shifts: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """First source line (relative) and the four cubic weights of each shift in pixels."""
    whole = tf.floor(shifts)
    d = shifts - whole
    weights = [-d * (1 - d) ** 2, 1 + d * d * (d - 2), d * (1 + d * (1 - d)), d * d * (d - 1)]
    return tf.cast(whole, tf.int32) - 1, weights


def _weighted_sum(lines: list[tf.Tensor], weights: list[tf.Tensor]) -> tf.Tensor:
    """Sum of four products, added in one order in every graph.

    TensorFlow's graph optimizer sorts the terms of a sum by their names. Automatic names depend on
    what else the graph holds, and the last bit of the sum, which may be a gray level, with them.
    """
    order = (1, 2, 3, 0)
    terms = [
        tf.multiply(lines[k], weights[k], name=f"tap_{place}") for place, k in enumerate(order)
    ]
    return tf.add_n(terms)


def _fill_outside(
    values: tf.Tensor, position: tf.Tensor, length: tf.Tensor, fill: tf.Tensor
) -> tf.Tensor:
    """Round float32 [..., W*3] down to uint8, with `fill` [3] where `position` is off the image."""
    fill = tf.tile(fill, [tf.shape(values)[-1] // 3])  # [W*3]
    length = tf.cast(length, tf.float32)
    inside = tf.cast(tf.abs(position - (length - 1) / 2) < length / 2, tf.float32)
    # 2**-10 keeps a flat region, whose weights sum to 1 only up to rounding, from losing a level.
    values = tf.clip_by_value(values + 2.0**-10, 0.0, 255.0)
    return tf.cast(fill + inside * (values - fill), tf.uint8)


def _batch_height_width(images: tf.Tensor) -> list[tf.Tensor | int]:
    """Of [B, H, W, 3]: a number where it is known, else a tensor."""
    return [known or tf.shape(images)[axis] for axis, known in enumerate(images.shape[:3])]


def shift_rows(images: tf.Tensor, shifts: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
    """Read each row some pixels further right.

    One axis stays on whole pixels, so one gather and four taps are all of Pillow's sixteen: exact,
    and faster than a projective transform.

    Args:
        images: uint8 [B, H, W, 3].
        shifts: Pixels per row, float32, of a shape that broadcasts to [B, H].
        fill: Gray levels where a row has no pixel to read, float32 [3].
    Returns:
        uint8 [B, H, W, 3], within 1 level of Pillow.
    """
    batch, height, width = _batch_height_width(images)
    shifts = tf.reshape(tf.broadcast_to(shifts, [batch, height]), [-1])  # [B*H]
    start, weights = _taps(shifts)
    rows = tf.size(shifts)

    # the W+3 pixels that the outputs of a row are made of
    columns = tf.clip_by_value(tf.range(width + 3) + start[:, None], 0, width - 1)
    pixels = columns + tf.range(rows)[:, None] * width  # [B*H, W+3]
    source = tf.gather(tf.reshape(images, [-1, 3]), pixels)
    source = tf.reshape(tf.cast(source, tf.float32), [rows, (width + 3) * 3])

    lines = [source[:, 3 * k : 3 * (k + width)] for k in range(4)]  # [B*H, W*3] each
    values = _weighted_sum(lines, [weight[:, None] for weight in weights])
    position = tf.cast(tf.repeat(tf.range(width), 3), tf.float32) + shifts[:, None]
    return tf.reshape(_fill_outside(values, position, width, fill), [batch, height, width, 3])


def shift_columns(images: tf.Tensor, shifts: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
    """Read each column some pixels further down; as `shift_rows`, with `shifts` [B, W]."""
    batch, height, width = _batch_height_width(images)
    shifts = tf.broadcast_to(shifts, [batch, width])
    start, weights = _taps(shifts)  # [B, W]

    # the H+3 pixels that the outputs of a column are made of
    rows = tf.clip_by_value(tf.range(height + 3)[:, None] + start[:, None], 0, height - 1)
    rows = rows + height * tf.range(batch)[:, None, None]
    pixels = rows * width + tf.range(width)  # [B, H+3, W]
    source = tf.gather(tf.reshape(images, [-1, 3]), pixels)
    source = tf.reshape(tf.cast(source, tf.float32), [batch, height + 3, width * 3])

    lines = [source[:, k : k + height] for k in range(4)]  # [B, H, W*3] each
    values = _weighted_sum(lines, [tf.repeat(weight, 3, axis=1)[:, None] for weight in weights])
    position = tf.cast(tf.range(height)[:, None], tf.float32)
    position = position + tf.repeat(shifts, 3, axis=1)[:, None]
    return tf.reshape(_fill_outside(values, position, height, fill), [batch, height, width, 3])
