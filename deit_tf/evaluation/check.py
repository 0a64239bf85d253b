"""Whether exports and a running server say what Keras says, on the same pictures: `deit-tf export
check`.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.table import Table

from deit_tf.config import MAX_MESSAGE
from deit_tf.evaluation.pictures import Pictures, check_counts, held_out
from deit_tf.exporting.compare import (
    EXACT,
    ExportError,
    Limits,
    agreement,
    deviation,
    device_text,
    share_text,
)
from deit_tf.exporting.formats import Export, find_exports
from deit_tf.exporting.reference import in_batches, keras_logits
from deit_tf.exporting.signatures import BYTES, IMAGES
from deit_tf.runs import Run, load_run
from deit_tf.runs.load import warn_if_assumed

COLUMNS = (
    "artifact",
    "max diff.",
    "mean diff.",
    "rel. RMS",
    "allowed",
    "top-1",
    "top-5",
    "where clear",
    "accuracy",
    "CPU; GPU",
    "",
)
REASON = 300  # characters of an error in the table
# RuntimeError: LiteRT's where a file does not run, gRPC's, and ExportError; ImportError: a runtime
# that is not installed.
FAILURES = (
    RuntimeError,
    ImportError,
    OSError,
    ValueError,
    tf.errors.OpError,
    subprocess.SubprocessError,
)
OTHER = Path(__file__).with_name("other_tensorflow.py")


@dataclass(frozen=True)
class Answer:
    """What one artifact says of the pictures.

    Args:
        name: What to call it.
        logits: From nothing to [n, C]; called once, so that one artifact's failure is a row and not
            the end.
        limits: What it may differ by.
        devices: From the logits that it should give to how CPU and GPU take it; None of an artifact
            that is compiled for neither.
    """

    name: str
    logits: Callable[[], np.ndarray]
    limits: Limits = EXACT
    devices: Callable[[np.ndarray], dict[str, dict]] | None = None


@dataclass(frozen=True)
class Verdict:
    """How an answer compares with Keras's.

    Args:
        name: Whose it is.
        measured: What `deviation` measures; none where it failed, and of Keras itself.
        agreed: What `agreement` counts.
        allowed: The largest difference that is allowed.
        accuracy: Share of the pictures that it names rightly, 0..1; of several labels, of the
            decisions on each class.
        devices: How CPU and GPU take it, as `measure_devices` in deit_tf.exporting.accelerators
            has it; empty of what is compiled for neither.
        excess: What is beyond a limit, in words.
        failure: Why there is no answer.
    """

    name: str
    measured: dict[str, float] | None = None
    agreed: dict[str, dict] | None = None
    allowed: float | None = None
    accuracy: float | None = None
    devices: dict[str, dict] = field(default_factory=dict)
    excess: str = ""
    failure: str = ""

    @property
    def good(self) -> bool:
        """Whether it answers, and agrees."""
        return not (self.excess or self.failure)


def compare_exports(
    run: str,
    exports: Sequence[str] = (),
    *,
    server: str | None = None,
    model: str | None = None,
    python: str | None = None,
    source: str | None = None,
    pictures: int = 100,
) -> list[Verdict]:
    """Compare exports and a server with the model that they were made from.

    Args:
        run: Run directory or .keras file that everything is compared with.
        exports: Folders of SavedModels and .tflite files.
        server: HOST:PORT, gRPC address of a server, TensorFlow Serving's or ours.
        model: Name of the model on the server; the run's by default.
        python: An interpreter that runs the SavedModels with its TensorFlow as well.
        source: Pictures, as `data.source` of a config; the run's held-out ones by default.
        pictures: How many at most.
    Returns:
        One verdict for Keras itself, then one for each artifact and entry.
    Raises:
        FileNotFoundError: If there is no run, folder or source of that name.
        ValueError: If there are no pictures, or nothing to compare.
    """
    check_counts(pictures=pictures)
    loaded = load_run(run)
    warn_if_assumed(loaded, run)
    shown = held_out(loaded, pictures, source)
    if shown is None:
        raise ValueError(
            "The data of the run is not at hand. Pass --source DIR, a folder of class folders."
        )

    answers = list(find_answers(loaded, shown, exports, python))
    if server:
        answers += _server_answers(server, model or loaded.name, shown)
    if not answers:
        raise ValueError(
            "Nothing to compare. Pass --exports DIR with artifacts in it, or --server HOST:PORT."
        )

    return compare(loaded, shown, answers)


def verdict_table(verdicts: Sequence[Verdict], title: str = "") -> Table:
    """Verdicts as a table."""
    table = Table(*COLUMNS, title=title)
    for verdict in verdicts:
        table.add_row(*_row(verdict))
    return table


def untried_text(verdicts: Sequence[Verdict]) -> str:
    """Why no GPU was tried, in a line; empty where one was, or nothing is compiled for one."""
    notes = [verdict.devices["gpu"].get("note") for verdict in verdicts if verdict.devices]
    return next(filter(None, notes), "")


def find_answers(
    run: Run, pictures: Pictures, folders: Sequence[str], python: str | None = None
) -> Iterator[Answer]:
    """Every export below some folders, by each of its entries."""
    for folder in map(Path, folders):
        for export in find_exports(folder):
            name = str(export.path.relative_to(folder.parent))
            yield from _export_answers(export, name, run, pictures)
            if python and BYTES in export.format.entries:
                yield from _answers_elsewhere(python, export.path, name, pictures)


def compare(run: Run, pictures: Pictures, answers: Sequence[Answer]) -> list[Verdict]:
    """A verdict per answer, the first Keras's own."""
    expected = keras_logits(run.model, pictures.images)  # [n, C]
    verdicts = [Verdict("Keras", accuracy=_accuracy(expected, pictures.labels))]
    return verdicts + [_verdict(answer, expected, pictures.labels) for answer in answers]


