"""Peak memory and time of a training step, by the number of micro-batches its batch is worked off
in, with its activations kept or computed again (`model.remat`).

python benchmarks/accumulation.py --batch 32 --micro-batches 1 4 --remat

Time is that of the processor, of all threads together: other processes do not add to it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from rich.console import Console
from rich.table import Table


def measure(given: argparse.Namespace, micro_batches: int, remat: bool) -> dict:
    """Train on random images in this process; CPU seconds of the best step, and megabytes that
    training added.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    import deit_tf

    keras.config.set_dtype_policy(given.precision)
    student = deit_tf.create_model(
        given.model, image_size=given.image_size, drop_path_rate=0.1, remat=remat
    )
    distiller = deit_tf.Distiller(student, kind="none")
    distiller.compile(deit_tf.training.optim.AdamW(1e-4), micro_batches=micro_batches)
    distiller.optimizer.build(distiller.learned)

    draw = np.random.default_rng(0)
    images = tf.constant(draw.normal(size=(given.batch, *student.input_shape[1:])), tf.float32)
    labels = tf.one_hot(draw.integers(1000, size=given.batch), 1000)
    step = tf.function(lambda: distiller.train_step((images, labels))["loss"], autograph=False)

    before = _peak_megabytes()
    seconds = []
    for _ in range(given.steps + 1):
        started = time.process_time()
        float(step())
        seconds.append(time.process_time() - started)

    return {"seconds": min(seconds[1:]), "megabytes": _peak_megabytes() - before}


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deit_tiny_distilled_patch16_224")
    parser.add_argument("--image-size", type=int, help="by default that of the model")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--remat", action="store_true", help="measure each with it as well")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure each in a process of its own, interleaved, and print the best."""
    given = _parser().parse_args()
    if given.one:
        print(json.dumps(measure(given, given.one[0], bool(given.one[1]))))
        return

    ways = [(parts, remat) for remat in range(1 + given.remat) for parts in given.micro_batches]
    found = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way, results in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", *map(str, way)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))

    _show(found, f"{given.model}, batch {given.batch}, {given.precision}")


def _show(found: dict[tuple[int, int], list[dict]], title: str) -> None:
    best = {way: min(one["seconds"] for one in results) for way, results in found.items()}
    first = next(iter(best.values()))
    table = Table("micro-batches", "remat", "memory of training", "CPU time per step", title=title)
    for (parts, remat), results in found.items():
        memory = max(result["megabytes"] for result in results)
        seconds = best[parts, remat]
        shown = f"{seconds:.2f} s, {seconds / first:.2f} x"
        table.add_row(str(parts), "yes" if remat else "no", f"{memory:,.0f} MB", shown)

    Console(width=100).print(table)


if __name__ == "__main__":
    main()
