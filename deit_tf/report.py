"""What runs have to show, side by side."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

_ACCURACIES = {"accuracy": "top-1", "accuracy_cls": "class head", "accuracy_dist": "dist. head"}


def compare(runs: Sequence[str]) -> Table:
    """Put the final evaluations of several runs into one table.

    Args:
        runs: Run directories.
    Returns:
        A table with a row per run.
    Raises:
        FileNotFoundError: If a folder holds no finished run.
    """
    table = Table(title=None)
    for column in (
        "run",
        "model",
        "learns from",
        "parameters",
        *_ACCURACIES.values(),
        "like teacher",
        "of images",
        "seconds",
    ):
        table.add_column(column, justify="left" if column in ("run", "model", "learns from") else "right")
    for run in runs:
        file = Path(run) / "summary.json"
        if not file.is_file():
            raise FileNotFoundError(f"{run} is no finished run: it has no summary.json.")
        table.add_row(*_row(Path(run).name, json.loads(file.read_text())))
    return table


def _row(name: str, summary: dict) -> list[str]:
    figures = summary["evaluation"]
    source = {"teacher": "labels", "none": "labels"}.get(summary["kind"], f"labels, teacher ({summary['kind']})")
    return [
        name,
        summary["model"],
        source,
        f"{summary['parameters']:,}",
        *(_percent(figures.get(key)) for key in (*_ACCURACIES, "teacher_agreement")),
        str(summary["evaluation_images"]),
        f"{summary['training_seconds']:.0f}",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