def elsewhere(python: str, version: Path, pictures: Pictures) -> dict[str, np.ndarray]:
    """What the TensorFlow of another interpreter makes of a SavedModel.

    Args:
        python: The interpreter.
        version: Folder of a version.
        pictures: The pictures.
    Returns:
        `version` of TensorFlow, and logits [n, C] by signature and loader (`Python` or `session`).
    Raises:
        ExportError: If it fails there.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "pictures.npz"), Path(folder, "logits.npz")
        lengths = [len(encoded) for encoded in pictures.encoded]
        together = np.frombuffer(b"".join(pictures.encoded), np.uint8)
        np.savez(given, images=pictures.images, bytes=together, lengths=lengths)

        # The script comes by the standard input: run by its name it would see its neighbors here
        # before modules of theirs that are called alike.
        # Of a path with folders, as it is meant here; its links stay, which a venv has.
        program = os.path.abspath(python) if os.sep in python else python
        done = subprocess.run(
            [program, "-", str(version.absolute()), str(given), str(out)],
            input=OTHER.read_text(encoding="utf-8"),
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=600,
        )
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ExportError(f"{python}: {last}")
        with np.load(out) as answers:
            return dict(answers)


def _export_answers(export: Export, name: str, run: Run, pictures: Pictures) -> Iterator[Answer]:
    """An answer per entry; where the export does not say what it may lose, each of them fails."""
    entries = export.format.entries
    names = {entry: f"{name}, {entry}" if entry else name for entry in entries}
    try:
        limits = _known_limits(export)
    except ValueError as error:
        yield from (Answer(called, partial(_raise, error)) for called in names.values())
        return

    for entry, called in names.items():
        batch = getattr(pictures, entries[entry])
        devices = export.format.devices and partial(_ask_devices, export, pictures, run, limits)
        yield Answer(called, partial(_ask_export, export, entry, batch, run), limits, devices)


def _known_limits(export: Export) -> Limits:
    limits = export.limits()
    if limits is None:
        description, _ = export.format.described(export.path)
        raise ValueError(
            f"no {description.name} beside it says how it was made, and so what it may lose. "
            "Export it again, or copy both."
        )
    return limits


def _ask_export(export: Export, entry: str, batch: Sequence, run: Run) -> np.ndarray:
    if wrong := export.mismatch(run.processor):
        raise ExportError(wrong)
    loaded = export.load()
    return in_batches(lambda part: loaded.ask(entry, part, run.processor), batch)


def _ask_devices(
    export: Export, pictures: Pictures, run: Run, limits: Limits, expected: np.ndarray
) -> dict[str, dict]:
    images = pictures.images
    return export.format.devices(export.load(), images, run.processor, expected, limits)


def _answers_elsewhere(
    python: str, version: Path, name: str, pictures: Pictures
) -> Iterator[Answer]:
    try:
        answers = elsewhere(python, version, pictures)
    except (ExportError, OSError, subprocess.SubprocessError) as error:
        yield Answer(f"{name}, {python}", partial(_raise, error))
        return

    release = answers.pop("version")
    for key, logits in answers.items():
        yield Answer(f"{name}, {key} of TF {release}", partial(np.asarray, logits))


def _server_answers(server: str, model: str, pictures: Pictures) -> Iterator[Answer]:
    inputs = {BYTES: ("image_bytes", pictures.encoded), IMAGES: ("images", pictures.images)}
    for signature, (name, batch) in inputs.items():
        ask = partial(_ask_server, server, model, signature, name)
        yield Answer(f"server, {signature}", partial(in_batches, ask, batch))


def _ask_server(server: str, model: str, signature: str, name: str, batch: Any) -> np.ndarray:
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest(output_filter=["logits"])
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto(batch))

    directions = ("receive", "send")
    options = [(f"grpc.max_{direction}_message_length", MAX_MESSAGE) for direction in directions]
    with grpc.insecure_channel(server, options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            response = stub.Predict(request, timeout=60)
        except grpc.RpcError as error:
            raise ExportError(error.details() or str(error.code())) from error

    return tf.make_ndarray(response.outputs["logits"])


def _verdict(answer: Answer, expected: np.ndarray, labels: np.ndarray) -> Verdict:
    try:
        logits = answer.logits()
        measured, agreed = deviation(logits, expected), agreement(logits, expected)
        excess = answer.limits.exceeded(measured, agreed)
        # What is wrong by the Interpreter is wrong on every device.
        devices = answer.devices(expected) if answer.devices and not excess else {}
    except FAILURES as error:
        reason = str(error) or type(error).__name__
        return Verdict(answer.name, failure=reason.splitlines()[0][:REASON])

    return Verdict(
        answer.name,
        measured,
        agreed,
        answer.limits.max_difference,
        _accuracy(logits, labels),
        devices,
        excess or _excess_on_gpu(devices),
    )


def _excess_on_gpu(devices: dict[str, dict]) -> str:
    excess = devices["gpu"].get("excess") if devices else ""
    return f"on the GPU, {excess}" if excess else ""


def _row(verdict: Verdict) -> tuple[str, ...]:
    """Cells of `COLUMNS`."""
    if verdict.failure:
        return (verdict.name, *[""] * (len(COLUMNS) - 2), f"FAILS: {verdict.failure}")
    accuracy = f"{verdict.accuracy:.3f}"
    if verdict.measured is None:
        return (verdict.name, *[""] * (len(COLUMNS) - 4), accuracy, "", "")

    differences = ("max_difference", "mean_difference", "relative_rms")
    return (
        verdict.name,
        *(f"{verdict.measured[key]:.1e}" for key in differences),
        f"{verdict.allowed:.0e}",
        *(share_text(verdict.agreed[key]) for key in ("top1", "top5", "clear")),
        accuracy,
        "; ".join(device_text(figures) for figures in verdict.devices.values()),
        "agrees" if verdict.good else "DISAGREES",
    )


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of right classes; where a picture has any number of labels [n, C], share of the right
    decisions on each.
    """
    if labels.ndim == 2:
        return float(((logits > 0) == (labels > 0.5)).mean())
    return float((logits.argmax(-1) == labels).mean())


def _raise(error: Exception) -> np.ndarray:
    raise ExportError(str(error)) from error
