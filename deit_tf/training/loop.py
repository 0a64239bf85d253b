"""The loop over epochs: steps, evaluation, figures, checkpoints; it goes on from the last of these.

Keras's own `fit` runs the same `train_step`, but goes on neither in the middle of an epoch nor on
several machines.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from deit_tf.training.best import BestEpochs, BestModels, monitored
from deit_tf.training.checkpoints import Checkpoints, Position
from deit_tf.training.ema import AVERAGE
from deit_tf.training.guard import REMEDY, FiniteGuard
from deit_tf.training.interruption import StopRequest, stop_request
from deit_tf.training.metrics import HELD_OUT, EpochFigures, RecentMean, StepFigures
from deit_tf.training.prefetch import on_device
from deit_tf.training.replicas import distribute, is_chief, synchronize
from deit_tf.training.trainer import Trainer

log = logging.getLogger(__name__)

# What the workers of a cluster see where one of them is gone.
_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
Figures = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Args:
        epochs: Epochs that were trained.
        evaluation: Figures of the last evaluation.
        best_epoch: The number of the best epoch.
        best: The figure that made it so.
    """

    epochs: int
    evaluation: Figures
    best_epoch: int | None
    best: float | None


@dataclass(frozen=True)
class Loop:
    """One training from its first step to its last.

    Args:
        trainer: Compiled, its optimizer built.
        batches: Gives this worker's share of the batches of the whole run from a step on.
        evaluation: Its share of those to evaluate on, with weights, all full.
        epochs: Epochs of the run, at most.
        steps: Steps of an epoch.
        batch_size: Images of a global batch.
        strategy: Where it runs; the trainer was made in its scope.
        checkpoints: Where the state is kept.
        every_steps: Steps between checkpoints within an epoch; None keeps them to the epochs.
        log_steps: Steps between looks at the figures, which stay on the device until then.
        figures: Where figures go.
        best: Which epochs are the best, and when it is no use to go on.
        models: The files of their models.
        on_first_batch: Called with what the first replica is fed at the very first step.
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
    log_steps: int
    figures: EpochFigures
    best: BestEpochs
    models: BestModels
    on_first_batch: Callable[[Any], None]
    xla: bool
    precision: str

    def run(self) -> Outcome:
        """Train to the end.

        The first Ctrl-C or SIGTERM writes a checkpoint and stops; a second one stops at once.

        Raises:
            FloatingPointError: If the loss or the gradient is no longer finite.
            ConnectionError: If a worker of the cluster is gone.
            OSError: If a checkpoint cannot be written.
            ValueError: If the workers do not share one folder of checkpoints.
            KeyboardInterrupt, SystemExit: If a signal asked for it.
        """
        variables = variables_of(self.trainer)
        position = self._ranked_alike(self.checkpoints.restore(variables) or Position())
        first = position.epoch * self.steps + position.step
        self._check_shared(first)
        self.figures.keep(position.epoch)

        train = _over_replicas(self.strategy, self.trainer.train_step, self.xla)
        evaluate = self._evaluations()
        running = _Running(variables, FiniteGuard(), StepFigures([]), step=first)

        with self._naming_lost_worker(running), stop_request() as running.stop:
            iterator = iter(self._input(self.batches(first)))
            while not self._is_over(position):
                figures = self._train_epoch(train, iterator, position, running)
                held_out = evaluate()
                position = self._end_epoch(figures | held_out, position, running)

        held_out = position.held_out or evaluate()  # a checkpoint of format 1 does not hold them
        prefix = len(HELD_OUT)
        return Outcome(
            position.epoch,
            {name[prefix:]: figure for name, figure in held_out.items()},
            self._best_epoch(position),
            None if position.best is None else self.best.figure(position.best),
        )

    def _ranked_alike(self, position: Position) -> Position:
        """Without a best epoch where another figure chose it: the two do not compare."""
        before = position.monitor or monitored(None, self.trainer)
        if before != self.best.monitor:
            log.info("The best epoch is chosen anew: by %s, not %s.", self.best.monitor, before)
            position = replace(position, best=None, best_step=None)
        return replace(position, monitor=self.best.monitor)

    def _is_over(self, position: Position) -> bool:
        """Whether the epochs are trained, or nothing better has come for too long."""
        if position.epoch >= self.epochs:
            return True
        if self.best.patience is None:
            return False
        best_epoch = self._best_epoch(position)
        is_over = self.best.are_over(position.epoch, best_epoch)
        # Workers whose last bits differ would wait for each other forever.
        is_over = synchronize(self.strategy, float(is_over)) > 0.5
        if is_over:
            log.info(
                "Stopped early after epoch %d of %d: %s was best in epoch %d, at %.4f.",
                position.epoch,
                self.epochs,
                self.best.monitor,
                best_epoch,
                self.best.figure(position.best),
            )
        return is_over

    def _best_epoch(self, position: Position) -> int | None:
        return None if position.best_step is None else position.best_step // self.steps

    def _train_epoch(self, train, iterator, position: Position, running: "_Running") -> Figures:
        """The steps that `position` leaves of its epoch."""
        log.info("Epoch %d of %d", position.epoch + 1, self.epochs)
        verbosity = _verbosity(self.strategy)
        names = sorted(self.trainer.get_metrics_result())
        progress = keras.utils.Progbar(
            self.steps, verbose=verbosity, stateful_metrics=names, unit_name="step"
        )
        self.trainer.reset_metrics()
        running.guard.begin_epoch()
        running.pending = StepFigures(names)
        recent_loss = RecentMean()

        started, waited = time.perf_counter(), 0.0
        for step in range(position.step + 1, self.steps + 1):
            asked = time.perf_counter()
            batch = next(iterator)
            waited += time.perf_counter() - asked

            running.step = position.epoch * self.steps + step
            if running.step == 1:
                self.on_first_batch(_of_first_replica(batch, self.strategy))
            running.pending.add(step, train(batch))
            if step % self.log_steps == 0 or step == self.steps:
                shown = self._check_finite(position, running)
                progress.update(step, shown.items(), finalize=False)
                recent = {
                    "loss": recent_loss.update(step - position.step, shown["loss"]),
                    "learning_rate": self._learning_rate(),
                }
                self.figures.write_steps(running.step, recent)
            self._write_within(position, step, running)

        seconds = time.perf_counter() - started
        figures = self._means(position, self.steps)
        progress.update(self.steps, figures.items(), finalize=True)
        rate = (self.steps - position.step) / seconds
        return figures | {
            "learning_rate": self._learning_rate(),
            "steps_per_second": round(rate, 3),
            "images_per_second": round(rate * self.batch_size, 1),
            "data_wait_seconds": round(waited, 3),
        }

    def _check_finite(self, position: Position, running: "_Running") -> Figures:
        """Check the steps since the last look; returns the figures of the last of them."""
        figures: Figures = {}
        for step, figures in running.pending.fetch():
            if fault := running.guard.fault(figures):
                files = self.checkpoints.files()
                last = f" The last good checkpoint is {files[-1]}." if files else ""
                raise FloatingPointError(
                    f"{fault} at step {step} of epoch {position.epoch + 1}, at learning rate "
                    f"{self._learning_rate():.3g} in {self.precision}. {REMEDY}{last}"
                )
        return figures

    def _write_within(self, position: Position, step: int, running: "_Running") -> None:
        """Write a checkpoint within an epoch where it is time for one, or a signal asks to stop."""
        due = self.every_steps and running.step % self.every_steps == 0 and step < self.steps
        asked = running.stop.signal is not None and self.strategy.cluster_resolver is None
        if due or asked:
            self._check_finite(position, running)
            now = replace(position, step=step, figures=self._means(position, step))
            self.checkpoints.write(running.variables, now, running.step)
        if running.stop.signal is not None:
            self._stop(position, step, running)

    def _stop(self, position: Position, step: int, running: "_Running") -> None:
        """Leave as a signal asked for; a cluster keeps to the checkpoints that are due."""
        files = self.checkpoints.files()
        last = files[-1].name if files else "none"
        message = (
            f"Stopped at step {step} of {self.steps} of epoch {position.epoch + 1} of "
            f"{self.epochs}; the last checkpoint is {last}. Run the same command again to go on."
        )
        log.warning(message)
        running.stop.raise_as_exit(message)

    def _means(self, position: Position, step: int) -> Figures:
        """Means over the epoch up to `step`, with those at `position`, where the run went on."""
        now = _floats(self.trainer.get_metrics_result())
        if not position.figures:
            return now
        then, done = position.figures, position.step / step
        # A figure that the run did not have before, under a config that was changed, begins here.
        both = {n: done * then.get(n, value) + (1 - done) * value for n, value in now.items()}
        if "skipped_steps" in now:
            both["skipped_steps"] = then.get("skipped_steps", 0.0) + now["skipped_steps"]
        return both

    def _evaluations(self) -> Callable[[], Figures]:
        """What evaluates the network, and its moving average where there is one."""
        trainers = {HELD_OUT: self.trainer}
        if self.trainer.ema:
            average = self.trainer.with_network(self.trainer.ema.network)
            average.compile()
            trainers[f"{HELD_OUT}{AVERAGE}"] = average

        steps = {
            prefix: _over_replicas(self.strategy, trainer.test_step)
            for prefix, trainer in trainers.items()
        }

        def evaluate() -> Figures:
            figures = {}
            for prefix, trainer in trainers.items():
                for name, figure in self._evaluate(trainer, steps[prefix]).items():
                    figures[f"{prefix}{name}"] = figure
            return figures

        return evaluate

    def _evaluate(self, trainer: Trainer, step) -> Figures:
        with trainer.evaluation():
            trainer.reset_metrics()
            for batch in self._input(self.evaluation):
                step(batch)
            return _floats(trainer.get_metrics_result())

    def _end_epoch(self, figures: Figures, position: Position, running: "_Running") -> Position:
        """Write what an epoch gave; returns where the next one begins."""
        epoch = position.epoch + 1
        running.guard.check_held_out(figures["val_loss"], epoch, self.precision)

        held_out = {name: value for name, value in figures.items() if name.startswith(HELD_OUT)}
        following = replace(position, epoch=epoch, step=0, figures=None, held_out=held_out)
        score = self.best.score(figures)
        network = self._ranked_network()
        if position.best is None or score > position.best:
            following = replace(following, best=score, best_step=epoch * self.steps)
            self.models.write_best(network)

        self.figures.write(epoch, figures)
        kept = self.best.kept(self.figures.read())
        if epoch in kept:
            self.models.write_epoch(network, epoch)
        shown = tuple(
            f"{whose}_{figure}"
            for whose in ("val", "ema")
            for figure in ("loss", "accuracy", "f1_samples")
        )
        named = [
            f"{name.removeprefix(HELD_OUT).replace('_', ' ')} {figure:.4f}"
            for name, figure in held_out.items()
            if name.endswith(shown)
        ]
        log.info("Held out: %s", ", ".join(named))
        self.checkpoints.write(running.variables, following, epoch * self.steps)
        self.models.keep(kept)  # the last, so that a run that goes on from before finds them

        return following

    def _ranked_network(self) -> keras.Model:
        return self.trainer.ema.network if self.best.is_of_average else self.trainer.network

    def _input(self, batches: tf.data.Dataset):
        return on_device(distribute(batches, self.strategy), self.strategy)

    def _learning_rate(self) -> float:
        return float(self.trainer.optimizer.learning_rate)

    def _check_shared(self, first: int) -> None:
        """Check that all workers of a cluster go on at the same step."""
        if synchronize(self.strategy, first) != first:
            raise ValueError(
                "`out` must be one folder that all workers share: here a run would go on at "
                f"step {first}, and with others elsewhere."
            )

    @contextmanager
    def _naming_lost_worker(self, running: "_Running") -> Iterator[None]:
        """Say in one sentence that a worker of the cluster is gone."""
        try:
            yield
        except _GONE as error:
            if self.strategy.cluster_resolver is None:
                raise
            raise ConnectionError(
                f"A worker of the cluster is gone at step {running.step}. Run the same command "
                "again on all workers: the training goes on from its last checkpoint."
            ) from error


@dataclass
class _Running:
    """What a running loop carries along.

    Args:
        variables: What a checkpoint holds.
        guard: Watches the figures.
        pending: Figures of the steps that it has not seen yet.
        step: Steps of the whole run so far.
        stop: Whether a signal asks to stop.
    """

    variables: dict[str, keras.Variable]
    guard: FiniteGuard
    pending: StepFigures
    step: int
    stop: StopRequest | None = None


def variables_of(trainer: Trainer) -> dict[str, keras.Variable]:
    """Everything that a step changes, by group and number.

    Keras's own names change from run to run in one process.
    """
    groups = {"network": trainer.network.weights, "optimizer": trainer.optimizer.variables}
    named = {
        f"{group}/{i:04d}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }
    return named | (trainer.ema.variables if trainer.ema else {})


def _over_replicas(strategy: tf.distribute.Strategy, step, xla: bool = False):
    """A step over a global batch; gives the figures so far of this process's first replica, [F] in
    the order of their names: one tensor on the device, for one copy to the host.
    """

    def of_batch(batch):
        figures = strategy.run(step, (batch,))
        mine = [strategy.experimental_local_results(figures[name])[0] for name in sorted(figures)]
        return tf.stack([tf.cast(figure, tf.float32) for figure in mine])

    return tf.function(of_batch, jit_compile=xla or None, autograph=False)


def _of_first_replica(batch, strategy: tf.distribute.Strategy):
    """The share of a batch that this process's first replica gets."""
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], batch)


def _floats(figures: dict[str, Any]) -> Figures:
    return {name: float(value) for name, value in figures.items()}


def _verbosity(strategy: tf.distribute.Strategy) -> int:
    """Of Keras: 1 draws a bar, 2 writes a line per epoch, 0 nothing."""
    if not is_chief(strategy):
        return 0
    return 1 if sys.stdout.isatty() else 2
