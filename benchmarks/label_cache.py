"""What a teacher's labels computed ahead cost and save: their size, and the training step with and
without them.

The same student takes steps on the same images, in turns: without a teacher, from labels on disk
(reading, checking and expanding them included), and under the live teacher. Weights are random; the
arithmetic does not mind. Ratios count: figures of two runs on a shared machine do not compare.

    python benchmarks/label_cache.py --rounds 5 --steps 3 --json label_cache.json
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from deit_tf import Distiller, Teacher, create_model
from deit_tf.distillation.label_files import FILE_IMAGES, Layout
from deit_tf.distillation.teacher_labels import Cache
from deit_tf.training.optim import AdamW
from deit_tf.zoo import create_regnety

CLASSES, TOP_K = 1000, 10
WITHOUT, CACHED, LIVE = "without a teacher", "labels from disk", "live teacher"
KINDS = {
    "hard, 10 classes": (10, 0),
    "hard, 1000 classes": (CLASSES, 0),
    "soft, k = 10": (CLASSES, TOP_K),
}


def layout(classes: int, top_k: int, batch: int) -> Layout:
    """One file of labels for an epoch."""
    steps = FILE_IMAGES // batch
    return Layout(classes, batch, steps * batch, batch, top_k, steps, identity=b"")


def write_labels(folder: Path, made: Layout) -> int:
    """Write a file of random labels; returns its bytes."""
    rng, unit = np.random.default_rng(0), made.training_units([0])[0]
    count = made.count(unit)
    classes = rng.integers(made.classes, size=(count, made.top_k) if made.top_k else count)
    soft = -rng.exponential(size=(count, made.top_k + 1)).astype("float32") if made.top_k else None
    made.write(folder, unit, made.pack(classes, soft))
    return (folder / unit.name).stat().st_size


def sizes() -> dict[str, dict[str, float]]:
    """Megabytes, and seconds to read and check them, per million images."""
    results = {}
    for name, (classes, top_k) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            made = layout(classes, top_k, 64)
            unit, written = made.training_units([0])[0], write_labels(Path(folder), made)
            started = time.perf_counter()
            if made.flaw(Path(folder), unit):
                raise RuntimeError(f"{unit.name} is damaged")
            seconds = time.perf_counter() - started
        millions = made.count(unit) / 1e6
        results[name] = {
            "MB_per_million": written / 1e6 / millions,
            "check_s_per_million": seconds / millions,
        }

    return results


def contenders(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[int], None]]:
    """A function for each, that takes so many steps."""
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(args.batch, args.size, args.size, 3)), tf.float32)
    truth = tf.one_hot(rng.integers(CLASSES, size=args.batch), CLASSES)
    made = layout(CLASSES, TOP_K if args.kind == "soft" else 0, args.batch)
    write_labels(folder, made)
    cache = Cache(folder, made, args.kind == "hard", epochs=1)
    batches = tf.data.Dataset.from_tensors((images, truth)).repeat(made.steps)
    network = create_regnety(args.teacher, num_classes=CLASSES, image_size=args.size)
    network.trainable = False
    learners = {
        WITHOUT: (batches, "none", None),
        CACHED: (cache.attach(batches), args.kind, None),
        LIVE: (batches, args.kind, Teacher(network)),
    }

    return {name: stepper(args, *learner) for name, learner in learners.items()}


def stepper(args: argparse.Namespace, batches: tf.data.Dataset, kind: str, teacher: Teacher | None):
    """The step of `fit`, from the iterator to the updated weights."""
    keras.utils.set_random_seed(0)
    student = create_model(args.model, num_classes=CLASSES, image_size=args.size)
    distiller = Distiller(student, teacher, kind=kind)
    distiller.compile(AdamW(1e-4))
    distiller.optimizer.build(student.trainable_variables)
    step, iterator = tf.function(distiller.train_step), iter(batches.repeat())

    def run(count: int) -> None:
        for _ in range(count):
            figures = step(next(iterator))
        float(figures["loss"])  # wait for it

    run(2)  # traces
    return run


def measure(
    runs: dict[str, Callable[[int], None]], rounds: int, steps: int
) -> dict[str, dict[str, float]]:
    """Seconds per step of each in turns; the ratio to the first is the median over the rounds."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run(steps)
            seconds[name].append((time.perf_counter() - started) / steps)

    first = next(iter(runs))
    return {
        name: {
            "step_s_best": min(each),
            "step_s_median": statistics.median(each),
            "ratio_best": min(each) / min(seconds[first]),
            "ratio_median": statistics.median(
                a / b for a, b in zip(each, seconds[first], strict=True)
            ),
        }
        for name, each in seconds.items()
    }


def show(size: dict[str, dict[str, float]], steps: dict[str, dict[str, float]], title: str) -> None:
    """Print both tables."""
    console = Console()
    table = Table("labels of a million images", "MB", "seconds to check")
    for name, row in size.items():
        table.add_row(name, f"{row['MB_per_million']:.2f}", f"{row['check_s_per_million']:.3f}")
    console.print(table)
    table = Table(
        "step", "s, best", "s, median", "x without, best", "x without, median", title=title
    )

    for name, row in steps.items():
        table.add_row(name, *(f"{row[key]:.3f}" for key in ("step_s_best", "step_s_median")),
                      *(f"{row[key]:.3f}" for key in ("ratio_best", "ratio_median")))  # fmt: skip

    console.print(table)
    faster = steps[LIVE]["step_s_best"] / steps[CACHED]["step_s_best"]
    console.print(
        f"From labels on disk a step is {faster:.2f} times as fast as under the live teacher."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument(
        "--size", type=int, default=224, help="height and width of the images in pixels"
    )
    parser.add_argument("--model", default="deit_tiny_distilled_patch16_224", help="the student")
    parser.add_argument("--teacher", default="regnety_160", help="a RegNetY")
    parser.add_argument(
        "--kind",
        choices=["hard", "soft"],
        default="hard",
        help="soft keeps 10 logits of each answer",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    args = parser.parse_args()
    size = sizes()

    with tempfile.TemporaryDirectory() as folder:
        steps = measure(contenders(args, Path(folder)), args.rounds, args.steps)
    title = (
        f"{args.model}, {args.teacher}, {args.kind}, batch {args.batch} at {args.size}; "
        f"{os.cpu_count()} cores"
    )
    show(size, steps, title)
    if args.json:
        content = {"settings": vars(args) | {"cpus": os.cpu_count()}, "sizes": size, "steps": steps}
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
