"""Labeled image files that are not yet decoded: a folder, a file of labels, TensorFlow Datasets, or
digits.

A source knows paths, labels and class names, and nothing of pixels, batches or models.
"""

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from deit_tf.config import CHANNELS, DataConfig, check_data
from deit_tf.data import annotations, folders
from deit_tf.data.label_field import LabelField, multi_hot
from deit_tf.data.tiff import read_picture
from deit_tf.object_store import local_or_stored

log = logging.getLogger(__name__)

SHUFFLE_BUFFER = 50_000  # TFRecords of TensorFlow Datasets that are shuffled at a time, at most
LONGEST = 300  # characters of another library's error

Item = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Source:
    """One split of labeled images.

    Args:
        name: What to call it in messages.
        class_names: The classes, by label.
        size: Number of images.
        read: From a permutation seed int64 [2], or None for the order on disk, to a dataset of
            `{"index": int64 [], "image": tf.string [], "label": int64 []}`, where `index` numbers
            the images on disk, so that it stays when the order does not.
        mixed: Whether the order on disk mixes the classes; in folders one comes after the other.
        files: The file of each image, as bytes, as a name need not be UTF-8; none where they are
            no files of their own.
        channels: Of the pictures.
        at: From the same seed and a place in its order, int64 [], to the item that stands there,
            without reading those before; None where records can only be read one after the other.
        buffer: Images that are shuffled at a time, where that is not all of them.
        multilabel: Whether an image has any number of labels; `label` is then float32 [C], 1 where
            a class is there and else 0.
        counts: Images of each class, int64 [C], where they are known without reading any.
    """

    name: str
    class_names: tuple[str, ...]
    size: int
    read: Callable[[tf.Tensor | None], tf.data.Dataset]
    mixed: bool = False
    files: Sequence[bytes] = ()
    channels: int = CHANNELS
    at: Callable[[tf.Tensor | None, tf.Tensor], Item] | None = None
    buffer: int | None = None
    multilabel: bool = False
    counts: np.ndarray | None = None


def open_sources(
    config: DataConfig, rule: folders.SplitRule = "threshold"
) -> tuple[Source, Source]:
    """Open the images to train on and those to evaluate on.

    Args:
        config: Where they are.
        rule: How a folder without splits is split; a run that is older says `rank`.
    Raises:
        FileNotFoundError: If the source is neither a folder nor a known name, or is to be
            downloaded by hand.
        ValueError: If a folder or a class in it holds no image, the two splits differ in classes,
            or a setting is no share or number of images.
    """
    check_data(config)
    if config.source == "digits":
        return digits()
    if config.source.startswith("tfds:"):
        return tensorflow_datasets(config)
    if annotations.is_annotations(config.source):
        file, channels = annotations.file_of(config.source), len(config.mean)
        return annotated_files(file, config.holdout, config.verify, channels)
    folder = local_or_stored(config.source)
    if not folder.is_dir():
        raise FileNotFoundError(
            "`data.source` is 'digits', 'tfds:NAME' or a folder of class folders, here or on a "
            "store (`gs://BUCKET/FOLDER`), or for `task` multilabel a file "
            f"{' or '.join(annotations.SUFFIXES)}. Received: {config.source!r}, and there is no "
            "such folder."
        )
    return image_folder(folder, config.holdout, config.verify, rule, len(config.mean))


def open_whole(config: DataConfig) -> Source:
    """Open images to evaluate on: all of a folder of class folders, or of a file of labels that
    tells no splits; else what is not trained on.
    """
    if annotations.is_annotations(config.source):
        return _annotated_to_evaluate_on(annotations.file_of(config.source), config)
    folder = local_or_stored(config.source)
    if not folder.is_dir():
        return open_sources(config)[1]

    # What is trained on is not looked at, but for the names of its classes.
    check_data(config)
    training, evaluation = folders.find_splits(folder)
    channels = len(config.mean)
    files = folders.scan(evaluation or training, channels)
    names = tuple(place.name for place in folders.class_folders(training))
    _check_known(files, names, evaluation, training)
    if training != folder and evaluation is None:
        _, files = folders.hold_out(files, config.holdout)

    if config.verify:
        files = folders.check_images(files, evaluation or training, channels).files
    if training == folder:
        folders.check_not_empty(files, folder)
    return _files(str(folder), names, files, channels)


