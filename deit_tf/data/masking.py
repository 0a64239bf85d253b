"""Which patches of an image are hidden in masked image modeling: a pure function of a seed.

SimMIM (Xie et al. 2022), section 3.2, random masking; microsoft/SimMIM data/data_simmim.py,
MaskGenerator.
"""

import math

import tensorflow as tf

from deit_tf.config import MaskConfig


def check_mask(config: MaskConfig, image_size: tuple[int, int], patch_size: int) -> None:
    """Refuse a mask that does not fit the model.

    Raises:
        ValueError: If `unit` is no multiple of the patch or does not divide the image, or `ratio`
            is no share that hides something and leaves something.
    """
    if (
        config.unit < 1
        or config.unit % patch_size
        or any(side % config.unit for side in image_size)
    ):
        raise ValueError(
            f"`mask.unit` is a multiple of the patch, {patch_size} pixels, and divides the "
            f"image, {image_size[0]} x {image_size[1]}. Received: unit={config.unit}"
        )
    if not 0 < config.ratio < 1:
        raise ValueError(f"`mask.ratio` lies between 0 and 1. Received: ratio={config.ratio}")


def block_mask(
    seed: tf.Tensor, config: MaskConfig, image_size: tuple[int, int], patch_size: int
) -> tf.Tensor:
    """Hide `ratio` of the image in square blocks, drawn without replacement.

    Args:
        seed: Two whole numbers.
        config: Side of a block and share of the image.
        image_size: Height and width in pixels.
        patch_size: Side of a patch in pixels.
    Returns:
        float32 [H/P * W/P], 1 where a patch is hidden, row by row.
    """
    rows, columns = (side // config.unit for side in image_size)
    hidden = math.ceil(rows * columns * config.ratio)
    order = tf.argsort(tf.random.stateless_uniform([rows * columns], seed))  # a random permutation
    blocks = tf.reshape(tf.argsort(order) < hidden, [rows, columns])  # exactly `hidden` of them
    scale = config.unit // patch_size
    patches = tf.repeat(tf.repeat(blocks, scale, axis=0), scale, axis=1)  # bool [H/P, W/P]
    return tf.reshape(tf.cast(patches, tf.float32), [-1])
