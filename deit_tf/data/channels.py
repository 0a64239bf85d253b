"""Pictures that are not RGB: gray ones of one channel, and multispectral ones of more than three.

The operations of the recipe are for RGB. Here they are applied to three channels at a time; those
that mix red, green and blue are left out.
"""

import logging
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from deit_tf.config import CHANNELS, AugmentConfig

log = logging.getLogger(__name__)

# Operations that look at red, green and blue as one color (contrast at its mean gray); every other
# treats each channel alone.
COLOR_OPS = ("color", "contrast", "grayscale")
# Weights of red, green and blue in the gray of Pillow's mode L, in 65536ths (ITU-R 601-2).
_LUMA = (19595, 38470, 7471)


def gray(image: tf.Tensor) -> tf.Tensor:
    """Turn uint8 [H, W, 3] into uint8 [H, W, 1], as Pillow's mode L; three equal channels stay."""
    image = tf.ensure_shape(image, [None, None, CHANNELS])
    red, green, blue = tf.unstack(tf.cast(image, tf.int32), axis=-1)
    levels = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 2**15
    return tf.cast(levels // 2**16, tf.uint8)[..., None]


def by_threes(
    apply: Callable[[tf.Tensor, slice], tf.Tensor], image: tf.Tensor, channels: int
) -> tf.Tensor:
    """Apply what is for RGB to three channels at a time.

    Args:
        apply: From uint8 [H, W, 3], and which of the channels they are, to uint8 [h, w, 3]; it is
            called once for each three, and draws nothing but from seeds.
        image: uint8 [H, W, channels]. Where their number is no multiple of three, the last stands
            in for those that are missing.
        channels: How many it has.
    Returns:
        uint8 [h, w, channels].
    """
    if channels == CHANNELS:
        return apply(image, slice(0, CHANNELS))
    groups = -(-channels // CHANNELS)
    padded = tf.gather(image, np.minimum(np.arange(groups * CHANNELS), channels - 1), axis=-1)
    made = [
        apply(three, slice(CHANNELS * number, CHANNELS * (number + 1)))
        for number, three in enumerate(tf.split(padded, groups, axis=-1))
    ]
    return tf.concat(made, axis=-1)[..., :channels]


def left_out(channels: int) -> tuple[str, ...]:
    """The operations that images of so many channels are spared; a gray one they do not change."""
    return COLOR_OPS if channels > CHANNELS or channels == 2 else ()


def report_left_out(config: AugmentConfig, channels: int) -> None:
    """Say which augmentations do nothing to images of so many channels.

    Raises:
        ValueError: If `config.auto_augment` is keras-cv's, which is for RGB alone.
    """
    if channels == CHANNELS:
        return
    if config.auto_augment == "keras-cv":
        raise ValueError(
            "`augment.auto_augment` keras-cv is for three channels: take a policy such as "
            f"rand-m9-mstd0.5-inc1. Received: keras-cv, and {channels} channels of `data.mean`"
        )
    is_rand = config.auto_augment.startswith("rand")
    found = ["color", "contrast"] * is_rand + ["grayscale"] * (config.auto_augment == "3-augment")
    if config.color_jitter and not is_rand:
        found += ["the jitter of saturation", "the jitter of contrast"]
    if channels == 1:  # of a gray image contrast is that of its only channel
        found = [each for each in found if "contrast" not in each]
    if found:
        why = "changes nothing in gray images" if channels == 1 else "is for RGB, and left out"
        log.info("Images of %d channels: %s %s.", channels, " and ".join(found), why)
