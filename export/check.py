"""Compare Keras, SavedModels, .tflite files and a running server on the same pictures, in one
table.

python export/check.py runs/student --exports served --server localhost:8500
python export/check.py runs/student --exports phone --exports served --python
/path/to/python/with/tensorflow-2.15
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from grpc_api import MAX_MESSAGE
from pictures import Pictures, held_out
from rich.console import Console
from rich.table import Table
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from deit_tf.exporting.compare import ExportError, agreement, deviation
from deit_tf.exporting.saved_model import BYTES, IMAGES, load_saved_model
from deit_tf.exporting.sidecar import read_sidecar
from deit_tf.exporting.tflite import SUFFIX, VARIANTS, Variant, float32_twin, load_tflite
from deit_tf.runs import Run, load_run

BATCH = 8
# Of a float32 artifact, as `export_saved_model` has it; the kernels are Keras's own, in other
# batches.
EXACT = VARIANTS["float32"]
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
    "",
)
WIDTH = 180
# RuntimeError: LiteRT's where a file does not run, and its kin ExportError.
FAILURES = (
    RuntimeError,
    OSError,
    ValueError,
    tf.errors.OpError,
    grpc.RpcError,
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
        limits: What it may differ by, an entry of `VARIANTS`.
    """

    name: str
    logits: Callable[[], np.ndarray]
    limits: Variant


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", metavar="RUN_OR_KERAS_FILE", help="what everything is compared with")
    parser.add_argument(
        "--exports",
        action="append",
        default=[],
        metavar="DIR",
        help="SavedModels and .tflite files",
    )
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="gRPC address of a server, TensorFlow Serving's or ours",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="name of the model on the server (default: the run's)"
    )
    parser.add_argument(
        "--python", metavar="INTERPRETER", help="run the SavedModels with its TensorFlow as well"
    )
    parser.add_argument(
        "--source", help="pictures, as `data.source` of a config (default: the run's held-out ones)"
    )
    parser.add_argument("--pictures", type=int, default=100, help="how many (default: 100)")
    return parser.parse_args()


def main() -> None:
    """Print the table; exit status 1 where an artifact disagrees beyond its limit, or does not
    answer.
    """
    args = parse()
    try:
        run = load_run(args.run)
        pictures = held_out(run, args.pictures, args.source)
        if pictures is None:
            raise ValueError(
                "The data of the run is not at hand. Pass --source DIR, a folder of class folders."
            )
        answers = list(found(args, run, pictures))
        if not answers:
            raise ValueError(
                "Nothing to compare. Pass --exports DIR with artifacts in it, or --server "
                "HOST:PORT."
            )
    except (OSError, ValueError) as error:
        sys.exit(f"Not compared: {error}")
    rows, good = compare(run, pictures, answers)
    title = (
        f"{args.run} and what was made of it, on {len(pictures.images)} pictures; shares with "
        "95 % intervals"
    )
    table = Table(*COLUMNS, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=WIDTH).print(table)
    sys.exit(not good)


def found(args: argparse.Namespace, run: Run, pictures: Pictures) -> Iterator[Answer]:
    """Every artifact below the folders of exports, then the server."""
    for folder in map(Path, args.exports):
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
        for version in sorted({file.parent for file in folder.rglob("saved_model.pb")}):
            yield from _saved_model(version, folder, pictures, args.python)
        for file in sorted(folder.rglob(f"*{SUFFIX}")):
            yield _tflite(file, folder, pictures)
    if args.server:
        inputs = {BYTES: ("image_bytes", pictures.encoded), IMAGES: ("images", pictures.images)}
        for signature, (name, batch) in inputs.items():
            ask = partial(_ask, args.server, args.model or run.name, signature, name)
            yield Answer(f"server, {signature}", partial(_in_batches, ask, batch), EXACT)


