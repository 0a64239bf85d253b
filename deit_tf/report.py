"""What runs have to show, side by side."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

# column: field of the evaluation
_SHARES = {"top-1": "accuracy", "cls head": "accuracy_cls", "dist head": "accuracy_dist", "as teacher": "teacher_agreement"}


def compare(runs: Sequence[str]) -> Table:
    """Put the final evaluations of several runs into one table.

    Args:
        runs: Run directories.
    Returns:
        A table with a row per run: kind of distillation, top-1 of the model and of its heads, agreement with the teacher,
        images it was evaluated on, seconds of training.
    Raises:
        FileNotFoundError: If a folder holds no finished run.
    """
    table = Table("run", "kind", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("weights", *_SHARES, "images", "seconds"):
        table.add_column(column, justify="right")
    for run in runs:
        file = Path(run) / "summary.json"
        if not file.is_file():
            raise FileNotFoundError(f"{run} is no finished run: it has no summary.json.")
        table.add_row(*_row(Path(run).name, json.loads(file.read_text())))
    return table


def _row(name: str, summary: dict) -> list[str]:
    figures = summary["evaluation"]
    weights = f"{summary['parameters'] / 1e6:.2f} M"
    shares = [_percent(figures.get(field)) for field in _SHARES.values()]
    images, seconds = str(summary["evaluation_images"]), f"{summary['training_seconds']:.0f}"
    return [name, summary["kind"], weights, *shares, images, seconds]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
