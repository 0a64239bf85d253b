"""What is obeyed at most, whoever asks for it: a config, a file from elsewhere, a request; and what
several settings are made of.
"""

import math
from numbers import Real
from typing import Any

MAX_SIDE = 4096  # pixels of a side that a model takes, or a picture is resized to
MAX_PIXELS = 128_000_000  # of a picture before it is decoded; a phone's largest have 108 million
MAX_ASPECT = 100  # long side of a picture over its short side
MAX_SEED = 2**32 - 1  # of NumPy
MAX_MESSAGE = 64 * 2**20  # bytes of a request; gRPC's own limit of 4 MB is six float images
MAX_WIDTH = 16_384  # of a token; the widest ViT that was published has 6,144
MAX_DEPTH = 256  # blocks; the deepest that was published has 56
MAX_CLASSES = 1_000_000
MAX_MLP_RATIO = 64.0
MAX_PARAMETERS = 2_000_000_000  # of a DeiT; in float32 8 GB, and four times that in training

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS = 3  # of an image by default: red, green, blue
MAX_CHANNELS = 1024  # of a picture; hyperspectral ones have some hundreds

Size = int | tuple[int, int]
PerChannel = tuple[float, ...]  # one number per channel of an image


def height_width(size: Size, name: str = "image_size") -> tuple[int, int]:
    """`(height, width)` of a size given as one number or as a pair.

    Args:
        size: In pixels.
        name: The argument that it came as.
    Raises:
        ValueError: If it is neither, or not 1 to `MAX_SIDE`.
    """
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in pair):
        raise ValueError(
            f"`{name}` takes a whole number from 1 to {MAX_SIDE} or a pair (height, width) of "
            f"them. Received: {size!r}"
        )
    return pair


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and math.isfinite(value)
