"""Where an export is prepared: a folder beside its final place, on the same file system, so that it
appears in one step.

A killed process cannot remove its folder. The next export does, and knows it by its lock, which the
kernel lets go with the process: numbers of processes mean nothing on a shared disk or in a
container.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

PREFIX = ".export-"
UNLOCKED = ".export-new-"  # until the lock is taken, for an instant
LOCK = ".lock"
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
        with filelock.FileLock(new / LOCK, timeout=0):
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
        if path.name.startswith(UNLOCKED) and not _is_older_than_a_day(path):
            continue
        with suppress(filelock.Timeout, OSError):  # of a process that lives; gone meanwhile
            with filelock.FileLock(path / LOCK, timeout=0):
                shutil.rmtree(path, ignore_errors=True)

    for path in folder.glob(PARTIAL):
        if _is_older_than_a_day(path):
            path.unlink(missing_ok=True)


def _is_older_than_a_day(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > DAY
    except OSError:  # gone meanwhile
        return False
