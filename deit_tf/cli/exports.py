"""`deit-tf export`: what leaves the building, and whether it says what Keras says."""

import sys
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from deit_tf.cli.console import console, folded
from deit_tf.cli.parsers import new_parser
from deit_tf.cli.refusals import printable

if TYPE_CHECKING:
    from deit_tf.evaluation.exports import TFLiteFiles

# As of deit_tf.exporting.tflite.VARIANTS and sidecar.INPUTS; a test compares them.
VARIANTS = ("float32", "float16", "dynamic_int8", "int8")
INPUTS = Literal["float32", "uint8"]
OUTPUTS = Literal["logits", "all"]  # as of deit_tf.exporting.outputs
FAILED = 1  # exit status where an artifact was rejected, or disagrees


def saved_model_parser(command: str, description: str) -> ArgumentParser:
    """A run, and the folder of the server's models."""
    parser = _exporting_parser(command, description, pictures=32)
    parser.add_argument("--out", required=True, help="folder; writes OUT/<model>/<version>/")
    parser.add_argument("--version", type=int, default=1, help="from 1; an existing one is refused")
    parser.add_argument(
        "--rollout", action="store_true", help="add a signature for the attention rollout"
    )
    parser.add_argument(
        "--xla", action="store_true", help="let the server compile the network, per batch size"
    )
    parser.add_argument(
        "--litert",
        action="store_true",
        help="add a .tflite file, by which export/serve.py answers single pictures",
    )
    return parser


def tflite_parser(command: str, description: str) -> ArgumentParser:
    """A run, and the variants to make of it."""
    parser = _exporting_parser(command, description, pictures=200)
    parser.add_argument("--out", required=True, help="a .tflite file, or a folder for several")
    parser.add_argument("--variants", default="float32", help=f"of {','.join(VARIANTS)}")
    parser.add_argument(
        "--input", type=INPUTS, default="float32", help="normalized images, or pixels 0..255"
    )
    parser.add_argument(
        "--outputs", type=OUTPUTS, default="logits", help="or both heads and the rollout as well"
    )
    parser.add_argument(
        "--calibration", type=int, default=256, help="training pictures for int8, at most"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of an image when timed")
    return parser


def onnx_parser(command: str, description: str) -> ArgumentParser:
    """A run, and where its file goes."""
    parser = _exporting_parser(command, description, pictures=200)
    parser.add_argument("--out", required=True, help="an .onnx file, or a folder for it")
    return parser


def web_parser(command: str, description: str) -> ArgumentParser:
    """A run, and the folder of the page."""
    parser = _exporting_parser(command, description, pictures=200)
    parser.add_argument("--out", required=True, help="folder of the page, for any web server")
    parser.add_argument("--variants", default="float32", help=f"of {','.join(VARIANTS)}")
    parser.add_argument(
        "--calibration", type=int, default=256, help="training pictures for int8, at most"
    )
    return parser


def check_parser(command: str, description: str) -> ArgumentParser:
    """A run, and what was made of it."""
    parser = new_parser(command, description)
    parser.add_argument("run", help="a run or .keras file that everything is compared with")
    parser.add_argument(
        "--exports", action="append", default=[], help="a folder of exports; may be repeated"
    )
    parser.add_argument("--server", help="HOST:PORT, the gRPC address of a server")
    parser.add_argument("--model", help="name of the model on the server; the run's by default")
    parser.add_argument(
        "--python", help="an interpreter that runs the SavedModels with its TensorFlow as well"
    )
    parser.add_argument("--source", help="pictures, as data.source; by default the run's held-out")
    parser.add_argument("--pictures", type=int, default=100, help="how many at most")

    return parser


def export_saved_model(arguments: Namespace) -> None:
    """Export, and print what the verification measured."""
    from deit_tf.evaluation.exports import export_run_saved_model, saved_model_text

    names = ("run", "out", "version", "labels", "source", "pictures", "rollout", "xla", "litert")
    version = export_run_saved_model(**{name: arguments[name] for name in names})
    print(saved_model_text(version))


def export_tflite(arguments: Namespace) -> int:
    """Export, and print a row per variant; a rejected one makes the command fail."""
    from deit_tf.evaluation.exports import (
        export_run_tflite,
        ops_text,
        tflite_table,
        untried_text,
    )

    names = ("run", "out", "labels", "source", "pictures", "calibration", "threads")
    files = export_run_tflite(
        **{name: arguments[name] for name in names},
        variants=arguments.variants.split(","),
        input_type=arguments.input,
        outputs=arguments.outputs,
    )
    if files.reports:
        console().print(folded(tflite_table(files)))
        print(ops_text(files))
        if note := untried_text(files):
            print(printable(note))
    return _name_failures(files)


def export_onnx(arguments: Namespace) -> None:
    """Export, and print what the comparison measured."""
    from deit_tf.evaluation.exports import export_run_onnx, onnx_table

    names = ("run", "out", "labels", "source", "pictures")
    report = export_run_onnx(**{name: arguments[name] for name in names})
    console().print(folded(onnx_table(report)))


def export_web(arguments: Namespace) -> int:
    """Export, and print a row per model on the page; a rejected one makes the command fail."""
    from deit_tf.evaluation.exports import export_run_web, tflite_table

    names = ("run", "out", "labels", "source", "pictures", "calibration")
    files = export_run_web(
        **{name: arguments[name] for name in names}, variants=arguments.variants.split(",")
    )
    if files.reports:
        console().print(folded(tflite_table(files)))
        print(printable(f"The page: python -m http.server -d {arguments.out}"))
    return _name_failures(files)


def check(arguments: Namespace) -> int:
    """Print a row per artifact; one that disagrees, or does not answer, makes the command fail."""
    from deit_tf.evaluation.check import compare_exports, untried_text, verdict_table

    names = ("run", "exports", "server", "model", "python", "source", "pictures")
    verdicts = compare_exports(**{name: arguments[name] for name in names})
    title = f"{arguments.run} and what was made of it; shares with 95 % intervals"
    console().print(folded(verdict_table(verdicts, title)))
    if note := untried_text(verdicts):
        print(printable(note))
    return 0 if all(verdict.good for verdict in verdicts) else FAILED


def _name_failures(files: "TFLiteFiles") -> int:
    """Name the variants that were rejected, on stderr; the exit status."""
    for variant, reason in files.failures.items():
        print(printable(f"{variant}: not exported: {reason}"), file=sys.stderr)
    return FAILED if files.failures else 0


def _exporting_parser(command: str, description: str, pictures: int) -> ArgumentParser:
    parser = new_parser(command, description)
    parser.add_argument("run", help="a run or .keras file")
    parser.add_argument("--labels", help="file of class names, one per line; the run's by default")
    parser.add_argument("--source", help="pictures, as data.source; by default the run's own")
    parser.add_argument(
        "--pictures", type=int, default=pictures, help="held-out pictures to compare on, at most"
    )
    return parser
