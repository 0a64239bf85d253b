"""From a source to the batches that `fit` takes.

Every draw is a pure function of (seed, epoch, index, repeat). So the same seed gives the same bytes
at any parallelism, on any number of replicas (they share one global batch), and after a restart in
the middle. Source: facebookresearch/deit datasets.py, samplers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from deit_tf.config import AugmentConfig, DataConfig, MaskConfig
from deit_tf.data.masking import block_mask, check_mask
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.data.sources import Source

# What a seed is folded with first: order, images, mixing and masks draw from streams of their own.
_ORDER, _IMAGE, _MIX, _MASK = range(4)


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


def train_dataset(
    source: Source,
    data: DataConfig,
    augment: AugmentConfig,
    processor: ImageProcessor,
    *,
    epochs: int,
    seed: int = 0,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Shuffle, augment, batch and mix.

    Args:
        source: The images.
        data: Batch size and parallelism.
        augment: The augmentation; with `repeats` R each image appears R times in a row, drawn anew,
            and an epoch of the same number of steps shows 1/R of the images.
        processor: What the model expects: size and normalization of the result.
        epochs: Epochs that the data set lasts.
        seed: Seed of everything that is drawn.
        first_step: Steps to leave out at the start, to resume exactly.
    Returns:
        Batches of float32 [B, H, W, 3], normalized, and float32 [B, C], rows summing to 1.
    Raises:
        ValueError: If there are fewer images than a batch, or the augmentation makes no sense.
    Differs: the original repeats images in distributed training alone, and drops what does not
        fill 256.
    """
    from deit_tf.data.mixing import mix, one_hot  # brings keras-cv, which training alone needs

    stream = _Stream(source, data, augment.resolve(), processor, epochs, seed, first_step)
    image, mix_key = stream.augmented(), tf.random.fold_in(_key(seed), _MIX)

    def mix_batch(step, batch):
        images, labels = batch
        targets = one_hot(labels, len(source.class_names), stream.augment.label_smoothing)
        return mix(images, targets, tf.random.fold_in(mix_key, step), stream.augment)

    batches = stream.batches(lambda item: (image(item), item["label"]))
    return stream.counted(batches.enumerate(first_step).map(mix_batch, _calls(data)))


