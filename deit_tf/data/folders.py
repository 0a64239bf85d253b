"""Folders of class folders: which pictures there are, which are held out, which are no pictures.

What is left out is counted and named; a layout that is not understood is an error, never a guess.
"""

import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from deit_tf.config import CHANNELS
from deit_tf.data.checked_files import BROKEN, fingerprints_of
from deit_tf.files import check_class_names
from deit_tf.object_store import StorePath

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
ARRAY_SUFFIXES = (".npy", ".tif", ".tiff")  # of pictures that are not RGB
# Names of split folders in any case; of those to evaluate on the first that is there is taken.
TRAIN_FOLDERS = ("train", "training")
EVAL_FOLDERS = ("val", "valid", "validation", "dev", "test", "testing")
NAMED = 5  # files named in a report
# How pictures are held out where no folder says so: by a threshold on the checksum of the name, or,
# as in runs of before, those of the smallest checksums.
SplitRule = Literal["threshold", "rank"]
# Paths by class; as text, since a million of `Path` take minutes and gigabytes.
Files = dict[str, list[str]]
Folder = Path | StorePath


@dataclass
class LeftOut:
    """What a walk does not take, by reason.

    Args:
        suffixes: The endings of what it takes.
        endings: Files with others.
        links: Links that lead nowhere or back.
        hidden: Files and folders whose names begin with a dot.
    """

    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    endings: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    def takes(self, name: str) -> bool:
        """Whether a file of this name is taken."""
        return os.path.splitext(name)[1].lower() in self.suffixes

    def report(self, folder: Folder) -> None:
        """Count and name it."""
        endings = f"have none of the endings {' '.join(self.suffixes)}"
        report_left_out(self.endings, folder, endings)
        report_left_out(self.links, folder, "are links that lead nowhere or back")
        report_left_out(self.hidden, folder, "are hidden, as their names begin with a dot")


def find_splits(folder: Folder) -> tuple[Folder, Folder | None]:
    """Where the class folders lie, and where those to evaluate on, if they lie apart.

    Raises:
        ValueError: If folders are named as splits are, but do not make any.
    """
    training, evaluation = _named_as(folder, TRAIN_FOLDERS), _named_as(folder, EVAL_FOLDERS)

    # Without one to evaluate on, a `train/` of pictures alone is a class of that name.
    if not evaluation and not any(class_folders(path) for path in training):
        return folder, None
    if not training and not any(class_folders(path) for path in evaluation):
        return folder, None

    if len(training) != 1 or not class_folders(training[0]):
        found = ", ".join(path.name for path in (*training, *evaluation))
        raise ValueError(
            f"{folder} has folders named as splits, of which one must be to train on "
            f"({', '.join(TRAIN_FOLDERS)}) and hold class folders. Found: {found}. Rename them, or "
            "pass the folder that holds the class folders."
        )

    used = evaluation[:1]
    if used and not class_folders(used[0]):
        raise ValueError(
            f"{used[0]} is to evaluate on, and holds no class folders. Sort its pictures into "
            "folders named after their classes, or move it away to hold out a share of "
            f"{training[0].name}."
        )

    _report_unused(folder, training[0], used)
    return training[0], used[0] if used else None


def suffixes_of(channels: int) -> tuple[str, ...]:
    """The endings of pictures with so many channels."""
    if channels == CHANNELS:
        return IMAGE_SUFFIXES
    return (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES) if channels == 1 else ARRAY_SUFFIXES


def scan(folder: Folder, channels: int = CHANNELS) -> Files:
    """Image files by class folder, in the order of their paths; links are followed.

    Args:
        folder: The folder.
        channels: Of the pictures, which decide their endings.
    Raises:
        ValueError: If there are no class folders, or one has a name that is no text of one line.
    """
    left_out, files = LeftOut(suffixes_of(channels)), {}
    for place in class_folders(folder):
        files[place.name] = [entry.path for entry in _images(place, left_out)]
    left_out.report(folder)
    if not files:
        raise ValueError(
            f"{folder} has no class folders. Put the images of each class into a folder named "
            "after it."
        )
    check_class_names(list(files), len(files))
    return files


