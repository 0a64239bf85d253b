"""Random rectangles; the random resized crop, which decodes no more of a JPEG than it needs; the
simple random crop.

Source: timm/data/transforms.py, RandomResizedCropAndInterpolation; facebookresearch/deit
    augment.py, `--src`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import tensorflow as tf

from deit_tf.data.bicubic import resize
from deit_tf.data.decode import CHANNELS, decode_image
from deit_tf.data.orientation import exif_orientation
from deit_tf.data.preprocess import resize as resize_either

Interpolation = Literal["bicubic", "bilinear", "random"]
Size = tuple[int, int]
Range = tuple[float, float]

_TRIES = 10
# a JPEG decoded at a reduced size keeps four times the target's sides; 2 is off by 2 levels
_DCT_GAP = 4.0
_PADDING = 4  # pixels that the simple crop may reach beyond each side


class DrawnBox(NamedTuple):
    """A rectangle in pixels, int32 each, and whether one of the tries fitted."""

    found: tf.Tensor
    top: tf.Tensor
    left: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor


def draw_box(
    height: tf.Tensor,
    width: tf.Tensor,
    limit: tuple[tf.Tensor, tf.Tensor],
    seed: tf.Tensor,
    scale: Range,
    ratio: Range,
) -> DrawnBox:
    """Draw a rectangle in an image: the first of ten tries that fits.

    Args:
        height: Height of the image in pixels, int32 [].
        width: Its width.
        limit: Largest height and width of the rectangle.
        seed: Two whole numbers.
        scale: Share of the image's area, smallest and largest; uniform.
        ratio: Width / height, smallest and largest; log-uniform.
    Returns:
        The rectangle, uniformly placed.
    """
    uniform = tf.random.stateless_uniform([2 * _TRIES + 2], seed)

    # sides of the ten
    share = scale[0] + (scale[1] - scale[0]) * uniform[:_TRIES]
    area = tf.cast(height * width, tf.float32) * share
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = tf.exp(low + (high - low) * uniform[_TRIES:-2])
    widths = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    heights = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)

    # the first that fits
    fits = (heights > 0) & (heights <= limit[0]) & (widths > 0) & (widths <= limit[1])
    first = tf.argmax(tf.cast(fits, tf.int32))
    box_height, box_width = heights[first], widths[first]

    top = tf.cast(uniform[-2] * tf.cast(height - box_height + 1, tf.float32), tf.int32)
    left = tf.cast(uniform[-1] * tf.cast(width - box_width + 1, tf.float32), tf.int32)
    return DrawnBox(tf.reduce_any(fits), top, left, box_height, box_width)


def random_resized_crop_box(
    height: tf.Tensor | int, width: tf.Tensor | int, seed: tf.Tensor, scale: Range, ratio: Range
) -> tf.Tensor:
    """Draw the window of a random resized crop.

    Args:
        height: Height of the image in pixels.
        width: Its width.
        seed: Two whole numbers.
        scale: Share of the image's area, smallest and largest; (1, 1) takes the whole image,
            whatever `ratio`.
        ratio: Width / height of the window, smallest and largest.
    Returns:
        int32 [4]: top, left, height, width. Where ten tries do not fit, the largest window in the
        center whose aspect lies within `ratio`.
    """
    height, width = tf.convert_to_tensor(height, tf.int32), tf.convert_to_tensor(width, tf.int32)
    if tuple(scale) == (1.0, 1.0):
        return tf.stack([0, 0, height, width])
    box = draw_box(height, width, (height, width), seed, scale, ratio)

    # Where none fits: the center. float64, so that a side that divides evenly is not rounded up
    most_high = tf.cast(tf.round(tf.cast(width, tf.float64) / ratio[0]), tf.int32)
    most_wide = tf.cast(tf.round(tf.cast(height, tf.float64) * ratio[1]), tf.int32)
    center = tf.stack([tf.minimum(height, most_high), tf.minimum(width, most_wide)])
    margin = (tf.stack([height, width]) - center) // 2
    return tf.where(box.found, tf.stack(box[1:]), tf.concat([margin, center], axis=0))


def _cut(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    top, left, height, width = tf.unstack(box)
    return image[top : top + height, left : left + width]


def _resize(
    image: tf.Tensor, size: Sequence[int], seed: tf.Tensor, interpolation: Interpolation
) -> tf.Tensor:
    """Resize uint8 [H, W, 3] to uint8 [*size, 3]; of `random` either, by the seed of the crop."""
    known = all(isinstance(side, int) for side in size)
    bicubic = functools.partial(resize if known else resize_either, image, size)
    bilinear = functools.partial(resize_either, image, size, "bilinear")
    if interpolation != "random":
        return bicubic() if interpolation == "bicubic" else bilinear()
    draw = tf.random.stateless_uniform([], tf.random.fold_in(seed, 0))
    return tf.cond(draw < 0.5, bilinear, bicubic)


def random_resized_crop(
    image: tf.Tensor,
    size: Size,
    seed: tf.Tensor,
    scale: Range,
    ratio: Range,
    interpolation: Interpolation = "bicubic",
) -> tf.Tensor:
    """Cut a random window out of uint8 [H, W, 3], and resize it to uint8 [*size, 3]."""
    height, width = tf.unstack(tf.shape(image)[:2])
    window = _cut(image, random_resized_crop_box(height, width, seed, scale, ratio))
    return _resize(window, size, seed, interpolation)


def _decode_jpeg_window(
    encoded: tf.Tensor, box: tf.Tensor, width: tf.Tensor, size: Size
) -> tf.Tensor:
    """Decode a window of a JPEG file `width` pixels wide.

    At 1/2, 1/4 or 1/8 of its size where it has far more pixels than `size` needs.
    """
    spare = tf.reduce_min(tf.cast(box[2:], tf.float32) / (_DCT_GAP * tf.constant(size, tf.float32)))
    power = tf.reduce_sum(tf.cast(spare >= [2.0, 4.0, 8.0], tf.int32))

    def decode(ratio: int) -> tf.Tensor:
        top, left = tf.unstack(box[:2] // ratio)
        bottom, right = tf.unstack((box[:2] + box[2:]) // ratio)
        # Two columns more than needed: libjpeg gets the color of a window's last column wrong, by
        # up to 65 levels.
        window = tf.stack([top, left, bottom - top, tf.minimum(right + 2, width // ratio) - left])
        # INTEGER_ACCURATE: libjpeg's own inverse transform, which Pillow uses; see
        # decode.decode_image
        image = tf.io.decode_and_crop_jpeg(
            encoded, window, CHANNELS, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )
        return image[:, : right - left]

    return tf.switch_case(power, [functools.partial(decode, ratio) for ratio in (1, 2, 4, 8)])


def decode_and_crop(
    encoded: tf.Tensor,
    size: Size,
    seed: tf.Tensor,
    scale: Range,
    ratio: Range,
    upright: bool = False,
    interpolation: Interpolation = "bicubic",
) -> tf.Tensor:
    """Decode a random window of an image file and resize it, antialiased.

    Of a JPEG only the window is decoded, but one that is to be turned whole, as other formats are
    (see decode.decode_image).

    Differs: a JPEG window of at least eight times `size` is decoded at 1/2, 1/4 or 1/8 of its size,
    which keeps at least four times `size`: mean difference below 1 level.

    Args:
        encoded: tf.string [], the bytes of the file.
        size: Height and width of the result.
        seed: Two whole numbers.
        scale: As of `random_resized_crop_box`.
        ratio: As of `random_resized_crop_box`.
        upright: Whether a JPEG file is turned first, as its Exif tag says.
        interpolation: Of the resize; `random` takes the one or the other, half the time each.
    Returns:
        uint8 [*size, 3], 0..255.
    """

    def window() -> tf.Tensor:
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(encoded), num=3)
        box = random_resized_crop_box(height, width, seed, scale, ratio)
        return _decode_jpeg_window(encoded, box, width, size)

    def whole() -> tf.Tensor:
        image = decode_image(encoded, upright)
        height, width = tf.unstack(tf.shape(image)[:2])
        return _cut(image, random_resized_crop_box(height, width, seed, scale, ratio))

    by_window = tf.io.is_jpeg(encoded)
    if upright:
        by_window &= exif_orientation(encoded) == 1
    return _resize(tf.cond(by_window, window, whole), size, seed, interpolation)


def check_simple_crop(size: Size) -> None:
    """Check that `simple_crop` can mirror an image of this size.

    Raises:
        ValueError: If a side is too short.
    """
    if min(size) <= _PADDING:
        raise ValueError(
            f"The simple crop takes images of more than {_PADDING} pixels a side, as many as it "
            f"mirrors at the border. Received: {tuple(size)}"
        )


def simple_crop(
    image: tf.Tensor, size: Size, seed: tf.Tensor, interpolation: Interpolation = "bicubic"
) -> tf.Tensor:
    """Resize until the image just covers `size`, pad it by its mirror image, and cut a window.

    So far more of it is seen than of a random resized crop, and in its own aspect (DeiT III).

    Args:
        image: uint8 [H, W, 3], 0..255.
        size: Height and width of the result, above 4 pixels each.
        seed: Two whole numbers.
        interpolation: As of `decode_and_crop`.
    Returns:
        uint8 [*size, 3].
    Source: facebookresearch/deit augment.py: torchvision's Resize of the short side, bicubic, and
        RandomCrop(padding=4, padding_mode="reflect").
    """
    # the side that is short beside `size` fits, the other is rounded down
    height, width = tf.unstack(tf.shape(image)[:2])
    by_height = height * size[1] <= width * size[0]
    tall = [tf.constant(size[0]), size[0] * width // height]
    wide = [size[1] * height // width, tf.constant(size[1])]
    covering = tf.unstack(tf.where(by_height, tf.stack(tall), tf.stack(wide)))
    image = _resize(image, covering, seed, interpolation)

    # a window of the padded image
    image = tf.pad(image, [[_PADDING, _PADDING], [_PADDING, _PADDING], [0, 0]], "REFLECT")
    spare = tf.cast(tf.shape(image)[:2] - size + 1, tf.float32)
    top, left = tf.unstack(tf.cast(tf.random.stateless_uniform([2], seed) * spare, tf.int32))
    return tf.ensure_shape(_cut(image, tf.stack([top, left, *size])), [*size, CHANNELS])
