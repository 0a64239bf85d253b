"""What a large folder of images costs before the first step: seconds and memory to open it the
first time and again, to the first batch, and to the first batch at the last step of an epoch.

The folder is made of hard links to twenty small photographs, in a thousand class folders; opening
checks that each of them decodes. Every phase is a process of its own. Seconds are of the processor
(both cores together), as those of a clock depend on what else runs; the clock's stand beside them.

    python benchmarks/open_folder.py --images 1281167 --folder links --json open_folder.json
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

PICTURES, CLASSES, PICTURE_SIZE = 20, 1000, (64, 48)  # width, height
BATCH, SIDE = 64, 32
PHASES = (
    "open the first time",
    "open again",
    "first batch",
    "first batch at the last step of epoch 1",
)


def make_folder(folder: Path, images: int) -> None:
    """Hard links in class folders below `train/`, and a picture of each class in `val/`."""
    from sklearn.datasets import load_sample_images

    originals, photos = folder / "originals", load_sample_images().images
    originals.mkdir(parents=True)
    for i in range(PICTURES):
        photo = Image.fromarray(np.roll(photos[i % 2], 37 * i, axis=1))
        photo.resize(PICTURE_SIZE).save(originals / f"{i}.jpg")

    for split, count in (("train", images), ("val", CLASSES)):
        for i in range(count):
            place = folder / split / f"n{i % CLASSES:08d}"
            if i < CLASSES:
                place.mkdir(parents=True)
            # a name like ImageNet's, which no two classes share
            os.link(originals / f"{i % PICTURES}.jpg", place / f"n{i % CLASSES:08d}_{i}.JPEG")
    (folder / "images").write_text(str(images))


def run_phase(folder: str, phase: int) -> dict[str, float]:
    """One phase in this process: seconds and memory beyond what imports take."""
    from deit_tf.config import AugmentConfig, DataConfig
    from deit_tf.data import ImageProcessor, open_sources, train_dataset

    # What is to be checked is part of opening, which the first two phases measure.
    data, augment = DataConfig(folder, batch_size=BATCH, verify=phase < 2), AugmentConfig("light")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock, processor = time.perf_counter(), time.process_time()
    training, _ = open_sources(data)

    if phase >= 2:
        clock, processor = time.perf_counter(), time.process_time()  # opening stands above
        first_step = 0 if phase == 2 else training.size // BATCH - 1
        batches = train_dataset(
            training, data, augment, ImageProcessor(SIDE), epochs=1, first_step=first_step
        )
        next(iter(batches))

    return {
        "seconds": time.process_time() - processor,
        "clock_seconds": time.perf_counter() - clock,
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def measure(folder: Path, cache: str, phases: list[int]) -> dict[str, dict[str, float]]:
    """These phases, one after the other."""
    results = {}
    for phase in phases:
        command = [sys.executable, __file__, "--folder", str(folder), "--phase", str(phase)]
        done = subprocess.run(
            command,
            env={**os.environ, "DEIT_TF_CACHE": cache},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        results[PHASES[phase]] = json.loads(done.stdout.splitlines()[-1])
    return results


def show(results: dict[str, dict[str, float]], title: str) -> None:
    """Print the table."""
    table = Table("", "seconds of the processor", "of the clock", "memory, MB", title=title)
    for name, row in results.items():
        figures = (row["seconds"], row["clock_seconds"], row["memory_mb"])
        table.add_row(name, *(f"{figure:,.1f}" for figure in figures))
    Console().print(table)


def main() -> None:
    """Make the folder where it is not there, measure, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/links"))
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    parser.add_argument(
        "--phases", type=int, nargs="+", default=[0, 1, 2, 3], help="0 to 3, by default all"
    )
    parser.add_argument("--phase", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase is not None:
        print(json.dumps(run_phase(str(args.folder), args.phase)))
        return

    if not (args.folder / "images").exists():
        make_folder(args.folder, args.images)
    made = int((args.folder / "images").read_text())
    if made != args.images:
        sys.exit(f"{args.folder} has {made} images; remove it, or choose another --folder.")

    with tempfile.TemporaryDirectory() as cache:
        results = measure(args.folder, cache, args.phases)
    show(results, f"{args.images:,} images; {os.cpu_count()} cores")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
