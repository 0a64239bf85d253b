"""The figures of a run: of each step, on the device until they are looked at; of each epoch, in a
file of one JSON object per line, and for TensorBoard.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from deit_tf.files import write_text

HELD_OUT = "val_"


class StepFigures:
    """Figures of steps that nobody has looked at yet, on the device.

    Args:
        names: Of the figures, in their order.
    """

    def __init__(self, names: list[str]):
        self.names = names
        self._steps: list[int] = []
        self._figures: list[tf.Tensor] = []

    def add(self, step: int, figures: tf.Tensor) -> None:
        """Keep the figures [F] of a step, without waiting for them."""
        self._steps.append(step)
        self._figures.append(figures)

    def fetch(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Each step since the last call and its figures, by one copy for all of them."""
        if not self._steps:
            return
        steps, rows = self._steps, tf.stack(self._figures).numpy()  # [steps, F]
        self._steps, self._figures = [], []

        for step, row in zip(steps, rows.tolist(), strict=True):
            yield step, dict(zip(self.names, row, strict=True))


class EpochFigures:
    """Where the figures of a run go.

    Args:
        file: One JSON object per line, an epoch each.
        tensorboard: The folder for TensorBoard.
        writes: Whether this process writes; of a cluster one alone does.
    """

    def __init__(self, file: Path, tensorboard: Path, writes: bool = True):
        self.file, self.tensorboard, self.writes = file, tensorboard, writes
        self._writers: dict[str, Any] = {}

    def keep(self, epochs: int) -> None:
        """Drop the lines after `epochs`, which a run that goes on will write again."""
        if self.writes and self.file.exists():
            lines = self.file.read_text(encoding="utf-8").splitlines()
            write_text("".join(f"{line}\n" for line in lines if _epoch(line) <= epochs), self.file)

    def write(self, epoch: int, figures: dict[str, float]) -> None:
        """Add one epoch.

        Raises:
            OSError: If the disk is full or fails.
        """
        if not self.writes:
            return
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": epoch, **figures}) + "\n")
            self._write_tensorboard(epoch, figures)
        except (OSError, tf.errors.OpError) as error:
            reason = error.message if isinstance(error, tf.errors.OpError) else error
            raise OSError(
                f"The figures of epoch {epoch} could not be written to {self.file} and "
                f"{self.tensorboard}: {reason}. Free some space and run the same command again: it "
                "goes on from its last checkpoint."
            ) from error

    def _write_tensorboard(self, epoch: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            split = "validation" if name.startswith(HELD_OUT) else "train"
            with self._writer(split).as_default():
                tf.summary.scalar(f"epoch_{name.removeprefix(HELD_OUT)}", value, step=epoch)
        for writer in self._writers.values():
            writer.flush()

    def _writer(self, split: str):
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(str(self.tensorboard / split))
        return self._writers[split]


def _epoch(line: str) -> float:
    """The epoch of a line; infinite for one that a stop has torn."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf
