"""The figures of a run: of each step, on the device until they are looked at; of each epoch, in a
file of one JSON object per line, and for TensorBoard.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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


class RecentMean:
    """Mean of a figure over the last steps, from its means over all steps so far.

    A trainer's figures are means over an epoch; a curve of those hardly moves.
    """

    def __init__(self):
        self._steps, self._sum = 0, 0.0

    def update(self, steps: int, mean: float) -> float:
        """The mean over the steps since the last call, where `mean` is that over all `steps`."""
        total = steps * mean
        recent = (total - self._sum) / (steps - self._steps)
        self._steps, self._sum = steps, total
        return recent


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

    def read(self) -> list[dict[str, Any]]:
        """The epochs that were written, in their order; none where another process writes."""
        if not self.writes:
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def write(self, epoch: int, figures: dict[str, float]) -> None:
        """Add one epoch.

        Raises:
            OSError: If the disk is full or fails.
        """
        if not self.writes:
            return
        with self._naming_failure(f"figures of epoch {epoch}"):
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": epoch, **figures}) + "\n")
            self._write_tensorboard(epoch, figures)

    def write_steps(self, step: int, figures: dict[str, float]) -> None:
        """Add figures of the last steps as curves, under the names that Keras's TensorBoard
        callback gives to those of batches.

        Args:
            step: Steps of the whole run so far.
            figures: By name.
        Raises:
            OSError: If the disk is full or fails.
        """
        if not self.writes:
            return
        with self._naming_failure(f"figures of step {step}"), self._writer("train").as_default():
            for name, value in figures.items():
                tf.summary.scalar(f"batch_{name}", value, step=step)

    def write_picture(self, name: str, pixels: np.ndarray) -> None:
        """Add a picture, uint8 [H, W, 3], to look at beside the curves.

        Raises:
            OSError: If the disk is full or fails.
        """
        with self._naming_failure(f"picture {name}"), self._writer("train").as_default():
            tf.summary.image(name, pixels[None], step=0)

    @contextmanager
    def _naming_failure(self, what: str) -> Iterator[None]:
        """Say in one sentence that something could not be written."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            reason = error.message if isinstance(error, tf.errors.OpError) else error
            raise OSError(
                f"The {what} could not be written to {self.file} and {self.tensorboard}: "
                f"{reason}. Free some space and run the same command again: it goes on from its "
                "last checkpoint."
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
