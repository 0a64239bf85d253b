"""From the bytes of an image file to one training image: the random laws of the recipe, by a seed.

RandAugment stands in rand_augment.py, the random crops in crop.py, random erasing in erasing.py,
the pixels in pixel_ops.py; the same as keras-cv layers, for images in memory, in recipe_layers.py.
Source: 3-Augment of facebookresearch/deit (augment.py), color jitter of torchvision.
"""

import functools
from collections.abc import Callable, Collection

import keras_cv
import tensorflow as tf

from deit_tf.config import AugmentConfig, PerChannel
from deit_tf.data.channels import by_threes, gray, left_out
from deit_tf.data.crop import Size, decode_and_crop, random_resized_crop, simple_crop
from deit_tf.data.decode import CHANNELS, decode_channels, decode_image
from deit_tf.data.erasing import random_erasing
from deit_tf.data.npy import is_npy
from deit_tf.data.pixel_ops import apply_operation, have_global_generator
from deit_tf.data.preprocess import normalize
from deit_tf.data.rand_augment import fill_of, parse_rand_augment, rand_augment
from deit_tf.data.tracing import traced_once

SOLARIZE_THRESHOLD = 128
BLUR_RADIUS = (0.1, 2.0)
JITTERED = ("brightness", "contrast", "color")


def random_flip(image: tf.Tensor, seed: tf.Tensor, probability: float) -> tf.Tensor:
    """Mirror [H, W, 3] left to right with `probability`."""
    flip = tf.random.stateless_uniform([], seed) < probability
    # Partials: AutoGraph cannot tell two lambdas on one line apart, and warns.
    return tf.cond(
        flip, functools.partial(tf.reverse, image, [1]), functools.partial(tf.identity, image)
    )


def three_augment(image: tf.Tensor, seed: tf.Tensor, without: Collection[str] = ()) -> tf.Tensor:
    """Apply exactly one of grayscale, solarize and blur, each a third of the time.

    Args:
        image: uint8 [H, W, 3], 0..255.
        seed: Two whole numbers.
        without: Operations that leave the image as it is.
    Returns:
        uint8 [H, W, 3].
    Source: DeiT III, section 3.2.
    """
    uniform = tf.random.stateless_uniform([2], seed)
    radius = BLUR_RADIUS[0] + (BLUR_RADIUS[1] - BLUR_RADIUS[0]) * uniform[1]

    branches = [
        functools.partial(tf.identity, image)
        if "grayscale" in without
        else functools.partial(apply_operation, "grayscale", image),
        functools.partial(apply_operation, "solarize", image, SOLARIZE_THRESHOLD),
        functools.partial(apply_operation, "blur", image, radius),
    ]
    return tf.switch_case(tf.cast(uniform[0] * len(branches), tf.int32), branches)