def image_folder(
    folder: folders.Folder,
    holdout: float,
    verify: bool,
    rule: folders.SplitRule = "threshold",
    channels: int = CHANNELS,
) -> tuple[Source, Source]:
    """Open a folder of class folders, or one with `train/` and, if it has it, `val/` of such.

    Args:
        folder: The folder; `Training/`, `validation/`, `dev/`, `test/` and the like are splits too.
        holdout: Where there is none to evaluate on: share of each class kept for that, at least one
            image of every class that has two. A file's own name decides.
        verify: Decode every file once; those that fail are left out and reported.
        rule: How it is split; see `folders.hold_out`.
        channels: Of the pictures: `.npy` and TIFF files are some unless they are RGB.
    Raises:
        ValueError: If there is no image, a class without images, or a class to evaluate on that is
            not trained on.
    """
    training, evaluation = folders.find_splits(folder)
    train = folders.scan(training, channels)
    if evaluation:
        held_out = folders.scan(evaluation, channels)
    elif rule == "threshold":
        train, held_out = folders.hold_out(train, holdout)  # before what is broken is left out

    if verify:
        checked = folders.check_images(train, training, channels)
        train = checked.files
    folders.check_not_empty(train, training)
    if not evaluation and rule == "rank":
        train, held_out = folders.hold_out(train, holdout, rule)
    elif verify:
        others = folders.check_images(held_out, evaluation or training, channels)
        held_out = others.files
        folders.warn_of_copies(checked, others)

    names = tuple(sorted(train))
    _check_known(held_out, names, evaluation, training)
    return (
        _files(f"{folder}/train", names, train, channels),
        _files(f"{folder}/eval", names, held_out, channels),
    )


def _check_known(
    held_out: folders.Files,
    names: Sequence[str],
    evaluation: folders.Folder | None,
    training: folders.Folder,
) -> None:
    """Refuse classes to evaluate on that are not trained on."""
    if unknown := sorted(set(held_out) - set(names)):
        raise ValueError(
            f"{evaluation} has classes that {training} has not: "
            f"{', '.join(unknown[: folders.NAMED])}"
        )


def annotated_files(
    file: Path, holdout: float, verify: bool, channels: int = CHANNELS
) -> tuple[Source, Source]:
    """Open the pictures of a file that says which labels each of them has.

    Args:
        file: As `read_annotations` takes it.
        holdout: Share of the pictures kept for evaluation, where the file has no splits.
        verify: Decode every picture once; those that fail are left out and reported.
        channels: Of the pictures.
    Raises:
        FileNotFoundError: If the file, or a picture that it names, is not there.
        ValueError: If the file is of another form, or a split has no pictures.
    """
    train, held_out = annotations.read_annotations(file)
    if held_out is None:
        train, held_out = annotations.hold_out(train, holdout)
    if verify:
        train, held_out = (_that_decode(each, file, channels) for each in (train, held_out))

    names = tuple(sorted({*train.names(), *held_out.names()}))
    if unseen := [name for name in names if name not in set(train.names())]:
        named = ", ".join(unseen[: folders.NAMED]) + ", ..." * (len(unseen) > folders.NAMED)
        log.warning("No picture to train on in %s has the labels: %s", file, named)
    return (
        _annotated(f"{file}/train", names, train, channels),
        _annotated(f"{file}/eval", names, held_out, channels),
    )


def _annotated_to_evaluate_on(file: Path, config: DataConfig) -> Source:
    check_data(config)
    train, held_out = annotations.read_annotations(file)
    chosen = train if held_out is None else held_out
    names = tuple(sorted({*train.names(), *chosen.names()}))
    channels = len(config.mean)
    if config.verify:
        chosen = _that_decode(chosen, file, channels)
    return _annotated(str(file), names, chosen, channels)


