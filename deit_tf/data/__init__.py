"""Images: from a file to the batch that a model takes. Knows no model."""

from deit_tf.data.pipeline import (
    eval_dataset,
    masked_dataset,
    masked_eval_dataset,
    padded,
    sample,
    steps_per_epoch,
    train_dataset,
)
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.data.sources import Source, open_sources

__all__ = [
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
