"""Where the time of DeiT-tiny distilled at 224 goes, by kind of operation, as TensorFlow's profiler
sees it.

python benchmarks/operations.py --task inference --batch 1 --precision float32
"""

import argparse
import glob
import os
import re
import tempfile
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import machine  # imports deit_tf, and so before TensorFlow
import peer_worker
from rich.console import Console
from rich.table import Table

RUNS = 3
# The first that fits is an operation's kind.
KINDS = {
    "products of matrices": r"MatMul|Conv2D",
    "casts between precisions": r"^Cast$",
    "transposes": r"Transpose",
    "softmax": r"Softmax",
    "optimizer's writes": r"Assign",
    "elementwise and sums": r".",
}


def profiled(step) -> Counter:
    """Milliseconds of one call of `step`, by operation."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    for _ in range(RUNS):
        step()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(RUNS):
                step()
        space = xplane_pb2.XSpace()
        with open(glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)[0], "rb") as file:
            space.ParseFromString(file.read())

    spent = Counter()
    for plane in (plane for plane in space.planes if plane.name == "/host:CPU"):
        for event in (event for line in plane.lines for event in line.events):
            # An operation is named "<node>:<type>"; calls of whole functions and of Python are not
            # counted twice.
            named = re.fullmatch(
                r"([\w/.\-]+):(\w+)(#.*)?", plane.event_metadata[event.metadata_id].name
            )
            if named and not named[1].startswith("__inference"):
                spent[named[2]] += event.duration_ps / 1e9 / RUNS

    return spent


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=["inference", "train"], default="inference")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    spent = profiled(
        peer_worker.tensorflow_step(
            peer_worker.deit_tf_model,
            given.task,
            given.batch,
            given.precision,
            given.threads,
            runtime="",
            parts=1,
        )
    )
    kinds = Counter()

    for operation, milliseconds in spent.items():
        kinds[next(kind for kind, pattern in KINDS.items() if re.search(pattern, operation))] += (
            milliseconds
        )

    total = sum(kinds.values())
    table = Table(
        "operations", title=f"{given.task}, batch {given.batch}, {given.precision}: {total:.1f} ms"
    )
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")

    for kind, milliseconds in kinds.most_common():
        table.add_row(kind, f"{milliseconds:.1f}", f"{milliseconds / total:.0%}")
    print(machine.sentence(machine.describe()))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
