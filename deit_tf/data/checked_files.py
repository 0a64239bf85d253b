"""Which image files decode, found once: a file is decoded anew only where it is new or has changed.

What was found is kept in the user's cache folder, one file per folder of images, which may be
deleted at any time. An image is known by its place, its size and its time of modification; on an
object store by its place.
"""

import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import tensorflow as tf
from rich.progress import track

from deit_tf.config import CHANNELS
from deit_tf.data.decode import decode_channels
from deit_tf.data.tiff import read_picture
from deit_tf.files import cache_folder, replacing
from deit_tf.object_store import StorePath, is_url

log = logging.getLogger(__name__)

BROKEN = -1  # in place of the fingerprint of a file that does not decode
_UNKNOWN = -2
CHECK = 1  # rises where another check would find something else
KEPT_EVERY = 1 << 16  # files: what a stopped process loses, at most
# A file this young may change again without a change of its time, which file systems round.
YOUNGEST_SECONDS = 2.0


def fingerprints_of(
    paths: Sequence[str], folder: Path | StorePath, channels: int = CHANNELS
) -> np.ndarray:
    """Of the bytes of each file, int64 [n]; `BROKEN` where the training pipeline cannot decode it.

    Processes that check the same folder wait for the first, and find what it found.

    Args:
        paths: Files below the folder.
        folder: The folder.
        channels: That the pictures are to have.
    """
    if not paths:
        return np.zeros(0, np.int64)
    place = str(folder) if isinstance(folder, StorePath) else os.path.realpath(folder)
    file = cache_folder("checked") / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.npz"
    keys, settled = _keys(paths, folder, place, channels)

    found = _Found.read(file).look_up(keys)
    if (found != _UNKNOWN).all():
        return found

    with _turn(file, folder) as keeps:
        known = _Found.read(file)  # another process may have been there in the meantime
        found = known.look_up(keys)
        todo = np.flatnonzero(found == _UNKNOWN)
        found[todo] = BROKEN
        looked, saved = _decoded([paths[i] for i in todo], channels), 0

        def keep(stop: int) -> None:
            nonlocal known, saved
            some = todo[saved:stop]
            some = some[settled[some]]
            known, saved = known.with_more(keys[some], found[some]), stop
            if keeps:
                known.write(file)

        for i, fingerprint in track(looked, "Checking images", len(todo), transient=True):
            found[todo[i]] = fingerprint
            if i - saved >= KEPT_EVERY:
                keep(i + 1)
        if len(todo) > saved:
            keep(len(todo))

    return found


def undecodable(paths: Sequence[str], channels: int = CHANNELS) -> list[str]:
    """The files that the training pipeline cannot decode, whatever was found of them before."""
    good = {number for number, _ in _decoded(paths, channels)}
    return [path for number, path in enumerate(paths) if number not in good]


@dataclass(frozen=True)
class _Found:
    """What was found of files.

    Args:
        keys: uint64 [n, 2], in order.
        fingerprints: int64 [n].
    """

    keys: np.ndarray
    fingerprints: np.ndarray

    @classmethod
    def read(cls, file: Path) -> "_Found":
        """What a file tells; nothing, where it is gone or damaged."""
        try:
            with np.load(file, allow_pickle=False) as content:
                keys, fingerprints = content["keys"], content["fingerprints"]
                if keys.shape != (len(fingerprints), 2) or keys.dtype != np.uint64:
                    raise ValueError("it holds something else")
        except FileNotFoundError:
            return cls(np.zeros((0, 2), np.uint64), np.zeros(0, np.int64))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged, and images are checked again: %s", file, error)
            return cls(np.zeros((0, 2), np.uint64), np.zeros(0, np.int64))
        return cls(keys, fingerprints)

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        """The fingerprints of files [n], `_UNKNOWN` where there is none."""
        found = np.full(len(keys), _UNKNOWN, np.int64)
        if len(self.keys):
            places = np.searchsorted(self.keys[:, 0], keys[:, 0]).clip(max=len(self.keys) - 1)
            same = (self.keys[places] == keys).all(axis=1)
            found[same] = self.fingerprints[places[same]]
        return found

    def with_more(self, keys: np.ndarray, fingerprints: np.ndarray) -> "_Found":
        """Together with others."""
        keys = np.concatenate([self.keys, keys])
        _, first = np.unique(keys[:, 0], return_index=True)
        return _Found(keys[first], np.concatenate([self.fingerprints, fingerprints])[first])

    def write(self, file: Path) -> None:
        """Keep it, if the disk lets."""
        try:
            with replacing(file) as temporary:
                np.savez(temporary, keys=self.keys, fingerprints=self.fingerprints)
        except OSError as error:
            log.warning("What was found of images could not be kept: %s", error)


def _keys(
    paths: Sequence[str], folder: Path | StorePath, place: str, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """What each file is known by, uint64 [n, 2], and whether it has rested long enough, bool [n].

    Another TensorFlow may decode otherwise, so its version is part of it.
    """
    root, person = len(str(folder)), f"{CHECK} {tf.__version__}".encode()[:16]
    kind = "" if channels == CHANNELS else f"\0{channels}"
    in_paths = str(folder) != os.curdir  # which pathlib leaves out of what lies there
    digests, changed = bytearray(), np.zeros(len(paths), np.int64)
    for i, path in enumerate(paths):
        size, changed[i] = _size_and_time(path)
        within = path[root:] if in_paths else f"/{path}"
        known_by = os.fsencode(f"{place}{within}\0{size}\0{changed[i]}{kind}")
        digests += hashlib.blake2b(known_by, digest_size=16, person=person).digest()

    keys = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    return keys, changed < time.time_ns() - int(YOUNGEST_SECONDS * 1e9)


def _size_and_time(path: str) -> tuple[int, int]:
    """Bytes, and nanoseconds of the last change; a file that has just gone counts as new, and one
    on a store, which would have to be asked for each, never changes.
    """
    if is_url(path):
        return 0, 0
    try:
        status = os.stat(path)
    except OSError:
        return 0, time.time_ns()
    return status.st_size, status.st_mtime_ns


@contextmanager
def _turn(file: Path, folder: Path | StorePath) -> Iterator[bool]:
    """Wait until no other process checks the folder; gives whether the cache can be written."""
    lock = filelock.FileLock(file.with_suffix(".lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("Another process checks the images of %s: waiting for it.", folder)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter where a disk has no locks
        log.warning("What is found of images cannot be kept in %s: %s", file.parent, error)
        yield False
        return

    try:
        yield True
    finally:
        lock.release()


def _decoded(paths: Sequence[str], channels: int) -> Iterator[tuple[int, int]]:
    """The number and the fingerprint of each file that the training pipeline can decode, in
    order.
    """

    def look(index, path):
        content = read_picture(path, channels)
        pixels = decode_channels(content, channels)
        shape = tf.shape(pixels)  # a result without the shape would not decode
        return index, shape, tf.strings.to_hash_bucket_fast(content, 2**63 - 1)

    names = tf.constant([os.fsencode(path) for path in paths], tf.string)
    data = tf.data.Dataset.from_tensor_slices(names).enumerate()
    data = data.map(look, tf.data.AUTOTUNE).ignore_errors()
    for indices, _, fingerprints in data.batch(64).as_numpy_iterator():
        yield from zip(indices.tolist(), fingerprints.tolist(), strict=True)