def compare(
    run: Run, pictures: Pictures, answers: list[Answer]
) -> tuple[list[tuple[str, ...]], bool]:
    """A row per artifact, the first Keras's own, and whether all keep their limits."""
    model = float32_twin(run.model)  # as it was exported
    keras_says = _in_batches(lambda batch: model(batch, training=False), pictures.images)  # [n, C]
    rows = [("Keras", *[""] * 7, _accuracy(keras_says, pictures.labels), "")]
    verdicts = []
    for answer in answers:
        row, verdict = _row(answer, keras_says, pictures.labels)
        rows.append(row)
        verdicts.append(verdict)
    return rows, all(verdicts)


def _row(answer: Answer, expected: np.ndarray, labels: np.ndarray) -> tuple[tuple[str, ...], bool]:
    try:
        logits = answer.logits()
        measured, agreed = deviation(logits, expected), agreement(logits, expected)
    except FAILURES as error:
        told = (error.details() if isinstance(error, grpc.RpcError) else str(error)) or type(
            error
        ).__name__
        return (answer.name, *[""] * 8, f"FAILS: {told.splitlines()[0][:300]}"), False
    wrong = answer.limits.broken(measured, agreed)
    differences = [
        f"{measured[key]:.1e}" for key in ("max_difference", "mean_difference", "relative_rms")
    ]
    counted = [_share(agreed[key]) for key in ("top1", "top5", "clear")]
    allowed, verdict = f"{answer.limits.max_difference:.0e}", "DISAGREES" if wrong else "agrees"
    return (
        answer.name,
        *differences,
        allowed,
        *counted,
        _accuracy(logits, labels),
        verdict,
    ), not wrong


def _saved_model(
    version: Path, folder: Path, pictures: Pictures, python: str | None
) -> Iterator[Answer]:
    name = str(version.relative_to(folder.parent))
    for signature, batch in ((BYTES, pictures.encoded), (IMAGES, pictures.images)):

        def logits(signature=signature, batch=batch):
            loaded = load_saved_model(version)
            return _in_batches(lambda part: loaded.run(signature, part)["logits"], batch)

        yield Answer(f"{name}, {signature}", logits, EXACT)
    if python:
        try:
            answers = elsewhere(python, version, pictures)
        except (ExportError, OSError, subprocess.SubprocessError) as error:
            yield Answer(f"{name}, {python}", partial(_raise, error), EXACT)
            return
        release = answers.pop("version")
        for key, logits in answers.items():
            yield Answer(f"{name}, {key} of TF {release}", partial(np.asarray, logits), EXACT)


def _tflite(file: Path, folder: Path, pictures: Pictures) -> Answer:
    name = str(file.relative_to(folder.parent))
    try:
        limits = VARIANTS[read_sidecar(file)["verified"]["variant"]]
    except (KeyError, ValueError) as error:
        return Answer(name, partial(_raise, error), EXACT)
    return Answer(name, lambda: load_tflite(file)(pictures.images), limits)


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
        command = [python, str(OTHER), str(version), str(given), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise ExportError(f"{python}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        with np.load(out) as answers:
            return dict(answers)


def _ask(server: str, model: str, signature: str, name: str, batch) -> np.ndarray:
    request = predict_pb2.PredictRequest(output_filter=["logits"])
    request.model_spec.name, request.model_spec.signature_name = model, signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto(batch))
    unlimited = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
    ]
    with grpc.insecure_channel(server, unlimited) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return tf.make_ndarray(stub.Predict(request, timeout=60).outputs["logits"])


def _in_batches(run: Callable, batch) -> np.ndarray:
    return np.concatenate([run(batch[i : i + BATCH]) for i in range(0, len(batch), BATCH)])


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> str:
    return f"{(logits.argmax(-1) == labels).mean():.3f}"


def _share(counted: dict) -> str:
    low, high = counted["interval"]
    return f"{counted['hits']}/{counted['images']} {low:.3f}-{high:.3f}"


def _raise(error: Exception) -> np.ndarray:
    raise ExportError(str(error)) from error


if __name__ == "__main__":
    main()
