"""A file that says which labels each picture has: CSV with a header, or JSON lines.

    image,labels,split                    {"image": "a.jpg", "labels": ["boat", "dog"]}
    a.jpg,boat|dog,train                  {"image": "b.jpg", "labels": []}
    b.jpg,,val

A picture may have any number of labels, also none. Paths are within the file's folder.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_tf.data import folders
from deit_tf.files import check_class_names
from deit_tf.object_store import is_url

SUFFIXES = (".csv", ".jsonl")
BETWEEN = "|"  # labels in a cell of CSV
IMAGE, LABELS, SPLIT = "image", "labels", "split"

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Annotated:
    """Pictures with their labels.

    Args:
        paths: Of the pictures.
        labels: Of each.
    """

    paths: list[str]
    labels: list[Labels]

    def only(self, paths: list[str]) -> "Annotated":
        """Those of the pictures that are among `paths`."""
        wanted = set(paths)
        pairs = zip(self.paths, self.labels, strict=True)
        kept = [pair for pair in pairs if pair[0] in wanted]
        return Annotated([path for path, _ in kept], [labels for _, labels in kept])

    def names(self) -> Labels:
        """All labels, sorted."""
        return tuple(sorted({name for labels in self.labels for name in labels}))


def is_annotations(source: str) -> bool:
    """Whether `data.source` names such a file."""
    path = Path(source).expanduser()
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def file_of(source: str) -> Path:
    """The file that `data.source` names.

    Raises:
        ValueError: If it is on an object store.
    """
    if is_url(source):
        raise ValueError(
            "A file of labels and its pictures lie on this machine, not on a store: copy them, or "
            f"mount it. Received: data.source={source!r}"
        )
    return Path(source).expanduser()


def read_annotations(file: Path) -> tuple[Annotated, Annotated | None]:
    """Read the pictures to train on, and those to evaluate on where the file tells them apart.

    Args:
        file: The file, in UTF-8; the field `split` is optional, and `train` or `val`, or another
            usual name of these.
    Raises:
        FileNotFoundError: If there is no such file, or a picture that it names is not there.
        ValueError: If a line is not of that form, a picture is named twice, or outside of the
            folder; the line is named.
    """
    if not file.is_file():
        raise FileNotFoundError(f"`data.source` names a file of labels that is not there: {file}")

    splits: dict[str, Annotated] = {"train": Annotated([], []), "val": Annotated([], [])}
    seen: dict[str, str] = {}
    told = set()
    for place, row in _rows(file):
        path = _path(file, row.get(IMAGE), place)
        if path in seen:
            raise ValueError(f"{place} names {path} a second time, after {seen[path]}.")
        seen[path] = place
        told.add(row.get(SPLIT) is not None)

        split = splits[_split(row.get(SPLIT), place)]
        split.paths.append(path)
        split.labels.append(_labels(row.get(LABELS), place))

    if len(told) > 1:
        raise ValueError(f"`{SPLIT}` in {file} stands in every line or in none.")
    _check_there(file, list(seen))
    return splits["train"], splits["val"] if True in told else None


def hold_out(annotated: Annotated, share: float) -> tuple[Annotated, Annotated]:
    """Split pictures by their own names, as those of a folder are."""
    train, held_out = folders.hold_out({"": annotated.paths}, share)
    return annotated.only(train[""]), annotated.only(held_out[""])


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as an object, with its place for messages."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8: {error}") from error
    read = _json_rows if file.suffix.lower() == ".jsonl" else _csv_rows
    yield from read(file, text)


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = lines.fieldnames or []
    if not {IMAGE, LABELS} <= set(columns):
        raise ValueError(
            f"{file} begins with the names of its columns, `{IMAGE}`, `{LABELS}` and, if you like, "
            f"`{SPLIT}`; several labels of a picture are joined by {BETWEEN}. Received: "
            f"{', '.join(columns)[:200] or 'an empty file'}"
        )

    try:
        for row in lines:
            place = f"Line {lines.line_num} of {file}"
            if None in row or row[LABELS] is None:
                raise ValueError(f"{place} has another number of cells than the {len(columns)}.")
            cell = row[LABELS].strip()
            yield place, row | {LABELS: [each.strip() for each in cell.split(BETWEEN) if cell]}
    except csv.Error as error:
        line = lines.line_num + 1
        raise ValueError(f"{file} is no CSV at line {line} or after: {error}") from error


def _json_rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"Line {number} of {file}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place} is no JSON: {error}") from error
        if not isinstance(row, dict) or not {IMAGE, LABELS} <= set(row):
            raise ValueError(
                f"{place} must be an object with `{IMAGE}` and `{LABELS}`. Received: {line[:100]}"
            )
        yield place, row


def _path(file: Path, name: Any, place: str) -> str:
    """Where a picture lies, below the folder of the file."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{place}: `{IMAGE}` is a path. Received: {str(name)[:100]!r}")
    within = os.path.normpath(name)
    if os.path.isabs(within) or within.split(os.sep)[0] == os.pardir:
        raise ValueError(
            f"{place}: `{IMAGE}` lies in the folder of the file or below it. Put the file above "
            f"its pictures. Received: {name}"
        )
    return os.path.join(file.parent, within)


def _split(name: Any, place: str) -> str:
    known = {**dict.fromkeys(folders.TRAIN_FOLDERS, "train")}
    known |= dict.fromkeys(folders.EVAL_FOLDERS, "val")
    split = "train" if name is None else known.get(str(name).strip().lower())
    if split is None:
        raise ValueError(f"{place}: `{SPLIT}` is train or val. Received: {str(name)[:100]!r}")
    return split


def _labels(names: Any, place: str) -> Labels:
    if not isinstance(names, list):
        raise ValueError(
            f"{place}: `{LABELS}` is a list of class names. Received: {str(names)[:100]!r}"
        )
    try:
        check_class_names(names, len(names))
    except ValueError as error:
        raise ValueError(f"{place}: `{LABELS}`. {error}") from error
    return tuple(dict.fromkeys(names))


def _check_there(file: Path, paths: list[str]) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        named = ", ".join(missing[: folders.NAMED]) + ", ..." * (len(missing) > folders.NAMED)
        raise FileNotFoundError(
            f"{file} names {len(missing)} pictures of {len(paths)} that are not there: {named}. "
            "Put them there, or take their lines out."
        )
