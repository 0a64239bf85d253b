"""Answers of `predict_files` as a file: JSON lines, one JSON list, or CSV, by the file's ending."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from deit_tf.files import csv_cell, replacing

COLUMNS = ("image", "rank", "class", "label", "probability")

Answers = Iterable[dict[str, Any]]


def check_answers_file(file: str | Path) -> None:
    """Refuse a file that `write_answers` cannot write, before anything is predicted.

    Raises:
        ValueError: If its ending is none of `WRITERS`.
        FileNotFoundError: If its folder is not there.
    """
    path = Path(file)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"`out` ends in {', '.join(WRITERS)}. Received: {file}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} for `out`, {file}")


def write_answers(answers: Answers, file: str | Path) -> Path:
    """Write answers as they come; the file gets its name when all are there.

    Args:
        answers: As of `predict_files`, each with its `classes`.
        file: Where to write, as of `check_answers_file`.
    Returns:
        The file.
    """
    path = Path(file)
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        WRITERS[path.suffix.lower()](answers, stream)
    return path


def _write_json_lines(answers: Answers, stream: TextIO) -> None:
    for answer in answers:
        stream.write(json.dumps(answer) + "\n")


def _write_json(answers: Answers, stream: TextIO) -> None:
    json.dump(list(answers), stream, indent=2)
    stream.write("\n")


def _write_csv(answers: Answers, stream: TextIO) -> None:
    """A row per image and class, the most probable first."""
    rows = csv.writer(stream)
    rows.writerow(COLUMNS)
    for answer in answers:
        for rank, found in enumerate(answer["classes"], 1):
            image, label = csv_cell(answer["image"]), csv_cell(found["label"])
            rows.writerow([image, rank, found["class"], label, f"{found['probability']:.6f}"])


WRITERS = {".jsonl": _write_json_lines, ".json": _write_json, ".csv": _write_csv}
