"""Trains what a plan names, each run once: killed, it goes on at the run and the step."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from deit_tf.config import TrainConfig
from deit_tf.data import open_sources
from deit_tf.data.folders import find_splits, scan
from deit_tf.distillation.make_labels import make_labels
from deit_tf.files import read_json, write_json
from deit_tf.runs import RunFolder
from deit_tf.train import train, train_teacher
from evidence.plan import Arm, Plan

log = logging.getLogger(__name__)

TEACHER_KINDS = {"teacher": train_teacher, "student": train}  # `train` of a plan's teacher
CHOSEN = "learning-rate.json"
PATIENCE = 20  # seconds between looks at what another process trains


@dataclass(frozen=True)
class Workshop:
    """A plan, and the folder where it is carried out.

    Args:
        plan: What is run.
        source: The images, as of `data.source`.
        out: Everything that is made lies here.
    """

    plan: Plan
    source: str
    out: Path

    def run_folder(self, seed: int, arm: Arm) -> Path:
        """Where a run lies."""
        return self.out / "runs" / f"{arm.name}-{seed}"

    def teacher_folder(self, name: str) -> Path:
        """Where a teacher's run lies."""
        return self.out / "teachers" / name

    def label_folder(self, seed: int, teacher: str) -> Path:
        """Where the labels of a teacher for a seed's stream lie."""
        return self.out / "labels" / f"{teacher}-{seed}"

    def run_config(self, seed: int, arm: Arm) -> TrainConfig:
        """The config of a run, its learning rate chosen already."""
        settings = {"seed": seed, "optim": {"lr": self.chosen_rate()}}
        config = self.plan.config(arm.settings, settings)
        config = replace(
            config,
            data=replace(config.data, source=self.source),
            out=str(self.run_folder(seed, arm)),
        )
        if arm.teacher is None:
            return config

        distill = replace(
            config.distill,
            teacher=str(self.teacher_folder(arm.teacher)),
            labels=str(self.label_folder(seed, arm.teacher)),
        )
        return replace(config, distill=distill)

    # The learning rate, once

    def chosen_rate(self) -> float:
        """The learning rate of all runs.

        Raises:
            FileNotFoundError: If it is not chosen yet.
        """
        return read_json(self.out / CHOSEN, keys=("chosen",))["chosen"]

    def choose_rate(self) -> dict[str, Any]:
        """Train the arm without teacher at each candidate; the best on the held-out images wins."""
        file = self.out / CHOSEN
        if file.is_file():
            return read_json(file)

        accuracies = {}
        for lr, config in self.plan.search_configs().items():
            place = self.out / "learning-rate" / f"{lr:g}"
            config = replace(config, data=replace(config.data, source=self.source), out=str(place))
            failure = finish(config)
            accuracies[lr] = 0.0 if failure else final_accuracy(place)

        search = self.plan.learning_rate
        result = {
            "candidates": {f"{lr:g}": accuracy for lr, accuracy in accuracies.items()},
            "seed": search["seed"],
            "epochs": search["epochs"],
            "chosen": max(accuracies, key=accuracies.get),
        }
        write_json(result, file)
        return result

    # Teachers and their labels

    def train_teacher(self, name: str) -> Path:
        """Train a teacher of the plan, on the same images."""
        settings = dict(self.plan.teachers[name])
        kind = settings.pop("train")
        settings.pop("title")
        folder = self.teacher_folder(name)
        config = self.plan.config(settings)
        config = replace(config, data=replace(config.data, source=self.source), out=str(folder))
        if failure := finish(config, TEACHER_KINDS[kind]):
            raise RuntimeError(f"Teacher {name} failed: {failure}")
        return folder

    def make_labels(self, seed: int, arm: Arm) -> None:
        """Run the teacher once over a seed's stream; all arms of that teacher and seed read it."""
        config = self.run_config(seed, arm)
        folder = Path(config.distill.labels)
        classes = len(open_sources(config.data)[0].class_names)
        whole = replace(config.distill, kind="soft", top_k=classes - 1, labels=None)
        make_labels(replace(config, distill=whole), folder, range(config.epochs))
        keras.backend.clear_session()

    def train(self, seed: int, arm: Arm) -> str | None:
        """Train a run to its end; returns why it failed, if it did."""
        config = self.run_config(seed, arm)
        if arm.teacher is not None and not is_finished(config):
            self.make_labels(seed, arm)
        return finish(config)


def finish(config: TrainConfig, how=train) -> str | None:
    """Train to the end what is not finished; returns why it diverged, if it did.

    What another shard is training already, such as the teacher of both, is waited for.
    """
    while not is_finished(config):
        log.info("Training %s", config.out)
        try:
            how(config)
        except BlockingIOError as error:
            log.info("%s", error)
            time.sleep(PATIENCE)
        except FloatingPointError as error:
            return str(error)
        finally:
            keras.backend.clear_session()

    return None


def is_finished(config: TrainConfig) -> bool:
    """Whether a run has come to its end."""
    return RunFolder(Path(config.out)).summary.is_file()


def final_accuracy(folder: Path) -> float:
    """What a finished run's model gets right of the held-out images, a share."""
    return RunFolder(folder).read_summary()["evaluation"]["accuracy"]


def curve(folder: Path) -> dict[str, Any]:
    """Held-out accuracy by epoch, and the seconds of training over all its starts."""
    epochs: list[Mapping[str, float]] = RunFolder(folder).read_metrics()
    steps = read_json(RunFolder(folder).facts)["steps_per_epoch"]
    seconds = sum(steps / epoch["steps_per_second"] for epoch in epochs)
    return {
        "curve": [round(epoch["val_accuracy"], 4) for epoch in epochs],
        "training_seconds": round(seconds, 1),
    }


def choose_images(source: str, per_class: int | None, out: Path) -> str:
    """The images that a plan trains on, as links: the first of each class by name.

    Args:
        source: A folder with one to train on and one to evaluate on; or `digits`.
        per_class: How many of each class to train on; None takes `source` as it is.
        out: Where the folder of links is made.
    Returns:
        What `data.source` takes.
    Raises:
        ValueError: If a class has fewer, or nothing is held out.
    """
    if per_class is None:
        return source
    folder = out / "images"
    if folder.is_dir():
        return str(folder)

    training, held_out = find_splits(Path(source))
    if held_out is None:
        raise ValueError(f"{source} needs a folder to evaluate on beside the one to train on.")
    making = out / ".images.partial"
    for name, files in scan(training).items():
        if len(files) < per_class:
            raise ValueError(f"{training / name} has {len(files)} images, not {per_class}.")
        place = making / "train" / name
        place.mkdir(parents=True, exist_ok=True)
        for file in map(Path, files[:per_class]):
            (place / file.name).unlink(missing_ok=True)
            os.symlink(file.resolve(), place / file.name)

    (making / "val").unlink(missing_ok=True)
    os.symlink(held_out.resolve(), making / "val")
    making.rename(folder)
    return str(folder)
