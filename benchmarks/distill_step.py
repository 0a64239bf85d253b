"""What the distillation step costs beyond its parts: against a student step and a teacher forward,
in turns.

DeiT-tiny distilled at 224 under a RegNetY or a ResNet-50 with random weights; the arithmetic does
not mind. The two parts run apart, one after the other; the ratio of their sum and the whole step
counts.

    python benchmarks/distill_step.py --rounds 5 --teacher regnety_016 --json distill_step.json
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import machine
import numpy as np
import peers
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from deit_tf import Distiller, Teacher, create_model
from deit_tf.data import ImageProcessor
from deit_tf.training.optim import AdamW
from deit_tf.zoo import create_regnety

NAME, SIDE, CLASSES = "deit_tiny_distilled_patch16_224", 224, 1000
STUDENT, TEACHER, WHOLE = "student step", "teacher forward", "distillation step"
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def make_teacher(name: str, precision: str) -> Teacher:
    """A frozen network of 1000 classes at this precision."""
    keras.config.set_dtype_policy(POLICIES[precision])
    if name == "resnet50":
        shape = (SIDE, SIDE, 3)
        model = keras.applications.ResNet50(
            weights=None, classifier_activation=None, input_shape=shape
        )
    else:
        model = create_regnety(name)
    model.trainable = False
    return Teacher(model)


def make_step(teacher: Teacher | None, precision: str) -> Callable:
    """A training step of a fresh student; without a teacher both heads learn the labels."""
    keras.config.set_dtype_policy(POLICIES[precision])
    settings = {"kind": "hard"} if teacher else {"kind": "none", "train_heads": "both"}
    distiller = Distiller(create_model(NAME), teacher, **settings)
    distiller.compile(AdamW(1e-4))
    distiller.optimizer.build(distiller.trainable_variables)
    return tf.function(distiller.train_step)


def contenders(args: argparse.Namespace, precision: str) -> dict[str, Callable[[], None]]:
    """The whole step and its two parts on the same batch."""
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(args.batch, SIDE, SIDE, 3)), tf.float32)
    labels = tf.constant(random.integers(0, CLASSES, args.batch), tf.int32)
    teacher = make_teacher(args.teacher, args.teacher_precision or precision)
    forward = tf.function(lambda images: teacher.logits(images, ImageProcessor(SIDE)))
    student, whole = make_step(None, precision), make_step(teacher, precision)
    return {
        STUDENT: lambda: float(student((images, labels))["loss"]),
        TEACHER: lambda: forward(images).numpy(),
        WHOLE: lambda: float(whole((images, labels))["loss"]),
    }


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds per step; they take turns, after two steps each to trace and warm up."""
    for step in steps.values():
        step()
        step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], pick: Callable = min) -> float:
    """The whole step over the sum of its parts, each by its `pick`."""
    return pick(seconds[WHOLE]) / (pick(seconds[STUDENT]) + pick(seconds[TEACHER]))


def show(seconds: dict[str, list[float]], title: str) -> None:
    """Print the table and the ratio."""
    table = Table("part", title=title)
    for column in ("ms, best", "ms, median"):
        table.add_column(column, justify="right")
    for name, row in seconds.items():
        table.add_row(name, f"{min(row) * 1e3:.0f}", f"{statistics.median(row) * 1e3:.0f}")
    Console(width=90).print(table)
    print(
        f"whole / parts: {ratio(seconds):.3f} of the best, "
        f"{ratio(seconds, statistics.median):.3f} of the medians"
    )


def main() -> None:
    """Measure at every precision asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each part")
    parser.add_argument("--batch", type=int, default=32, help="images per batch")
    parser.add_argument(
        "--teacher", default="resnet50", help="`resnet50` or a RegNetY, such as regnety_160"
    )
    parser.add_argument("--precisions", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument(
        "--teacher-precision", choices=list(POLICIES), help="by default the student's"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures and the machine here as well"
    )
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    report = {"machine": machine.describe(), "tables": []}

    for precision in args.precisions:
        seconds = measure(contenders(args, precision), args.rounds)
        show(
            seconds,
            f"batch {args.batch}, {precision}, teacher {args.teacher}; {args.threads} threads",
        )
        report["tables"].append(
            {"precision": precision, "seconds": seconds, "ratio": ratio(seconds)}
        )

    peers.write(report | {"settings": vars(args)}, args.json)


if __name__ == "__main__":
    main()
