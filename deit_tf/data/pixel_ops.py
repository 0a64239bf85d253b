"""Pixel operations on one uint8 image at fixed arguments, equal to Pillow's, on keras-cv's layers.

A layer of keras-cv 0.9.0 is used as it stands where it is right and not slow; where it is wrong,
lacks the operation or spends most of its time on copies, a subclass replaces its arithmetic. Every
layer is
called through `augment_images` with explicit arguments: `__call__` would draw its own and is not
reproducible. References: Pillow (ImageOps, ImageEnhance, Image.transform), timm's auto_augment.py.
"""

import functools
import math
from collections.abc import Callable, Sequence

import keras_cv
import tensorflow as tf

Scalar = tf.Tensor | float
Fill = Sequence[float]  # one gray level per channel, 0..255

_RANGE = (0, 255)
# Pillow's fixed-point gray, r * 19595 + g * 38470 + b * 7471 over 65536, is exact in float32.
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)
_BLUR_TAPS = 13  # three boxes of 5: Pillow's Gaussian up to a radius of 2.4 pixels
_RESIZE_BLOCK = 8  # output rows per small matrix product; 8 is the fastest of 8..56 at 224 pixels


def _rows(images: tf.Tensor) -> tf.Tensor:
    """[B, H, W, 3] as [B, H, W*3]: arithmetic that broadcasts over 3 channels is five times
    slower.
    """
    _, height, width, channels = images.shape
    shape = tf.shape(images)
    return tf.reshape(
        images, [-1, height or shape[1], width * channels if width else shape[2] * channels]
    )


def _per_channel(values: tf.Tensor, width: tf.Tensor | int) -> tf.Tensor:
    """[..., 3] repeated to [..., width*3], to go with `_rows`."""
    return tf.tile(values, [1] * (len(values.shape) - 1) + [width])


def _width(images: tf.Tensor) -> tf.Tensor | int:
    return images.shape[-2] or tf.shape(images)[-2]


def _float(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images, tf.float32)


def _truncate(values: tf.Tensor) -> tf.Tensor:
    """float32 to uint8 as Pillow's blends do it: clipped to 0..255, then rounded down."""
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


class AutoContrast(keras_cv.layers.AutoContrast):
    """keras-cv's formula on rows: 0.3 instead of 1.4 CPU-ms at 224 pixels."""

    def augment_images(self, images, transformations=None, **kwargs):
        """Stretch each channel of uint8 [B, H, W, 3] to 0..255; a channel of one value stays."""
        width = _width(images)
        rows = _rows(images)  # [B, H, W*3]
        per_pixel = [-1, width, images.shape[-1]]
        low = _float(tf.reduce_min(tf.reshape(tf.reduce_min(rows, 1), per_pixel), 1))  # [B, 3]
        high = _float(tf.reduce_max(tf.reshape(tf.reduce_max(rows, 1), per_pixel), 1))
        flat = tf.cast(high <= low, tf.float32)
        scale = tf.math.divide_no_nan(255.0, high - low) + flat
        offset = -low * scale * (1.0 - flat)
        stretched = (
            _float(rows) * _per_channel(scale, width)[:, None]
            + _per_channel(offset, width)[:, None]
        )
        return tf.reshape(_truncate(stretched), tf.shape(images))


