"""The image processor once more, by Pillow: what the one in an exported graph is checked against.

As torchvision's Resize and CenterCrop, which the original evaluates with (facebookresearch/deit
datasets.py).
"""

import io

import numpy as np
from PIL import Image

from deit_tf.data.preprocess import ImageProcessor

# Gray levels that `ImageProcessor.crop` may differ by: one of the decoder, two of the passes of the
# resize.
MOST_LEVELS = 3


def crop_by_pillow(encoded: bytes, processor: ImageProcessor) -> np.ndarray:
    """Decode, resize and center-crop the bytes of an image file to uint8 [*size, channels] of the
    processor, which has one or three.
    """
    with Image.open(io.BytesIO(encoded)) as file:
        image = file.convert("L" if processor.num_channels == 1 else "RGB")
    (width, height), before = image.size, processor.before_crop
    if isinstance(before, int):
        short = min(width, height)
        before = (before * height // short, before * width // short)
    image = image.resize((before[1], before[0]), Image.Resampling[processor.interpolation.upper()])
    top, left = (round((b - s) / 2) for b, s in zip(before, processor.size, strict=True))
    image = image.crop((left, top, left + processor.size[1], top + processor.size[0]))
    return np.asarray(image).reshape(*processor.size, processor.num_channels)