def hold_out(files: Files, share: float, rule: SplitRule = "threshold") -> tuple[Files, Files]:
    """Split each class into files to train on and files held out, by their names alone.

    With `threshold` a file's own name decides, whatever lies beside it, but that each class of two
    and more has one of either: then the smallest or the largest checksum is taken.

    Args:
        files: By class.
        share: How much is held out, between 0 and 1.
        rule: How it is decided.
    """
    train, held_out = {}, {}
    for name, paths in files.items():
        checksums = np.array([_checksum(path) for path in paths])
        if rule == "rank":
            count = max(1, round(share * len(paths)))
        else:
            below = int((checksums < share * 2**32).sum())
            count = min(max(1, below), len(paths) - 1)
        count = count if len(paths) > 1 else 0

        chosen = np.argsort(checksums, kind="stable")[:count]
        is_held_out = np.isin(np.arange(len(paths)), chosen)
        train[name] = [path for path, out in zip(paths, is_held_out, strict=True) if not out]
        held_out[name] = [path for path, out in zip(paths, is_held_out, strict=True) if out]

    return train, held_out


@dataclass(frozen=True)
class Decoded:
    """Files that decode.

    Args:
        files: By class.
        paths: All of them.
        fingerprints: Of the bytes of each, int64 [n].
    """

    files: Files
    paths: list[str]
    fingerprints: np.ndarray


def check_images(files: Files, folder: Folder, channels: int = CHANNELS) -> Decoded:
    """Leave out, with a report, what does not decode; what is known of a file is not found anew."""
    paths = [path for each in files.values() for path in each]
    fingerprints = fingerprints_of(paths, folder, channels)
    whole = fingerprints != BROKEN
    broken = {paths[i] for i in np.flatnonzero(~whole)}
    kind = "" if channels == CHANNELS else f" to {channels} channels"
    report_left_out(broken, folder, f"cannot be decoded{kind}")

    good = files
    if broken:
        good = {name: [p for p in each if p not in broken] for name, each in files.items()}
        paths = [path for path in paths if path not in broken]
    return Decoded(good, paths, fingerprints[whole])


def warn_of_copies(train: Decoded, held_out: Decoded) -> None:
    """Say so where the same bytes are trained on and held out: accuracy would look too good."""
    distinct, first = np.unique(held_out.fingerprints, return_index=True)
    shared = np.isin(distinct, train.fingerprints)
    count = int(shared.sum())
    if not count:
        return

    named = sorted(zip(first[shared], distinct[shared], strict=True))[:NAMED]
    pairs = [
        f"{held_out.paths[place]} = {train.paths[np.argmax(train.fingerprints == fingerprint)]}"
        for place, fingerprint in named
    ]
    log.warning(
        "%d held-out files have the very bytes of files that are trained on: %s%s",
        count,
        ", ".join(pairs),
        ", ..." * (count > NAMED),
    )


def check_not_empty(files: Files, folder: Folder) -> None:
    """Check that each class has an image.

    Raises:
        ValueError: If one has none.
    """
    if empty := [name for name, paths in files.items() if not paths]:
        raise ValueError(
            f"No images in class folder {folder / empty[0]}. Add some "
            f"({' '.join(IMAGE_SUFFIXES)}) or remove it."
        )


def class_folders(folder: Folder) -> list[Folder]:
    """The folders in a folder, in the order of their names; hidden ones are none."""
    return sorted(
        entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir()
    )


def all_images(folder: Folder) -> list[Folder]:
    """Every image file below a folder, by path; what is left out is not reported."""
    return [type(folder)(entry.path) for entry in _images(folder, LeftOut())]


