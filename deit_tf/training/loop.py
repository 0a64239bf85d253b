"""The loop over epochs: steps, evaluation, figures, checkpoints; it starts wherever the last
checkpoint stands.

Keras's own `fit` runs the same `train_step`, but goes on neither in the middle of an epoch nor on
several machines.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from deit_tf.training.checkpoints import Checkpoints, Position
from deit_tf.training.metrics import Curves
from deit_tf.training.replicas import distribute, is_chief, meet
from deit_tf.training.trainer import Trainer

log = logging.getLogger(__name__)

OVERFLOWS = 20  # steps in a row that float16 may skip
# What the workers of a cluster see where one of them is gone.
_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


@dataclass(frozen=True)
class Loop:
    """One training from its first step to its last.

    Args:
        trainer: Compiled, its optimizer built.
        batches: Gives the global batches of the whole run from a step on.
        evaluation: Global batches with weights, all full.
        epochs: Epochs of the run.
        steps: Steps of an epoch.
        batch_size: Images of a global batch.
        strategy: Where it runs; the trainer was made in its scope.
        checkpoints: Where the state is kept.
        every_steps: Steps between checkpoints within an epoch; None keeps them to the epochs.
        curves: Where figures go.
        on_best: Called where an evaluation is the best so far.
        xla: Whether XLA compiles the step.
        precision: Its name, for messages.
    """

    trainer: Trainer
    batches: Callable[[int], tf.data.Dataset]
    evaluation: tf.data.Dataset
    epochs: int
    steps: int
    batch_size: int
    strategy: tf.distribute.Strategy
    checkpoints: Checkpoints
    every_steps: int | None
    curves: Curves
    on_best: Callable[[], None]
    xla: bool
    precision: str

    def run(self) -> None:
        """Train to the end.

        Raises:
            FloatingPointError: If the loss or the gradient is no longer finite.
            ConnectionError: If a worker of the cluster is gone.
            OSError: If a checkpoint cannot be written.
            ValueError: If the workers do not share one folder of checkpoints.
        """
        variables = variables_of(self.trainer)
        position = self.checkpoints.restore(variables) or Position()
        first = position.epoch * self.steps + position.step
        if meet(self.strategy, first) != first:
            raise ValueError(
                "`out` must be one folder that all workers share: here a run would go on at "
                f"step {first}, and with others elsewhere."
            )
        self.curves.keep(position.epoch)
        train = _function(self.strategy, self.trainer.train_step, self.xla)
        judges = {"val_": self.trainer}
        if self.trainer.ema:
            judges["val_ema_"] = self.trainer.over(self.trainer.ema.network)
            judges["val_ema_"].compile()
        evaluate = {
            prefix: (judge, _function(self.strategy, judge.test_step))
            for prefix, judge in judges.items()
        }
        with self._told(first) as step_of_run:
            iterator = iter(distribute(self.batches(first), self.strategy))
            while position.epoch < self.epochs:
                figures = self._train_epoch(train, iterator, position, variables, step_of_run)
                for prefix, (judge, function) in evaluate.items():
                    figures |= {
                        f"{prefix}{name}": value
                        for name, value in self._evaluate(judge, function).items()
                    }
                position = self._end_epoch(figures, position, variables)

    def _train_epoch(
        self, train, iterator, position: Position, variables, step_of_run
    ) -> dict[str, float]:
        """The steps that `position` leaves of its epoch."""
        log.info("Epoch %d of %d", position.epoch + 1, self.epochs)
        progress = keras.utils.Progbar(
            self.steps, verbose=_verbosity(self.strategy), unit_name="step"
        )
        self.trainer.reset_metrics()
        guard = _Guard(self, position)
        started, waited = time.perf_counter(), 0.0
        for step in range(position.step + 1, self.steps + 1):
            asked = time.perf_counter()
            batch = next(iterator)
            waited += time.perf_counter() - asked
            step_of_run[0] = position.epoch * self.steps + step
            seen = train(batch)
            seen = {name: float(value) for name, value in seen.items()}
            guard.check(seen, step)
            progress.update(step, seen.items(), finalize=False)
            if self.every_steps and step_of_run[0] % self.every_steps == 0 and step < self.steps:
                self.checkpoints.write(
                    variables,
                    replace(position, step=step, figures=self._figures(position, step)),
                    step_of_run[0],
                )
        seconds = time.perf_counter() - started
        figures = self._figures(position, self.steps)
        progress.update(self.steps, figures.items(), finalize=True)
        rate = (self.steps - position.step) / seconds
        return figures | {
            "learning_rate": float(self.trainer.optimizer.learning_rate),
            "steps_per_second": round(rate, 3),
            "images_per_second": round(rate * self.batch_size, 1),
            "data_wait_seconds": round(waited, 3),
        }

    def _figures(self, position: Position, step: int) -> dict[str, float]:
        """Means over the epoch up to `step`, with what they were at `position`, where the run went
        on.
        """
        now = _floats(self.trainer.get_metrics_result())
        if not position.figures:
            return now
        done = position.step / step
        both = {
            name: done * value + (1 - done) * now[name] for name, value in position.figures.items()
        }
        if "skipped_steps" in now:
            both["skipped_steps"] = position.figures["skipped_steps"] + now["skipped_steps"]
        return both

    def _evaluate(self, judge: Trainer, function) -> dict[str, float]:
        with judge.evaluation():
            judge.reset_metrics()
            for batch in distribute(self.evaluation, self.strategy):
                function(batch)
            return _floats(judge.get_metrics_result())

    def _end_epoch(self, figures: dict[str, float], position: Position, variables) -> Position:
        """Write what an epoch gave; returns where the next one begins."""
        epoch = position.epoch + 1
        if not math.isfinite(figures["val_loss"]):
            raise FloatingPointError(
                f"The held-out loss is {figures['val_loss']} after epoch {epoch} in "
                f"{self.precision}, though that of training is finite. {_REMEDY} The last "
                "checkpoint is from before this epoch's end."
            )
        score = figures.get("val_accuracy", -figures["val_loss"])
        following = Position(epoch, best=position.best, best_step=position.best_step)
        if position.best is None or score > position.best:
            following = replace(following, best=score, best_step=epoch * self.steps)
            self.on_best()
        self.curves.write(epoch, figures)
        told = [
            name
            for name in figures
            if name.endswith(("val_loss", "val_accuracy", "ema_loss", "ema_accuracy"))
        ]
        log.info(
            "Held out: %s",
            ", ".join(f"{name[4:].replace('_', ' ')} {figures[name]:.4f}" for name in told),
        )
        self.checkpoints.write(variables, following, epoch * self.steps)
        return following

    @contextmanager
    def _told(self, first: int) -> Iterator[list[int]]:
        """Say in one sentence that a worker is gone; gives a place for the step of the run."""
        step = [first]
        try:
            yield step
        except _GONE as error:
            if self.strategy.cluster_resolver is None:
                raise
            raise ConnectionError(
                f"A worker of the cluster is gone at step {step[0]}. Run the same command again "
                "on all workers: the training goes on from its last checkpoint."
            ) from error


_REMEDY = (
    "Lower `optim.lr`, lengthen `optim.warmup_epochs`, set `optim.clip_norm` (1.0, say), or "
    "train in float32."
)


class _Guard:
    """Stops a run whose numbers are no longer finite, before a checkpoint is written."""

    def __init__(self, loop: Loop, position: Position):
        self.loop, self.position, self.skipped, self.streak = loop, position, 0.0, 0

    def check(self, seen: dict[str, float], step: int) -> None:
        """Raise a FloatingPointError if the step went wrong."""
        self.streak = self.streak + 1 if seen.get("skipped_steps", 0) > self.skipped else 0
        self.skipped = seen.get("skipped_steps", 0)
        wrong = [name for name in ("loss", "gradient_norm") if not math.isfinite(seen[name])]
        if not wrong and self.streak < OVERFLOWS:
            return
        loop = self.loop
        what = (
            f"The {wrong[0].replace('_', ' ')} is {seen[wrong[0]]}"
            if wrong
            else f"{OVERFLOWS} steps overflowed"
        )
        raise FloatingPointError(
            f"{what} at step {step} of epoch {self.position.epoch + 1}, at learning rate "
            f"{float(loop.trainer.optimizer.learning_rate):.3g} in {loop.precision}. {_REMEDY} "
            + (
                f"The last good checkpoint is {files[-1]}."
                if (files := loop.checkpoints.files())
                else ""
            )
        )


def variables_of(trainer: Trainer) -> dict[str, keras.Variable]:
    """Everything that a step changes, by group and number: Keras's own names change from run to run
    in one process.
    """
    groups = {"network": trainer.network.weights, "optimizer": trainer.optimizer.variables}
    if trainer.ema:
        groups["ema"] = trainer.ema.network.weights
    return {
        f"{group}/{i:04d}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }


def _function(strategy: tf.distribute.Strategy, step, xla: bool = False):
    """A step over a global batch; returns the figures of this process's first replica."""

    def of_batch(batch):
        figures = strategy.run(step, (batch,))
        return {
            name: strategy.experimental_local_results(value)[0] for name, value in figures.items()
        }

    return tf.function(of_batch, jit_compile=xla or None, autograph=False)


def _floats(figures: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}


def _verbosity(strategy: tf.distribute.Strategy) -> int:
    """Of Keras: 1 draws a bar, 2 writes a line per epoch, 0 nothing."""
    if not is_chief(strategy):
        return 0
    return 1 if sys.stdout.isatty() else 2
