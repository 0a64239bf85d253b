"""Where an export is prepared: a folder beside its final place, on the same file system, so that it
appears in one step.

A killed process cannot remove its folder. The next export does, and knows it by its lock, which the
kernel lets go with the process: numbers of processes mean nothing on a shared disk or in a
container.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".export-"
UNLOCKED = ".export-new-"  # until the lock is taken, for an instant
PARTIAL = ".*.partial*"  # what older versions, and files.replacing, leave when they are killed
DAY = 24 * 60 * 60


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A folder below `folder`, gone when the block ends; what killed exports left there goes first.

    Args:
        folder: Made where missing; removed again where the block fails and it is empty.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        remove_leftovers(folder)
        new = Path(tempfile.mkdtemp(prefix=UNLOCKED, dir=folder))
        with _lock(new):
            # Only under its final name is it looked at by others, and then it is locked.
            temporary = new.rename(folder / (PREFIX + new.name.removeprefix(UNLOCKED)))
            try:
                yield temporary
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except BaseException:
        for path in missing:
            with suppress(OSError):  # not empty
                path.rmdir()
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what exports left in `folder` whose processes are gone."""
    for path in folder.glob(f"{PREFIX}*"):
        if path.name.startswith(UNLOCKED) and not _older_than_a_day(path):
            continue
        with _lock(path) as free:
            if free:
                shutil.rmtree(path, ignore_errors=True)

    for path in folder.glob(PARTIAL):
        if _older_than_a_day(path):
            path.unlink(missing_ok=True)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock during the block; yields whether it could be had."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone meanwhile
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:  # another's, or a file system without locks, where leftovers stay
        free = False
    try:
        yield free
    finally:
        os.close(handle)


def _older_than_a_day(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > DAY
    except OSError:  # gone meanwhile
        return False
