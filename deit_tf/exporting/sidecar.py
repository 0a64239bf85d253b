"""What lies beside a .tflite file: `<name>.json`, which tells an app how to feed it, and
`labels.txt`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deit_tf.data.preprocess import ImageProcessor

LABELS_FILE = "labels.txt"
# How pixels reach a file: normalized before, or as a camera gives them with the normalization
# inside.
INPUTS = {"float32": "normalized: (pixel / 255 - mean) / std", "uint8": "pixels, 0..255"}


def write_sidecar(
    file: Path,
    processor: ImageProcessor | None,
    labels: Sequence[str] | None,
    input_type: str,
    verified: dict,
) -> dict[str, Any]:
    """Write `<name>.json`, and `labels.txt` where there are labels, beside a .tflite file.

    Args:
        file: The .tflite file.
        processor: What it expects of its images; None leaves that out.
        labels: C class names in class order.
        input_type: A key of `INPUTS`.
        verified: The figures of its verification.
    Returns:
        The content of the JSON file.
    Raises:
        ValueError: If `labels.txt` is there with other labels.
    """
    content = {"file": file.name, "sha256": checksum(file), "bytes": file.stat().st_size}
    content |= {
        "input": {
            "name": "images",
            "type": input_type,
            "values": INPUTS[input_type],
            "layout": "1, H, W, RGB",
        }
    }
    if processor is not None:
        content |= {"image_size": list(processor.size), "resize_to": processor.before_crop}
        content |= {"interpolation": processor.interpolation, "preprocessing": str(processor)}
        content |= {"mean": list(processor.mean), "std": list(processor.std)}
    content |= {"labels": None if labels is None else list(labels), "verified": verified}
    _write(sidecar_path(file), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if labels is not None:
        _write(file.with_name(LABELS_FILE), _lines(labels))
    return content


def check_labels(labels: Sequence[str], classes: int) -> None:
    """Refuse class names, by ValueError, that are not as many as the classes, or not text of one
    line each.
    """
    if len(labels) != classes:
        raise ValueError(
            f"`labels` must name the {classes} classes of the model, in order. Received: "
            f"{len(labels)}"
        )
    if bad := [
        label for label in labels if not isinstance(label, str) or label.splitlines() != [label]
    ]:
        raise ValueError(
            f"`labels` must be text of one line each, for {LABELS_FILE}. Received: {bad[0]!r}"
        )


def check_labels_beside(file: Path, labels: Sequence[str]) -> None:
    """Refuse labels, by ValueError, that are not those in the `labels.txt` beside `file`, where
    there is one.
    """
    there = file.with_name(LABELS_FILE)
    if there.exists() and there.read_text(encoding="utf-8").splitlines() != list(labels):
        raise ValueError(
            f"`labels` differ from those in {there}; export to another folder. Received: "
            f"{labels[0]!r}..."
        )


def read_sidecar(file: str | Path) -> dict[str, Any]:
    """The content of `<name>.json` beside a .tflite file.

    Raises:
        ValueError: If there is none, or it was written for another file.
    """
    path = sidecar_path(Path(file))
    if not path.exists():
        raise ValueError(f"{file} has no {path.name} beside it. Export it again, or copy both.")
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["sha256"] != checksum(Path(file)):
        raise ValueError(
            f"{path} belongs to another {Path(file).name}: the checksum differs. Export it again."
        )
    return content


def sidecar_path(file: Path) -> Path:
    """Where `write_sidecar` writes."""
    return file.with_suffix(".json")


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def to_pixels(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The uint8 pixels [..., 3], 0..255, nearest to normalized images: the inverse of
    `normalize`.
    """
    pixels = (np.asarray(images) * np.asarray(std) + np.asarray(mean)) * 255
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _lines(labels: Sequence[str]) -> str:
    return "".join(f"{label}\n" for label in labels)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
