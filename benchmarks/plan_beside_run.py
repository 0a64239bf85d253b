"""What `deit-tf plan` says of a training beside what the training then takes: memory and images per
second.

Each is a process of its own: the plan, which takes two steps, then the training, whose second epoch
is timed. The photographs are of scikit-learn, cut into 320 x 240 pixels.

    python benchmarks/plan_beside_run.py --models deit_tiny_distilled_patch16_224 --batch 32
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import machine
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

WIDTH, HEIGHT, CLASSES, HELD_OUT = 320, 240, 4, 8
MODELS = ["deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224"]
PRECISIONS = ["float32", "mixed_bfloat16"]


@dataclass(frozen=True)
class Case:
    """A training: model, precision, images to a batch, steps of an epoch."""

    model: str
    precision: str
    batch: int
    steps: int


def make_folder(folder: Path, images: int) -> None:
    """`images` photographs of four classes below `train/`, and eight of each below `val/`."""
    from sklearn.datasets import load_sample_images

    photos, draw = load_sample_images().images, np.random.default_rng(0)
    for split, count in (("train", images), ("val", CLASSES * HELD_OUT)):
        for i in range(count):
            photo = photos[i % 2]
            top, left = (
                draw.integers(photo.shape[0] - HEIGHT),
                draw.integers(photo.shape[1] - WIDTH),
            )
            place = folder / split / f"class{i % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            cut = photo[top : top + HEIGHT, left : left + WIDTH]
            Image.fromarray(cut).save(place / f"{split}{i}.jpg", quality=90)


def run_config(case: Case, folder: Path):
    """Two epochs of the paper's recipe, without a teacher."""
    from deit_tf.config import DataConfig, DistillConfig, StudentConfig, TrainConfig

    return TrainConfig(
        model=StudentConfig(case.model),
        data=DataConfig(str(folder / "photos"), batch_size=case.batch, verify=False),
        distill=DistillConfig("none", train_heads="both"),
        epochs=2,
        precision=case.precision,
        out=str(folder / "run"),
    )


def plan_once(case: Case, folder: Path) -> dict[str, float]:
    """What the plan says."""
    from deit_tf.planning.plan import plan

    found = plan(run_config(case, folder))
    return {
        "megabytes": found["memory_bytes"] / 1e6,
        "images_per_second": found["images_per_second"],
    }


def train_once(case: Case, folder: Path) -> dict[str, float]:
    """What the training takes, beyond what its imports take."""
    from deit_tf.planning.plan import plan  # noqa: F401  the same imports as of the plan
    from deit_tf.train import train

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train(run_config(case, folder))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "megabytes": used * 1024 / 1e6,
        "images_per_second": json.loads(lines[-1])["images_per_second"],
    }


PHASES = {"plan": plan_once, "training": train_once}


def measure(case: Case) -> dict[str, dict[str, float]]:
    """Both phases, each in a process of its own, one after the other."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder) / "photos", case.batch * case.steps)
        for phase in PHASES:
            chosen = json.dumps([phase, folder, vars(case)])
            command = [sys.executable, __file__, "--one", chosen]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[phase] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(rows: list[dict]) -> None:
    """Print the table; a plan that says too much is off by more than 0 %."""
    table = Table(
        "model", "precision", "memory: plan", "measured", "off", "images/s: plan", "measured", "off"
    )
    for row in rows:
        planned, measured = row["plan"], row["training"]
        cells = []
        for name, unit in (("megabytes", " MB"), ("images_per_second", "")):
            off = planned[name] / measured[name] - 1
            digits = 0 if unit else 1
            cells += [f"{each[name]:,.{digits}f}{unit}" for each in (planned, measured)]
            cells.append(f"{off:+.0%}")
        table.add_row(row["case"]["model"], row["case"]["precision"], *cells)
    Console(width=140).print(table)


def main() -> None:
    """Plan and train each case, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="steps of each of the two epochs")
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        phase, folder, case = json.loads(given.one)
        print(json.dumps(PHASES[phase](Case(**case), Path(folder))))
        return

    print(machine.sentence(machine.describe()))
    rows = []
    for model in given.models:
        for precision in given.precisions:
            case = Case(model, precision, given.batch, given.steps)
            rows.append({"case": vars(case), **measure(case)})
            show(rows[-1:])

    show(rows)
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
