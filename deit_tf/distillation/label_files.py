"""The files of a label cache: which there are, what their bytes mean, and whether they are whole.

    manifest.json                              what the labels hold for, one fact per line
    epoch-0003.steps-000064-000128.labels      the answers at steps 64 to 127 of epoch 3
    held-out.steps-000000-000006.labels        those on the held-out images

A file holds, little-endian, for hard labels the class of each image; for soft ones float16 [n, k +
1], the logarithms of the probabilities of the k likeliest classes and of all others together, then
the k classes [n, k]. A class takes one byte where there are at most 256, two up to 65,536, else
four. The last 32 bytes are the SHA-256 of what the labels hold for, the file's name and the bytes
before.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deit_tf.distillation.fingerprint import identity
from deit_tf.files import read_json, remove_partial, write_bytes, write_text

MANIFEST = "manifest.json"
CHECKSUM = 32  # bytes
FILE_IMAGES = 1 << 16  # about as many images share a file: what a killed process loses, at most
LOG_PROBABILITY = np.dtype("<f2")
# Facts that decide how labels are cut into files.
LAYOUT_FACTS = (
    "data.classes",
    "data.batch_size",
    "data.images",
    "data.held_out_images",
    "distill.top_k",
)
_LEAST = {
    "data.batch_size": 1,
    "data.images": 1,
    "data.held_out_images": 1,
    "distill.top_k": 0,
    "steps_per_file": 1,
}


@dataclass(frozen=True)
class Unit:
    """What one file holds.

    Args:
        epoch: The epoch; None for the held-out images.
        start: Its first step.
        stop: The step after its last.
    """

    epoch: int | None
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The name of the file."""
        part = "held-out" if self.epoch is None else f"epoch-{self.epoch:04d}"
        return f"{part}.steps-{self.start:06d}-{self.stop:06d}.labels"


@dataclass(frozen=True)
class Layout:
    """How a cache is cut into files.

    Args:
        classes: Classes C.
        batch_size: Images per step.
        images: Images of an epoch, before what fills no batch is dropped.
        held_out: Held-out images, all of which are labeled.
        top_k: Classes kept of each answer; 0 for hard labels.
        steps_per_file: Steps per file, but for the last of an epoch.
        identity: What the labels hold for, in 32 bytes.
    """

    classes: int
    batch_size: int
    images: int
    held_out: int
    top_k: int
    steps_per_file: int
    identity: bytes

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Layout":
        """The layout that a manifest tells.

        Raises:
            ValueError: If what it tells is none; the fact is named.
        """
        classes = facts["data.classes"]
        if not isinstance(classes, list) or not classes:
            raise ValueError(f"`data.classes` is a list of names. Received: {str(classes)[:100]}")
        for name, least in _LEAST.items():
            if type(facts[name]) is not int or facts[name] < least:
                raise ValueError(
                    f"`{name}` is a whole number from {least}. Received: {str(facts[name])[:100]}"
                )

        return cls(
            classes=len(classes),
            batch_size=facts["data.batch_size"],
            images=facts["data.images"],
            held_out=facts["data.held_out_images"],
            top_k=facts["distill.top_k"],
            steps_per_file=facts["steps_per_file"],
            identity=identity(facts),
        )

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self.images // self.batch_size

    @property
    def class_dtype(self) -> np.dtype:
        """The type that holds a class."""
        # int32, as TensorFlow decodes no uint32.
        return np.dtype(
            "u1" if self.classes <= 1 << 8 else "<u2" if self.classes <= 1 << 16 else "<i4"
        )

    @property
    def image_bytes(self) -> int:
        """Bytes per image."""
        size = self.class_dtype.itemsize
        return (
            self.top_k * size + (self.top_k + 1) * LOG_PROBABILITY.itemsize if self.top_k else size
        )

    def training_units(self, epochs: Iterable[int]) -> list[Unit]:
        """The files of these epochs, in the order of their steps."""
        return [unit for epoch in epochs for unit in self._cut(epoch, self.steps)]

    def held_out_units(self) -> list[Unit]:
        """The files of the held-out images."""
        return self._cut(None, -(-self.held_out // self.batch_size))

    def units_from(self, first_step: int, epochs: int) -> list[Unit]:
        """The files of all epochs that hold anything from a step of the whole training on."""
        units = self.training_units(range(first_step // self.steps, epochs))
        return [unit for unit in units if self.span(unit)[1] > first_step]

    def span(self, unit: Unit) -> tuple[int, int]:
        """The first step of a file, counted over all epochs, and the step after its last."""
        before = (unit.epoch or 0) * self.steps
        return before + unit.start, before + unit.stop

    def count(self, unit: Unit) -> int:
        """Images that a file holds answers for."""
        last = self.images if unit.epoch is not None else self.held_out
        return min(unit.stop * self.batch_size, last) - unit.start * self.batch_size

    def pack(self, classes: np.ndarray, log_probabilities: np.ndarray | None) -> bytes:
        """Bytes of classes [n], or of classes [n, k] with log-probabilities [n, k + 1]."""
        packed = classes.astype(self.class_dtype)
        if log_probabilities is None:
            return packed.tobytes()
        rounded = log_probabilities.astype(LOG_PROBABILITY)
        # Rounding must not let another class catch up with the teacher's decision.
        below = np.nextafter(rounded[:, :1], LOG_PROBABILITY.type(-np.inf))
        rounded[:, 1 : self.top_k] = np.minimum(rounded[:, 1 : self.top_k], below)
        return rounded.tobytes() + packed.tobytes()

    def write(self, folder: Path, unit: Unit, payload: bytes) -> None:
        """Write a file, so that it is there whole or not at all."""
        file = folder / unit.name
        write_bytes(payload + self._checksum(unit, payload), file)
        remove_partial(folder, file.stem)

    def flaw(self, folder: Path, unit: Unit) -> str | None:
        """What is wrong with a file: `missing`, `damaged`, or nothing."""
        try:
            content = (folder / unit.name).read_bytes()
        except FileNotFoundError:
            return "missing"
        payload, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
        whole = len(payload) == self.count(unit) * self.image_bytes and checksum == self._checksum(
            unit, payload
        )
        return None if whole else "damaged"

    def _cut(self, epoch: int | None, steps: int) -> list[Unit]:
        each = self.steps_per_file
        return [Unit(epoch, start, min(start + each, steps)) for start in range(0, steps, each)]

    def _checksum(self, unit: Unit, payload: bytes) -> bytes:
        return hashlib.sha256(self.identity + unit.name.encode() + payload).digest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what the labels in a folder hold for.

    Raises:
        FileNotFoundError: If it holds none.
        ValueError: If its manifest is damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no teacher labels. Make them with `deit-tf label`."
        )
    remedy = "Make the labels anew in another folder."
    try:
        facts = read_json(file, keys=("steps_per_file", "software", *LAYOUT_FACTS))
    except ValueError as error:
        raise ValueError(f"{error} {remedy}") from error
    try:
        Layout.of(facts)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error} {remedy}") from error
    return facts


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write manifest.json, one fact per line."""
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()
    )
    write_text(f"{{\n{lines}\n}}\n", folder / MANIFEST)
