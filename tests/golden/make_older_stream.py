"""The training stream of batches up to 64, which groups must not change.

Written by the code of 2266170, before there were groups: run it with a checkout of that on
PYTHONPATH.
"""

from pathlib import Path

import numpy as np
from deit_tf.config import AugmentConfig, DataConfig
from deit_tf.data import ImageProcessor, open_sources, train_dataset

data = DataConfig("digits", batch_size=48)
training, _ = open_sources(data)
made = train_dataset(
    training, data, AugmentConfig("deit"), ImageProcessor(16), epochs=2, seed=3, first_step=28
)
batches = list(made.take(3).as_numpy_iterator())  # the last of an epoch, and two of the next
np.savez(
    Path(__file__).parent / "older_stream.npz",
    means=np.stack([images.mean((1, 2, 3)) for images, _ in batches]),
    labels=np.stack([labels for _, labels in batches]),
)