def draw_jitter(seed: tf.Tensor, strength: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Factors of brightness, contrast and saturation, float32 [3], and their order, int32 [3]."""
    uniform = tf.random.stateless_uniform([2, 3], seed)
    low = max(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * uniform[0], tf.argsort(uniform[1])


def color_jitter(
    image: tf.Tensor, seed: tf.Tensor, strength: float, without: Collection[str] = ()
) -> tf.Tensor:
    """Change brightness, contrast and saturation in random order.

    Args:
        image: uint8 [H, W, 3], 0..255.
        seed: Two whole numbers.
        strength: Each factor is uniform in 1 - strength .. 1 + strength, not below 0.
        without: Operations that leave the image as it is.
    Returns:
        uint8 [H, W, 3].
    Source: torchvision, ColorJitter(s, s, s).
    """
    factors, order = draw_jitter(seed, strength)
    for slot in range(len(JITTERED)):
        branches = [
            functools.partial(tf.identity, image)
            if name in without
            else functools.partial(apply_operation, name, image, factors[i])
            for i, name in enumerate(JITTERED)
        ]
        image = tf.switch_case(order[slot], branches)
    return image


@functools.cache
def _stock_rand_augment() -> keras_cv.layers.RandAugment:
    with tf.init_scope():  # see pixel_ops._layer
        have_global_generator()
        return keras_cv.layers.RandAugment(value_range=(0, 255), dtype="float32")


def keras_cv_rand_augment(image: tf.Tensor) -> tf.Tensor:
    """keras-cv's own RandAugment with its defaults, for comparison: uint8 [H, W, 3] to the same.

    Differs: another law (ten operations, other magnitudes), and not stateless: it draws from
    TensorFlow's global generator, in whatever order the images come.
    """
    return tf.saturate_cast(tf.round(_stock_rand_augment()(image)), tf.uint8)


def check_auto_augment(name: str) -> None:
    """Refuse what `AugmentConfig.auto_augment` does not take.

    Raises:
        ValueError: If `name` is no policy; of a RandAugment policy it names the bad part.
    """
    if name.startswith("rand"):
        parse_rand_augment(name)
    elif name not in ("3-augment", "keras-cv", "none"):
        allowed = "a policy such as `rand-m9-mstd0.5-inc1`, `3-augment`, `keras-cv` or `none`"
        raise ValueError(f"`auto_augment` takes {allowed}. Received: {name!r}")


def _auto_augment(
    image: tf.Tensor,
    seeds: tf.Tensor,
    config: AugmentConfig,
    fill: tuple[int, ...],
    without: Collection[str],
) -> tf.Tensor:
    """The policy that `config.auto_augment` names; color jitter where it is no RandAugment."""
    name = config.auto_augment
    check_auto_augment(name)
    if name == "keras-cv":
        return keras_cv_rand_augment(image)
    if name.startswith("rand"):
        return rand_augment(image, seeds[0], parse_rand_augment(name), fill, without)

    if name == "3-augment":
        image = three_augment(image, seeds[0], without)
    if not config.color_jitter:
        return image
    return color_jitter(image, seeds[1], config.color_jitter, without)


def _crop(
    encoded: tf.Tensor,
    size: Size,
    seed: tf.Tensor,
    config: AugmentConfig,
    channels: int,
    upright: bool,
) -> tf.Tensor:
    """Decode a random window of a picture, resized to uint8 [*size, channels]."""
    law = (seed, config.scale, config.ratio)
    is_simple, interpolation = config.crop == "simple", config.interpolation

    def rgb() -> tf.Tensor:
        if is_simple:
            return simple_crop(decode_image(encoded, upright), size, seed, interpolation)
        return decode_and_crop(encoded, size, *law, upright, interpolation)

    def window(three: tf.Tensor, _: slice) -> tf.Tensor:
        if is_simple:
            return simple_crop(three, size, seed, interpolation)
        return random_resized_crop(three, size, *law, interpolation)

    def by_channel() -> tf.Tensor:
        return by_threes(window, decode_channels(encoded, channels), channels)

    if channels == CHANNELS:
        return rgb()
    if channels > 1:
        return tf.ensure_shape(by_channel(), [*size, channels])
    image = tf.cond(is_npy(encoded), by_channel, lambda: gray(rgb()))
    return tf.ensure_shape(image, [*size, channels])


def _augmented_by_threes(
    image: tf.Tensor, seeds: tf.Tensor, config: AugmentConfig, fill: tuple[int, ...]
) -> tf.Tensor:
    """The same to each three channels of uint8 [H, W, channels], with a fill for each channel."""
    channels = len(fill)
    padded = (*fill, *fill[-1:] * 2)

    def apply(three: tf.Tensor, which: slice) -> tf.Tensor:
        return _auto_augment(three, seeds, config, padded[which], left_out(channels))

    return by_threes(apply, image, channels)


def augment_image(
    encoded: tf.Tensor,
    seed: tf.Tensor,
    config: AugmentConfig,
    size: Size,
    mean: PerChannel,
    std: PerChannel,
    upright: bool = False,
) -> tf.Tensor:
    """Turn the bytes of an image file into one training image.

    Args:
        encoded: tf.string [], the bytes of the file.
        seed: Two whole numbers; the result is a pure function of `encoded` and them, except where
            `config.auto_augment` is `keras-cv`.
        config: A resolved config (`AugmentConfig.resolve`).
        size: Height and width of the result.
        mean: Mean of the pixels scaled to 0..1, per channel.
        std: Their standard deviation, per channel.
        upright: Whether a JPEG file is turned first, as its Exif tag says.
    Returns:
        float32 [*size, channels], normalized; as many channels as `mean` has numbers.
    Raises:
        ValueError: If `config.auto_augment` names no policy.
    """
    seeds, channels = tf.random.split(seed, 5), len(mean)

    # on gray levels, uint8 [*size, channels]
    image = _crop(encoded, size, seeds[0], config, channels, upright)
    if config.hflip:
        image = random_flip(image, seeds[1], config.hflip)
    image = _augmented_by_threes(image, seeds[2:4], config, fill_of(mean))

    # Rows of width * channels values: broadcasting over three channels costs five times as much.
    rows = tf.reshape(image, [size[0], size[1] * channels])
    rows = normalize(rows, tuple(mean) * size[1], tuple(std) * size[1])
    image = tf.reshape(rows, [*size, channels])

    if config.random_erasing:
        rule = (config.random_erasing, config.erase_mode, config.erase_count)
        image = random_erasing(image, seeds[4], *rule)
    return image


@functools.lru_cache(maxsize=8)
def traced_augmentation(
    config: AugmentConfig, size: Size, mean: PerChannel, std: PerChannel, upright: bool
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """`augment_image` of these settings, of the bytes and the seed, int64 [2].

    Traced once for all data sets of a process: a run opens two or three with the same settings, and
    RandAugment's graph alone takes seconds.
    """

    def of_bytes(encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return augment_image(encoded, seed, config, size, mean, std, upright)

    if config.auto_augment == "keras-cv":  # draws from a generator, a variable: never shared
        return of_bytes
    signature = [tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.int64)]
    return traced_once(of_bytes, signature)
