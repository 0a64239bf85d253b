"""From a source to the batches that `fit` takes.

Every draw is a pure function of (seed, epoch, index, repeat). So the same seed gives the same bytes
at any parallelism, on any number of replicas (they share one global batch), and after a restart in
the middle. Source: facebookresearch/deit datasets.py, samplers.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from deit_tf.config import AugmentConfig, DataConfig, MaskConfig
from deit_tf.data.crop import check_simple_crop
from deit_tf.data.masking import block_mask, check_mask
from deit_tf.data.order import WHOLE, Part, Rows, group_size
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.data.sources import Source
from deit_tf.data.stream import MASK, MIX, Stream, item_seed, parallel_calls, root_key
from deit_tf.data.tracing import as_written

KEPT_BYTES = 256e6  # of held-out images: ten thousand of 64 pixels would take twice as much


@as_written
def train_dataset(
    source: Source,
    data: DataConfig,
    augment: AugmentConfig,
    processor: ImageProcessor,
    *,
    epochs: int,
    seed: int = 0,
    first_step: int = 0,
    part: Part = WHOLE,
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
        part: Which share of every batch to make, counted from 0, and of how many; a worker of
            several reads and decodes no other images, but for those that are mixed with its own.
    Returns:
        Batches of float32 [B, H, W, 3], normalized, and float32 [B, C], rows summing to 1; of a
        source of several labels each 0..1, 1 where a class is there.
    Raises:
        ValueError: If there are fewer images than a batch, or the augmentation makes no sense.
    Differs: the original repeats images in distributed training alone, and drops what does not
        fill 256.
    """
    from deit_tf.data.mixing import mix, one_hot  # brings keras-cv, which training alone needs

    augment = augment.resolve(source.multilabel)
    if augment.crop == "simple":
        check_simple_crop(processor.size)
    mixes = bool(augment.mixup or augment.cutmix)
    rows = Rows.of_part(part, data.batch_size, group_size(data.batch_size, augment))
    made = rows.in_whole_groups() if mixes else rows
    stream = Stream(source, data, augment, processor, epochs, seed, first_step, made)
    image, classes = stream.augmented(), len(source.class_names)

    def draw(item):
        if source.multilabel:
            return image(item), item["label"]
        return image(item), one_hot(item["label"], classes, augment.label_smoothing)

    items = stream.items(draw)
    if not mixes:
        return stream.counted(items.batch(made.count, drop_remainder=True))

    mix_key, groups = tf.random.fold_in(root_key(seed), MIX), len(made.groups)

    def mix_group(number, batch):
        key = tf.random.fold_in(mix_key, number // groups)  # of the step
        if made.group < data.batch_size:
            key = tf.random.fold_in(key, made.groups.start + number % groups)
        return mix(*batch, key, augment)

    mixed = items.batch(made.group, drop_remainder=True).enumerate(first_step * groups)
    return stream.counted(_joined(mixed.map(mix_group, parallel_calls(data)), rows))


def _joined(groups: tf.data.Dataset, rows: Rows) -> tf.data.Dataset:
    """The rows of every batch, taken from the groups that hold them, [M, ...] each."""
    made = rows.in_whole_groups()
    if len(made.groups) > 1:

        def flatten(*batch):
            return tuple(tf.reshape(x, (made.count, *x.shape[2:])) for x in batch)

        groups = groups.batch(len(made.groups), drop_remainder=True)  # [groups, M, ...]
        groups = groups.map(flatten)  # [rows, ...]
    if made == rows:
        return groups

    first, stop = rows.start - made.start, rows.stop - made.start
    return groups.map(lambda *batch: tuple(x[first:stop] for x in batch))


@as_written
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
    part: Part = WHOLE,
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
        part: Which share of every batch to make, as of `train_dataset`.
    Returns:
        Batches of `{"image": float32 [B, H, W, 3], "mask": float32 [B, H/P * W/P]}`.
    Raises:
        ValueError: If there are fewer images than a batch, or the mask does not fit the model.
    """
    check_mask(mask, processor.size, patch_size)
    rows = Rows.of_part(part, data.batch_size)
    stream = Stream(source, data, augment.resolve(), processor, epochs, seed, first_step, rows)
    image = stream.augmented()

    def draw(item):
        hidden = block_mask(item_seed(seed, MASK, item), mask, processor.size, patch_size)
        return {"image": image(item), "mask": hidden}

    return stream.counted(stream.items(draw).batch(rows.count, drop_remainder=True))


@as_written
def masked_eval_dataset(
    source: Source,
    data: DataConfig,
    mask: MaskConfig,
    processor: ImageProcessor,
    patch_size: int,
    *,
    part: Part = WHOLE,
) -> tf.data.Dataset:
    """Every image once, in the order on disk, each under one mask of its own that never changes.

    Args:
        source: The images.
        data: Batch size and parallelism.
        mask: Which patches are hidden.
        processor: What the model expects.
        patch_size: Side of a patch in pixels.
        part: Which share of every batch to make, as of `eval_dataset`.
    Returns:
        Batches as of `masked_dataset`; the last may be smaller.
    """
    check_mask(mask, processor.size, patch_size)

    def prepare(item):
        seed = tf.random.fold_in(root_key(0), item["index"])
        return {
            "image": processor(item["image"]),
            "mask": block_mask(seed, mask, processor.size, patch_size),
        }

    return _once(source, data, prepare, part)


@as_written
def eval_dataset(
    source: Source,
    data: DataConfig,
    processor: ImageProcessor,
    *,
    first_step: int = 0,
    part: Part = WHOLE,
) -> tf.data.Dataset:
    """Every image once, in the order on disk.

    Args:
        source: The images.
        data: Batch size and parallelism.
        processor: What the model expects.
        first_step: Batches to leave out at the start.
        part: Which share of every batch to make, counted from 0, and of how many. A worker of
            several reads and decodes no other images; of the last batch it may have none
            (`padded`).
    Returns:
        Batches of float32 [B, H, W, 3], normalized, and int64 [B], or float32 [B, C] of a source of
        several labels; the last may be smaller.
    """
    return _once(
        source, data, lambda item: (processor(item["image"]), item["label"]), part, first_step
    )


def _once(
    source: Source,
    data: DataConfig,
    prepare: Callable[[dict[str, tf.Tensor]], Any],
    part: Part,
    first_step: int = 0,
) -> tf.data.Dataset:
    """These rows of the batches of all images in the order on disk."""
    batch_size, rows = data.batch_size, Rows.of_part(part, data.batch_size)

    if source.at:
        # Every batch but the last has all of its rows.
        full, last = divmod(source.size, batch_size)
        count = full * rows.count + min(max(last - rows.start, 0), rows.count)
        items = tf.data.Dataset.range(first_step * rows.count, count).map(
            lambda i: source.at(None, i // rows.count * batch_size + rows.start + i % rows.count),
            tf.data.AUTOTUNE,
        )
    else:
        items = source.read(None).skip(first_step * batch_size).enumerate()
        items = items.filter(
            lambda i, item: (i % batch_size >= rows.start) & (i % batch_size < rows.stop)
        )
        items = items.map(lambda i, item: item)

    items = items.map(prepare, parallel_calls(data))
    return items.batch(rows.count).prefetch(tf.data.AUTOTUNE)


@as_written
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
    items = source.read(None if source.mixed else root_key(0))
    prepared = items.map(lambda item: (item, processor(item["image"]))).ignore_errors()
    found = list(prepared.take(count).as_numpy_iterator())
    if not found:
        raise ValueError(
            f"{source.name} has no image that can be decoded. Received: {source.size} files"
        )
    return found


def padded(batches: tf.data.Dataset, batch_size: int, steps: int | None = None) -> tf.data.Dataset:
    """Fill up the last batch, and weigh its images, so that evaluation on many replicas counts each
    image once.

    Args:
        batches: From `eval_dataset` or `masked_eval_dataset`.
        batch_size: Images of a full batch; of a share of it, where they are of one worker.
        steps: Batches that there must be; a worker without images in the last gets one of filling.
    Returns:
        Images, labels (the weight once more where there are none) and the weight float32 [B]: 1, or
        0 for filling.
    """

    def fill(*batch):
        count = tf.shape(tf.nest.flatten(batch)[0])[0]
        weight = tf.cast(tf.range(batch_size) < count, tf.float32)  # [B]
        full = tf.nest.map_structure(lambda x: _fill(x, batch_size), batch)
        return full[0], full[1] if len(full) > 1 else weight, weight

    filled = batches.map(fill)
    if steps is None:
        return filled

    nothing = tf.nest.map_structure(lambda x: tf.zeros(x.shape, x.dtype), filled.element_spec)
    return filled.concatenate(tf.data.Dataset.from_tensors(nothing).repeat()).take(steps)


def kept_if_small(batches: tf.data.Dataset, steps: int) -> tf.data.Dataset:
    """Keep batches in memory from their first reading on, where they take `KEPT_BYTES` at most, so
    that what is evaluated on after each epoch is decoded once.

    Args:
        batches: Of fixed shapes, as of `padded`, and the same whenever they are read.
        steps: How many they are.
    """
    specs = tf.nest.flatten(batches.element_spec)
    batch_bytes = sum(spec.shape.num_elements() * spec.dtype.size for spec in specs)
    return batches.cache() if steps * batch_bytes <= KEPT_BYTES else batches


def _fill(x: tf.Tensor, rows: int) -> tf.Tensor:
    """[b, ...] to [rows, ...], with zeros."""
    missing = [[0, rows - tf.shape(x)[0]]] + [[0, 0]] * (x.shape.rank - 1)
    return tf.ensure_shape(tf.pad(x, missing), (rows, *x.shape[1:]))
