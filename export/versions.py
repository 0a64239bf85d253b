"""The versions of the models below a folder, as TensorFlow Serving keeps them: the newest that
loads is served.

Polled, so that a version that appears is loaded and warmed up while the old one goes on serving.
One that cannot be read, does not load or fails its own warm-up records is never served, and keeps
no other from being served. States: tensorflow_serving/apis/get_model_status.proto.
"""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deit_tf.exporting.saved_model import LoadedModel
from deit_tf.exporting.single_pictures import SinglePictures

log = logging.getLogger(__name__)

LOADING, AVAILABLE, END = "LOADING", "AVAILABLE", "END"
GRAPH_FILE = "saved_model.pb"
MAX_VERSION = 2**63 - 1  # an int64 in TensorFlow Serving's messages
MAX_REASON = 500  # characters; TensorFlow may name every variable


class NotFoundError(KeyError):
    """No such model, or no such version of it."""

    def __str__(self) -> str:
        return self.args[0]  # a KeyError would put it into quotes


@dataclass(frozen=True)
class State:
    """What became of a version.

    Args:
        state: `LOADING`, `AVAILABLE` or `END`.
        error: Why it does not serve; empty where it does.
        files: What `_files` found in a version that did not load; when it changes, the version is
            tried again.
    """

    state: str
    error: str = ""
    files: tuple[int, int] = (0, 0)


class Models:
    """Every model below `directory`, in the layout `directory/<model>/<version>/`.

    Args:
        directory: Model base path.
        load: What opens the folder of a version.
    Raises:
        FileNotFoundError: If there is no such folder.
    """

    def __init__(self, directory: str | Path, load: Callable[[Path], LoadedModel] = SinglePictures):
        self._open = load
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise FileNotFoundError(
                f"There is no folder {self.directory}. Export a model into it first."
            )
        self._states: dict[str, dict[int, State]] = {}
        self._serving: dict[str, tuple[int, LoadedModel]] = {}
        self._warned: set[str] = set()
        self._stop = threading.Event()

    def refresh(self) -> None:
        """Look for versions that appeared or went, load the newest, and let go of the one before.

        A request that runs holds its session, so that none is lost in the exchange.
        """
        # Not exports that are being written; no name that a request could not hold.
        entries = os.listdir(self.directory)
        names = [name for name in entries if not name.startswith(".") and name.isprintable()]
        for name in sorted({*self._states, *names}):
            try:
                self._update(name, _versions(self.directory / name))
            except OSError as error:  # nobody may read it, or it is on a disk that went away
                self._warn(f"Could not look for versions of {name}: {error}")

    def poll(self, seconds: float) -> threading.Thread:
        """Refresh every `seconds` in a thread of its own, until `stop`."""

        def loop():
            while not self._stop.wait(seconds):
                try:
                    self.refresh()
                except OSError as error:
                    self._warn(f"Could not look for models: {error}")

        thread = threading.Thread(target=loop, name="versions", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End the polling."""
        self._stop.set()

    def names(self) -> list[str]:
        """The models that serve."""
        return sorted(self._serving)

    def serving(self, name: str, version: int | None = None) -> tuple[int, LoadedModel]:
        """The version that serves, and its model.

        Raises:
            NotFoundError: If there is no such model, or another version serves.
        """
        current = self._serving.get(name)
        if current is None:
            names = ", ".join(self.names()) or "none"
            raise NotFoundError(f"No model {name!r} serves; these do: {names}")
        if version is not None and version != current[0]:
            raise NotFoundError(
                f"Version {version} of {name!r} does not serve; version {current[0]} does."
            )
        return current

    def states(self, name: str) -> dict[int, State]:
        """What became of each version, the newest first.

        Raises:
            NotFoundError: If there never was a version of such a model.
        """
        if not self._states.get(name):
            raise NotFoundError(f"There is no model {name!r}.")
        return dict(sorted(self._states[name].items(), reverse=True))

    def _warn(self, message: str) -> None:
        """Say it once, not at every look."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    def _update(self, name: str, found: dict[int, Path]) -> None:
        states = self._states.setdefault(name, {})
        current = self._serving.get(name, (0, None))[0]
        for version in set(states) - set(found) - {current}:
            del states[version]

        # The newest that loads; those below the one that serves are of no interest.
        for version in sorted(found, reverse=True):
            if version == current:
                break
            if not self._failed_before(name, version, found[version]):
                if self._load(name, version, found[version]):
                    break

        # The one that served was removed, and no other took its place.
        if current and current not in found and self._serving[name][0] == current:
            del self._serving[name]
            states[current] = State(END)

    def _failed_before(self, name: str, version: int, path: Path) -> bool:
        """Whether a version did not load, and its files are still the same."""
        state = self._states[name].get(version)
        return state is not None and state.error != "" and state.files == _files(path)

    def _load(self, name: str, version: int, path: Path) -> bool:
        states, files = self._states[name], _files(path)
        states[version] = State(LOADING)
        try:
            model = self._open(path)
            model.warm_up()
        except Exception as error:  # whatever others put there, the one before goes on serving
            reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
            states[version] = State(END, reason, files)
            log.error("%s, version %d is not served: %s", name, version, reason)
            return False

        before = self._serving.get(name)
        self._serving[name] = (version, model)
        states[version] = State(AVAILABLE)
        if before:
            states[before[0]] = State(END)
        log.info("%s, version %d serves.", name, version)
        return True


def _versions(folder: Path) -> dict[int, Path]:
    """Version folders by number; none where there is no such folder."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return {}

    numbered = {int(name): folder / name for name in names if name.isascii() and name.isdecimal()}
    return {
        version: path
        for version, path in numbered.items()
        if 0 < version <= MAX_VERSION and _has_graph(path)
    }


def _has_graph(version: Path) -> bool:
    """Whether a version is there; one without a graph is still being copied."""
    try:
        os.stat(version / GRAPH_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # nobody may read it, a loop of links: loading it will say so
        return True
    return True


def _files(version: Path) -> tuple[int, int]:
    """How many files and folders of a version can be looked at, and when the newest of them was
    changed, in nanoseconds.
    """
    changed = []
    for folder, folders, files in os.walk(version):
        for name in folders + files:
            with suppress(OSError):  # a link to nothing or to itself, a file that is gone again
                # Not the time that a copy takes over from its original.
                changed.append(os.stat(Path(folder, name)).st_ctime_ns)
    return len(changed), max(changed, default=0)
