"""A learning-rate range test (Smith 2017, "Cyclical learning rates for training neural networks",
section 3.3): a few steps of a run while the learning rate rises, to see where it learns fastest.

It writes a plot and its numbers, and touches no run.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from rich.progress import track

from deit_tf.config import TrainConfig, check_config
from deit_tf.data import open_sources, steps_per_epoch
from deit_tf.data.order import WHOLE
from deit_tf.data.unreadable import naming_unreadable
from deit_tf.evaluation.figures import COLORS, new_figure
from deit_tf.files import write_text
from deit_tf.runs import shaped_as_weights
from deit_tf.tasks import TASKS, Task
from deit_tf.train import compile_trainer
from deit_tf.training.optim import scaled_lr
from deit_tf.training.precision import dtype_policy

SMOOTHING = 0.9  # what the mean of the losses keeps of itself at each step
DIVERGED = 4.0  # times the least smoothed loss, where the test ends
SETTLING = 0.1  # of the steps, at first, from which nothing is suggested


@dataclass(frozen=True)
class LrRange:
    """What a range test saw, a number per step that was made.

    Args:
        lr: In the units of `optim.lr`, rising.
        learning_rate: What the optimizer got.
        loss: Of each step's batch, nats.
        smoothed: Its running mean, nats.
        steps: Steps that were asked for; fewer were made where the loss blew up.
    """

    lr: np.ndarray
    learning_rate: np.ndarray
    loss: np.ndarray
    smoothed: np.ndarray
    steps: int

    @property
    def diverged(self) -> bool:
        """Whether the loss blew up before the last step."""
        return len(self.lr) < self.steps

    @property
    def lowest(self) -> int:
        """The step of the least smoothed loss."""
        return int(np.nanargmin(self.smoothed))

    @property
    def steepest(self) -> float | None:
        """The lr at which the smoothed loss falls fastest, per factor of the lr; None where it
        falls nowhere.
        """
        first, last = math.ceil(SETTLING * self.steps), self.lowest + 1
        if last - first < 2:
            return None
        slope = np.gradient(self.smoothed[:last], np.log(self.lr[:last]))[first:]
        return float(self.lr[first + slope.argmin()]) if slope.min() < 0 else None

    @property
    def tenth(self) -> float:
        """A tenth of the lr of the least smoothed loss."""
        return float(self.lr[self.lowest] / 10)


class ExponentialRise(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises from `low` at step 0 to `high` at the last, by a factor a step."""

    def __init__(self, low: float, high: float, steps: int):
        self.low, self.high, self.steps = low, high, steps

    def __call__(self, step):
        """The rate of a step, a number or a tensor."""
        share = ops.cast(step, "float32") / (self.steps - 1)
        return self.low * ops.exp(share * math.log(self.high / self.low))


