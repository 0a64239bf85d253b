"""A run folder on an object store: a run is worked on in a copy here, which the store gets after
every checkpoint and at the end.

A store knows no locks and no appending; so the run's own code sees an ordinary folder. What the
store holds counts: a copy follows it where another machine has gone on with the run, and keeps only
what it could not send.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from deit_tf.files import cache_folder, read_json, replacing, write_json
from deit_tf.object_store import StorePath, is_url
from deit_tf.runs.folder import RunFolder

log = logging.getLogger(__name__)

SENT = ".sent.json"  # in the copy: for each file what the store and the copy had when they agreed
State = list[int]  # bytes, and nanoseconds of the last change


@contextmanager
def working_folder(out: str, worker: int = 0) -> Iterator[RunFolder]:
    """The folder that a run is worked on in while it trains: `out` itself, or a copy of one on a
    store, which gets what is new after every checkpoint and at the end, also of a run that is
    stopped or fails.

    Args:
        out: The run folder.
        worker: The number of this process in a cluster; the first alone sends.
    """
    if not is_url(out):
        yield RunFolder(Path(out))
        return

    mirror = Mirror(StorePath.of(out), worker)
    mirror.fetch()
    log.info("The run is worked on in %s and kept in %s.", mirror.folder, out)
    try:
        yield RunFolder(mirror.folder, mirror.send)
    finally:
        mirror.send()


def local_copy(path: str) -> str:
    """The path itself; of a run folder on a store a copy here, as the store has it now.

    Raises:
        FileNotFoundError: If there is nothing on the store.
    """
    if not is_url(path):
        return path
    url = StorePath.of(path)
    if not url.is_dir():
        raise FileNotFoundError(f"There is no folder {path}.")
    mirror = Mirror(url)
    mirror.fetch()
    return str(mirror.folder)


class Mirror:
    """A folder on a store, and its copy here.

    Args:
        url: The folder; it need not be there yet.
        worker: As of `working_folder`; each has a copy of its own.
    """

    def __init__(self, url: StorePath, worker: int = 0):
        self.url, self.worker = url, worker
        digest = hashlib.sha256(f"{url} {worker}".encode()).hexdigest()[:32]
        self.folder = cache_folder("runs") / digest

    def fetch(self) -> None:
        """Bring here what is new on the store, and remove what is no longer there.

        Raises:
            OSError: If a file cannot be fetched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._naming():
            self._fetch()

    def _fetch(self) -> None:
        agreed, stored = self._agreed(), dict(_stored_files(self.url, ""))
        for name in agreed.keys() - stored.keys():
            (self.folder / name).unlink(missing_ok=True)

        kept = {name: states for name, states in agreed.items() if name in stored}
        for name, state in stored.items():
            here = self.folder / name
            if name in kept and kept[name][0] == state and here.is_file():
                continue  # as it was sent, or newer here
            here.parent.mkdir(parents=True, exist_ok=True)
            with replacing(here) as temporary:
                tf.io.gfile.copy(self.url / name, temporary, overwrite=True)
            kept[name] = [state, _state(here)]
        write_json(kept, self.folder / SENT)

    def send(self) -> None:
        """Bring what is new here to the store, and last of all remove what is no longer here.

        Raises:
            OSError: If a file cannot be sent; the copy here has it, and it is sent the next time.
        """
        if not self.worker:
            with self._naming():
                self._send()

    def _send(self) -> None:
        agreed, here = self._agreed(), dict(_files(self.folder))
        kept = {name: states for name, states in agreed.items() if name in here}
        for name, file in here.items():
            state = _state(file)
            if name in kept and kept[name][1] == state:
                continue
            kept[name] = [_send(file, self.url / name), state]

        for name in agreed.keys() - here.keys():
            if tf.io.gfile.exists(self.url / name):
                tf.io.gfile.remove(self.url / name)
        write_json(kept, self.folder / SENT)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Say in one sentence that the store does not answer, or refuses."""
        try:
            yield
        except tf.errors.OpError as error:
            raise OSError(
                f"{self.url} and its copy here, {self.folder}, could not be made alike: "
                f"{error.message} What is here is whole: run the same command again to go on."
            ) from error

    def _agreed(self) -> dict[str, list[State]]:
        """For each file its state on the store and here when both were the same."""
        file = self.folder / SENT
        return read_json(file) if file.is_file() else {}


def _send(file: Path, target: StorePath) -> State:
    """Copy a file to the store, under a hidden name first; its state there."""
    folder, _, name = str(target).rpartition("/")
    partial = f"{folder}/.{name}.partial"
    tf.io.gfile.makedirs(folder)
    if tf.io.gfile.exists(partial):  # a send that broke off left it; some stores would append
        tf.io.gfile.remove(partial)
    tf.io.gfile.copy(file, partial, overwrite=True)
    tf.io.gfile.rename(partial, str(target), overwrite=True)
    return _stored_state(target)


def _stored_files(folder: StorePath, prefix: str) -> Iterator[tuple[str, State]]:
    """The files below a folder of a store by their path within, but for hidden ones."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _stored_files(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, _stored_state(entry)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files below a folder here by their path within, but for hidden ones, such as locks."""
    for file in sorted(folder.rglob("*")):
        within = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in within.parts):
            yield within.as_posix(), file


def _state(file: Path) -> State:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _stored_state(file: StorePath) -> State:
    status = tf.io.gfile.stat(file)
    return [status.length, status.mtime_nsec]
