"""A run that goes on to more epochs than it was begun with, finished or stopped.

Its learning rate is then that of a run of all the epochs from the start, at the step where it is.
Source: timm train.py, `--resume` with more `--epochs`.
Differs: the original's main.py resumes its schedule too, which stays at the end that it had.
"""

import logging
from typing import Any

from deit_tf.config import TrainConfig
from deit_tf.files import read_json
from deit_tf.runs.folder import RunFolder
from deit_tf.training.best import BestEpochs
from deit_tf.training.checkpoints import Checkpoints
from deit_tf.training.optim import build_schedule

log = logging.getLogger(__name__)

EXTENDED = "extended"  # of facts.json: what each end so far came to


def ends_so_far(folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """The facts about the ends that a run came to before it goes on: `epochs` and
    `training_seconds` of each; none of a run that was not finished.
    """
    ends = read_json(folder.facts).get(EXTENDED, [])
    if folder.summary.is_file():
        last = folder.read_summary()
        ends = [*ends, {name: last[name] for name in ("epochs", "training_seconds")}]
    return {EXTENDED: ends} if ends else {}


def check_extension(folder: RunFolder, config: TrainConfig, begun: TrainConfig) -> None:
    """Check that a run is to have more epochs than it has.

    Args:
        folder: The run.
        config: What it is to be.
        begun: What it was begun as.
    Raises:
        ValueError: If it is not.
    """
    trained = folder.read_summary()["epochs"] if folder.summary.is_file() else 0
    if config.epochs < begun.epochs or config.epochs <= trained:
        raise ValueError(
            f"--extend goes on to more epochs than the {trained} that {folder.path} has, and to no "
            f"fewer than the {begun.epochs} it was begun with. Received: epochs={config.epochs}"
        )


def check_patience(folder: RunFolder, best: BestEpochs) -> None:
    """Check that a run that is extended would not stop early at once.

    Raises:
        ValueError: If it would.
    """
    if not folder.summary.is_file():
        return
    summary = folder.read_summary()
    trained, best_epoch = summary["epochs"], summary.get("best_epoch")
    if best.are_over(trained, best_epoch):
        raise ValueError(
            f"`checkpoint.patience` must exceed {trained - best_epoch}, or be null: nothing better "
            f"came in {folder.path} in the {trained - best_epoch} epochs after epoch {best_epoch}, "
            f"so that it would stop at once. Received: {best.patience}"
        )


def say_schedule(
    folder: RunFolder, config: TrainConfig, epochs_before: int, steps_per_epoch: int
) -> None:
    """Say how the learning rate goes on where a run is extended from as many epochs."""
    steps = Checkpoints(folder.checkpoints, keep=1, writes=False).last_step()
    then, now = (
        build_schedule(config.optim, config.data.batch_size, steps_per_epoch, epochs)
        for epochs in (epochs_before, config.epochs)
    )
    log.info(
        "Extended from %d to %d epochs: the learning rate is from step %d on that of a run of %d "
        "epochs, %.3g there instead of %.3g.",
        epochs_before,
        config.epochs,
        steps,
        config.epochs,
        float(now(steps)),
        float(then(steps)),
    )
