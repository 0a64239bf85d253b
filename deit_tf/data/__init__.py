"""Images: from a file to the batch that a model takes. Knows no model.

The recipe's layers are loaded at their first use, as they bring keras-cv.
"""

import importlib

from deit_tf.data.pipeline import (
    eval_dataset,
    masked_dataset,
    masked_eval_dataset,
    padded,
    sample,
    train_dataset,
)
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.data.sources import Source, open_sources
from deit_tf.data.stream import steps_per_epoch

_LAYERS = {
    "ColorJitter": "deit_tf.data.recipe_layers",
    "CutMix": "deit_tf.data.mixing",
    "MixUp": "deit_tf.data.mixing",
    "RandAugment": "deit_tf.data.recipe_layers",
    "RandomChoice": "deit_tf.data.recipe_layers",
    "RandomErasing": "deit_tf.data.recipe_layers",
    "RandomFlip": "deit_tf.data.recipe_layers",
    "RandomResizedCrop": "deit_tf.data.recipe_layers",
    "SimpleRandomCrop": "deit_tf.data.recipe_layers",
    "ThreeAugment": "deit_tf.data.recipe_layers",
}

__all__ = [  # noqa: PLE0604, they are strings
    *_LAYERS,
    "ImageProcessor",
    "Source",
    "eval_dataset",
    "masked_dataset",
    "masked_eval_dataset",
    "open_sources",
    "padded",
    "sample",
    "steps_per_epoch",
    "train_dataset",
]


def __getattr__(name: str):
    if name in _LAYERS:
        return getattr(importlib.import_module(_LAYERS[name]), name)
    raise AttributeError(f"module 'deit_tf.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
