"""Milliseconds of one picture: DeiT-Ti distilled by LiteRT, as float32, dynamic_int8 and int8,
beside this project and timm (eager and compiled), taking turns.

LiteRT runs on the CPU here (XNNPACK); a phone's CPU is another. Of files the processor time is
shown as well, which other programs disturb least. A file of another version of this project takes
part by `--file NAME=PATH`.

    python benchmarks/litert_runtime.py --threads 1 2 --rounds 8
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import machine
import numpy as np
import peers
from accelerators import photographs
from peer_worker import NAME
from rich.console import Console
from rich.table import Table

import deit_tf
from deit_tf.exporting.litert import LiteModel, load_tflite
from deit_tf.exporting.tflite import converted

VARIANTS = ("float32", "dynamic_int8", "int8")
PEERS = [
    peers.Contender(library, "float32", runtime)
    for library in (peers.OURS, "timm")
    for runtime in ("", peers.COMPILERS[library])
]
WARM_UP = 3


class FileContender:
    """A .tflite file in this process, that takes turns as a `peers.Worker` does."""

    def __init__(self, name: str, model: LiteModel, images: np.ndarray):
        self.name, self.model, self.image, self.error = name, model, images[:1], None
        self.seconds, self.processor_seconds = [], []
        for _ in range(WARM_UP):
            model(self.image)

    def turn(self, steps: int) -> None:
        """Run some steps and keep their seconds."""
        for _ in range(steps):
            start, used = time.perf_counter(), time.process_time()
            self.model(self.image)
            self.seconds.append(time.perf_counter() - start)
            self.processor_seconds.append(time.process_time() - used)

    def close(self) -> None:
        """Nothing to end."""


def tflite_files(folder: Path) -> dict[str, Path]:
    """DeiT-Ti with random weights, a file per variant."""
    keras.utils.set_random_seed(0)
    model, processor = deit_tf.create_model(NAME), deit_tf.ImageProcessor(224)
    files = {f"LiteRT, {variant}": folder / f"{variant}.tflite" for variant in VARIANTS}
    for variant, file in zip(VARIANTS, files.values(), strict=True):
        file.write_bytes(
            converted(model, variant, "float32", processor, photographs(processor)[:8])
        )
    return files


def measure(files: dict[str, Path], threads: int, options: argparse.Namespace) -> dict[str, dict]:
    """Milliseconds by contender, the best and the median; or why it could not run."""
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    spec = argparse.Namespace(
        threads=threads,
        python={peers.OURS: sys.executable, "timm": options.torch_python},
    )
    found = {
        name: FileContender(name, load_tflite(file, threads), images)
        for name, file in files.items()
    }
    asked = [each for each in PEERS if each.library not in options.skip]
    found |= {each.name: peers.Worker(each, "inference", 1, spec) for each in asked}

    running = [each for each in found.values() if not each.error]
    for turn in range(options.rounds):
        first = turn % len(running)  # nobody is always first
        for contender in running[first:] + running[:first]:
            time.sleep(peers.REST)
            contender.turn(options.steps)
    for contender in found.values():
        contender.close()

    return {name: figures(contender) for name, contender in found.items()}


def figures(contender: FileContender | peers.Worker) -> dict:
    """What a contender took, or why it could not run; processor time is known of files alone."""
    if contender.error:
        return {"error": contender.error}
    found = {
        "best_ms": 1000 * min(contender.seconds),
        "median_ms": 1000 * statistics.median(contender.seconds),
    }
    if isinstance(contender, FileContender):
        found["processor_ms"] = 1000 * min(contender.processor_seconds)
    return found


def show(rows: dict[str, dict], threads: int, processor: str) -> None:
    """Print the milliseconds of one number of threads."""
    table = Table(
        "contender",
        "best, ms",
        "median, ms",
        "processor time, ms",
        title=f"one picture, {threads} thread(s), {processor}",
    )
    for name, row in rows.items():
        if row.get("error"):
            table.add_row(name, row["error"])
        else:
            keys = [key for key in ("best_ms", "median_ms", "processor_ms") if key in row]
            table.add_row(name, *(f"{row[key]:.1f}" for key in keys))
    Console(width=120).print(table)


def main() -> None:
    """Make the files, then let everyone take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of each contender")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=10, help="pictures per turn")
    parser.add_argument("--skip", nargs="*", default=[], help="libraries to leave out")
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH")
    torch = os.environ.get("DEIT_TF_TORCH_PYTHON", sys.executable)
    parser.add_argument("--torch-python", default=torch, help="interpreter that has timm")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine here")
    options = parser.parse_args()

    about, report = machine.describe(), {}
    with tempfile.TemporaryDirectory() as folder:
        files = tflite_files(Path(folder))
        files |= {name: Path(path) for name, _, path in (f.partition("=") for f in options.file)}
        for threads in options.threads:
            report[threads] = measure(files, threads, options)
            show(report[threads], threads, about["processor"])
    peers.write({"machine": about, "threads": report}, options.json)


if __name__ == "__main__":
    main()
