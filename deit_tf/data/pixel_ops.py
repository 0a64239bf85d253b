"""Each pixel operation of the recipe once: a keras-cv layer on whole gray levels, as Pillow's are.

A layer here is keras-cv's own kernel, with Pillow's rounding around it, or a subclass that replaces
the method that is wrong or slow in keras-cv 0.9.0; its docstring says why, and by how much: see
benchmarks/keras_cv_kernels.py. All take and return gray levels 0..255, of the dtype that they are
given.

The recipe calls `augment_images` with transformations of its own (`apply_operation`): what keras-cv
draws when a layer is called is not reproducible, and follows another law.
References: Pillow (ImageOps, ImageEnhance, Image.transform), timm's auto_augment.py.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras_cv
import tensorflow as tf

from deit_tf.data.bicubic import shift_columns, shift_rows

Scalar = tf.Tensor | float
Fill = Sequence[float]  # one gray level per channel, 0..255

_RANGE = (0, 255)
# Pillow's fixed-point gray, r * 19595 + g * 38470 + b * 7471 over 65536, is exact in float32.
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)
_BLUR_TAPS = 13  # three boxes of 5: Pillow's Gaussian up to a radius of 2.4 pixels


def _rows(images: tf.Tensor) -> tf.Tensor:
    """[B, H, W, 3] as [B, H, W*3]: what broadcasts over 3 channels is five times slower."""
    batch, height, width, channels = tf.unstack(tf.shape(images))
    return tf.reshape(images, [batch, height, width * channels])


def _per_channel(values: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """[..., 3] repeated to [..., W*3], to go with `_rows`."""
    width = tf.shape(images)[2]
    return tf.tile(values, [1] * (len(values.shape) - 1) + [width])


def _float(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images, tf.float32)


def _levels(values: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Clip to 0..255 and round down, as Pillow's blends do; the dtype is that of `images`."""
    return tf.cast(tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8), images.dtype)


class _GrayLevels:
    """A keras-cv layer with a `value_range`, which is always 0..255 here."""

    def __init__(self, *, value_range: tuple[float, float] = _RANGE, **kwargs):
        if tuple(value_range) != _RANGE:
            raise ValueError(
                "`value_range` is (0, 255), as Pillow's arithmetic is one of whole gray levels; "
                f"scale the images before and after. Received: {value_range}"
            )
        super().__init__(value_range=_RANGE, **kwargs)


class AutoContrast(_GrayLevels, keras_cv.layers.AutoContrast):
    """Each channel stretched to 0..255 (ImageOps.autocontrast); at most 1 level off.

    Own arithmetic for speed: keras-cv's formula on rows takes a fifth of the time or less.
    """

    def augment_images(self, images, transformations=None, **kwargs):
        """Stretch [B, H, W, 3]; a channel of one value stays."""
        rows = _rows(images)
        pixel_columns = tf.stack([-1, tf.shape(images)[2], images.shape[-1]])
        low, high = tf.reduce_min(rows, 1), tf.reduce_max(rows, 1)  # [B, W*3]
        low = _float(tf.reduce_min(tf.reshape(low, pixel_columns), 1))  # [B, 3]
        high = _float(tf.reduce_max(tf.reshape(high, pixel_columns), 1))

        flat = tf.cast(high <= low, tf.float32)
        scale = tf.math.divide_no_nan(255.0, high - low) + flat
        offset = -low * scale * (1.0 - flat)

        scale, offset = (_per_channel(x, images)[:, None] for x in (scale, offset))
        return tf.reshape(_levels(_float(rows) * scale + offset, images), tf.shape(images))


