"""A run directory: what training leaves behind, and how it is found again.

config.yaml    the resolved config; `deit-tf train --config RUN/config.yaml` takes it
labels.txt     class names, one per line, by label
student.keras  or teacher.keras: the model
metrics.jsonl  one line per epoch
tensorboard/   the same as curves
summary.json   what the final evaluation gave
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import yaml
from jsonargparse import ArgumentParser

from deit_tf.config import TrainConfig
from deit_tf.data import ImageProcessor, eval_dataset, open_sources
from deit_tf.teachers import Teacher, application_teacher

MODELS = ("student.keras", "teacher.keras")
SAMPLES = 32


@dataclass(frozen=True)
class Run:
    """A trained model with what is needed to feed it.

    Args:
        name: What to call it.
        model: The network, from normalised images to logits.
        processor: What it expects of its images.
        labels: Class names by label; None where nothing tells them.
        config: How it was trained; None for a model file that is not in a run.
    """

    name: str
    model: keras.Model
    processor: ImageProcessor
    labels: tuple[str, ...] | None
    config: TrainConfig | None

    @cached_property
    def samples(self) -> np.ndarray | None:
        """Up to 32 held-out images, float32 [n, H, W, 3], normalised; None where the data is not at hand."""
        if self.config is None:
            return None
        try:
            _, held_out = open_sources(replace(self.config.data, verify=False, batch_size=SAMPLES))
        except (FileNotFoundError, ValueError):
            return None
        images, _ = next(
            eval_dataset(held_out, self.config.data, self.processor).unbatch().batch(SAMPLES).as_numpy_iterator()
        )
        return images


def load_run(path: str | Path) -> Run:
    """Load a run directory, or a `.keras` file, in or outside of one.

    Raises:
        FileNotFoundError: If there is no model at `path`.
    """
    path = Path(path)
    file = next((path / name for name in MODELS if (path / name).is_file()), path) if path.is_dir() else path
    if file.suffix != ".keras" or not file.is_file():
        raise FileNotFoundError(f"{path} is no run directory (with {' or '.join(MODELS)}) and no .keras file.")
    model = keras.saving.load_model(file, compile=False)
    folder = file.parent
    config = read_config(folder / "config.yaml") if (folder / "config.yaml").is_file() else None
    size = model.input_shape[1:3]
    processor = ImageProcessor(size)
    if config:
        processor = ImageProcessor(size, config.data.crop_ratio, config.data.mean, config.data.std)
    labels = (folder / "labels.txt").read_text().splitlines() if (folder / "labels.txt").is_file() else None
    return Run(folder.name if config else file.stem, model, processor, tuple(labels) if labels else None, config)


def load_teacher(name: str, labels: tuple[str, ...]) -> Teacher:
    """Load a frozen teacher as `distill.teacher` names it.

    Args:
        name: A run directory, a `.keras` file that takes the original's normalization, or `keras:NAME`
            for a network of keras.applications with its ImageNet weights.
        labels: The student's classes; a run's are brought into their order.
    Raises:
        FileNotFoundError: If there is no such run or file.
        ValueError: If the teacher does not know all of the student's classes.
    """
    if name.startswith("keras:"):
        return application_teacher(name.removeprefix("keras:"))
    run = load_run(name)
    run.model.trainable = False
    order = None
    if run.labels:
        if unknown := [label for label in labels if label not in run.labels]:
            raise ValueError(f"Teacher {name!r} does not know these classes of the student: {', '.join(unknown[:5])}")
        order = [run.labels.index(label) for label in labels]
    return Teacher(run.model, mean=run.processor.mean, std=run.processor.std, class_order=order, name=name)


def read_config(path: str | Path) -> TrainConfig:
    """Read a config file.

    Raises:
        jsonargparse.ArgumentError: For an unknown key or a value of the wrong type, which it names.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, as_group=False)
    return TrainConfig(**vars(parser.instantiate(parser.parse_path(str(path)))))


def write_config(config: TrainConfig, path: Path) -> None:
    """Write a config file that `--config` takes."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False))


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path of the same ending beside `path`, renamed to it where the block succeeds."""
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class JsonLines(keras.callbacks.Callback):
    """Append the figures of each epoch, and its last learning rate, to a file, one JSON object per line."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        """Write one line."""
        figures = {name: float(value) for name, value in (logs or {}).items()}
        figures["learning_rate"] = float(self.model.optimizer.learning_rate)
        with self.path.open("a") as file:
            file.write(json.dumps({"epoch": epoch + 1, **figures}) + "\n")