def find_lr(
    config: TrainConfig, file: str, *, low: float = 1e-6, high: float = 10.0, steps: int = 100
) -> LrRange:
    """Train a run's model for a few steps, on one device, while the learning rate rises.

    Data, augmentation, model, teacher, batch and optimizer are the run's; its schedule is not. The
    same config gives the same numbers again.

    Args:
        config: The run; what lies in its `out` is left alone.
        file: The plot, ending in `.png`; the numbers lie beside it as JSON lines.
        low: First lr, in the units of `optim.lr`.
        high: Last lr.
        steps: Steps, 10 at least; the test ends before where the smoothed loss is DIVERGED times
            its least, or not finite.
    Returns:
        What it saw.
    Raises:
        ValueError: For another ending, or a range that does not rise; else, as FileNotFoundError,
            as of training.
        FloatingPointError: If the loss of the first step is not finite; nothing is written then.
    """
    path = Path(file)
    _check(path, low, high, steps)
    several = config.task == "multilabel"
    config = shaped_as_weights(replace(config, augment=config.augment.resolve(several)))
    check_config(config)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()

    sources = open_sources(config.data)
    of_epoch = steps_per_epoch(sources[0], config.data.batch_size)
    config = replace(config, epochs=-(-steps // of_epoch))
    ends = [_learning_rate(config, lr) for lr in (low, high)]

    with naming_unreadable(*sources), dtype_policy(config.precision):
        keras.utils.set_random_seed(config.seed)
        task = TASKS[config.task](config, sources)
        compile_trainer(task, config, sources[0].size)
        optimizer = task.trainer.optimizer
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        inner.learning_rate = ExponentialRise(*ends, steps)
        losses, smoothed = _train(task, steps)
    if not math.isfinite(losses[0]):
        raise FloatingPointError(
            f"The loss is not finite at the first step, in {config.precision}: look at the data "
            "with `deit-tf preview`, or set `precision` to float32."
        )

    lr = np.geomspace(low, high, steps)[: len(losses)]
    seen = LrRange(lr, lr * (ends[0] / low), np.array(losses), np.array(smoothed), steps)
    _write(seen, path)
    return seen


def _train(task: Task, steps: int) -> tuple[list[float], list[float]]:
    """The loss of each step, and its running mean, until the last step or until it blows up.

    The mean is s_k = b s_(k-1) + (1 - b) loss_k from s_0 = 0, over 1 - b^k, as Adam's moments are.
    """
    step = tf.function(task.trainer.train_step, autograph=False)
    batches = iter(task.batches(0, WHOLE))
    losses: list[float] = []
    smoothed: list[float] = []
    moment = 0.0

    for count in track(range(1, steps + 1), "Raising the learning rate", transient=True):
        task.trainer.reset_metrics()
        losses.append(float(step(next(batches))["loss"]))
        moment = SMOOTHING * moment + (1 - SMOOTHING) * losses[-1]
        smoothed.append(moment / (1 - SMOOTHING**count))
        if not math.isfinite(smoothed[-1]) or smoothed[-1] > DIVERGED * min(smoothed):
            break
    return losses, smoothed


def _learning_rate(config: TrainConfig, lr: float) -> float:
    """What the optimizer of a run gets where `optim.lr` is `lr`."""
    return scaled_lr(replace(config.optim, lr=lr), config.data.batch_size)


def _write(seen: LrRange, path: Path) -> None:
    """The plot, and beside it a JSON object per step; null for what is not finite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(seen.lr, seen.learning_rate, seen.loss, seen.smoothed, strict=True)
    names = ("lr", "learning_rate", "loss", "smoothed")
    lines = []
    for number, row in enumerate(rows, 1):
        figures = {
            name: float(value) if math.isfinite(value) else None
            for name, value in zip(names, row, strict=True)
        }
        lines.append(json.dumps({"step": number, **figures}) + "\n")

    write_text("".join(lines), path.with_suffix(".jsonl"))
    _draw(seen, path)


def _draw(seen: LrRange, file: Path) -> None:
    """Draw the loss of a range test over the learning rate, and what it suggests."""
    least = seen.loss[np.isfinite(seen.loss)].min()
    highest = seen.smoothed[: seen.lowest + 1].max()
    with new_figure(file, 7, 4.5) as figure:
        axes = figure.add_subplot()
        axes.plot(seen.lr, seen.loss, color=COLORS["line"], label="of each batch")
        axes.plot(seen.lr, seen.smoothed, color=COLORS["c0"], label="smoothed")
        if seen.steepest is not None:
            steepest = f"steepest descent, {seen.steepest:.2g}"
            axes.axvline(seen.steepest, color=COLORS["c1"], linestyle="--", label=steepest)
        tenth = f"a tenth of the least loss's, {seen.tenth:.2g}"
        axes.axvline(seen.tenth, color=COLORS["c2"], linestyle=":", label=tenth)

        axes.set(xscale="log", xlabel="optim.lr", ylabel="loss, nats")
        axes.set_ylim(0.9 * least, 1.5 * highest)  # of what blows up the beginning
        axes.set_title("Learning-rate range test" + (", until it blew up" if seen.diverged else ""))
        axes.legend(loc="upper left", edgecolor=COLORS["page"], fontsize=9)


def _check(path: Path, low: float, high: float, steps: int) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"`file` ends in .png. Received: {path}")
    if not 0 < low < high < math.inf:
        raise ValueError(
            "The learning rate rises from `--from`, above 0, to `--to`. Received: "
            f"--from {low} --to {high}"
        )
    if steps < 10:
        raise ValueError(f"`steps` is 10 at least, to see a curve. Received: {steps}")
