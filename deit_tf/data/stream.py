"""The images of a whole training in their order, from any step on, and the seeds of their draws.

Every draw is a pure function of (seed, epoch, index, repeat).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from deit_tf.config import AugmentConfig, DataConfig
from deit_tf.data.channels import report_left_out
from deit_tf.data.order import Rows
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.data.sources import Source

# What a seed is folded with first: order, images, mixing and masks draw from streams of their own.
ORDER, IMAGE, MIX, MASK = range(4)
UNSEEDED = 87_654_321  # what TensorFlow itself takes for a graph without a seed


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Full batches in `source`; what is left over is dropped, as in the original.

    Raises:
        ValueError: If there is not one.
    """
    if not 0 < batch_size <= source.size:
        raise ValueError(
            f"`data.batch_size` lies between 1 and the {source.size} images of {source.name}; "
            f"lower it or add images. Received: {batch_size}"
        )
    return source.size // batch_size


@dataclass(frozen=True)
class Stream:
    """The images of a whole training in their order, from a step on.

    The fields are the arguments of `train_dataset`; the augmentation is resolved. `rows` are those
    of every batch that are made.
    """

    source: Source
    data: DataConfig
    augment: AugmentConfig
    processor: ImageProcessor
    epochs: int
    seed: int
    first_step: int
    rows: Rows

    def augmented(self) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
        """What makes the augmented image [H, W, 3] of an item."""
        from deit_tf.data.augment import check_auto_augment, traced_augmentation  # brings keras-cv

        report_left_out(self.augment, self.processor.num_channels)
        check_auto_augment(self.augment.auto_augment)  # within a data set the error is TensorFlow's
        processor = self.processor
        expected = (processor.size, processor.mean, processor.std, processor.exif_orientation)
        augment = traced_augmentation(self.augment, *expected)

        def image(item):
            return augment(item["image"], item_seed(self.seed, IMAGE, item))

        return image

    def items(self, draw: Callable[[dict[str, tf.Tensor]], Any]) -> tf.data.Dataset:
        """What `draw` makes of each item of these rows of every batch, with `epoch` and
        `repeat`.
        """
        items = self._placed() if self.source.at else self._in_turn()
        return items.map(draw, parallel_calls(self.data))

    def counted(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Batches made ahead, whose number is known."""
        count = self._steps * self.epochs - self.first_step
        batches = batches.prefetch(tf.data.AUTOTUNE)
        return batches.apply(tf.data.experimental.assert_cardinality(count))

    @property
    def _steps(self) -> int:
        return steps_per_epoch(self.source, self.data.batch_size)

    @property
    def _order(self) -> tf.Tensor:
        """The seed that an epoch is folded into for its permutation."""
        return tf.random.fold_in(root_key(self.seed), ORDER)

    def _placed(self) -> tf.data.Dataset:
        """The items, each read by its place; nothing before `first_step` is touched."""
        batch_size, repeats, count = self.data.batch_size, self.augment.repeats, self.rows.count
        places, steps, order = tf.constant(self.rows.places()), self._steps, self._order

        def item(number):
            epoch, step = number // count // steps, number // count % steps
            place = step * batch_size + places[number % count]
            found = self.source.at(tf.random.fold_in(order, epoch), place // repeats)
            return found | {"epoch": epoch, "repeat": place % repeats}

        numbers = tf.data.Dataset.range(self.first_step * count, self.epochs * steps * count)
        return numbers.map(item, tf.data.AUTOTUNE)

    def _in_turn(self) -> tf.data.Dataset:
        """The items, read one after the other; those before `first_step` are passed over as they
        are, undecoded.
        """
        batch_size, repeats = self.data.batch_size, self.augment.repeats
        first_epoch, skipped = divmod(self.first_step, self._steps)
        order = self._order

        def one_epoch(epoch):
            # Of this function's graph alone. A shuffle takes it along, or else the seed of the
            # process, which is no part of the stream and, where it is 0, an error in TensorFlow.
            tf.random.set_seed(self.seed or UNSEEDED)
            seen = tf.constant(skipped * batch_size, tf.int64)
            seen = tf.where(epoch == first_epoch, seen, 0)

            items = self.source.read(tf.random.fold_in(order, epoch)).skip(seen // repeats)
            items = items.flat_map(lambda item: _repeat(item, repeats))
            items = items.skip(seen % repeats).take(self._steps * batch_size - seen)
            return items.map(lambda item: item | {"epoch": epoch})

        items = tf.data.Dataset.range(first_epoch, self.epochs).flat_map(one_epoch)
        return self._arranged(items)

    def _arranged(self, items: tf.data.Dataset) -> tf.data.Dataset:
        """These rows of every batch, of all items in the order of the stream."""
        places = self.rows.places()
        if len(places) == self.data.batch_size and (np.diff(places) == 1).all():
            return items

        def pick(batch):
            return tf.nest.map_structure(lambda x: tf.gather(x, places), batch)

        batches = items.batch(self.data.batch_size, drop_remainder=True)  # files, not pictures
        return batches.map(pick).unbatch()


def root_key(seed: int) -> tf.Tensor:
    """The seed of all draws of a run, int64 [2]."""
    return tf.constant([0, seed], tf.int64)


def item_seed(seed: int, stream: int, item: dict[str, tf.Tensor]) -> tf.Tensor:
    """The seed of one item in one stream of draws."""
    folded = tf.random.fold_in(root_key(seed), stream)
    for part in ("epoch", "index", "repeat"):
        folded = tf.random.fold_in(folded, item[part])
    return folded


def _repeat(item, repeats: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(repeats).map(lambda repeat: item | {"repeat": repeat})


def parallel_calls(data: DataConfig) -> int:
    """Images prepared at a time, as tf.data takes it."""
    return tf.data.AUTOTUNE if data.num_parallel_calls < 0 else data.num_parallel_calls
