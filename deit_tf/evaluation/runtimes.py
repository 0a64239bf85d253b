"""What runs a trained model on this machine: Keras, or a float32 export that was compared with it.

An export for this is made at its first use and kept in the user's cache folder, under the checksum
of the model and of what lies beside it; it may be deleted at any time.
"""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Literal, get_args

import filelock
import tensorflow as tf

from deit_tf.exporting.formats import find_export
from deit_tf.exporting.saved_model import export_saved_model
from deit_tf.exporting.sidecar import SUFFIX
from deit_tf.exporting.tflite import export_tflite
from deit_tf.files import cache_folder, sha256
from deit_tf.runs import Run, RunFolder, load_run
from deit_tf.runs.load import is_keras, model_file

log = logging.getLogger(__name__)

Runtime = Literal["keras", "savedmodel", "litert"]
FEW = 4  # pictures; LiteRT takes one at a time, Keras a batch


def runtime_path(path: str, runtime: Runtime | None, pictures: int) -> str:
    """What `open_model` is to open in place of `path`.

    Args:
        path: A model, as `open_model` takes it.
        runtime: What is to run it. None is LiteRT for up to `FEW` pictures where its file was made
            before and there is no GPU, and Keras otherwise.
        pictures: How many there are.
    Returns:
        `path` itself, or an export of it.
    Raises:
        ValueError: If `runtime` is none of `Runtime`, or `path` is none of ours: an export, which
            has its own, or weights of another library.
        ExportError: If an export differs from Keras; nothing is kept.
    """
    if runtime is not None and runtime not in get_args(Runtime):
        raise ValueError(f"`runtime` is {', '.join(get_args(Runtime))}. Received: {runtime!r}")
    if runtime == "keras" or find_export(path) is not None or not is_keras(path):
        if runtime not in (None, "keras"):
            raise ValueError(
                f"`runtime` chooses for a run or a .keras file; {path} is neither. Received: "
                f"runtime={runtime!r}"
            )
        return path

    folder = cache_folder("runtimes")
    if runtime is None:
        asked = folder.is_dir() and pictures <= FEW and not tf.config.list_physical_devices("GPU")
        return str(asked and _find(folder / _key(path), "litert") or path)
    place = folder / _key(path)
    return str(_find(place, runtime) or _make(path, place, runtime))


def _key(path: str) -> str:
    """The checksum of the model and of what else its predictions depend on."""
    model = model_file(Path(path))
    folder = RunFolder(model.parent)
    files = (model, folder.config, folder.class_names)
    found = [f"{file.name} {sha256(file)}" for file in files if file.is_file()]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:32]


def _find(place: Path, runtime: Runtime) -> Path | None:
    """The export that was made before, unless it was damaged since; it gets its name when it has
    been compared.
    """
    export = find_export(place / ("model" if runtime == "savedmodel" else f"model{SUFFIX}"))
    try:
        return export.path if export and export.sidecar() else None
    except ValueError:  # another checksum than that of its description
        return None


def _make(path: str, place: Path, runtime: Runtime) -> Path:
    """Make the export, unless another process does at this moment, which is waited for."""
    place.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(place / ".lock"):
        if found := _find(place, runtime):
            return found
        log.info("Exporting %s for %s, once, and comparing it with Keras.", path, runtime)
        _export(load_run(path), place, runtime)
    return _find(place, runtime)


def _export(run: Run, place: Path, runtime: Runtime) -> None:
    processor = None if run.assumed else run.processor
    options = {"labels": run.labels, "activation": run.activation, "images": run.samples}
    if runtime == "savedmodel":
        shutil.rmtree(place / "model", ignore_errors=True)  # a damaged version
        export_saved_model(run.model, place, name="model", processor=run.processor, **options)
    else:
        export_tflite(run.model, place / f"model{SUFFIX}", processor=processor, **options)
