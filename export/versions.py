"""The versions of the models below a folder, as TensorFlow Serving keeps them: the newest that loads is served.

Polled, so that a version that appears is loaded and warmed up while the old one goes on serving, and one
that does not load or fails its own warm-up records is never served. States:
tensorflow_serving/apis/get_model_status.proto.
"""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from deit_tf.agreement import ExportError
from deit_tf.serving import LoadedModel

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
    """

    state: str
    error: str = ""


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
            raise FileNotFoundError(f"There is no folder {self.directory}. Export a model into it first.")
        self._states: dict[str, dict[int, State]] = {}
        self._serving: dict[str, tuple[int, LoadedModel]] = {}
        self._stop = threading.Event()

    def refresh(self) -> None:
        """Look for versions that appeared or went, load the newest, and let go of the one before.

        A request that runs holds its session, so that none is lost in the exchange.
        """
        found = {folder.name: _versions(folder) for folder in self.directory.iterdir() if folder.is_dir()}
        for name in set(self._serving) | set(found):
            self._update(name, found.get(name, {}))

    def poll(self, seconds: float) -> threading.Thread:
        """Refresh every `seconds` in a thread of its own, until `stop`."""

        def loop():
            while not self._stop.wait(seconds):
                try:
                    self.refresh()
                except OSError as error:  # a folder that went while it was read
                    log.warning("Could not look for versions: %s", error)

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
            raise NotFoundError(f"No model {name!r} serves; these do: {', '.join(sorted(self._serving)) or 'none'}")
        if version is not None and version != current[0]:
            raise NotFoundError(f"Version {version} of {name!r} does not serve; version {current[0]} does.")
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
        for version in sorted(found, reverse=True):
            if version == current:
                break
            failed = version in states and states[version].state == END and states[version].error
            if not failed and self._load(name, version, found[version]):
                break
        if current and current not in found and self._serving[name][0] == current:
            del self._serving[name]
            states[current] = State(END)

    def _load(self, name: str, version: int, path: Path) -> bool:
        states = self._states[name]
        states[version] = State(LOADING)
        try:
            model = LoadedModel(path)
            model.warm_up()
        except (ExportError, OSError, ValueError, tf.errors.OpError) as error:
            states[version] = State(END, str(error).splitlines()[0])
            log.error("%s, version %d is not served: %s", name, version, states[version].error)
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
    numbered = {int(entry.name): entry for entry in folder.iterdir() if entry.name.isdecimal() and int(entry.name) > 0}
    return {version: entry for version, entry in numbered.items() if (entry / "saved_model.pb").is_file()}
