"""Exports of a trained run, compared on its own pictures: `deit-tf export saved-model`, `tflite`,
`onnx`, `web`.

How a model becomes an artifact: deit_tf/exporting; here it meets its run, and the figures a table.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from deit_tf.config import CHANNELS
from deit_tf.evaluation.pictures import check_counts, held_out, training
from deit_tf.exporting.compare import device_text, share_text
from deit_tf.exporting.onnx_file import check_installed, export_onnx
from deit_tf.exporting.reference import comparison_images, float32_twin
from deit_tf.exporting.saved_model import export_saved_model, read_report
from deit_tf.exporting.sidecar import ONNX_SUFFIX, SUFFIX, add_verified, tflite_description
from deit_tf.exporting.signatures import BYTES, HEADS, IMAGES, ROLLOUT
from deit_tf.exporting.tflite import check_variant, converted, export_tflite, latencies
from deit_tf.exporting.web import write_models, write_page
from deit_tf.files import read_class_names
from deit_tf.runs import Run, load_run
from deit_tf.runs.load import warn_if_assumed

log = logging.getLogger(__name__)

COLUMNS = (
    "variant",
    "MB",
    "max diff.",
    "mean diff.",
    "top-1",
    "top-5",
    "where clear",
    "ms",
    "of float32",
    "CPU",
    "GPU",
    "file",
)


@dataclass(frozen=True)
class TFLiteFiles:
    """What became of the variants of a model.

    Args:
        reports: What `export_tflite` returned, by variant.
        times: What `latencies` measured, by variant; that of a float32 file under "". Empty where
            that failed.
        failures: Why a variant was not exported, by variant.
        pictures: Number of held-out pictures that they were compared on; 0 is noise.
    """

    reports: dict[str, dict]
    times: dict[str, dict]
    failures: dict[str, str] = field(default_factory=dict)
    pictures: int = 0


def export_run_saved_model(
    run: str,
    out: str,
    *,
    version: int = 1,
    labels: str | None = None,
    source: str | None = None,
    pictures: int = 32,
    rollout: bool = False,
    xla: bool = False,
    litert: bool = False,
) -> Path:
    """Export a trained model as a SavedModel for TensorFlow Serving, checked against Keras before
    it appears.

    Args:
        run: Run directory or .keras file.
        out: Folder; writes `<out>/<model>/<version>/`.
        version: Number of the version, from 1; an existing one is refused.
        labels: File of class names, one per line; the run's by default.
        source: Pictures to verify on, as `data.source` of a config; the run's held-out ones by
            default.
        pictures: How many at most.
        rollout: Whether there is a signature for the attention rollout, of a DeiT.
        xla: Whether the server compiles the network, once per batch size.
        litert: Whether a .tflite file goes along, by which `export/serve.py` answers single
            pictures.
    Returns:
        The folder of the version.
    Raises:
        FileNotFoundError: If there is no run, file or source of that name.
        FileExistsError: If the version exists.
        ValueError: If an argument does not fit.
        ExportError: If it differs from Keras; nothing is left behind.
    """
    check_counts(pictures=pictures)
    loaded = load_run(run)
    warn_if_assumed(loaded, run)
    compared = held_out(loaded, pictures, source)
    return export_saved_model(
        loaded.model,
        out,
        processor=loaded.processor,
        labels=_class_names(loaded, labels),
        version=version,
        name=loaded.name,
        activation=loaded.activation,
        rollout=rollout,
        xla=xla,
        litert=litert,
        images=None if compared is None else compared.images,
    )


def saved_model_text(version: Path) -> str:
    """What the verification of a SavedModel measured, in a few lines."""
    report = read_report(version)
    noise = report["compared_on"] == "noise"
    compared_on = "noise" if noise else f"{report['images_compared']} held-out images"
    lines = [
        f"{version} ({report['weights_bytes'] / 1e6:.2f} MB of weights)",
        f"largest difference of a logit from Keras, in a C++ session, on {compared_on}:",
    ]

    for signature in (BYTES, IMAGES, HEADS, ROLLOUT):
        if signature in report:
            lines.append(f"  {signature:16} {report[signature]['max_difference']:.1e}")

    compiled = ", compiled by XLA" if report["xla"] else ""
    return "\n".join([*lines, f"{report['warmup_records']} warm-up records replayed{compiled}"])


def export_run_tflite(
    run: str,
    out: str,
    *,
    variants: Sequence[str] = ("float32",),
    input_type: str = "float32",
    outputs: str = "logits",
    source: str | None = None,
    labels: str | None = None,
    pictures: int = 200,
    calibration: int = 256,
    threads: int = 1,
) -> TFLiteFiles:
    """Export a trained model as .tflite files, each run by LiteRT, compared with Keras before it
    gets its name, and timed.

    Args:
        run: Run directory or .keras file.
        out: One .tflite file, or a folder for several.
        variants: Keys of `VARIANTS`.
        input_type: `float32`, normalized images, or `uint8`, pixels 0..255.
        outputs: `logits`, or `all`: both heads and the attention rollout as well.
        source: Pictures, as `data.source` of a config; the run's own by default.
        labels: File of class names, one per line; the run's by default.
        pictures: Held-out pictures to compare on, at most.
        calibration: Training pictures for int8, at most.
        threads: Threads of an image when timed.
    Returns:
        The figures; a variant that failed is named in them and does not keep the others.
    Raises:
        FileNotFoundError: If there is no run, file or source of that name.
        ValueError: If an argument does not fit.
    """
    for variant in variants:
        check_variant(variant)
    if Path(out).suffix == SUFFIX and len(variants) > 1:
        raise ValueError(f"`--out` must be a folder for {len(variants)} variants. Received: {out}")
    check_counts(pictures=pictures, calibration=calibration, threads=threads)

    # What is compared on was held out, what is calibrated on was trained on.
    loaded = load_run(run)
    warn_if_assumed(loaded, run)
    compared = held_out(loaded, pictures, source)
    trained_on = training(loaded, calibration, source) if "int8" in variants else None
    images = None if compared is None else compared.images
    options = {
        "images": images,
        "input_type": input_type,
        "processor": loaded.processor,
        "labels": _class_names(loaded, labels),
        "calibration": None if trained_on is None else trained_on.images,
        "outputs": outputs,
        "activation": loaded.activation,
    }

    # One variant that fails does not keep the others.
    reports, failures = {}, {}
    for variant in variants:
        file = _tflite_file(Path(out), loaded.name, variant, input_type)
        try:
            reports[variant] = export_tflite(loaded.model, file, variant=variant, **options)
        except (RuntimeError, OSError, ValueError) as error:  # LiteRT's, and ExportError
            failures[variant] = str(error)

    times = _timed(loaded, reports, images, threads, input_type) if reports else {}
    return TFLiteFiles(reports, times, failures, 0 if images is None else len(images))


def export_run_onnx(
    run: str,
    out: str,
    *,
    source: str | None = None,
    labels: str | None = None,
    pictures: int = 200,
) -> dict[str, Any]:
    """Export a trained model as an ONNX file, run by ONNX Runtime and compared with Keras before it
    gets its name.

    Args:
        run: Run directory or .keras file.
        out: An .onnx file, or a folder for `<model>.onnx`.
        source: Pictures, as `data.source` of a config; the run's own by default.
        labels: File of class names, one per line; the run's by default.
        pictures: Held-out pictures to compare on, at most.
    Returns:
        What `export_onnx` returned.
    Raises:
        FileNotFoundError: If there is no run, file or source of that name.
        ImportError: Where tf2onnx, onnx or onnxruntime is not installed.
        ValueError: If an argument does not fit.
        ExportError: If it does not convert, or differs from Keras; nothing is left behind.
    """
    check_counts(pictures=pictures)
    check_installed()  # before the pictures are read
    loaded = load_run(run)
    warn_if_assumed(loaded, run)
    compared = held_out(loaded, pictures, source)
    is_file = Path(out).suffix == ONNX_SUFFIX
    return export_onnx(
        loaded.model,
        out if is_file else Path(out, f"{loaded.name}{ONNX_SUFFIX}"),
        processor=loaded.processor,
        labels=_class_names(loaded, labels),
        images=None if compared is None else compared.images,
        activation=loaded.activation,
    )


def export_run_web(run: str, out: str, **options: Any) -> TFLiteFiles:
    """Export a trained model as a page that classifies pictures in the browser.

    The page, then the models: .tflite files with all outputs, each compared with Keras first.

    Args:
        run: Run directory or .keras file.
        out: Folder of the page; that of an earlier one is renewed, and keeps its other models.
        **options: As of `export_run_tflite`.
    Returns:
        The figures of the models, as `export_run_tflite` has them.
    Raises:
        FileNotFoundError: If there is no run, file or source of that name.
        FileExistsError: If `out` holds something else than a page.
        ValueError: If an argument does not fit.
        ExportError: If npm is missing, or does not get LiteRT.js.
    """
    folder = Path(out)
    for variant in options.get("variants", ()):
        check_variant(variant)
    channels = load_run(run).processor.num_channels  # refuse what is none before npm is waited for
    if channels != CHANNELS:
        raise ValueError(
            "The page shows the model RGB pictures and the camera's. Received: a model of "
            f"{channels} channels. Export it by `deit-tf export tflite`."
        )
    write_page(folder)
    files = export_run_tflite(run, out, outputs="all", **options)
    write_models(folder)
    return files


def tflite_table(files: TFLiteFiles) -> Table:
    """A row per file."""
    compared_on = f"{files.pictures} held-out images" if files.pictures else "noise"
    timed = (
        f"best of 20 runs, {files.times['']['threads']} thread(s)" if files.times else "not timed"
    )
    table = Table(*COLUMNS, title=f"compared with Keras on {compared_on}; {timed}")

    for variant, report in files.reports.items():
        times = files.times.get(variant)
        table.add_row(
            variant,
            f"{report['bytes'] / 1e6:.2f}",
            *(f"{report[key]:.1e}" for key in ("max_difference", "mean_difference")),
            *(share_text(report["agreement"][key]) for key in ("top1", "top5", "clear")),
            *(f"{times[key]:.2f}" if times else "" for key in ("best_ms", "of_float32")),
            *(device_text(report["devices"][device]) for device in ("cpu", "gpu")),
            Path(report["file"]).name,
        )

    return table


def onnx_table(report: dict[str, Any]) -> Table:
    """What `export_run_onnx` measured, as a row."""
    noise = report["compared_on"] == "noise"
    compared_on = "noise" if noise else f"{report['images']} held-out images"
    columns = ("MB", "max diff.", "mean diff.", "top-1", "top-5", "where clear", "file")
    title = f"ONNX Runtime compared with Keras on {compared_on}; opset {report['opset']}"
    table = Table(*columns, title=title)

    table.add_row(
        f"{report['bytes'] / 1e6:.2f}",
        *(f"{report[key]:.1e}" for key in ("max_difference", "mean_difference")),
        *(share_text(report["agreement"][key]) for key in ("top1", "top5", "clear")),
        Path(report["file"]).name,
    )
    return table


def untried_text(files: TFLiteFiles) -> str:
    """Why no GPU was tried, in a line; empty where one was."""
    notes = [report["devices"]["gpu"].get("note") for report in files.reports.values()]
    return next(filter(None, notes), "")


def ops_text(files: TFLiteFiles) -> str:
    """The ops of each file, in a line."""
    lines = []
    for variant, report in files.reports.items():
        ops = ", ".join(f"{name} {count}" for name, count in report["ops"].items())
        lines.append(f"{variant}: {sum(report['ops'].values())} ops: {ops}")
    return "\n".join(lines)


def _class_names(run: Run, file: str | None) -> Sequence[str] | None:
    return run.labels if file is None else read_class_names(Path(file))


def _tflite_file(out: Path, name: str, variant: str, input_type: str) -> Path:
    if out.suffix == SUFFIX:
        return out
    ending = "" if input_type == "float32" else f"_{input_type}"
    return out / f"{name}_{variant}{ending}{SUFFIX}"


def _timed(
    run: Run, reports: dict[str, dict], images: np.ndarray | None, threads: int, input_type: str
) -> dict[str, dict[str, Any]]:
    """Time the files against a float32 one, and note the figures in their JSON files.

    None of them is lost where that fails: then there are no times, and a warning.
    """
    samples = comparison_images(run.model, images)
    files = {variant: report["file"] for variant, report in reports.items()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            reference = files.get("float32") if input_type == "float32" else None
            if reference is None:
                reference = Path(folder, f"float32{SUFFIX}")
                model = float32_twin(run.model)
                reference.write_bytes(converted(model, "float32", "float32", None, None))
            times = latencies({"": reference} | files, samples, num_threads=threads)
    except (RuntimeError, OSError, ValueError) as error:  # LiteRT's, and ExportError
        log.warning("The files are whole, but could not be timed: %s", error)
        return {}

    for variant, report in reports.items():
        times[variant]["of_float32"] = times[variant]["best_ms"] / times[""]["best_ms"]
        described, _ = tflite_description(Path(report["file"]))
        add_verified(described, {"latency": times[variant]})
    return times