def masked_dataset(
    source: Source,
    data: DataConfig,
    augment: AugmentConfig,
    mask: MaskConfig,
    processor: ImageProcessor,
    patch_size: int,
    *,
    epochs: int,
    seed: int = 0,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Shuffle, augment and mask, for masked image modeling; labels, mixup and CutMix play no part.

    Args:
        source: The images.
        data: Batch size and parallelism.
        augment: The augmentation of single images.
        mask: Which patches are hidden.
        processor: What the model expects: size and normalization of the result.
        patch_size: Side of a patch in pixels.
        epochs: Epochs that the data set lasts.
        seed: Seed of everything that is drawn.
        first_step: Steps to leave out at the start, to resume exactly.
    Returns:
        Batches of `{"image": float32 [B, H, W, 3], "mask": float32 [B, H/P * W/P]}`.
    Raises:
        ValueError: If there are fewer images than a batch, or the mask does not fit the model.
    """
    check_mask(mask, processor.size, patch_size)
    stream = _Stream(source, data, augment.resolve(), processor, epochs, seed, first_step)
    image = stream.augmented()

    def draw(item):
        hidden = block_mask(_seed(seed, _MASK, item), mask, processor.size, patch_size)
        return {"image": image(item), "mask": hidden}

    return stream.counted(stream.batches(draw))


@dataclass(frozen=True)
class _Stream:
    """The images of a whole training in their order, from a step on.

    The fields are the arguments of `train_dataset`; the augmentation is resolved.
    """

    source: Source
    data: DataConfig
    augment: AugmentConfig
    processor: ImageProcessor
    epochs: int
    seed: int
    first_step: int

    def augmented(self) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
        """What makes the augmented image [H, W, 3] of an item."""
        from deit_tf.data.augment import augment_image, check_auto_augment  # brings keras-cv

        check_auto_augment(self.augment.auto_augment)  # within a data set the error is TensorFlow's
        processor = self.processor
        expected = (processor.size, processor.mean, processor.std, processor.exif_orientation)

        def image(item):
            seed = _seed(self.seed, _IMAGE, item)
            return augment_image(item["image"], seed, self.augment, *expected)

        return image

    def batches(self, draw: Callable[[dict[str, tf.Tensor]], Any]) -> tf.data.Dataset:
        """Full batches of what `draw` makes of each item."""
        items = self._items().map(draw, _calls(self.data))
        return items.batch(self.data.batch_size, drop_remainder=True)

    def counted(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Batches made ahead, whose number is known."""
        steps = steps_per_epoch(self.source, self.data.batch_size)
        count = steps * self.epochs - self.first_step
        batches = batches.prefetch(tf.data.AUTOTUNE)
        return batches.apply(tf.data.experimental.assert_cardinality(count))

    def _items(self) -> tf.data.Dataset:
        """Items of all epochs, full batches of them, with their `epoch` and `repeat`."""
        batch_size, repeats = self.data.batch_size, self.augment.repeats
        steps = steps_per_epoch(self.source, batch_size)
        first_epoch, skipped = divmod(self.first_step, steps)
        order = tf.random.fold_in(_key(self.seed), _ORDER)

        def one_epoch(epoch):
            items = self.source.read(tf.random.fold_in(order, epoch))
            if repeats > 1:
                items = items.flat_map(lambda item: _repeat(item, repeats))
            else:
                items = items.map(lambda item: item | {"repeat": tf.constant(0, tf.int64)})

            already_seen = tf.constant(skipped * batch_size, tf.int64)
            items = items.take(steps * batch_size)
            items = items.skip(tf.where(epoch == first_epoch, already_seen, 0))
            return items.map(lambda item: item | {"epoch": epoch})

        return tf.data.Dataset.range(first_epoch, self.epochs).flat_map(one_epoch)


def masked_eval_dataset(
    source: Source, data: DataConfig, mask: MaskConfig, processor: ImageProcessor, patch_size: int
) -> tf.data.Dataset:
    """Every image once, in the order on disk, each under one mask of its own that never changes.

    Args:
        source: The images.
        data: Batch size and parallelism.
        mask: Which patches are hidden.
        processor: What the model expects.
        patch_size: Side of a patch in pixels.
    Returns:
        Batches as of `masked_dataset`; the last may be smaller.
    """
    check_mask(mask, processor.size, patch_size)

    def prepare(item):
        seed = tf.random.fold_in(_key(0), item["index"])
        return {
            "image": processor(item["image"]),
            "mask": block_mask(seed, mask, processor.size, patch_size),
        }

    return (
        source.read(None)
        .map(prepare, _calls(data))
        .batch(data.batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


def eval_dataset(source: Source, data: DataConfig, processor: ImageProcessor) -> tf.data.Dataset:
    """Every image once, in the order on disk.

    Args:
        source: The images.
        data: Batch size and parallelism.
        processor: What the model expects.
    Returns:
        Batches of float32 [B, H, W, 3], normalized, and int64 [B]; the last may be smaller.
    """
    items = source.read(None).map(
        lambda item: (processor(item["image"]), item["label"]), _calls(data)
    )
    return items.batch(data.batch_size).prefetch(tf.data.AUTOTUNE)


def sample(source: Source, processor: ImageProcessor, count: int) -> list[tuple[dict, np.ndarray]]:
    """Up to `count` items from all over a source, always the same; files that do not decode are
    left out.

    Args:
        source: The images.
        processor: What the model expects.
        count: How many.
    Returns:
        Each item of `source.read`, as NumPy, with its image float32 [H, W, 3], normalized.
    Raises:
        ValueError: If no image decodes.
    """
    items = source.read(None if source.mixed else _key(0))
    prepared = items.map(lambda item: (item, processor(item["image"]))).ignore_errors()
    found = list(prepared.take(count).as_numpy_iterator())
    if not found:
        raise ValueError(
            f"{source.name} has no image that can be decoded. Received: {source.size} files"
        )
    return found


def padded(batches: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Fill up the last batch, and weigh its images, so that evaluation on many replicas counts each
    image once.

    Args:
        batches: From `eval_dataset` or `masked_eval_dataset`.
        batch_size: Images of a full batch.
    Returns:
        Images, labels (the weight once more where there are none) and the weight float32 [B]: 1, or
        0 for filling.
    """

    def fill(*batch):
        count = tf.shape(tf.nest.flatten(batch)[0])[0]
        weight = tf.cast(tf.range(batch_size) < count, tf.float32)  # [B]
        full = tf.nest.map_structure(lambda x: _fill(x, batch_size), batch)
        return full[0], full[1] if len(full) > 1 else weight, weight

    return batches.map(fill)


def _fill(x: tf.Tensor, rows: int) -> tf.Tensor:
    """[b, ...] to [rows, ...], with zeros."""
    missing = [[0, rows - tf.shape(x)[0]]] + [[0, 0]] * (x.shape.rank - 1)
    return tf.ensure_shape(tf.pad(x, missing), (rows, *x.shape[1:]))


def _key(seed: int) -> tf.Tensor:
    return tf.constant([0, seed], tf.int64)


def _seed(seed: int, stream: int, item: dict[str, tf.Tensor]) -> tf.Tensor:
    """The seed of one item in one stream of draws."""
    folded = tf.random.fold_in(_key(seed), stream)
    for part in ("epoch", "index", "repeat"):
        folded = tf.random.fold_in(folded, item[part])
    return folded


def _repeat(item, repeats: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(repeats).map(lambda repeat: item | {"repeat": repeat})


def _calls(data: DataConfig) -> int:
    return tf.data.AUTOTUNE if data.num_parallel_calls < 0 else data.num_parallel_calls
