"""The forms of export, as one table: how each is recognized, loaded, asked and limited.

`deit-tf predict` and `evaluate`, the report and `deit-tf export check` go through it; a new form is
a new entry of `FORMATS`, and a class with the attributes of `LoadedExport`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.compare import EXACT, Limits
from deit_tf.exporting.session import load_saved_model, newest_version
from deit_tf.exporting.sidecar import (
    GRAPH_FILE,
    ONNX_SUFFIX,
    SUFFIX,
    Sidecar,
    onnx_description,
    read_sidecar,
    saved_model_description,
    tflite_description,
)
from deit_tf.exporting.signatures import BYTES, IMAGES

log = logging.getLogger(__name__)


class LoadedExport(Protocol):
    """What every form is, once loaded.

    Each method takes normalized images, float32 [B, H, W, 3], with the processor that made them: a
    form that takes pixels turns them back.
    """

    image_size: tuple[int, int]  # height and width in pixels
    num_classes: int

    def __call__(self, images: np.ndarray, processor: ImageProcessor | None = None) -> np.ndarray:
        """Logits, float32 [B, C]."""

    def logits(
        self, images: np.ndarray, processor: ImageProcessor | None = None
    ) -> dict[str, np.ndarray]:
        """Logits by name: `mean`, and `cls` and `dist` where the form gives both heads."""

    def ask(
        self, entry: str, batch: np.ndarray, processor: ImageProcessor | None = None
    ) -> np.ndarray:
        """Logits of a batch by one of the entries of its `Format`, as that takes it."""


@dataclass(frozen=True)
class Format:
    """A form of export.

    Args:
        name: What to call it.
        pattern: What `Path.rglob` finds in an export of this form.
        locate: From a path that a user may name to the export; None where there is none.
        described: The JSON file that belongs to an export, and the file whose checksum it carries.
        load: Its model. What a form needs is imported there: to open one, no other form's library
            must be installed.
        entries: What it can be asked by, and what each takes: `images`, normalized, or `encoded`,
            the bytes of image files. One without a name is the only one.
        limits: What it may differ by from Keras, by what it knows of itself; None where that does
            not say.
        devices: Compiled for CPU and GPU, as `measure_devices` in deit_tf.exporting.accelerators
            has it, of a loaded model, normalized images with their processor, the logits that they
            should give, and the limits; None where a form is compiled for no device.
    """

    name: str
    pattern: str
    locate: Callable[[Path], Path | None]
    described: Callable[[Path], tuple[Path, Path]]
    load: Callable[[Path], LoadedExport]
    entries: Mapping[str, str]
    limits: Callable[[Sidecar | None], Limits | None]
    devices: Callable[..., dict[str, dict]] | None = None


@dataclass(frozen=True)
class Export:
    """An exported model that lies somewhere.

    Args:
        format: Its form.
        path: The file, or the folder of a version.
    """

    format: Format
    path: Path

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def sidecar(self) -> Sidecar | None:
        """What it knows of itself; None where no export of deit_tf wrote that down.

        Raises:
            ValueError: If that is damaged, or belongs to another export.
        """
        return read_sidecar(*self.format.described(self.path))

    def load(self) -> LoadedExport:
        """Load it.

        Raises:
            ExportError: If it does not load.
            ValueError: If it is damaged; it is named.
        """
        return self.format.load(self.path)

    def mismatch(self, processor: ImageProcessor) -> str:
        """In words, what it was exported for, where that is not the images that `processor` makes;
        empty where it is, or is not known.

        Raises:
            ValueError: If what it knows of itself is damaged.
        """
        own = self.sidecar() or Sidecar()
        return "" if own.agrees_with(processor) else f"exported for other images: {own.processor}"

    def limits(self) -> Limits | None:
        """What it may differ by from Keras; None where nothing beside it says how it was made.

        Raises:
            ValueError: If what it knows of itself is damaged.
        """
        return self.format.limits(self.sidecar())


def _locate_saved_model(path: Path) -> Path | None:
    return newest_version(path.parent if path.name == GRAPH_FILE else path)


def _locate_tflite(path: Path) -> Path | None:
    return path if path.suffix == SUFFIX and path.is_file() else None


def _locate_onnx(path: Path) -> Path | None:
    return path if path.suffix == ONNX_SUFFIX and path.is_file() else None


def _load_tflite(file: Path) -> LoadedExport:
    from deit_tf.exporting.litert import load_tflite

    _warn_if_unchecked(file, tflite_description(file)[0])
    return load_tflite(file)


def _load_onnx(file: Path) -> LoadedExport:
    from deit_tf.exporting.onnx_session import OnnxModel

    _warn_if_unchecked(file, onnx_description(file)[0])
    return OnnxModel(file)


def _warn_if_unchecked(file: Path, description: Path) -> None:
    if not description.is_file():
        log.warning(
            "%s has no %s of its export beside it, and so no checksum: damage to its weights would "
            "not be seen.",
            file,
            description.name,
        )


def _tflite_devices(
    loaded: LoadedExport,
    images: np.ndarray,
    processor: ImageProcessor,
    logits: np.ndarray,
    limits: Limits,
) -> dict[str, dict]:
    from deit_tf.exporting.accelerators import measure_devices

    return measure_devices(loaded.file, loaded.prepared(images, processor), logits, limits)


def _tflite_limits(sidecar: Sidecar | None) -> Limits | None:
    from deit_tf.exporting.tflite import VARIANTS

    variant = sidecar.verified.get("variant") if sidecar else None
    return VARIANTS[variant].limits if isinstance(variant, str) and variant in VARIANTS else None


FORMATS = (
    Format(
        name="SavedModel",
        pattern=GRAPH_FILE,
        locate=_locate_saved_model,
        described=saved_model_description,
        load=load_saved_model,
        entries={BYTES: "encoded", IMAGES: "images"},
        limits=lambda _: EXACT,
    ),
    Format(
        name=".tflite file",
        pattern=f"*{SUFFIX}",
        locate=_locate_tflite,
        described=tflite_description,
        load=_load_tflite,
        entries={"": "images"},
        limits=_tflite_limits,
        devices=_tflite_devices,
    ),
    Format(
        name=".onnx file",
        pattern=f"*{ONNX_SUFFIX}",
        locate=_locate_onnx,
        described=onnx_description,
        load=_load_onnx,
        entries={"": "images"},
        limits=lambda _: EXACT,
    ),
)


def find_export(path: str | Path) -> Export | None:
    """The export at `path`; None where there is none. Of a folder of versions it is the highest."""
    for form in FORMATS:
        if located := form.locate(Path(path)):
            return Export(form, located)
    return None


def find_exports(folder: Path) -> list[Export]:
    """All exports below a folder, form after form, sorted by path.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    return [
        Export(form, located)
        for form in FORMATS
        for found in sorted(folder.rglob(form.pattern))
        if not _is_hidden(found.relative_to(folder))
        if (located := form.locate(found))
    ]


def _is_hidden(path: Path) -> bool:
    """Whether a path lies in a hidden folder, as an export does that is under way."""
    return any(part.startswith(".") for part in path.parts)