def _that_decode(
    annotated: annotations.Annotated, file: Path, channels: int
) -> annotations.Annotated:
    checked = folders.check_images({"": annotated.paths}, file.parent, channels)
    return annotated.only(checked.paths)


def _annotated(
    name: str, names: tuple[str, ...], annotated: annotations.Annotated, channels: int
) -> Source:
    paths = [os.fsencode(path) for path in annotated.paths]
    if not paths:
        raise ValueError(f"{name} has no images.")
    number = {name: i for i, name in enumerate(names)}
    classes = [[number[label] for label in labels] for labels in annotated.labels]

    # In a row, as a table of 0 and 1 would not fit the memory where there are many of both.
    flat = np.array([c for each in classes for c in each], np.int64)
    stops = np.cumsum([0, *map(len, classes)])
    table, bounds, files = tf.constant(flat), tf.constant(stops), tf.constant(paths)

    def load(i):
        present = table[bounds[i] : bounds[i + 1]]
        return {"image": read_picture(files[i], channels), "label": multi_hot(present, len(names))}

    source = _placed(name, names, len(paths), load)
    counts = np.bincount(flat, minlength=len(names))
    return replace(source, files=paths, channels=channels, multilabel=True, counts=counts)


def digits() -> tuple[Source, Source]:
    """The 1,797 scanned handwritten digits of 8 x 8 pixels that scikit-learn bundles.

    The last 360 are held out.

    The scans lie in the order of their writers, so most of those held out are by other hands.
    """
    (files, labels, names), held_out = _scanned_digits(), 360
    return (
        _in_memory("digits/train", names, files[:-held_out], labels[:-held_out]),
        _in_memory("digits/eval", names, files[-held_out:], labels[-held_out:]),
    )


@functools.cache
def _scanned_digits() -> tuple[list[bytes], np.ndarray, tuple[str, ...]]:
    """Each scan as a PNG file, the labels [1797], and what the classes are called."""
    from sklearn.datasets import load_digits  # slow to import, and needed for this source alone

    scans = load_digits()
    pixels = np.round(scans.images * (255 / 16)).astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
    files = [tf.io.encode_png(image).numpy() for image in pixels]
    return files, scans.target, tuple(map(str, scans.target_names))


def tensorflow_datasets(config: DataConfig) -> tuple[Source, Source]:
    """Open a TensorFlow Datasets builder whose examples have `image` and a label, or several.

    It is prepared already, or is downloaded.

    Raises:
        FileNotFoundError: If its files are to be downloaded by hand, and are not there; or if the
            download fails.
        ValueError: If it has no such examples, or not the splits asked for.
    """
    import tensorflow_datasets as tfds  # slow to import, and needed for this source alone

    builder = tfds.builder(config.source.removeprefix("tfds:"), data_dir=config.data_dir)
    labels = LabelField.find(builder.info.features or {}, config)

    _prepare(builder, config.source)
    splits = builder.info.splits
    evaluation = config.eval_split or next((s for s in ("validation", "test") if s in splits), None)
    for field, split in (("train_split", config.train_split), ("eval_split", evaluation)):
        if split is None or any(part.split("[")[0] not in splits for part in split.split("+")):
            raise ValueError(
                f"`data.{field}` of {config.source} is one of {', '.join(splits)}, or several "
                f"joined by +. Received: {split!r}"
            )

    return tuple(
        _split_of_builder(builder, split, f"{config.source}/{split}", labels, config.shuffle_mb)
        for split in (config.train_split, evaluation)
    )


