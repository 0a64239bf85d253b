"""What each command takes, from config/ and jsonargparse alone: neither waits for TensorFlow."""

import argparse
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from deit_tf.cli.help import WIDTH, Formatter, listed, setting_groups
from deit_tf.cli.refusals import refusal, refuse
from deit_tf.config import TrainConfig
from deit_tf.config_files import BOUNDED_YAML

PROGRAM = "deit-tf"
LAYOUTS = Literal["huggingface", "timm", "keras-hub"]
RUNTIMES = Literal["keras", "savedmodel", "litert"]  # as of deit_tf.evaluation.runtimes
MODEL_FORMS = "a run, .keras file, SavedModel, .tflite or .onnx file or weights; hf://... as well"


def new_parser(command: str, description: str) -> ArgumentParser:
    """A parser with the options that every command has."""
    parser = ArgumentParser(
        prog=f"{PROGRAM} {command}".strip(),
        description=textwrap.fill(f"{description[0].upper()}{description[1:]}.", WIDTH),
        formatter_class=Formatter,
        parser_mode=BOUNDED_YAML,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show all that TensorFlow and its converters log"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")

    return parser


def top_parser(commands: dict[str, str]) -> ArgumentParser:
    """The parser of the command alone; `commands` are those below it, with a sentence each."""
    parser = new_parser("", "DeiT for TensorFlow and Keras 3")
    parser.usage = f"{PROGRAM} [--version] [--verbose] [--traceback] COMMAND ..."
    packages = ("deit_tf", "tensorflow", "keras")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    parser.add_argument("--version", action="version", version=versions, help="show versions")
    parser.epilog = "commands:\n" + listed(commands)
    return parser


