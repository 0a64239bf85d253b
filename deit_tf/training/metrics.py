"""The figures of each epoch: metrics.jsonl, one JSON object per line, and TensorBoard."""

import json
import math
from pathlib import Path

import tensorflow as tf

from deit_tf.files import replacing

HELD_OUT = "val_"


class Curves:
    """Where the figures of a run go.

    Args:
        run: The run directory.
        writes: Whether this process writes.
    """

    def __init__(self, run: Path, writes: bool = True):
        self.file, self.folder, self.writes = run / "metrics.jsonl", run / "tensorboard", writes
        self.writers = {}

    def keep(self, epochs: int) -> None:
        """Drop the lines after `epochs`, which a run that goes on will write again."""
        if self.writes and self.file.exists():
            lines = [line for line in self.file.read_text().splitlines() if _epoch(line) <= epochs]
            with replacing(self.file) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines))

    def last(self) -> dict[str, float]:
        """The figures of the last epoch."""
        return json.loads(self.file.read_text().splitlines()[-1])

    def write(self, epoch: int, figures: dict[str, float]) -> None:
        """Add one epoch."""
        if not self.writes:
            return
        with self.file.open("a") as file:
            file.write(json.dumps({"epoch": epoch, **figures}) + "\n")
        for name, value in figures.items():
            held_out = name.startswith(HELD_OUT)
            with self._writer("validation" if held_out else "train").as_default():
                tf.summary.scalar(f"epoch_{name.removeprefix(HELD_OUT)}", value, step=epoch)
        for writer in self.writers.values():
            writer.flush()

    def _writer(self, name: str):
        if name not in self.writers:
            self.writers[name] = tf.summary.create_file_writer(str(self.folder / name))
        return self.writers[name]


def _epoch(line: str) -> float:
    """The epoch of a line of metrics.jsonl; infinite for one that a stop has torn."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf
