"""What each command does: it imports the work, has it done, and prints what came of it."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from deit_tf.cli import exports, parsers
from deit_tf.cli.console import console, folded
from deit_tf.cli.refusals import printable
from deit_tf.config import TrainConfig

if TYPE_CHECKING:
    from rich.table import Table

SOME_FAILED = 1  # exit status


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        help: A sentence about it.
        parser: Makes its parser from its name and `help`.
        run: Does the work; returns an exit status where it is not 0.
        needs_tensorflow: Whether the work imports it.
    """

    help: str
    parser: Callable[[str, str], ArgumentParser]
    run: Callable[[Namespace], int | None]
    needs_tensorflow: bool = True


def _train(arguments: Namespace) -> None:
    from deit_tf.train import train

    run = train(_config(arguments), **_how(arguments))
    console().print(f"Run: {run}")


def _train_teacher(arguments: Namespace) -> None:
    from deit_tf.train import train_teacher

    run = train_teacher(_config(arguments), **_how(arguments))
    console().print(f"Run: {run}")


def _how(arguments: Namespace) -> dict[str, bool]:
    """What may be done to the run that is there already."""
    return {name: arguments[name] for name in ("overwrite", "accept_changes", "extend")}


def _label(arguments: Namespace) -> None:
    from deit_tf.distillation.make_labels import make_labels

    config = _config({**vars(arguments), "epochs": arguments.epochs[1]})
    folder = config.distill.labels or f"{config.out}/labels"
    made = make_labels(config, folder, range(*arguments.epochs), arguments.shard)
    console().print(f"Labels: {made}")


PLANNING = ("devices", "memory", "throughput", "price", "images", "classes", "seconds", "steps")


def _plan(arguments: Namespace) -> None:
    from deit_tf.planning.plan import plan

    found = plan(_config(arguments), **{name: arguments[name] for name in PLANNING})
    if arguments.json:
        print(json.dumps(found))
        return

    table = _table("", "")
    for name, figure in found.items():
        if figure is not None:
            table.add_row(*_shown(name, figure))
    console().print(table)
    if arguments.memory and found["micro_batches_that_fit"] is None:
        print(
            f"No number of micro-batches fits {arguments.memory / 1e9:g} GB: one image at a time "
            "takes more. Choose a smaller model, or model.remat."
        )


def _shown(name: str, figure: float) -> tuple[str, str]:
    """A figure of a plan in words: bytes as MB, operations as GFLOPs or, of a run, PFLOPs."""
    words = name.replace("_", " ")
    if name.endswith("_bytes"):
        return words.removesuffix(" bytes"), f"{figure / 1e6:,.0f} MB"
    if name == "flops_per_image":
        return words, f"{figure / 1e9:,.2f} GFLOPs"
    if name == "flops_of_the_run":
        return words, f"{figure / 1e15:,.3g} PFLOPs"
    return words, f"{figure:,}" if isinstance(figure, int) else f"{figure:,.2f}"


def _find_lr(arguments: Namespace) -> None:
    from deit_tf.planning.lr_range import find_lr

    config = _config(arguments)
    seen = find_lr(
        config,
        arguments.file,
        low=arguments["from"],
        high=arguments.to,
        steps=arguments.steps,
    )
    if seen.steepest is None:
        print("The loss falls nowhere in this range: begin lower (--from), or take more --steps.")
    else:
        print(f"Steepest descent of the loss: --optim.lr {seen.steepest:.2g}")
    print(f"A tenth of where it is least: --optim.lr {seen.tenth:.2g}")

    batch_size = config.data.batch_size
    unit = f"the batch of {batch_size} images as it is"
    if config.optim.scale_lr:
        factor = seen.learning_rate[0] / seen.lr[0]
        unit = f"a batch of 512; these {batch_size} images get {factor:g} times as much"
    print(f"Both are counted as `optim.lr` is, for {unit}. Wrote {arguments.file}")


def _preview(arguments: Namespace) -> None:
    from deit_tf.evaluation.preview import preview

    sheet = preview(_config(arguments), arguments.file, arguments.images, arguments.columns)
    console().print(f"Wrote {sheet}")


def _evaluate(arguments: Namespace) -> None:
    from deit_tf.evaluation.evaluate import evaluate

    options = {name: arguments[name] for name in parsers.EVALUATION}
    figures = evaluate(arguments.path, **options)
    if arguments.json:
        print(json.dumps(figures))
        return

    table = _table("", arguments.path)
    for name in figures:
        if not name.endswith("_interval"):
            table.add_row(name, _figure_text(name, figures))

    console().print(table)


SHARES = ("top", "precision_", "recall_", "f1_", "mean_average_precision")
ROUNDED = ("ece", "nll")


def _figure_text(name: str, figures: dict) -> str:
    """A figure of an evaluation in words: a share with its protocol, and its interval."""
    figure = figures[name]
    if name in ROUNDED:
        return f"{figure:.4f}"
    if not name.startswith(SHARES):
        return str(figure)
    text = f"{100 * figure:.2f} % ({figures['protocol']})"
    if interval := figures.get(f"{name}_interval"):
        low, high = (100 * end for end in interval)
        text += f"; 95 %: {low:.2f} to {high:.2f}"
    return text


def _predict(arguments: Namespace) -> int | None:
    from rich.progress import track

    from deit_tf.evaluation.answers import check_answers_file, write_answers
    from deit_tf.evaluation.predict import find_images, predict_files

    if arguments.out:
        check_answers_file(arguments.out)
    files = find_images(arguments.images)
    answers = predict_files(
        arguments.path,
        files,
        top=arguments.top,
        run=arguments.run,
        name=arguments.model,
        batch_size=arguments.batch_size,
        runtime=arguments.runtime,
    )
    failed: list[dict] = []
    answers = track(answers, "Predicting", total=len(files), transient=True)
    found = _without_failed(answers, failed)

    if arguments.out:
        console().print(f"Wrote {write_answers(found, arguments.out)}")
    elif arguments.json:
        print(json.dumps([*found]))
    else:
        _show_answers([*found])
    return _name_failed(failed, len(files))


def _explain(arguments: Namespace) -> int | None:
    from rich.progress import track

    from deit_tf.evaluation.explain import PAGE, explain_files
    from deit_tf.evaluation.predict import find_images

    files = find_images(arguments.images)
    answers = explain_files(
        arguments.path,
        files,
        arguments.out,
        run=arguments.run,
        name=arguments.model,
        batch_size=arguments.batch_size,
    )
    failed: list[dict] = []
    answers = track(answers, "Explaining", total=len(files), transient=True)
    if shown := [*_without_failed(answers, failed)]:
        console().print(f"Wrote {arguments.out}/{PAGE}, and PNG files beside it: {len(shown)}")
    return _name_failed(failed, len(files))


def _without_failed(answers: Iterable[dict], failed: list[dict]) -> Iterator[dict]:
    """The answers of files that could be read; those of the others go to `failed`."""
    for answer in answers:
        if "error" in answer:
            failed.append(answer)
        else:
            yield answer


def _show_answers(answers: list[dict]) -> None:
    table = _table("image", "class", "probability")
    for answer in answers:
        for rank, found in enumerate(answer["classes"]):
            image = printable(answer["image"]) if rank == 0 else ""
            share = f"{100 * found['probability']:.2f} %"
            table.add_row(image, printable(found["label"]), share)
    if answers:
        console().print(table)


def _name_failed(failed: list[dict], count: int) -> int | None:
    """Name the files that gave no answer, on stderr; the exit status."""
    if not failed:
        return None
    print(f"Passed over {len(failed)} of {count} files:", file=sys.stderr)
    for one in failed:
        is_named = one["image"] in one["error"]
        line = one["error"] if is_named else f"{one['image']}: {one['error']}"
        print(f"  {printable(line)}", file=sys.stderr)
    return SOME_FAILED


def _convert(arguments: Namespace) -> None:
    from deit_tf.runs import load_run
    from deit_tf.runs.load import warn_if_assumed
    from deit_tf.weights.files import write_weights

    run = load_run(arguments.source, arguments.model)
    warn_if_assumed(run, arguments.source)
    preprocessing = run.processor.to_preprocessor_config(arguments.layout)
    out = write_weights(
        run.model,
        arguments.out,
        layout=arguments.layout,
        labels=run.labels,
        preprocessing=preprocessing,
    )
    console().print(f"Written: {out}")


def _models(arguments: Namespace) -> None:
    from deit_tf.models.variants import VARIANTS, count_parameters

    columns = ("model", "image", "patch", "width", "depth", "heads", "dist", "parameters")
    table = _table(*columns, gap=1)  # within 80 columns
    for column in table.columns[1:]:
        column.justify = "right"

    for name, config in VARIANTS.items():
        numbers = (
            config.image_size,
            config.patch_size,
            config.embed_dim,
            config.depth,
            config.num_heads,
        )
        distilled = "yes" if config.distilled else "no"
        table.add_row(name, *map(str, numbers), distilled, f"{count_parameters(config):,}")

    console().print(table)


def _compare(arguments: Namespace) -> None:
    from deit_tf.evaluation.report import compare

    table = folded(compare(arguments.runs))
    table.box = None
    console().print(table)


def _report(arguments: Namespace) -> None:
    from deit_tf.evaluation.report import write_report

    page = write_report(arguments.run, arguments.out, arguments.exports)
    console().print(f"Report: {page}")


def _config(arguments: Namespace | dict) -> TrainConfig:
    return TrainConfig(**{field: arguments[field] for field in TrainConfig.__dataclass_fields__})


def _table(*columns: str, gap: int = 2) -> "Table":
    """Aligned columns; a terminal folds what is too long for it, and nothing is cut."""
    from rich.table import Table

    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


# A name of two words, such as `export tflite`, is a command below its first word.
COMMANDS = {
    "train": Command("train a student, with or without a teacher", parsers.training_parser, _train),
    "train-teacher": Command(
        "train a convnet teacher on the same images, by teacher.epochs, teacher.optim and "
        "teacher.augment",
        parsers.training_parser,
        _train_teacher,
    ),
    "label": Command(
        "run the teacher ahead, so that students need none", parsers.labeling_parser, _label
    ),
    "plan": Command(
        "say what a run will take: images, memory, operations, hours",
        parsers.planning_parser,
        _plan,
    ),
    "find-lr": Command(
        "train some steps while the learning rate rises, and suggest one",
        parsers.lr_range_parser,
        _find_lr,
    ),
    "preview": Command("draw what the student will be fed", parsers.preview_parser, _preview),
    "evaluate": Command(
        "top-1 and top-5 of a model in any form, or mAP and F1",
        parsers.evaluation_parser,
        _evaluate,
    ),
    "predict": Command("name what is in image files", parsers.prediction_parser, _predict),
    "explain": Command(
        "draw where the attention to pictures comes from, and what each head says",
        parsers.explanation_parser,
        _explain,
    ),
    "convert": Command(
        "write weights for transformers, timm or keras-hub", parsers.conversion_parser, _convert
    ),
    "models": Command(
        "list the models by name", parsers.new_parser, _models, needs_tensorflow=False
    ),
    "compare": Command(
        "print the figures of runs side by side", parsers.comparison_parser, _compare
    ),
    "report": Command("write a page about a run, as one HTML file", parsers.report_parser, _report),
    "export saved-model": Command(
        "write a SavedModel for TensorFlow Serving, checked against Keras",
        exports.saved_model_parser,
        exports.export_saved_model,
    ),
    "export tflite": Command(
        "write .tflite files for phones, each run and checked against Keras",
        exports.tflite_parser,
        exports.export_tflite,
    ),
    "export onnx": Command(
        "write an ONNX file, run by ONNX Runtime and checked against Keras",
        exports.onnx_parser,
        exports.export_onnx,
    ),
    "export web": Command(
        "write a page that classifies pictures in the browser, by checked .tflite files",
        exports.web_parser,
        exports.export_web,
    ),
    "export check": Command(
        "compare exports and a server with Keras, on the same pictures",
        exports.check_parser,
        exports.check,
    ),
}