def _split_of_builder(
    builder, split: str, name: str, labels: LabelField, shuffle_mb: int | None
) -> Source:
    """A split of a builder: any image by its place in ArrayRecord files, else in turn."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    size = builder.info.splits[split].num_examples

    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(split=split, deserialize_method=raw)

        def load(i):
            record = tf.numpy_function(lambda i: records[int(i)], [i], tf.string)
            record = tf.ensure_shape(record, [])
            features = builder.info.features
            return labels.item(features.deserialize_example(record, decoders=decoders))

        placed = _placed(name, labels.names, size, load, mixed=True)
        return replace(placed, multilabel=labels.several)

    buffer = _shuffle_buffer(split, builder.info.splits, shuffle_mb)

    def read(seed):
        # Records lie in shards, so a permutation is a seeded shuffle over a buffer, numbered before
        # it.
        data = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
        data = data.enumerate().map(lambda i, example: {"index": i, **labels.item(example)})
        if seed is None:
            return data
        return data.shuffle(buffer, seed=seed[0] ^ seed[1], reshuffle_each_iteration=False)

    several = labels.several
    return Source(name, labels.names, size, read, mixed=True, buffer=buffer, multilabel=several)


def _shuffle_buffer(split: str, splits: Mapping[str, Any], shuffle_mb: int | None) -> int:
    """Images that are shuffled at a time, as many as fit that much memory on average."""
    size = min(splits[split].num_examples, SHUFFLE_BUFFER)
    if shuffle_mb is None:
        return size

    parts = [splits[part.split("[")[0]] for part in split.split("+")]
    images, length = (
        sum(getattr(p, field) for p in parts) for field in ("num_examples", "num_bytes")
    )
    return max(1, min(size, int(shuffle_mb * 2**20 * images / max(length, 1))))


def _prepare(builder: Any, source: str) -> None:
    """Have a builder's records on this machine."""
    import requests  # what TensorFlow Datasets downloads with
    from tensorflow_datasets.core.download.util import DownloadError

    try:
        builder.download_and_prepare()
    except AssertionError as error:  # a manual download is not there; it says where to put it
        raise FileNotFoundError(f"{source} cannot be prepared. {error}") from error
    except (requests.RequestException, ConnectionError, TimeoutError, DownloadError) as error:
        reason = " ".join(str(error).split())[:LONGEST]
        raise FileNotFoundError(
            f"{source} cannot be downloaded ({type(error).__name__}: {reason}). By hand: prepare "
            f"it on a machine with a connection and place what it makes as {builder.data_dir}, or "
            "where `data.data_dir` says. A folder of class folders and `data.source` digits need "
            "no download."
        ) from error


def _files(name: str, class_names: tuple[str, ...], files: folders.Files, channels: int) -> Source:
    paths = [os.fsencode(path) for each in class_names for path in files.get(each, [])]
    counts = [len(files.get(each, [])) for each in class_names]
    labels = np.repeat(np.arange(len(class_names)), counts)
    read = functools.partial(read_picture, channels=channels)
    source = _in_memory(name, class_names, paths, labels, read)
    return replace(source, files=paths, channels=channels)


def _in_memory(
    name: str,
    class_names: tuple[str, ...],
    items: Sequence[bytes],
    labels: Sequence[int] | np.ndarray,
    load=tf.identity,
) -> Source:
    """A source over a list of files or of their contents; any permutation is exact."""
    if not items:
        raise ValueError(f"{name} has no images.")
    counts = np.bincount(labels, minlength=len(class_names))
    items, labels = tf.constant(items), tf.constant(labels, tf.int64)
    source = _placed(
        name, class_names, len(items), lambda i: {"image": load(items[i]), "label": labels[i]}
    )
    return replace(source, counts=counts)


def _placed(
    name: str,
    class_names: tuple[str, ...],
    size: int,
    load: Callable[[tf.Tensor], Item],
    mixed: bool = False,
) -> Source:
    """A source of which `load` gives `image` and `label` of any number; permutations are exact."""

    def at(seed, place):
        i = place
        if seed is not None:
            i = tf.random.experimental.index_shuffle(place, seed, size - 1)
        loaded = load(i)
        return {"index": i, "image": loaded["image"], "label": loaded["label"]}

    def read(seed):
        return tf.data.Dataset.range(size).map(lambda place: at(seed, place), tf.data.AUTOTUNE)

    return Source(name, class_names, size, read, mixed, at=at)
