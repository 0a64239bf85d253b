"""The versions of the models below a folder, as TensorFlow Serving keeps them: the newest that
loads is served.

Polled, so that a version that appears is loaded and warmed up while the old one goes on serving,
and one that does not load or fails its own warm-up records is never served. States:
tensorflow_serving/apis/get_model_status.proto.
"""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from deit_tf.exporting.saved_model import LoadedModel

log = logging.getLogger(__name__)

LOADING, AVAILABLE, END = "LOADING", "AVAILABLE", "END"


class NotFoundError(KeyError):
    """No such model, or no such version of it."""


@dataclass(frozen=True)
class State:
    """What became of a version.

    Args:
        state: `LOADING`, `AVAILABLE` or `END`.
        error: Why it does not serve; empty where it does.
        files: What `_files` told of a version that did not load; when it changes, the version is
            tried again.
    """

    state: str
    error: str = ""
    files: tuple[int, int] = (0, 0)


class Models:
    """Every model below `directory`, in the layout `directory/<model>/<version>/`.

    Args:
        directory: Model base path.
    Raises:
        FileNotFoundError: If there is no such folder.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise FileNotFoundError(
                f"There is no folder {self.directory}. Export a model into it first."
            )
        self._states: dict[str, dict[int, State]] = {}
        self._serving: dict[str, tuple[int, LoadedModel]] = {}
        self._stop = threading.Event()

    def refresh(self) -> None:
        """Look for versions that appeared or went, load the newest, and let go of the one before.

        A request that runs holds its session, so that none is lost in the exchange.
        """
        folders = {folder.name: folder for folder in self.directory.iterdir() if folder.is_dir()}
        for name in set(self._serving) | set(folders):
            try:
                self._update(name, _versions(folders[name]) if name in folders else {})
            except (
                OSError
            ) as error:  # a folder that went while it was read, or that nobody may read
                log.warning("Could not look for versions of %s: %s", name, error)

    def poll(self, seconds: float) -> threading.Thread:
        """Refresh every `seconds` in a thread of its own, until `stop`."""

        def loop():
            while not self._stop.wait(seconds):
                try:
                    self.refresh()
                except OSError as error:
                    log.warning("Could not look for models: %s", error)

        thread = threading.Thread(target=loop, name="versions", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End the polling."""
        self._stop.set()

    def serving(self, name: str, version: int | None = None) -> tuple[int, LoadedModel]:
        """The version that serves, and its model.

        Raises:
            NotFoundError: If there is no such model, or another version serves.
        """
        current = self._serving.get(name)
        if current is None:
            raise NotFoundError(
                f"No model {name!r} serves; these do: {', '.join(sorted(self._serving)) or 'none'}"
            )
        if version is not None and version != current[0]:
            raise NotFoundError(
                f"Version {version} of {name!r} does not serve; version {current[0]} does."
            )
        return current

    def states(self, name: str) -> dict[int, State]:
        """What became of each version, the newest first.

        Raises:
            NotFoundError: If there never was such a model.
        """
        if name not in self._states:
            raise NotFoundError(f"There is no model {name!r}.")
        return dict(sorted(self._states[name].items(), reverse=True))

    def _update(self, name: str, found: dict[int, Path]) -> None:
        states = self._states.setdefault(name, {})
        current = self._serving.get(name, (0, None))[0]
        for version in set(states) - set(found) - {current}:
            del states[version]
        for version in sorted(found, reverse=True):
            if version == current:
                break
            failed = (
                version in states
                and states[version].error
                and states[version].files == _files(found[version])
            )
            if not failed and self._load(name, version, found[version]):
                break
        if current and current not in found and self._serving[name][0] == current:
            del self._serving[name]
            states[current] = State(END)

    def _load(self, name: str, version: int, path: Path) -> bool:
        states, files = self._states[name], _files(path)
        states[version] = State(LOADING)
        try:
            model = LoadedModel(path)
            model.warm_up()
        except (
            Exception
        ) as error:  # whatever a folder of others does, the one before goes on serving
            reason = (str(error) or type(error).__name__).splitlines()[0]
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
    """Version folders by number; one without a graph is still being copied."""
    numbered = {
        int(entry.name): entry
        for entry in folder.iterdir()
        if entry.name.isdecimal() and int(entry.name) > 0
    }
    return {
        version: entry
        for version, entry in numbered.items()
        if (entry / "saved_model.pb").is_file()
    }


def _files(version: Path) -> tuple[int, int]:
    """How many files and folders a version has, and when the newest was changed, in nanoseconds."""
    changed = [entry.stat().st_mtime_ns for entry in version.rglob("*")]
    return len(changed), max(changed, default=0)
