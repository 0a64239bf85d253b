"""Pictures to look at: what a model sees of a file, as sharp as the file is."""

from dataclasses import replace

import numpy as np
import tensorflow as tf

from deit_tf.data import ImageProcessor
from deit_tf.evaluation.charts import LARGEST_PICTURE


def photograph(processor: ImageProcessor, encoded: bytes) -> np.ndarray:
    """What a model sees of an image file, in more pixels than it does where the file has them.

    Args:
        processor: What the model expects.
        encoded: The bytes of the file.
    Returns:
        uint8 [k H, k W, 3], the model's own crop; k is the largest whole number of 1 at least that
        neither enlarges the file nor exceeds LARGEST_PICTURE a side.
    """
    pixels = processor.decode(tf.constant(encoded))
    before, (height, width) = processor.before_crop, processor.size
    needed = (before, before) if isinstance(before, int) else before
    there = min(have // need for have, need in zip(pixels.shape[:2], needed, strict=True))
    factor = max(1, min(there, LARGEST_PICTURE // max(height, width)))

    larger = replace(
        processor,
        image_size=(height * factor, width * factor),
        resize_to=before * factor
        if isinstance(before, int)
        else tuple(side * factor for side in before),
    )
    return larger.to_rgb(larger.normalize(larger.crop(pixels)))
