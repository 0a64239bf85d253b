"""Milliseconds of one photograph and of a batch, from the bytes of their JPEG files to logits, by
each runtime that `deit-tf predict` and `export/serve.py` choose from, taking turns.

    python benchmarks/runtimes.py --rounds 8
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import machine
import numpy as np
import peers
import tensorflow as tf
from accelerators import photographs
from rich.console import Console
from rich.table import Table

import deit_tf
from deit_tf.exporting.litert import load_tflite
from deit_tf.exporting.session import LoadedModel
from deit_tf.exporting.signatures import BYTES
from deit_tf.exporting.single_pictures import LITERT_FILE, SinglePictures

NAME = "deit_tiny_distilled_patch16_224"
WARM_UP = 3

Answer = Callable[[list[bytes]], np.ndarray]  # from files to logits [B, C]


def runtimes(name: str, folder: Path) -> tuple[dict[str, Answer], list[bytes]]:
    """What answers, by its name, and photographs."""
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model(name)
    processor = deit_tf.ImageProcessor(model.input_shape[1:3])
    pixels = processor.to_pixels(photographs(processor)[:32])
    files = [tf.io.encode_jpeg(picture, quality=95).numpy() for picture in pixels]
    version = deit_tf.export_saved_model(
        model, folder, processor=processor, batch_sizes=(1,), litert=True
    )

    network = tf.function(model, autograph=False, reduce_retracing=True)
    lite = load_tflite(version / LITERT_FILE, 2)
    session, server = LoadedModel(version), SinglePictures(version)
    return {
        "keras": lambda batch: network(processor.batch(batch), training=False).numpy(),
        "savedmodel": lambda batch: session.run(BYTES, np.array(batch, object))["logits"],
        "litert": lambda batch: lite(processor.batch(batch)),
        "serve.py": lambda batch: server.run(BYTES, np.array(batch, object))["logits"],
    }, files


def best_seconds(
    answers: dict[str, Answer], files: list[bytes], rounds: int, steps: int
) -> dict[str, float]:
    """The best time of each over all turns, after they gave the same logits."""
    expected = answers["keras"](files)
    best = dict.fromkeys(answers, float("inf"))
    for answer in answers.values():
        np.testing.assert_allclose(answer(files), expected, atol=1e-4)
        for _ in range(WARM_UP):
            answer(files)

    names = list(answers)
    for turn in range(rounds):
        first = turn % len(names)  # nobody is always first
        for name in names[first:] + names[:first]:
            time.sleep(peers.REST)
            for _ in range(steps):
                started = time.perf_counter()
                answers[name](files)
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def main() -> None:
    """Export, let everyone take turns, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=NAME)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--rounds", type=int, default=8, help="turns of each runtime")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine here")
    options = parser.parse_args()

    about, report = machine.describe(), {}
    with tempfile.TemporaryDirectory() as folder:
        answers, files = runtimes(options.model, Path(folder))
        for batch in options.batches:
            found = best_seconds(answers, files[:batch], options.rounds, max(1, 8 // batch))
            report[batch] = {name: 1000 * seconds for name, seconds in found.items()}

    table = Table("pictures", *answers, title=f"milliseconds, best, {about['processor']}")
    for batch, row in report.items():
        table.add_row(str(batch), *(f"{row[name]:.1f}" for name in answers))
    Console(width=120).print(table)
    peers.write({"machine": about, "milliseconds": report}, options.json)


if __name__ == "__main__":
    main()