class Equalize(_GrayLevels, keras_cv.layers.Equalization):
    """Each channel's histogram flattened (ImageOps.equalize); exact.

    Own arithmetic, as keras-cv takes the smallest bin for the last one: 85 levels off where a third
    of the picture is white.
    """

    def augment_images(self, images, transformations=None, **kwargs):
        """Equalize [B, H, W, 3]."""
        batch, channels = tf.shape(images)[0], images.shape[-1]
        first = tf.reshape(tf.range(batch * channels) * self.bins, [batch, 1, channels])
        bins = tf.cast(_rows(images), tf.int32) + _per_channel(first, images)  # [B, H, W*3]

        count = batch * channels * self.bins
        histogram = tf.math.bincount(tf.reshape(bins, [-1]), minlength=count)
        table = self._table(tf.reshape(histogram[:count], [-1, self.bins]))  # [B*3, 256]

        equalized = tf.gather_nd(tf.reshape(table, [-1]), bins[..., None])
        return tf.cast(tf.reshape(equalized, tf.shape(images)), images.dtype)

    def _table(self, histogram):
        """Lookup tables uint8 [B*3, 256] of the histograms int32 [B*3, 256]."""
        values = tf.range(self.bins)
        last = tf.reduce_max(tf.where(histogram > 0, values, 0), axis=1, keepdims=True)
        pixels = tf.reduce_sum(histogram, axis=1, keepdims=True)
        step = (pixels - tf.gather(histogram, last, batch_dims=1)) // 255

        below = tf.cumsum(histogram, axis=1, exclusive=True)
        table = (below + step // 2) // tf.maximum(step, 1)
        return tf.cast(tf.minimum(tf.where(step > 0, table, values), 255), tf.uint8)


class Posterize(_GrayLevels, keras_cv.layers.Posterization):
    """The highest bits kept (ImageOps.posterize); exact.

    Own method, as keras-cv fixes the bits when the layer is made, and refuses 0: timm's policy
    draws another number per image, and 0 in 2.3 % of its draws at magnitude 9.
    """

    def get_random_transformation(self, **kwargs):
        """The bits given to the constructor."""
        return 8 - self._shift

    def augment_image(self, image, transformation, **kwargs):
        """Keep `transformation` bits, 0..8, of [..., 3]."""
        keep = 256 - tf.bitwise.left_shift(1, 8 - tf.cast(transformation, tf.int32))
        kept = tf.bitwise.bitwise_and(tf.cast(image, tf.uint8), tf.cast(keep, tf.uint8))
        return tf.cast(kept, image.dtype)


class Solarize(_GrayLevels, keras_cv.layers.Solarization):
    """What lies at or above a threshold inverted (ImageOps.solarize); exact.

    Own arithmetic for speed: without `tf.where` and clipping it takes a fifth of the time or less.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Invert [B, H, W, 3] at or above `thresholds`, 0..256, after adding `additions`."""
        values = _float(images)
        if "additions" in transformations:
            values = tf.clip_by_value(values + _float(transformations["additions"]), 0.0, 255.0)
        inverted = tf.cast(values >= _float(transformations["thresholds"]), tf.float32)
        return _levels(tf.abs(values - 255.0 * inverted), images)


class SolarizeAdd(_GrayLevels, keras_cv.layers.Solarization):
    """What lies below a threshold made brighter (timm's solarize_add); exact.

    Own arithmetic, as keras-cv's `addition_factor` adds to every pixel and then inverts: 159 levels
    off on average.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Add `additions` to what lies below `thresholds` in [B, H, W, 3]."""
        values = _float(images)
        below = tf.cast(values < _float(transformations["thresholds"]), tf.float32)
        return _levels(values + below * _float(transformations["additions"]), images)


class Color(keras_cv.layers.RandomColorDegeneration):
    """A blend with the gray image (ImageEnhance.Color), by keras-cv's kernel.

    At most 1 level off.
    """

    def augment_images(self, images, transformations=None, **kwargs):
        """Blend [B, H, W, 3]; 0 changes nothing, 1 leaves gray, below 0 is more colorful."""
        return _levels(super().augment_images(_float(images), transformations), images)


class Contrast(_GrayLevels, keras_cv.layers.RandomContrast):
    """A blend with the mean gray (ImageEnhance.Contrast); at most 1 level off.

    Own arithmetic, as keras-cv blends with the mean of each channel: up to 8 levels off.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Blend [B, H, W, 3]; a factor of 1 changes nothing."""
        channels = [_float(images[..., c]) * luma for c, luma in enumerate(_LUMA)]
        gray = tf.floor(tf.add_n(channels) + 0.5)  # [B, H, W]
        mean = tf.floor(tf.reduce_mean(gray, axis=(1, 2)) + 0.5)[:, None, None, None]
        return _levels(mean + _float(transformations) * (_float(images) - mean), images)


class Brightness(_GrayLevels, keras_cv.layers.RandomBrightness):
    """A product (ImageEnhance.Brightness); at most 1 level off.

    Own arithmetic, as keras-cv adds: 60 levels off on average.
    """

    def get_random_transformation_batch(self, batch_size, **kwargs):
        """Factors [B, 1, 1, 1] around 1."""
        return 1.0 + self.factor(shape=(batch_size, 1, 1, 1))

    def augment_images(self, images, transformations, **kwargs):
        """Multiply [B, H, W, 3]; a factor of 1 changes nothing."""
        return _levels(_float(images) * _float(transformations), images)


class Sharpness(_GrayLevels, keras_cv.layers.RandomSharpness):
    """A blend with the smoothed image (ImageEnhance.Sharpness), by keras-cv's kernel.

    At most 1 level off.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Blend [B, H, W, 3]; 0 changes nothing, 1 is smooth, below 0 is sharper."""
        return _levels(super().augment_images(_float(images), transformations), images)


class Grayscale(keras_cv.layers.Grayscale):
    """Equal channels (torchvision's Grayscale), by keras-cv's kernel; at most 1 level off."""

    def augment_images(self, images, transformations=None, **kwargs):
        """[B, H, W, 3] without its colors, rounded to the nearest level."""
        return _levels(super().augment_images(_float(images)) + 0.5, images)


def _fill(layer: Any, transformations: dict, images: tf.Tensor) -> tf.Tensor:
    """What geometry leaves behind, float32 [3]: `fill` of the transformations.

    keras-cv's `fill_value` is one number for all channels; it holds where there is no `fill`.
    """
    if layer.fill_mode != "constant":
        raise ValueError(f"`fill_mode` is 'constant', as Pillow's. Received: {layer.fill_mode!r}")
    return _float(transformations.get("fill", [layer.fill_value] * images.shape[-1]))


class Rotation(keras_cv.layers.RandomRotation):
    """Counter-clockwise about the center (Image.rotate), by keras-cv's kernel.

    Differs: bilinear, not bicubic: away from the border at most 2.7 levels off on average (0.5 from
        Pillow's own bilinear); the outermost pixels blend with the fill.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Rotate [B, H, W, 3] by `angles` in radians, [B]."""
        fill = _per_channel(_fill(self, transformations, images), images)
        centered = tf.reshape(_float(_rows(images)) - fill, tf.shape(images))
        centered = tf.ensure_shape(centered, images.shape)

        rotated = super().augment_images(centered, transformations)  # filled with 0
        rotated = _levels(_rows(rotated) + (fill + 0.5), images)
        return tf.reshape(rotated, tf.shape(images))


class _Bicubic:
    """A keras-cv layer with an `interpolation`, which is always bicubic here."""

    def __init__(self, *, interpolation: str = "bicubic", **kwargs):
        if interpolation != "bicubic":
            raise ValueError(
                "`interpolation` is 'bicubic', as in timm's policy; keras_cv.layers has others. "
                f"Received: {interpolation!r}"
            )
        super().__init__(**kwargs)
        self.interpolation = interpolation  # what get_config tells


def _centers(length: tf.Tensor) -> tf.Tensor:
    return tf.range(length, dtype=tf.float32) + 0.5


class Shear(_Bicubic, keras_cv.layers.RandomShear):
    """Pillow's bicubic shear (Image.transform); at most 1 level off.

    Own arithmetic, as keras-cv's kernel is bilinear and half a pixel off: 1.7 to 2.1 levels on
    average.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Read row y of [B, H, W, 3] `shear_x * y` pixels further right; or columns, `shear_y`."""
        slope_x, slope_y = transformations["shear_x"], transformations["shear_y"]
        fill = _fill(self, transformations, images)
        _, height, width, _ = tf.unstack(tf.shape(images))

        levels = tf.cast(images, tf.uint8)
        if slope_x is not None:
            levels = shift_rows(levels, slope_x * _centers(height), fill)
        if slope_y is not None:
            levels = shift_columns(levels, slope_y * _centers(width), fill)
        return tf.cast(levels, images.dtype)


class Translation(_Bicubic, keras_cv.layers.RandomTranslation):
    """Pillow's bicubic translation (Image.transform); at most 1 level off.

    Own arithmetic, as keras-cv's kernel is bilinear: 1.1 to 1.6 levels off on average.
    """

    def augment_images(self, images, transformations, **kwargs):
        """Move [B, H, W, 3] right and down, by shares of its sides."""
        right, down = transformations["width_translations"], transformations["height_translations"]
        fill = _fill(self, transformations, images)
        _, height, width, _ = tf.unstack(_float(tf.shape(images)))

        levels = tf.cast(images, tf.uint8)
        if right is not None:
            levels = shift_rows(levels, -right * width, fill)
        if down is not None:
            levels = shift_columns(levels, -down * height, fill)
        return tf.cast(levels, images.dtype)


class GaussianBlur(keras_cv.layers.RandomGaussianBlur):
    """A blur with Pillow's weights (ImageFilter.GaussianBlur), by keras-cv's kernel.

    Own weights and borders, as keras-cv's are a true Gaussian's and black: 1.3 levels off on
    average, 130 at most. Here at most 3 levels off, as Pillow rounds after each of its six passes;
    in the two outermost pixels, which Pillow repeats in each pass, up to 20.
    """

    def __init__(self, factor, *, kernel_size: int = _BLUR_TAPS, **kwargs):
        if kernel_size != _BLUR_TAPS:
            raise ValueError(
                f"`kernel_size` is {_BLUR_TAPS}, the reach of Pillow's blur at 2.4 pixels. "
                f"Received: {kernel_size}"
            )
        super().__init__(factor=factor, kernel_size=kernel_size, **kwargs)

    def get_random_transformation(self, **kwargs):
        """The weights of a radius drawn as keras-cv does."""
        return blur_weights(self.factor())

    def augment_image(self, image, transformation, **kwargs):
        """Blur [H, W, 3] by weights along y and along x, from `blur_weights`."""
        margin = _BLUR_TAPS // 2
        height, width = tf.unstack(tf.shape(image)[:2])

        # Pillow repeats the outermost pixels.
        rows = tf.clip_by_value(tf.range(-margin, height + margin), 0, height - 1)
        columns = tf.clip_by_value(tf.range(-margin, width + margin), 0, width - 1)
        padded = _float(tf.gather(tf.gather(image, rows), columns, axis=1))

        blurred = super().augment_image(padded, transformation)[margin:-margin, margin:-margin]
        return _levels(blurred + 0.5, image)


def blur_weights(radius: Scalar) -> tuple[tf.Tensor, tf.Tensor]:
    """Weights of Pillow's Gaussian blur, three passes of an extended box each (BoxBlur.c).

    Args:
        radius: Standard deviation in pixels, 0..2.4.
    Returns:
        Along y float32 [13, 1, 1, 1] and along x [1, 13, 1, 1].
    """
    radius = _float(radius)
    variance = radius * radius / 3.0  # of one of the three passes
    half = tf.floor((tf.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    edge = (2 * half + 1) * (half * (half + 1) - 3 * variance) / (6 * (variance - (half + 1) ** 2))
    distance = tf.abs(tf.range(-2.0, 3.0))
    box = tf.where(distance <= half, 1.0, tf.where(distance <= half + 1, edge, 0.0))  # [5]
    box = box / tf.reduce_sum(box)

    weights = box
    for _ in range(2):
        padded = tf.pad(weights, [[4, 4]])[None, :, None]
        weights = tf.nn.conv1d(padded, box[:, None, None], 1, "VALID")[0, :, 0]

    return tf.reshape(weights, [-1, 1, 1, 1]), tf.reshape(weights, [1, -1, 1, 1])


class Operation(NamedTuple):
    """One row of `OPERATIONS`.

    Args:
        layer: The keras-cv layer.
        settings: What its constructor asks for; what it would draw by them plays no part.
        transformations: What `augment_images` takes, at the argument of Pillow or timm.
        fills: Whether the transformations have a `fill`.
    """

    layer: type[keras_cv.layers.BaseImageAugmentationLayer]
    settings: dict[str, Any]
    transformations: Callable[[Any], Any]
    fills: bool = False


_ROTATION = {"factor": 0.0, "fill_mode": "constant"}
_SHEAR = {"x_factor": 0.0, "y_factor": 0.0, "fill_mode": "constant"}
_TRANSLATION = {"height_factor": 0.0, "width_factor": 0.0, "fill_mode": "constant"}

# By the names of Pillow and timm. Arguments: degrees, bits, thresholds and additions in gray
# levels, factors (1 changes nothing), slopes, shares of a side (timm's sign), a radius in pixels.
OPERATIONS = {
    "auto_contrast": Operation(AutoContrast, {}, lambda _: None),
    "equalize": Operation(Equalize, {}, lambda _: None),
    "invert": Operation(Solarize, {}, lambda _: {"thresholds": 0}),
    "rotate": Operation(
        Rotation,
        _ROTATION,
        lambda degrees: {"angles": (_float(degrees) * (math.pi / 180.0))[None]},
        fills=True,
    ),
    "posterize": Operation(Posterize, {"bits": 8}, lambda bits: bits),
    "solarize": Operation(Solarize, {}, lambda threshold: {"thresholds": threshold}),
    "solarize_add": Operation(
        SolarizeAdd, {}, lambda addition: {"additions": addition, "thresholds": 128}
    ),
    "color": Operation(Color, {"factor": 0.0}, lambda factor: 1.0 - factor),
    "contrast": Operation(Contrast, {"factor": 0.0}, lambda factor: factor),
    "brightness": Operation(Brightness, {"factor": 0.0}, lambda factor: factor),
    "sharpness": Operation(Sharpness, {"factor": 0.0}, lambda factor: 1.0 - factor),
    "shear_x": Operation(
        Shear, _SHEAR, lambda slope: {"shear_x": slope, "shear_y": None}, fills=True
    ),
    "shear_y": Operation(
        Shear, _SHEAR, lambda slope: {"shear_x": None, "shear_y": slope}, fills=True
    ),
    "translate_x": Operation(
        Translation,
        _TRANSLATION,
        lambda share: {"width_translations": -share, "height_translations": None},
        fills=True,
    ),
    "translate_y": Operation(
        Translation,
        _TRANSLATION,
        lambda share: {"width_translations": None, "height_translations": -share},
        fills=True,
    ),
    "grayscale": Operation(Grayscale, {"output_channels": 3}, lambda _: None),
    "blur": Operation(GaussianBlur, {"factor": 1.0}, blur_weights),
}


def have_global_generator() -> None:
    """Make TensorFlow's global generator, which some layers ask for when they are made.

    With deterministic ops there is none.
    """
    try:
        tf.random.get_global_generator()
    except RuntimeError:
        tf.random.set_global_generator(tf.random.Generator.from_seed(1))


@functools.cache
def _layer(name: str) -> keras_cv.layers.BaseImageAugmentationLayer:
    """The layer of an operation, made at first use, as that starts TensorFlow's runtime.

    `seed=1` gives it a generator of its own, which is never drawn from, instead of the global one.
    """
    operation = OPERATIONS[name]
    with tf.init_scope():  # the first use is within a data set's graph, which the layer outlives
        have_global_generator()
        return operation.layer(**operation.settings, seed=1, dtype="float32")


def apply_operation(
    name: str, image: tf.Tensor, argument: Scalar | None = None, fill: Fill | None = None
) -> tf.Tensor:
    """Apply one operation to one image.

    Args:
        name: A key of `OPERATIONS`.
        image: uint8 [H, W, 3], 0..255.
        argument: Its argument; None for those that take none.
        fill: Gray level per channel where geometry leaves nothing; geometry alone needs it.
    Returns:
        uint8 [H, W, 3].
    """
    operation, layer = OPERATIONS[name], _layer(name)
    transformations = operation.transformations(argument)
    if operation.fills:
        transformations["fill"] = fill

    # keras-cv's layers are of two kinds: for batches, or for single images.
    if hasattr(layer, "augment_images"):
        result = layer.augment_images(image[None], transformations)[0]
    else:
        result = layer.augment_image(image, transformations)
    return tf.ensure_shape(result, image.shape)