def image_sizes(folder: Folder, channels: int = CHANNELS) -> dict[str, int | None]:
    """The bytes of every image file below a folder, by its path within; None of one on a store,
    which would have to be asked for each.

    Args:
        folder: The folder.
        channels: Of the pictures, which decide their endings.
    """
    within = len(os.path.join(folder, ""))
    return {
        entry.path[within:].replace(os.sep, "/"): _size(entry)
        for entry in _images(folder, LeftOut(suffixes_of(channels)))
    }


def report_left_out(paths: Iterable[str], folder: Folder, reason: str) -> None:
    """Count and name files that are left out."""
    paths = sorted(paths)
    if paths:
        named = ", ".join(readable(_within(path, folder)) for path in paths[:NAMED])
        more = ", ..." * (len(paths) > NAMED)
        log.warning("Left out %d of %s that %s: %s%s", len(paths), folder, reason, named, more)


def readable(path: str | Path) -> str:
    """A path with its bytes that are no UTF-8 escaped, so that it can be printed."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _named_as(folder: Folder, names: Sequence[str]) -> list[Folder]:
    """The folders in a folder with one of these names, in any case, in the order of `names`."""
    found = [path for path in class_folders(folder) if path.name.lower() in names]
    return sorted(found, key=lambda path: names.index(path.name.lower()))


def _report_unused(folder: Folder, training: Folder, evaluation: list[Folder]) -> None:
    """Name the folders beside the splits that play no part, and say what is held out."""
    used = {training, *evaluation}
    others = [path.name for path in class_folders(folder) if path not in used]
    if not evaluation:
        names = ", ".join(EVAL_FOLDERS)
        log.info("%s has none of %s: a share of %s is held out.", folder, names, training.name)
    if others:
        unused = "%s: trained on %s, evaluated on %s; not used: %s"
        held_out = evaluation[0].name if evaluation else f"a share of {training.name}"
        log.warning(unused, folder, training.name, held_out, ", ".join(others[:NAMED]))


def _images(folder: Folder, left_out: LeftOut) -> Iterator[os.DirEntry | StorePath]:
    """The image files below a folder, by path."""
    if isinstance(folder, StorePath):
        return _stored_images(folder, left_out)
    return _image_files(str(folder), left_out)


def _stored_images(folder: StorePath, left_out: LeftOut) -> Iterator[StorePath]:
    """Those on a store, by one question for each folder: what ends as an image is no folder."""
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            left_out.hidden.append(entry.path)
        elif left_out.takes(entry.name):
            yield entry
        elif entry.is_dir():
            yield from _stored_images(entry, left_out)
        else:
            left_out.endings.append(entry.path)


def _image_files(
    folder: str, left_out: LeftOut, above: tuple[str, ...] | None = None
) -> Iterator[os.DirEntry]:
    """The image files below a folder, by path; links to folders are followed, but not in a
    circle.
    """
    place = os.path.realpath(folder)
    if above is None:  # a link to what holds the folder leads back too, by way of other classes
        above = (
            *map(os.path.realpath, Path(folder).absolute().parents),
            *map(str, Path(place).parents),
        )
    if place in above:
        left_out.links.append(folder)
        return

    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            left_out.hidden.append(entry.path)
        elif entry.is_dir():
            yield from _image_files(entry.path, left_out, (*above, place))
        elif not entry.is_file():
            left_out.links.append(entry.path)
        elif not left_out.takes(entry.name):
            left_out.endings.append(entry.path)
        else:
            yield entry


def _within(path: str, folder: Folder) -> str:
    """A path from a folder on."""
    if isinstance(folder, StorePath):
        return path.removeprefix(f"{folder}/")
    return str(Path(path).relative_to(folder))


def _size(entry: os.DirEntry | StorePath) -> int | None:
    return None if isinstance(entry, StorePath) else entry.stat().st_size


def _checksum(path: str) -> int:
    """Of the name of a file, 0 to 2**32 - 1."""
    return zlib.crc32(os.fsencode(os.path.basename(path)))
