"""What an exported model knows of itself, as JSON: how to feed it, what its outputs are called.

Beside a `.tflite` file as `<name>.json`, beside an ONNX file as `<name>.onnx.json`, with the class
names once more in `labels.txt`, as apps read them; in a SavedModel as `assets.extra/model.json`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deit_tf.config import CHANNELS
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.activations import ACTIVATIONS, SOFTMAX
from deit_tf.files import (
    CLASS_NAMES_FILE,
    check_class_names,
    read_class_names,
    read_json,
    sha256,
    write_json,
)

log = logging.getLogger(__name__)

# How pixels reach an artifact: normalized before, or as a camera gives them with the normalization
# inside.
INPUTS = {"float32": "normalized: (pixel / 255 - mean) / std", "uint8": "pixels, 0..255"}
SUFFIX = ".tflite"
ONNX_SUFFIX = ".onnx"
GRAPH_FILE = "saved_model.pb"
KEYS = ("sha256", "input", "labels")  # what every sidecar has
PROCESSOR_KEYS = ("image_size", "resize_to", "interpolation", "mean", "std")  # all or none
ACTIVATION = "activation"  # softmax, where an export of before does not say it
UPRIGHT = "exif_orientation"  # one more of them, which exports of before do not have
LARGEST = 1e6  # of a mean or deviation of pixels in 0..1, far beyond any


@dataclass(frozen=True)
class Sidecar:
    """What an artifact knows of itself.

    Args:
        processor: What it expects of its images; None where the export was not told.
        class_names: Class names by output; None likewise.
        input_type: A key of `INPUTS`.
        verified: The figures of its verification; none of a SavedModel, which has them apart.
        activation: A key of `ACTIVATIONS`: what makes probabilities of its logits.
    """

    processor: ImageProcessor | None = None
    class_names: tuple[str, ...] | None = None
    input_type: str = "float32"
    verified: dict[str, Any] = field(default_factory=dict)
    activation: str = SOFTMAX

    def agrees_with(self, processor: ImageProcessor) -> bool:
        """Whether it expects the images that `processor` makes, or does not say."""
        return self.processor is None or (
            _processor_entries(self.processor) == _processor_entries(processor)
        )


def tflite_description(file: Path) -> tuple[Path, Path]:
    """The JSON file that belongs to a .tflite file, and what it carries the checksum of."""
    return file.with_suffix(".json"), file


def onnx_description(file: Path) -> tuple[Path, Path]:
    """The same of an ONNX file; its JSON file keeps the suffix, beside a .tflite file of that
    name.
    """
    return file.with_name(f"{file.name}.json"), file


def saved_model_description(version: Path) -> tuple[Path, Path]:
    """The same of the folder of a SavedModel's version."""
    return version / "assets.extra" / "model.json", version / GRAPH_FILE


def write_sidecar(file: Path, artifact: Path, sidecar: Sidecar, batch: str = "B") -> None:
    """Write what an artifact knows of itself.

    Args:
        file: The JSON file.
        artifact: The file that it describes, whose checksum it carries.
        sidecar: What to write.
        batch: Size of a batch, in words.
    """
    content = {
        "file": artifact.name,
        "sha256": sha256(artifact),
        "bytes": artifact.stat().st_size,
        "input": {
            "name": "images",
            "type": sidecar.input_type,
            "values": INPUTS[sidecar.input_type],
            "layout": f"{batch}, H, W, {_channels(sidecar.processor)}",
        },
    }
    if sidecar.processor is not None:
        content |= _processor_entries(sidecar.processor)

    names = sidecar.class_names
    content |= {"labels": None if names is None else list(names)}
    content |= {ACTIVATION: sidecar.activation}
    if sidecar.verified:
        content |= {"verified": sidecar.verified}
    write_json(content, file)


