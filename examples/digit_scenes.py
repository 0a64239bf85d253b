"""Pictures with several labels each, to try `--task multilabel` on: handwritten digits, scattered.

    python examples/digit_scenes.py runs/scenes/pictures
    deit-tf train-teacher --config configs/digit_scenes.yaml --out runs/scenes/teacher
    deit-tf train --config configs/digit_scenes.yaml

The digits are scikit-learn's; labels.csv says which a picture shows, none to four of them.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE, CELL, TRAINING = 32, 16, 1437  # pixels; digits of the writers to train on


def scene(scans, targets, rng) -> tuple[np.ndarray, set[int]]:
    """A picture of up to four digits, uint8 [32, 32], and which they are."""
    picture, shown = np.zeros((SIDE, SIDE), np.uint8), set()
    for row, column in np.ndindex(2, 2):
        if rng.random() < 0.5:
            continue
        number = rng.integers(len(scans))
        top, left = CELL * np.array([row, column]) + rng.integers(0, CELL - 8 + 1, 2)
        picture[top : top + 8, left : left + 8] = scans[number] * (255 / 16)
        shown.add(int(targets[number]))
    return picture, shown


def main() -> None:
    """Draw the pictures and write labels.csv."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1200, help="to train on")
    given = parser.parse_args()

    digits, rng = load_digits(), np.random.default_rng(0)
    given.folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": (slice(TRAINING), given.images), "val": (slice(TRAINING, None), 300)}
    rows = [("image", "labels", "split")]
    for split, (part, count) in splits.items():
        for i in range(count):
            picture, shown = scene(digits.images[part], digits.target[part], rng)
            name = f"{split}-{i:04d}.png"
            Image.fromarray(picture).save(given.folder / name)
            rows.append((name, "|".join(map(str, sorted(shown))), split))

    with (given.folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    print(f"{len(rows) - 1} pictures: {given.folder / 'labels.csv'}")


if __name__ == "__main__":
    main()