class Equalize(keras_cv.layers.Equalization):
    """Pillow's equalization. keras-cv takes the smallest bin for the last one: off by up to 91
    levels.
    """

    def augment_images(self, images, transformations=None, **kwargs):
        """Flatten the histogram of each channel of uint8 [1, H, W, 3]."""
        channels = images.shape[-1]
        bins = tf.cast(_rows(images), tf.int32) + _per_channel(
            tf.range(channels) * self.bins, _width(images)
        )
        histogram = tf.math.bincount(tf.reshape(bins, [-1]), minlength=channels * self.bins)
        histogram = tf.reshape(histogram[: channels * self.bins], [channels, self.bins])
        table = tf.reshape(self._table(histogram), [-1])  # [3*256]
        return tf.reshape(tf.gather_nd(table, bins[..., None]), tf.shape(images))

    def _table(self, histogram):
        """Lookup tables uint8 [3, 256] of the histograms int32 [3, 256]."""
        values = tf.range(self.bins)
        last = tf.reduce_max(tf.where(histogram > 0, values, 0), axis=1, keepdims=True)
        step = (
            tf.reduce_sum(histogram, axis=1, keepdims=True)
            - tf.gather(histogram, last, batch_dims=1)
        ) // 255
        below = tf.cumsum(histogram, axis=1, exclusive=True)
        table = (below + step // 2) // tf.maximum(step, 1)
        return tf.cast(tf.minimum(tf.where(step > 0, table, values), 255), tf.uint8)


class Posterize(keras_cv.layers.VectorizedBaseImageAugmentationLayer):
    """Any number of bits as a tensor. keras-cv's is fixed when the layer is made, and refuses 0."""

    def augment_images(self, images, transformations, **kwargs):
        """Keep the `bits` highest bits, 0..8, of uint8 [B, H, W, 3]."""
        keep = 256 - tf.bitwise.left_shift(1, 8 - tf.cast(transformations["bits"], tf.int32))
        return tf.bitwise.bitwise_and(images, tf.cast(keep, tf.uint8))


class Solarize(keras_cv.layers.Solarization):
    """keras-cv's formula without `tf.where` and clipping: 0.1 instead of 0.7 CPU-ms at 224
    pixels.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Invert what lies at or above `thresholds` in uint8 [B, H, W, 3]."""
        threshold = tf.cast(transformations["thresholds"], tf.float32)
        values = _float(images)
        return tf.cast(tf.abs(values - 255.0 * tf.cast(values >= threshold, tf.float32)), tf.uint8)


class SolarizeAdd(keras_cv.layers.VectorizedBaseImageAugmentationLayer):
    """timm's solarize_add. keras-cv's `addition` adds to every pixel and then inverts."""

    def augment_images(self, images, transformations, **kwargs):
        """Add `additions`, 0..128, to what lies below 128 in uint8 [B, H, W, 3]; no sum exceeds
        255.
        """
        return images + tf.cast(images < 128, tf.uint8) * tf.cast(
            transformations["additions"], tf.uint8
        )


class Contrast(keras_cv.layers.VectorizedBaseImageAugmentationLayer):
    """Pillow's contrast around the rounded gray mean. keras-cv's is per channel: off by up to 116
    levels.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Blend uint8 [B, H, W, 3] with its mean gray; `factors` 1 changes nothing."""
        factor = tf.cast(transformations["factors"], tf.float32)
        gray = tf.floor(
            tf.add_n([_float(images[..., c]) * luma for c, luma in enumerate(_LUMA)]) + 0.5
        )
        mean = tf.floor(tf.reduce_mean(gray, axis=(1, 2)) + 0.5)[:, None, None, None]
        return _truncate(mean + factor * (_float(images) - mean))


class Brightness(keras_cv.layers.VectorizedBaseImageAugmentationLayer):
    """Pillow's brightness, a product. keras-cv's is a sum: mean error 18 to 74 levels."""

    def augment_images(self, images, transformations, **kwargs):
        """Multiply uint8 [B, H, W, 3] by `factors`."""
        return _truncate(_float(images) * tf.cast(transformations["factors"], tf.float32))


def _cubic_taps(shifts: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """First source line (relative) and Pillow's four cubic weights (a = -1), for each shift in
    pixels.
    """
    whole = tf.floor(shifts)
    d = shifts - whole
    weights = [-d * (1 - d) ** 2, 1 + d * d * (d - 2), d * (1 + d * (1 - d)), d * d * (d - 1)]
    return tf.cast(whole, tf.int32) - 1, weights


def _fill_outside(
    value: tf.Tensor, position: tf.Tensor, length: tf.Tensor, fill: tf.Tensor
) -> tf.Tensor:
    """Round rows float32 [H, W*3] down to uint8, with `fill` where `position` lies off the
    image.
    """
    inside = tf.cast(tf.abs(position - (length - 1) / 2) < length / 2, tf.float32)
    # 2**-10 keeps a flat region, whose weights sum to 1 only up to rounding, from losing a level.
    value = tf.clip_by_value(value + 2.0**-10, 0.0, 255.0)
    return tf.cast(fill + inside * (value - fill), tf.uint8)


def _shift_rows(image: tf.Tensor, shifts: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Read row y of uint8 [H, W, 3] `shifts[y]` pixels to the right, bicubically as Pillow does."""
    height, width = tf.shape(image)[0], _width(image)
    start, weights = _cubic_taps(shifts)  # [H]
    columns = tf.clip_by_value(tf.range(width + 3) + start[:, None], 0, width - 1)  # [H, W+3]
    source = tf.gather(tf.reshape(image, [-1, 3]), columns + tf.range(height)[:, None] * width)
    source = _float(tf.reshape(source, [height, (width + 3) * 3]))
    value = tf.add_n(
        [source[:, 3 * k : 3 * (k + width)] * weights[k][:, None] for k in range(4)]
    )  # [H, W*3]
    position = tf.repeat(tf.range(width), 3)
    position = tf.cast(position, tf.float32) + shifts[:, None]
    value = _fill_outside(
        value, position, tf.cast(width, tf.float32), _per_channel(tf.cast(fill, tf.float32), width)
    )
    return tf.reshape(value, tf.shape(image))


def _shift_columns(image: tf.Tensor, shifts: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Read column x of uint8 [H, W, 3] `shifts[x]` pixels further down, bicubically as Pillow
    does.
    """
    height, width = tf.shape(image)[0], _width(image)
    start, weights = _cubic_taps(shifts)  # [W]
    rows = tf.clip_by_value(tf.range(height + 3)[:, None] + start, 0, height - 1)  # [H+3, W]
    source = tf.gather(tf.reshape(image, [-1, 3]), rows * width + tf.range(width))
    source = _float(tf.reshape(source, [height + 3, width * 3]))
    value = tf.add_n(
        [source[k : k + height] * tf.repeat(weights[k], 3) for k in range(4)]
    )  # [H, W*3]
    position = tf.cast(tf.range(height)[:, None], tf.float32) + tf.repeat(shifts, 3)
    value = _fill_outside(
        value, position, tf.cast(height, tf.float32), _per_channel(tf.cast(fill, tf.float32), width)
    )
    return tf.reshape(value, tf.shape(image))


def _centers(length: tf.Tensor | int) -> tf.Tensor:
    return tf.range(length, dtype=tf.float32) + 0.5


class Shear(keras_cv.layers.RandomShear):
    """Pillow's bicubic shear. keras-cv's is bilinear and off by half a pixel.

    One axis stays on whole pixels, so one gather and four taps are all of Pillow's sixteen: exact,
    and faster than the projective transform. The same holds for `Translation`.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Shear uint8 [1, H, W, 3] along x by `shear_x`, or along y by `shear_y`; `fill` per
        channel.
        """
        image, fill = images[0], transformations["fill"]
        if transformations["shear_x"] is not None:
            return _shift_rows(
                image, transformations["shear_x"] * _centers(tf.shape(image)[0]), fill
            )[None]
        return _shift_columns(image, transformations["shear_y"] * _centers(_width(image)), fill)[
            None
        ]


class Translation(keras_cv.layers.RandomTranslation):
    """Pillow's bicubic translation; keras-cv's is bilinear (mean difference 1.4 levels)."""

    def augment_images(self, images, transformations, **kwargs):
        """Move uint8 [1, H, W, 3] by `width_translations` or `height_translations`, parts of a
        side.
        """
        image, fill = images[0], transformations["fill"]
        height, width = tf.shape(image)[0], _width(image)
        if transformations["width_translations"] is not None:
            shift = -transformations["width_translations"] * tf.cast(width, tf.float32)
            return _shift_rows(image, tf.fill([height], shift), fill)[None]
        shift = -transformations["height_translations"] * tf.cast(height, tf.float32)
        return _shift_columns(image, tf.fill([width], shift), fill)[None]


_LAYERS: dict[str, Callable[[], keras_cv.layers.BaseImageAugmentationLayer]] = {
    "auto_contrast": lambda: AutoContrast(_RANGE, seed=1),
    "equalize": lambda: Equalize(_RANGE, seed=1),
    "solarize": lambda: Solarize(_RANGE, seed=1),
    "solarize_add": lambda: SolarizeAdd(seed=1),
    "contrast": lambda: Contrast(seed=1),
    "brightness": lambda: Brightness(seed=1),
    "shear": lambda: Shear(0.0, 0.0, fill_mode="constant", seed=1),
    "translation": lambda: Translation(0.0, 0.0, fill_mode="constant", seed=1),
    "color": lambda: keras_cv.layers.RandomColorDegeneration(0.0, seed=1),
    "sharpness": lambda: keras_cv.layers.RandomSharpness(0.0, _RANGE, seed=1),
    "rotation": lambda: keras_cv.layers.RandomRotation(0.0, fill_mode="constant", seed=1),
    "grayscale": lambda: keras_cv.layers.Grayscale(3, seed=1),
    "blur": lambda: keras_cv.layers.RandomGaussianBlur(_BLUR_TAPS, 1.0),
    "posterize": lambda: Posterize(seed=1),
}


@functools.cache
def _layer(name: str) -> keras_cv.layers.BaseImageAugmentationLayer:
    """A layer, made at first use: making one starts TensorFlow's runtime, which an import must not
    do.

    `seed=1` gives it a generator of its own, which is never drawn from, instead of the global one.
    """
    with tf.init_scope():
        have_global_generator()
        return _LAYERS[name]()


def have_global_generator() -> None:
    """Some layers ask for TensorFlow's global generator when they are made; with deterministic ops
    there is none.
    """
    try:
        tf.random.get_global_generator()
    except RuntimeError:
        tf.random.set_global_generator(tf.random.Generator.from_seed(1))


def _apply(
    name: str, image: tf.Tensor, transformations: dict | tf.Tensor | None = None
) -> tf.Tensor:
    return tf.ensure_shape(
        _layer(name).augment_images(image[None], transformations)[0], image.shape
    )


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Stretch each channel to 0..255 (ImageOps.autocontrast). Error: at most 1 level, in 0.1 % of
    the pixels.
    """
    return _apply("auto_contrast", image)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Flatten each channel's histogram (ImageOps.equalize). Exact."""
    return _apply("equalize", image)


def invert(image: tf.Tensor) -> tf.Tensor:
    """255 - x (ImageOps.invert). Exact."""
    return tf.bitwise.invert(image)


def rotate(image: tf.Tensor, degrees: Scalar, fill: Fill) -> tf.Tensor:
    """Rotate counter-clockwise about the center (Image.rotate), by keras-cv's kernel.

    Differs: bilinear, not bicubic: away from the border at most 2.7 levels off on average (0.5 from
        Pillow's own bilinear); the outermost pixels blend with `fill`.
    """
    width = _width(image)
    fill = _per_channel(tf.cast(fill, tf.float32), width)
    centered = tf.reshape(
        _float(_rows(image[None])) - fill, tf.shape(image)
    )  # the kernel fills with 0
    angle = tf.cast(degrees, tf.float32) * (math.pi / 180.0)
    turned = _apply("rotation", tf.ensure_shape(centered, image.shape), {"angles": angle[None]})
    rows = _rows(turned[None])[0] + (fill + 0.5)
    return tf.ensure_shape(tf.reshape(_truncate(rows), tf.shape(image)), image.shape)


def posterize(image: tf.Tensor, bits: tf.Tensor | int) -> tf.Tensor:
    """Keep the `bits` highest bits, 0..8 (ImageOps.posterize); 0 bits leave black. Exact."""
    return _apply("posterize", image, {"bits": bits})


def solarize(image: tf.Tensor, threshold: Scalar) -> tf.Tensor:
    """Invert what lies at or above `threshold`, 0..256 (ImageOps.solarize). Exact."""
    return _apply("solarize", image, {"thresholds": threshold})


def solarize_add(image: tf.Tensor, addition: Scalar) -> tf.Tensor:
    """Add `addition`, 0..128, to what lies below 128 (timm's solarize_add). Exact."""
    return _apply("solarize_add", image, {"additions": addition})


def color(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blend with the gray image (ImageEnhance.Color), by keras-cv's kernel. Error: at most 1
    level.
    """
    return _truncate(_apply("color", _float(image), 1.0 - factor))


def contrast(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blend with the mean gray (ImageEnhance.Contrast). Exact up to float32: at most 1 level."""
    return _apply("contrast", image, {"factors": factor})


def brightness(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Multiply (ImageEnhance.Brightness). Exact up to float32: at most 1 level."""
    return _apply("brightness", image, {"factors": factor})


def sharpness(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blend with the smoothed image (ImageEnhance.Sharpness), by keras-cv's kernel. Error: at most
    1 level.
    """
    return _truncate(_apply("sharpness", _float(image), 1.0 - factor))


def shear_x(image: tf.Tensor, slope: Scalar, fill: Fill) -> tf.Tensor:
    """Read row y `slope * y` pixels to the right (Image.transform, bicubic). Error: at most 1
    level.
    """
    return _apply("shear", image, {"shear_x": slope, "shear_y": None, "fill": fill})


def shear_y(image: tf.Tensor, slope: Scalar, fill: Fill) -> tf.Tensor:
    """Read column x `slope * x` pixels further down (Image.transform, bicubic). Error: at most 1
    level.
    """
    return _apply("shear", image, {"shear_x": None, "shear_y": slope, "fill": fill})


def translate_x(image: tf.Tensor, fraction: Scalar, fill: Fill) -> tf.Tensor:
    """Move left by `fraction` of the width (timm's translate_x_rel, bicubic). Error: at most 1
    level.
    """
    return _apply(
        "translation",
        image,
        {"width_translations": -fraction, "height_translations": None, "fill": fill},
    )


def translate_y(image: tf.Tensor, fraction: Scalar, fill: Fill) -> tf.Tensor:
    """Move up by `fraction` of the height (timm's translate_y_rel, bicubic). Error: at most 1
    level.
    """
    return _apply(
        "translation",
        image,
        {"width_translations": None, "height_translations": -fraction, "fill": fill},
    )


def grayscale(image: tf.Tensor) -> tf.Tensor:
    """Three equal channels (torchvision's Grayscale(3)), by keras-cv's kernel. Error: at most 1
    level.
    """
    return _truncate(_apply("grayscale", _float(image)) + 0.5)


def gaussian_blur(image: tf.Tensor, radius: Scalar) -> tf.Tensor:
    """Blur (ImageFilter.GaussianBlur) by keras-cv's kernel, with Pillow's three boxes as its
    weights.

    Args:
        image: uint8 [H, W, 3], 0..255.
        radius: Standard deviation in pixels, 0..2.4.
    Returns:
        uint8 [H, W, 3]. Error: at most 3 levels, as Pillow rounds after each of its six passes; in
        the two outermost pixels, which Pillow repeats in each pass, up to 20.
    """
    margin = _BLUR_TAPS // 2
    height, width = tf.unstack(tf.shape(image)[:2])
    # keras-cv's borders are black; Pillow repeats the outermost pixels.
    padded = tf.gather(image, tf.clip_by_value(tf.range(-margin, height + margin), 0, height - 1))
    padded = tf.gather(
        padded, tf.clip_by_value(tf.range(-margin, width + margin), 0, width - 1), axis=1
    )
    kernel = _blur_kernel(tf.cast(radius, tf.float32))
    along = (tf.reshape(kernel, [-1, 1, 1, 1]), tf.reshape(kernel, [1, -1, 1, 1]))
    blurred = _layer("blur").augment_image(_float(padded), along)[margin:-margin, margin:-margin]
    return tf.ensure_shape(_truncate(blurred + 0.5), image.shape)


def _blur_kernel(radius: tf.Tensor) -> tf.Tensor:
    """Three passes of Pillow's extended box of standard deviation `radius` / sqrt(3) each
    (BoxBlur.c).
    """
    variance = radius * radius / 3.0
    half = tf.floor((tf.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    edge = (2 * half + 1) * (half * (half + 1) - 3 * variance) / (6 * (variance - (half + 1) ** 2))
    distance = tf.abs(tf.range(-2.0, 3.0))
    box = tf.where(distance <= half, 1.0, tf.where(distance <= half + 1, edge, 0.0))  # [5]
    box = box / tf.reduce_sum(box)
    kernel = box
    for _ in range(2):
        kernel = tf.nn.conv1d(
            tf.pad(kernel, [[4, 4]])[None, :, None], box[:, None, None], 1, "VALID"
        )[0, :, 0]
    return kernel  # [13]


def _resize_weights(length: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Pillow's bicubic coefficients (a = -0.5, stretched where the image shrinks), in blocks of
    output lines.

    Returns:
        float32 [blocks, lines, K] and the source line of each of the K columns, int32 [blocks, K].
    """
    blocks = -(-size // _RESIZE_BLOCK)
    scale = tf.cast(length, tf.float32) / size
    stretch = tf.maximum(scale, 1.0)
    center = tf.reshape(
        (tf.range(blocks * _RESIZE_BLOCK, dtype=tf.float32) + 0.5) * scale,
        [blocks, _RESIZE_BLOCK, 1],
    )
    start = tf.cast(tf.maximum(center[:, :1] - 2 * stretch + 0.5, 0.0), tf.int32)
    source = start + tf.range(
        tf.cast(tf.math.ceil((_RESIZE_BLOCK - 1) * scale + 4 * stretch), tf.int32) + 1
    )
    x = tf.minimum(
        tf.abs((tf.cast(source, tf.float32) + 0.5 - center) / stretch), 2.0
    )  # [blocks, lines, K]
    weights = tf.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights = weights * tf.cast(source < length, tf.float32)
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, -1, keepdims=True))
    return weights, tf.minimum(source[:, 0], length - 1)


def _resize_lines(lines: tf.Tensor, size: int) -> tf.Tensor:
    """Resize float32 [L, R] along its first axis to uint8-valued float32 [size, R]."""
    weights, source = _resize_weights(tf.shape(lines)[0], size)
    resized = tf.matmul(weights, tf.gather(lines, source))  # [blocks, lines, R]
    resized = tf.reshape(resized, [-1, tf.shape(lines)[1]])[:size]
    return tf.clip_by_value(tf.round(resized), 0.0, 255.0)


def resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resize uint8 [H, W, 3] to uint8 [*size, 3] bicubically, antialiased where it shrinks
    (Image.resize).

    A product with a banded matrix per axis, in small dense blocks: closer to Pillow than
    tf.image.resize (mean error 0.18), and 1.4 instead of 1.9 CPU-ms per crop. Error: at most 2
    levels, mean below 0.01.

    Differs: the horizontal pass always comes first, and is rounded. Pillow 13 begins with the
        vertical
    one where that is cheaper: mean difference 0.2.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    # Cast before transposing: on uint8, oneDNN logs an error and falls back.
    columns = tf.reshape(tf.transpose(_float(image), [1, 0, 2]), [width, height * 3])
    columns = tf.reshape(_resize_lines(columns, size[1]), [size[1], height, 3])
    rows = tf.reshape(tf.transpose(columns, [1, 0, 2]), [height, size[1] * 3])
    return tf.reshape(tf.cast(_resize_lines(rows, size[0]), tf.uint8), [*size, 3])