def read_sidecar(file: Path, artifact: Path) -> Sidecar | None:
    """What `write_sidecar` wrote.

    Args:
        file: The JSON file.
        artifact: The file that it describes.
    Returns:
        None where there is no such file, or, with a warning, where it is another tool's.
    Raises:
        ValueError: If it is damaged, or was written for another artifact; it is named.
    """
    if not file.is_file():
        return None

    # Of another tool's file nothing is ours; of a damaged one of ours, most is.
    content = read_json(file)
    if not any(key in content for key in (*KEYS, *PROCESSOR_KEYS)):
        log.warning("%s was not written by an export of deit_tf and is passed over.", file)
        return None

    content = read_json(file, KEYS)  # once more, for its complaint about a key that is missing
    if content["sha256"] != sha256(artifact):
        raise ValueError(
            f"{file} belongs to another {artifact.name}, or one of them is damaged: the checksum "
            "differs. Export it again, or copy both."
        )
    return Sidecar(
        _read_processor(file, content),
        _read_class_names(file, content["labels"]),
        _read_input_type(file, content["input"]),
        _read_object(file, content, "verified"),
        _read_activation(file, content),
    )


def add_verified(file: Path, figures: dict[str, Any]) -> None:
    """Add figures to those of the verification in a JSON file that is there."""
    content = read_json(file, ["verified"])
    content["verified"] = _read_object(file, content, "verified") | figures
    write_json(content, file)


def check_class_names_beside(file: Path, class_names: Sequence[str]) -> None:
    """Refuse class names, by ValueError, that are not those in the `labels.txt` beside `file`,
    where there is one: an app would read the wrong ones for one of the two files.
    """
    there = file.with_name(CLASS_NAMES_FILE)
    if there.exists() and read_class_names(there) != tuple(class_names):
        raise ValueError(
            f"`labels` differ from those in {there}; export to another folder. Received: "
            f"{class_names[0]!r}..."
        )


def _channels(processor: ImageProcessor | None) -> str:
    """The last axis of the images in words."""
    channels = CHANNELS if processor is None else processor.num_channels
    return {1: "gray", CHANNELS: "RGB"}.get(channels, f"{channels} channels")


def _processor_entries(processor: ImageProcessor) -> dict[str, Any]:
    return {
        "image_size": list(processor.size),
        "resize_to": processor.before_crop,
        "interpolation": processor.interpolation,
        "preprocessing": str(processor),  # for people
        "num_channels": processor.num_channels,
        "mean": list(processor.mean),
        "std": list(processor.std),
        UPRIGHT: processor.exif_orientation,
    }


def _read_processor(file: Path, content: dict[str, Any]) -> ImageProcessor | None:
    there = [key for key in PROCESSOR_KEYS if key in content]
    if not there:
        return None
    if missing := [key for key in PROCESSOR_KEYS if key not in content]:
        raise ValueError(f"{file} has {there[0]} and lacks {', '.join(missing)}: it is damaged.")

    for key in ("mean", "std"):
        if not _are_numbers(content[key]):
            raise ValueError(
                f"`{key}` in {file} must be a list of numbers. Received: {content[key]!r}"
            )

    values = {key: content[key] for key in PROCESSOR_KEYS}
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}

    values[UPRIGHT] = content.get(UPRIGHT, True)
    if not isinstance(values[UPRIGHT], bool):
        raise ValueError(
            f"`{UPRIGHT}` in {file} must be true or false. Received: {values[UPRIGHT]!r}"
        )

    try:
        return ImageProcessor(**values)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{file} describes no preprocessing: {error}") from error


def _are_numbers(values: Any) -> bool:
    """Whether `values` are finite numbers of a sane size; `true` is none."""
    return isinstance(values, list) and all(
        type(value) in (int, float) and abs(value) < LARGEST for value in values
    )


def _read_class_names(file: Path, names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list):
        raise ValueError(f"`labels` in {file} must be a list of class names. Received: {names!r}")
    try:
        check_class_names(names, len(names))
    except ValueError as error:
        raise ValueError(f"`labels` in {file} are no class names. {error}") from error
    return tuple(names)


def _read_input_type(file: Path, described: Any) -> str:
    found = described.get("type") if isinstance(described, dict) else None
    if not isinstance(found, str) or found not in INPUTS:
        raise ValueError(f"`input` in {file} has a `type` of {', '.join(INPUTS)}: it is damaged.")
    return found


def _read_activation(file: Path, content: dict[str, Any]) -> str:
    found = content.get(ACTIVATION, SOFTMAX)
    if not isinstance(found, str) or found not in ACTIVATIONS:
        raise ValueError(
            f"`{ACTIVATION}` in {file} must be {' or '.join(ACTIVATIONS)}. Received: "
            f"{str(found)[:100]!r}"
        )
    return found


def _read_object(file: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f"`{key}` in {file} must be a JSON object. Received: {found!r}")
    return found
