"""Labeled image files that are not yet decoded: a folder, a TensorFlow Datasets builder,
scikit-learn's digits.

A source knows paths, labels and class names, and nothing of pixels, batches or models.
"""

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.progress import track

from deit_tf.config import DataConfig
from deit_tf.data.preprocess import decode_image

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
EVAL_FOLDERS = ("val", "validation", "valid", "test")
NAMED = 5  # files named in a report


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
    """

    name: str
    class_names: tuple[str, ...]
    size: int
    read: Callable[[tf.Tensor | None], tf.data.Dataset]
    mixed: bool = False


def open_sources(config: DataConfig) -> tuple[Source, Source]:
    """Open the images to train on and those to evaluate on.

    Raises:
        FileNotFoundError: If the source is neither a folder nor a known name, or is to be
            downloaded by hand.
        ValueError: If a folder or a class in it holds no image, the two splits differ in classes,
            or `num_parallel_calls` is no number of images.
    """
    if config.num_parallel_calls != -1 and config.num_parallel_calls < 1:
        raise ValueError(
            "`data.num_parallel_calls` is from 1, or -1 to let tf.data choose. Received: "
            f"{config.num_parallel_calls}"
        )
    if config.source == "digits":
        return digits()
    if config.source.startswith("tfds:"):
        return tensorflow_datasets(config)
    folder = Path(config.source).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            "`data.source` is 'digits', 'tfds:NAME' or a folder of class folders. Received: "
            f"{config.source!r}, and there is no such folder."
        )
    return image_folder(folder, config.holdout, config.verify)


def open_whole(config: DataConfig) -> Source:
    """Open images to evaluate on: all of a folder of class folders, else what is not trained on."""
    folder = Path(config.source).expanduser()
    if not folder.is_dir() or _train_and_evaluation(folder)[0] != folder:
        return open_sources(config)[1]
    files = _scan(folder, config.verify)
    return _files(str(folder), tuple(sorted(files)), files)


def digits() -> tuple[Source, Source]:
    """The 1,797 scanned handwritten digits of 8 x 8 pixels that scikit-learn bundles; the last 360
    are held out.

    The scans lie in the order of their writers, so most of those held out are by other hands.
    """
    from sklearn.datasets import load_digits  # slow to import, and needed for this source alone

    scans = load_digits()
    pixels = np.round(scans.images * (255 / 16)).astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
    files = [tf.io.encode_png(image).numpy() for image in pixels]
    labels, names, held_out = scans.target, tuple(map(str, scans.target_names)), 360
    return (
        _in_memory("digits/train", names, files[:-held_out], labels[:-held_out]),
        _in_memory("digits/eval", names, files[-held_out:], labels[-held_out:]),
    )


def image_folder(folder: Path, holdout: float, verify: bool) -> tuple[Source, Source]:
    """Open a folder of class folders, or one with `train/` and, if it has it, `val/` of such
    folders.

    Args:
        folder: The folder.
        holdout: Where there is no `val/`: share of each class kept for evaluation, at least one
            image of every class that has two. Which ones depends on their names alone.
        verify: Decode every file once; those that fail are left out and reported.
    Raises:
        ValueError: If there is no image, a class without images, or a class to evaluate on that is
            not trained on.
    """
    training, evaluation = _train_and_evaluation(folder)
    train = _scan(training, verify)
    if evaluation:
        held_out = _scan(evaluation, verify)
    else:
        train, held_out = _hold_out(train, holdout)
        if training != folder:
            others = [entry.name for entry in _class_folders(folder) if entry != training]
            log.info(
                "%s has none of %s: a share of train is held out%s.",
                folder,
                ", ".join(EVAL_FOLDERS),
                f", and left out {', '.join(others[:NAMED])}" * bool(others),
            )
    names = tuple(sorted(train))
    if unknown := sorted(set(held_out) - set(names)):
        raise ValueError(
            f"{evaluation} has classes that {training} has not: {', '.join(unknown[:NAMED])}"
        )
    return _files(f"{folder}/train", names, train), _files(f"{folder}/eval", names, held_out)


def _train_and_evaluation(folder: Path) -> tuple[Path, Path | None]:
    """Where the class folders lie, and where those to evaluate on, if they lie apart."""
    training = folder / "train"
    evaluation = next((folder / name for name in EVAL_FOLDERS if (folder / name).is_dir()), None)
    # Without `val/`, a `train/` of pictures alone is a class of that name.
    if training.is_dir() and (evaluation or _class_folders(training)):
        return training, evaluation
    return folder, None


def tensorflow_datasets(config: DataConfig) -> tuple[Source, Source]:
    """Open a TensorFlow Datasets builder, prepared or to be downloaded, whose examples have `image`
    and `label`.

    Raises:
        FileNotFoundError: If its files are to be downloaded by hand, and are not there.
        ValueError: If it has no such examples, or not the splits asked for.
    """
    import tensorflow_datasets as tfds  # slow to import, and needed for this source alone

    builder = tfds.builder(config.source.removeprefix("tfds:"), data_dir=config.data_dir)
    if not {"image", "label"} <= set(builder.info.features or {}):
        raise ValueError(
            f"{config.source} has no `image` and `label`; it has "
            f"{', '.join(builder.info.features or {})}"
        )
    try:
        builder.download_and_prepare()
    except (
        AssertionError
    ) as error:  # a manual download that is not there, which tells where to put it
        raise FileNotFoundError(f"{config.source} cannot be prepared. {error}") from error
    splits = builder.info.splits
    evaluation = config.eval_split or next((s for s in ("validation", "test") if s in splits), None)
    for field, split in (("train_split", config.train_split), ("eval_split", evaluation)):
        if split is None or any(part.split("[")[0] not in splits for part in split.split("+")):
            raise ValueError(
                f"`data.{field}` of {config.source} is one of {', '.join(splits)}, or several "
                f"joined by +. Received: {split!r}"
            )
    names = tuple(builder.info.features["label"].names)
    decoders = {"image": tfds.decode.SkipDecoding()}

    def source(split: str) -> Source:
        def read(seed):
            # Records lie in shards, so a permutation is a seeded shuffle over a buffer, numbered
            # before it.
            data = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
            data = data.enumerate().map(
                lambda i, e: {"index": i, "image": e["image"], "label": e["label"]}
            )
            size = min(splits[split].num_examples, 50_000)
            return (
                data
                if seed is None
                else data.shuffle(size, seed=seed[0] ^ seed[1], reshuffle_each_iteration=False)
            )

        return Source(
            f"{config.source}/{split}", names, splits[split].num_examples, read, mixed=True
        )

    return source(config.train_split), source(evaluation)


def _scan(folder: Path, verify: bool) -> dict[str, list[Path]]:
    """Image files by class folder; what is no image is left out and reported."""
    files = {
        c.name: sorted(path for path in c.rglob("*") if path.is_file())
        for c in _class_folders(folder)
    }
    other = {
        path
        for paths in files.values()
        for path in paths
        if path.suffix.lower() not in IMAGE_SUFFIXES
    }
    _report(sorted(other), folder, f"have none of the endings {' '.join(IMAGE_SUFFIXES)}")
    images = {name: [path for path in paths if path not in other] for name, paths in files.items()}
    if not images:
        raise ValueError(
            f"{folder} has no class folders. Put the images of each class into a folder named "
            "after it."
        )
    if verify:
        corrupt = set(_corrupt([path for paths in images.values() for path in paths]))
        _report(sorted(corrupt), folder, "cannot be decoded")
        images = {
            name: [path for path in paths if path not in corrupt] for name, paths in images.items()
        }
    if empty := [name for name, paths in images.items() if not paths]:
        raise ValueError(
            f"No images in class folder {folder / empty[0]}. Add some "
            f"({' '.join(IMAGE_SUFFIXES)}) or remove it."
        )
    return images


def _class_folders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _corrupt(paths: Sequence[Path]) -> list[Path]:
    """The files that the training pipeline could not decode."""

    def decoded_shape(index, path):
        return index, tf.shape(
            decode_image(tf.io.read_file(path))
        )  # a result without the shape would not decode

    data = tf.data.Dataset.from_tensor_slices(
        tf.constant([str(path) for path in paths], tf.string)
    ).enumerate()
    data = data.map(decoded_shape, tf.data.AUTOTUNE).ignore_errors()
    batches = track(data.as_numpy_iterator(), "Checking images", total=len(paths), transient=True)
    good = {int(index) for index, _ in batches}
    return [path for i, path in enumerate(paths) if i not in good]


def _report(paths: Sequence[Path], folder: Path, what: str) -> None:
    if paths:
        named = ", ".join(str(path.relative_to(folder)) for path in paths[:NAMED])
        log.warning(
            "Left out %d files of %s that %s: %s%s",
            len(paths),
            folder,
            what,
            named,
            ", ..." * (len(paths) > NAMED),
        )


def _hold_out(
    files: dict[str, list[Path]], share: float
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Split each class by the checksums of its file names, which no added file changes for the
    others.
    """
    if not 0 < share < 1:
        raise ValueError(f"`data.holdout` is a share between 0 and 1. Received: {share}")
    train, held_out = {}, {}
    for name, paths in files.items():
        count = max(1, round(share * len(paths))) if len(paths) > 1 else 0
        order = sorted(paths, key=lambda path: zlib.crc32(path.name.encode()))
        train[name], held_out[name] = sorted(order[count:]), sorted(order[:count])
    return train, held_out


def _files(name: str, class_names: tuple[str, ...], files: dict[str, list[Path]]) -> Source:
    paths = [str(path) for each in class_names for path in files.get(each, [])]
    labels = [label for label, each in enumerate(class_names) for _ in files.get(each, [])]
    return _in_memory(name, class_names, paths, labels, tf.io.read_file)


def _in_memory(
    name: str,
    class_names: tuple[str, ...],
    items: Sequence,
    labels: Sequence[int],
    load=tf.identity,
) -> Source:
    """A source over a list of files or of their contents; any permutation is exact."""
    if not items:
        raise ValueError(f"{name} has no images.")
    items, labels = tf.constant(items), tf.constant(labels, tf.int64)
    size = len(items)

    def read(seed):
        order = tf.data.Dataset.range(size)
        if seed is not None:
            order = order.map(lambda i: tf.random.experimental.index_shuffle(i, seed, size - 1))
        return order.map(
            lambda i: {"index": i, "image": load(items[i]), "label": labels[i]}, tf.data.AUTOTUNE
        )

    return Source(name, class_names, size, read)
