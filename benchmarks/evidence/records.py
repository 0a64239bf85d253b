"""Evidence as JSON lines: one for each run, and for what is computed from several."""

import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deit_tf.config import TrainConfig
from deit_tf.files import read_json, write_json, write_text

Record = dict[str, Any]

KEY = ("what", "library", "arm", "seed")  # what tells records apart
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
# Where something lay on the machine that ran it is no evidence.
PLACES = {"out": None, "data": ("source", "data_dir"), "distill": ("teacher", "labels")}


def circumstances(checksum: str, machine: Mapping[str, Any]) -> Record:
    """What every record holds: plan, machine, versions."""
    names = ("deit_tf", "tensorflow", "keras")
    return {
        "plan": checksum,
        "machine": {key: value for key, value in machine.items() if key != "load"},
        "load": machine["load"],
        "versions": {name: importlib.metadata.version(name) for name in names},
        ONEDNN: os.environ.get(ONEDNN),
    }


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """The settings of a run, without what is a place on this machine."""
    settings = json.loads(json.dumps(asdict(config)))
    for group, names in PLACES.items():
        if names is None:
            del settings[group]
        else:
            settings[group] = {k: v for k, v in settings[group].items() if k not in names}
    return settings


def key_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells a record apart from the others of its plan."""
    return tuple(str(record.get(name, "")) for name in KEY)


class Notebook:
    """The records of a folder, a file each, so that several processes may write.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def has(self, record: Mapping[str, Any]) -> bool:
        """Whether there is a record of these keys."""
        return self._file(record).is_file()

    def write(self, record: Record) -> None:
        """Keep a record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(record, self._file(record))

    def read(self) -> list[Record]:
        """All records."""
        return [read_json(file) for file in sorted(self.folder.glob("*.json"))]

    def _file(self, record: Mapping[str, Any]) -> Path:
        return self.folder / f"{'_'.join(filter(None, key_of(record)))}.json"


def read_lines(file: Path) -> list[Record]:
    """The records of a file of JSON lines; none where there is no file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_lines(records: Iterable[Record], file: Path) -> list[Record]:
    """Add records to a file of JSON lines, in place of those of the same keys; returns all.

    Raises:
        ValueError: If the file holds records of another plan.
    """
    records = list(records)
    before = read_lines(file)
    plans = {record["plan"] for record in (*before, *records)}
    if len(plans) > 1:
        raise ValueError(f"{file} holds evidence of another plan; figures of two do not compare.")

    merged = {key_of(record): record for record in (*before, *records)}
    ordered = [merged[key] for key in sorted(merged)]
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record, ensure_ascii=False) for record in ordered)
    write_text("".join(f"{line}\n" for line in lines), file)
    return ordered
