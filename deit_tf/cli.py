"""The command `deit-tf`: arguments in, text out; the work is done elsewhere."""

import inspect
import json
import logging
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import rich
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from deit_tf.config import TrainConfig
from deit_tf.distillation.make_labels import make_labels
from deit_tf.evaluation.evaluate import evaluate
from deit_tf.evaluation.predict import predict_files
from deit_tf.evaluation.preview import preview
from deit_tf.evaluation.report import compare, write_report
from deit_tf.exporting.tflite import ExportError
from deit_tf.models import VARIANTS
from deit_tf.runs import load_run
from deit_tf.train import train, train_teacher
from deit_tf.weights.files import write_weights
from deit_tf.weights.names import Layout
from deit_tf.zoo import create_model

# A pipe has no width: enough for the widest table.
console = Console(width=None if sys.stdout.isatty() else 100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a mistake of the user's ends with one line on stderr and status 2."""
    rich.reconfigure(
        stderr=True
    )  # messages and progress, so that --json prints nothing else on stdout
    logging.basicConfig(
        format="%(message)s",
        level=logging.INFO,
        handlers=[RichHandler(show_path=False, show_time=False)],
    )
    for library in ("absl", "tensorflow"):
        logging.getLogger(library).setLevel(logging.WARNING)
    parser = _parser()
    parsed = parser.instantiate(parser.parse_args(arguments))
    command = _COMMANDS[parsed.command]
    try:
        command(parsed[parsed.command])
    except (ValueError, OSError, ImportError, FloatingPointError, ExportError) as error:
        if parsed.traceback:
            raise
        print(f"deit-tf {parsed.command}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _train(arguments: Any) -> None:
    console.print(
        f"Run: {train(_config(arguments), arguments.overwrite, arguments.accept_changes)}"
    )


def _train_teacher(arguments: Any) -> None:
    console.print(
        f"Run: {train_teacher(_config(arguments), arguments.overwrite, arguments.accept_changes)}"
    )


def _label(arguments: Any) -> None:
    config = _config({**vars(arguments), "epochs": arguments.epochs[1]})
    folder = config.distill.labels or Path(config.out, "labels")
    console.print(
        f"Labels: {make_labels(config, folder, range(*arguments.epochs), arguments.shard)}"
    )


def _preview(arguments: Any) -> None:
    console.print(
        f"Wrote {preview(_config(arguments), arguments.file, arguments.images, arguments.columns)}"
    )


def _evaluate(arguments: Any) -> None:
    figures = evaluate(**{name: arguments[name] for name in inspect.signature(evaluate).parameters})
    if arguments.json:
        print(json.dumps(figures))
        return
    table = Table("", arguments.path)
    for name, figure in figures.items():
        share = name.startswith("top")
        told = f"{100 * figure:.2f} % ({figures['protocol']})" if share else str(figure)
        table.add_row(name, told)
    console.print(table)


def _predict(arguments: Any) -> None:
    results = predict_files(
        arguments.path, arguments.images, top=arguments.top, run=arguments.run, name=arguments.model
    )
    if arguments.json:
        print(json.dumps(results))
        return
    table = Table("image", "class", "probability")
    for result in results:
        for rank, found in enumerate(result["classes"]):
            table.add_row(
                result["image"] if rank == 0 else "",
                found["label"],
                f"{100 * found['probability']:.2f} %",
            )
    console.print(table)


def _convert(arguments: Any) -> None:
    run = load_run(arguments.source, arguments.model)
    preprocessing = run.processor.to_preprocessor_config(arguments.layout)
    out = write_weights(
        run.model,
        arguments.out,
        layout=arguments.layout,
        labels=run.labels,
        preprocessing=preprocessing,
    )
    console.print(f"Written: {out}")


def _models(arguments: Any) -> None:
    table = Table(
        "model", "image size", "patch", "width", "depth", "heads", "distilled", "parameters"
    )
    for name, config in VARIANTS.items():
        numbers = (
            config.image_size,
            config.patch_size,
            config.embed_dim,
            config.depth,
            config.num_heads,
        )
        count = f"{create_model(name).count_params():,}"
        table.add_row(name, *map(str, numbers), "yes" if config.distilled else "no", count)
    console.print(table)


def _compare(arguments: Any) -> None:
    console.print(compare(arguments.runs))


def _report(arguments: Any) -> None:
    console.print(f"Report: {write_report(arguments.run, arguments.out, arguments.exports)}")


def _config(arguments: Any) -> TrainConfig:
    return TrainConfig(**{field: arguments[field] for field in TrainConfig.__dataclass_fields__})


_COMMANDS = {
    "train": _train,
    "train-teacher": _train_teacher,
    "label": _label,
    "preview": _preview,
    "evaluate": _evaluate,
    "predict": _predict,
    "convert": _convert,
    "models": _models,
    "compare": _compare,
    "report": _report,
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="deit-tf", description="DeiT for TensorFlow and Keras 3.")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand(
        "train", _training_parser(), help="train a student, with or without a teacher"
    )
    commands.add_subcommand(
        "train-teacher",
        _training_parser(),
        help=(
            "train a convnet teacher on the same images, by teacher.epochs, teacher.optim and "
            "teacher.augment"
        ),
    )
    commands.add_subcommand(
        "label", _labeling_parser(), help="run the teacher ahead, so that students need none"
    )
    commands.add_subcommand("preview", _preview_parser(), help="draw what the student will be fed")
    commands.add_subcommand(
        "evaluate", _evaluation_parser(), help="top-1 and top-5 of a model in any form"
    )
    commands.add_subcommand("predict", _prediction_parser(), help="name what is in image files")
    commands.add_subcommand(
        "convert", _conversion_parser(), help="write weights for transformers or timm"
    )
    commands.add_subcommand("models", ArgumentParser(), help="list the models by name")
    compared = ArgumentParser()
    compared.add_argument("runs", nargs="+", help="run directories")
    commands.add_subcommand("compare", compared, help="print the figures of runs side by side")
    commands.add_subcommand(
        "report", _report_parser(), help="write a page about a run, as one HTML file"
    )
    return parser


def _config_parser(skip: Collection[str] = ()) -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config", help="a YAML file of the settings below")
    parser.add_class_arguments(TrainConfig, as_group=False, skip={*skip})
    return parser


def _training_parser() -> ArgumentParser:
    parser = _config_parser()
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run in --out, finished or not"
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help=(
            "go on with a stopped run although its config differs, but not with other steps "
            "per epoch"
        ),
    )
    return parser


def _labeling_parser() -> ArgumentParser:
    parser = _config_parser(skip=["epochs"])
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


def _epochs(given: str | int | Sequence[int]) -> tuple[int, int]:
    """A:B or a number of epochs; a pair is parsed already."""
    if not isinstance(given, str | int):
        return tuple(given)
    first, colon, stop = str(given).partition(":")
    return (int(first), int(stop)) if colon else (0, int(first))


def _shard(given: str | Sequence[int]) -> tuple[int, int]:
    """I/N; a pair is parsed already."""
    part, count = given.split("/") if isinstance(given, str) else given
    return int(part), int(count)


def _preview_parser() -> ArgumentParser:
    parser = _config_parser()
    parser.add_argument("--file", default="preview.png", help="the PNG file to write")
    parser.add_argument(
        "--images", type=int, default=24, help="pictures on the sheet, at most a batch"
    )
    parser.add_argument("--columns", type=int, default=6, help="pictures per row")
    return parser


def _report_parser() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--out", help="the file to write; report.html in the run by default")
    parser.add_argument(
        "--exports", help="a folder of exported artifacts, besides those in the run"
    )
    return parser


def _evaluation_parser() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_function_arguments(evaluate, as_group=False, as_positional=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _prediction_parser() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument(
        "path", help="a run, .keras file, SavedModel, .tflite file or weights; hf://... as well"
    )
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=5, help="classes to name for each")
    parser.add_argument("--run", help="the run whose image processor and labels to use")
    parser.add_argument(
        "--model", help="name of the model, where a file of weights does not tell it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    return parser


def _conversion_parser() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument(
        "source", help="a run, .keras file, or weights: a file, a folder or hf://ORGANIZATION/NAME"
    )
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument("--layout", type=Layout, default="huggingface", help="whose it is to be")
    parser.add_argument(
        "--model", help="name of the model, where a file of weights does not tell it"
    )
    return parser
