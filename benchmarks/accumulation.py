"""Peak memory and time of a training step, by the number of micro-batches its batch is worked off
in.

python benchmarks/accumulation.py --batch 32 --micro-batches 1 4
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


def measure(model: str, precision: str, batch: int, micro_batches: int, steps: int) -> dict:
    """Train on random images in this process; seconds of the best step, and megabytes that training
    added.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    import deit_tf

    keras.config.set_dtype_policy(precision)
    distiller = deit_tf.Distiller(deit_tf.create_model(model, drop_path_rate=0.1), kind="none")
    distiller.compile(deit_tf.training.optim.AdamW(1e-4), micro_batches=micro_batches)
    distiller.optimizer.build(distiller.learned)
    draw = np.random.default_rng(0)
    size = distiller.student.input_shape[1:]
    images = tf.constant(draw.normal(size=(batch, *size)).astype("float32"))
    labels = tf.one_hot(draw.integers(1000, size=batch), 1000)
    step = tf.function(lambda: distiller.train_step((images, labels))["loss"])
    before = _peak_megabytes()
    seconds = []

    for _ in range(steps + 1):
        started = time.perf_counter()
        float(step())
        seconds.append(time.perf_counter() - started)

    return {"seconds": min(seconds[1:]), "megabytes": _peak_megabytes() - before}


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure each in a process of its own, interleaved, and print the best."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="deit_tiny_distilled_patch16_224")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(
            json.dumps(measure(given.model, given.precision, given.batch, given.one, given.steps))
        )
        return

    found = {parts: [] for parts in given.micro_batches}
    for _ in range(given.rounds):
        for parts, results in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", str(parts)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))

    best = {parts: min(result["seconds"] for result in results) for parts, results in found.items()}
    table = Table(
        "micro-batches",
        "peak memory of training",
        "images per second",
        "time per step",
        title=given.model,
    )

    for parts, results in found.items():
        memory = max(result["megabytes"] for result in results)
        ratio = best[parts] / best[given.micro_batches[0]]
        table.add_row(
            str(parts), f"{memory:,.0f} MB", f"{given.batch / best[parts]:.1f}", f"{ratio:.2f} x"
        )

    Console(width=100).print(table)


if __name__ == "__main__":
    main()
