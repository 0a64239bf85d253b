"""Checkpoints of a running training: whole files, checked when they are read.

`step-000001234.safetensors` holds every variable of the run after that many steps, and in its
metadata where the run stands. These are for going on with a run; models to use are `.keras` files.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deit_tf.files import replacing

log = logging.getLogger(__name__)

FORMAT = "2"  # 1 had no mark, and its checksum was of the variables alone
DAMAGED = ".damaged"  # what is added to the name of one that is set aside


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Args:
        epoch: Epochs that are complete.
        step: Steps into the next one.
        figures: Means of that epoch's figures over those steps.
        best: The best evaluation so far; None before the first.
        best_step: Steps of the whole run at that evaluation.
        held_out: Figures of the last evaluation; None before the first, and in files of format 1.
        monitor: Which of them decided what is best; None in files of before there was a choice.
    """

    epoch: int = 0
    step: int = 0
    figures: dict[str, float] | None = None
    best: float | None = None
    best_step: int | None = None
    held_out: dict[str, float] | None = None
    monitor: str | None = None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they lie.
        keep: How many of the last ones stay, at least 1, besides the best.
        writes: Whether this process writes; the others of a cluster only read.
        on_written: Called after each.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        writes: bool = True,
        on_written: Callable[[], None] = lambda: None,
    ):
        self.folder, self.keep, self.writes = folder, keep, writes
        self.on_written = on_written

    def files(self) -> list[Path]:
        """All of them, the oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def last_step(self) -> int:
        """Steps of the whole run at the last of them; 0 where there is none."""
        files = self.files()
        return int(files[-1].stem.removeprefix("step-")) if files else 0

    def write(self, variables: dict[str, keras.Variable], position: Position, steps: int) -> None:
        """Write one, and remove what is too old.

        Args:
            variables: Every variable of the run, by a name of its own.
            position: Where the run stands.
            steps: Steps of the whole run so far.
        Raises:
            OSError: If the disk is full or fails; older checkpoints are whole then.
        """
        state = {
            name: np.array(variable.numpy(), order="C") for name, variable in variables.items()
        }
        if not self.writes:
            return
        file = self._file(steps)
        described = json.dumps(asdict(position))
        metadata = {
            "format": FORMAT,
            "position": described,
            "checksum": _checksum(state, f"{file.name} {described}"),
        }

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                save_file(state, temporary, metadata)
        except (OSError, SafetensorError) as error:
            size = sum(array.nbytes for array in state.values()) / 1e6
            raise OSError(
                f"The checkpoint of step {steps} ({size:.1f} MB) could not be written to "
                f"{self.folder}: {error}. The checkpoints before it are whole: free some space and "
                "run the same command again."
            ) from error

        best = self._file(position.best_step or 0)
        for old in self.files()[: -self.keep]:
            if old != best:
                old.unlink()
        self.on_written()

    def restore(self, variables: dict[str, keras.Variable]) -> Position | None:
        """Read the newest one that is whole into `variables`; None where there is not any file.

        Newer ones that are damaged are set aside, so that they do not count among those kept.

        Raises:
            ValueError: If there are files and none is whole, or they are of another model.
        """
        damaged = []
        for file in reversed(self.files()):
            try:
                state, position = _read(file)
            except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                log.warning("%s is damaged (%s): going back to the one before.", file, error)
                damaged.append(file)
                continue
            _assign(state, variables, file)
            self._set_aside(damaged)
            log.info(
                "Going on from %s: %d epochs and %d steps.", file, position.epoch, position.step
            )
            return position

        if damaged:
            raise ValueError(
                f"No checkpoint in {self.folder} is whole. Pass --overwrite to start over."
            )
        return None

    def _file(self, steps: int) -> Path:
        return self.folder / f"step-{steps:09d}.safetensors"

    def _set_aside(self, damaged: list[Path]) -> None:
        for file in damaged if self.writes else ():
            file.rename(file.with_name(file.name + DAMAGED))


def _read(file: Path) -> tuple[dict[str, np.ndarray], Position]:
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, no dict
    described = metadata["position"]
    signed = f"{file.name} {described}" if metadata.get("format") == FORMAT else ""
    if _checksum(state, signed) != metadata["checksum"]:
        raise ValueError("its checksum is wrong")
    return state, Position(**json.loads(described))


def _assign(state: dict[str, np.ndarray], variables: dict[str, keras.Variable], file: Path) -> None:
    differing = {
        name
        for name in state.keys() & variables.keys()
        if state[name].shape != tuple(variables[name].shape)
    }
    if wrong := sorted((state.keys() ^ variables.keys()) | differing):
        raise ValueError(
            f"{file} is of another model: {', '.join(wrong[:5])} differ. Pass --overwrite to start "
            "over."
        )
    for name, variable in variables.items():
        variable.assign(state[name])


def _checksum(state: dict[str, np.ndarray], signed: str) -> str:
    """Of the variables, and of `signed`: where the run stands, and the name of the file."""
    digest = hashlib.blake2b(signed.encode(), digest_size=16)
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {state[name].shape} ".encode())
        digest.update(state[name].data)
    return digest.hexdigest()