def group_parser(group: str, commands: dict[str, str]) -> ArgumentParser:
    """The parser of a first word that several commands share, such as `export`."""
    parser = new_parser(group, f"commands below {group}")
    parser.usage = f"{PROGRAM} {group} COMMAND ..."
    parser.epilog = "commands:\n" + listed(commands)
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse the arguments of a command; what it does not take ends it with one line, status 2."""
    try:
        parsed = parser.parse_args(arguments)
        for group in setting_groups(parser):
            if group in parsed and not isinstance(parsed[group], Namespace):
                raise ValueError(f"`{group}` is a group of settings. Received: {parsed[group]}")
        return parser.instantiate(parsed)
    except UnicodeDecodeError as error:
        refuse(parser.prog, f"a config file is no UTF-8 text: {error}")
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        names = [text[2:] for action in parser._actions for text in action.option_strings]
        refuse(parser.prog, refusal(str(error), names))


def training_parser(command: str, description: str) -> ArgumentParser:
    """Every setting, for a student or its teacher."""
    parser = _settings_parser(command, description)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run in --out, finished or not"
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a stopped run although its config differs, but not with other steps per "
        "epoch",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="go on with the run in --out, finished or not, to more epochs; the learning rate is "
        "then that of a run of all of them",
    )
    return parser


def labeling_parser(command: str, description: str) -> ArgumentParser:
    """Every setting, and which part of the labels to make."""
    parser = _settings_parser(command, description, skip=["epochs"])
    parser.add_argument(
        "--epochs",
        type=_epochs,
        default=(0, TrainConfig.epochs),
        help="A:B, A to B - 1; or how many",
    )
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), help="I/N, the I-th of N shares, such as 1/4 to 4/4"
    )
    return parser


def planning_parser(command: str, description: str) -> ArgumentParser:
    """Every setting, and the machine that is meant."""
    parser = _settings_parser(command, description)
    parser.add_argument("--devices", type=int | None, help="devices to train on")
    parser.add_argument(
        "--memory", type=_gigabytes, help="memory of a device, such as 16GB, to fit micro_batches"
    )
    parser.add_argument(
        "--throughput",
        type=float | None,
        help="images per second on all devices; by default what real steps reach here",
    )
    parser.add_argument("--price", type=float | None, help="of all devices together, per hour")
    parser.add_argument(
        "--images", type=int | None, help="training images, where the data is not here"
    )
    parser.add_argument("--classes", type=int, default=1000, help="their classes")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="how long the input is measured; 0 for not"
    )
    parser.add_argument("--steps", type=int, default=3, help="real steps to measure; 0: none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def preview_parser(command: str, description: str) -> ArgumentParser:
    """Every setting, and what the sheet looks like."""
    parser = _settings_parser(command, description)
    parser.add_argument("--file", default="preview.png", help="the PNG file to write")
    parser.add_argument(
        "--images", type=int, default=24, help="pictures on the sheet, at most a batch"
    )
    parser.add_argument("--columns", type=int, default=6, help="pictures per row")
    return parser


def lr_range_parser(command: str, description: str) -> ArgumentParser:
    """Every setting, and the range."""
    parser = _settings_parser(command, description)
    parser.add_argument("--file", default="find_lr.png", help="the plot; its numbers go beside it")
    parser.add_argument("--from", type=float, default=1e-6, help="first lr, as optim.lr counts it")
    parser.add_argument("--to", type=float, default=10.0, help="last lr")
    parser.add_argument("--steps", type=int, default=100, help="training steps")
    return parser


# Arguments of `deit_tf.evaluation.evaluate.evaluate`: type, help. A test compares the names.
EVALUATION: dict[str, tuple[Any, str]] = {
    "run": (
        str | None,
        "the run whose data, image processor and labels to use; by default the one that PATH lies "
        "in",
    ),
    "source": (
        str | None,
        "other images, named as data.source; of a folder without train/ and val/ all",
    ),
    "batch_size": (int | None, "images per step; by default that of the run"),
    "model": (str | None, "name of the model, where a file of weights does not tell it"),
    "protocol": (
        Literal["deit", "timm", "huggingface"] | None,
        "how images are resized and cropped: deit (short side to 256, crop 224), timm (248, crop "
        "224; 384, crop 384), huggingface (squashed to 256 x 256, crop 224); by default as the "
        "model came",
    ),
    "split": (str | None, "TFDS only: the split to evaluate on"),
    "data_dir": (str | None, "TFDS only: where the prepared data set lies"),
    "real_labels": (
        str | None,
        "real.json of ImageNet-ReaL; --source is then the folder of the validation files",
    ),
    "strategy": (
        Literal["mirrored"] | None,
        "mirrored spreads each batch over the machine's devices",
    ),
    "out": (
        str | None,
        "folder for evaluation.json, the figures of each class and the confusion matrix as CSV and "
        "PNG, and a reliability plot",
    ),
}


def evaluation_parser(command: str, description: str) -> ArgumentParser:
    """A model and images; every other argument of `evaluate` as an option."""
    parser = new_parser(command, description)
    parser.add_argument("path", help=MODEL_FORMS)
    for name, (kind, text) in EVALUATION.items():
        parser.add_argument(f"--{name}", type=kind, default=None, help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def prediction_parser(command: str, description: str) -> ArgumentParser:
    """A model, and image files in any number."""
    parser = _images_parser(command, description, MODEL_FORMS)
    parser.add_argument("--top", type=int, default=5, help="classes to name for each")
    parser.add_argument(
        "--runtime",
        type=RUNTIMES | None,
        help="what runs a run: keras, or an export that is made and checked at its first use; by "
        "default keras, and litert for few pictures on a CPU where its file is there",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument(
        "--out", help="write a file instead: .jsonl (a JSON object per line), .json or .csv"
    )

    return parser


def explanation_parser(command: str, description: str) -> ArgumentParser:
    """A DeiT, and image files in any number."""
    parser = _images_parser(
        command, description, "a run, .keras file or weights of a DeiT; hf://... as well"
    )
    parser.add_argument(
        "--out", required=True, help="folder for a PNG file per picture, and explain.html"
    )
    return parser


def conversion_parser(command: str, description: str) -> ArgumentParser:
    """A model, and the layout to write it in."""
    parser = new_parser(command, description)
    parser.add_argument(
        "source", help="a run, .keras file, or weights: a file, a folder or hf://ORGANIZATION/NAME"
    )
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument("--layout", type=LAYOUTS, default="huggingface", help="whose it is to be")
    parser.add_argument(
        "--model", help="name of the model, where a file of weights does not tell it"
    )
    return parser


def comparison_parser(command: str, description: str) -> ArgumentParser:
    """Runs."""
    parser = new_parser(command, description)
    parser.add_argument("runs", nargs="+", help="run directories")
    return parser


def report_parser(command: str, description: str) -> ArgumentParser:
    """A run, and where its page goes."""
    parser = new_parser(command, description)
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--out", help="the file to write; report.html in the run by default")
    parser.add_argument(
        "--exports", help="a folder of exported artifacts, besides those in the run"
    )
    return parser


def _images_parser(command: str, description: str, forms: str) -> ArgumentParser:
    """A model in one of some forms, and image files in any number."""
    parser = new_parser(command, description)
    parser.add_argument("path", help=forms)
    parser.add_argument(
        "images", nargs="+", help="image files, folders of them, or patterns such as 'in/**/*.jpg'"
    )
    parser.add_argument("--run", help="the run whose image processor and labels to use")
    parser.add_argument(
        "--model", help="name of the model, where a file of weights does not tell it"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="images per step")
    return parser


def _settings_parser(command: str, description: str, skip: Collection[str] = ()) -> ArgumentParser:
    parser = new_parser(command, description)
    parser.add_argument(
        "--config",
        action="config",
        help="a YAML file of settings; options given after it take precedence",
    )
    parser.add_class_arguments(TrainConfig, as_group=False, skip={*skip})
    return parser


def _gigabytes(given: str | float) -> float:
    """Bytes of `16GB` or `16`; a number of bytes is parsed already."""
    if not isinstance(given, str):
        return given
    with _refused_as(given, "16GB"):
        return float(given.upper().removesuffix("GB")) * 1e9


def _epochs(given: str | int | Sequence[int]) -> tuple[int, int]:
    """A:B or a number of epochs; a pair is parsed already."""
    if not isinstance(given, str | int):
        return tuple(given)
    first, colon, stop = str(given).partition(":")
    with _refused_as(given, "0:300 or 300"):
        return (int(first), int(stop)) if colon else (0, int(first))


def _shard(given: str | Sequence[int]) -> tuple[int, int]:
    """I/N; a pair is parsed already."""
    with _refused_as(given, "1/4"):
        part, count = given.split("/") if isinstance(given, str) else given
        return int(part), int(count)


@contextmanager
def _refused_as(given: object, example: str) -> Iterator[None]:
    """Say what an argument looks like where it is not understood."""
    try:
        yield
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"such as {example}. Received: {given}") from error
