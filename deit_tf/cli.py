"""The command `deit-tf`: arguments in, text out; the work is done elsewhere."""

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from deit_tf.config import TrainConfig
from deit_tf.evaluate import evaluate
from deit_tf.models import VARIANTS, create_model
from deit_tf.preview import preview
from deit_tf.report import compare
from deit_tf.train import train, train_teacher

# A pipe has no width: enough for the widest table.
console = Console(width=None if sys.stdout.isatty() else 100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a mistake of the user's ends with one line on stderr and status 2."""
    logging.basicConfig(
        format="%(message)s", level=logging.INFO, handlers=[RichHandler(show_path=False, show_time=False)]
    )
    logging.getLogger("absl").setLevel(logging.WARNING)
    parser = _parser()
    parsed = parser.instantiate(parser.parse_args(arguments))
    command = _COMMANDS[parsed.command]
    try:
        command(parsed[parsed.command])
    except (ValueError, OSError, FloatingPointError) as error:
        logging.debug("", exc_info=True)
        print(f"deit-tf {parsed.command}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _train(arguments: Any) -> None:
    console.print(f"Run: {train(_config(arguments), arguments.overwrite)}")


def _train_teacher(arguments: Any) -> None:
    console.print(f"Run: {train_teacher(_config(arguments), arguments.overwrite)}")


def _preview(arguments: Any) -> None:
    console.print(f"Wrote {preview(_config(arguments), arguments.file, arguments.images, arguments.columns)}")


def _evaluate(arguments: Any) -> None:
    figures = evaluate(arguments.path, arguments.run, arguments.source, arguments.batch_size)
    if arguments.json:
        print(json.dumps(figures))
        return
    table = Table("", *figures)
    table.add_row(arguments.path, *(str(v) if isinstance(v, int) else f"{100 * v:.2f} %" for v in figures.values()))
    console.print(table)


def _models(arguments: Any) -> None:
    table = Table("model", "image size", "patch", "width", "depth", "heads", "distilled", "parameters")
    for name, config in VARIANTS.items():
        numbers = (config.image_size, config.patch_size, config.embed_dim, config.depth, config.num_heads)
        count = f"{create_model(name).count_params():,}"
        table.add_row(name, *map(str, numbers), "yes" if config.distilled else "no", count)
    console.print(table)


def _compare(arguments: Any) -> None:
    console.print(compare(arguments.runs))


def _config(arguments: Any) -> TrainConfig:
    return TrainConfig(**{field: arguments[field] for field in TrainConfig.__dataclass_fields__})


_COMMANDS = {
    "train": _train,
    "train-teacher": _train_teacher,
    "preview": _preview,
    "evaluate": _evaluate,
    "models": _models,
    "compare": _compare,
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="deit-tf", description="DeiT for TensorFlow and Keras 3.")
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("train", _training_parser(), help="train a student, with or without a teacher")
    commands.add_subcommand("train-teacher", _training_parser(), help="train a convnet teacher on the same images")
    commands.add_subcommand("preview", _preview_parser(), help="draw what the student will be fed")
    commands.add_subcommand("evaluate", _evaluation_parser(), help="top-1 and top-5 of a model in any form")
    commands.add_subcommand("models", ArgumentParser(), help="list the models by name")
    compared = ArgumentParser()
    compared.add_argument("runs", nargs="+", help="run directories")
    commands.add_subcommand("compare", compared, help="print the figures of runs side by side")
    return parser


def _config_parser() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config", help="a YAML file of the settings below")
    parser.add_class_arguments(TrainConfig, as_group=False)
    return parser


def _training_parser() -> ArgumentParser:
    parser = _config_parser()
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in --out")
    return parser


def _preview_parser() -> ArgumentParser:
    parser = _config_parser()
    parser.add_argument("--file", default="preview.png", help="the PNG file to write")
    parser.add_argument("--images", type=int, default=24, help="pictures on the sheet, at most a batch")
    parser.add_argument("--columns", type=int, default=6, help="pictures per row")
    return parser


def _evaluation_parser() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_function_arguments(evaluate, as_group=False, as_positional=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
