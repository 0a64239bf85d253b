"""Which epochs of a run are the best, and when it is over although there are epochs left."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

import keras

from deit_tf.training.ema import AVERAGE
from deit_tf.training.metrics import HELD_OUT
from deit_tf.training.trainer import Trainer

LESS_IS_BETTER = "loss"  # at the end of a figure's name


@dataclass(frozen=True)
class BestEpochs:
    """How the epochs of a run are ranked.

    Args:
        monitor: The figure of the evaluation that decides, such as `accuracy` or `ema_loss`.
        patience: Epochs in a row without a better one, after which the run is over; None for never.
        keep: How many of the best epochs keep their models.
    """

    monitor: str
    patience: int | None = None
    keep: int = 1

    @property
    def is_of_average(self) -> bool:
        """Whether the moving average is what is ranked, and not the weights."""
        return self.monitor.startswith(AVERAGE)

    def score(self, figures: dict[str, float]) -> float:
        """The figure that decides, signed so that more is better."""
        return self._signed(figures[f"{HELD_OUT}{self.monitor}"])

    def figure(self, score: float) -> float:
        """The figure of a score."""
        return self._signed(score)

    def are_over(self, epochs: int, best_epoch: int | None) -> bool:
        """Whether nothing better came for `patience` epochs.

        Args:
            epochs: Epochs so far.
            best_epoch: The number of the best, from 1; None before the first.
        """
        if self.patience is None or best_epoch is None:
            return False
        return epochs - best_epoch >= self.patience

    def kept(self, epochs: Iterable[dict[str, float]]) -> list[int]:
        """The numbers of the epochs whose models stay, the best first; of equals the earlier."""
        known = [each for each in epochs if f"{HELD_OUT}{self.monitor}" in each]
        ranked = sorted(known, key=lambda each: (-self.score(each), each["epoch"]))
        return [int(each["epoch"]) for each in ranked[: self.keep]]

    def _signed(self, number: float) -> float:
        return -number if self.monitor.endswith(LESS_IS_BETTER) else number


class BestModels(Protocol):
    """The files of the models of a run's best epochs."""

    def write_best(self, network: keras.Model) -> None:
        """Write the model of the best epoch so far."""

    def write_epoch(self, network: keras.Model, epoch: int) -> None:
        """Write the model of an epoch that is among the best."""

    def keep(self, epochs: Collection[int]) -> None:
        """Remove the models of all epochs but these."""


def monitored(monitor: str | None, trainer: Trainer) -> str:
    """The figure that decides which epoch is the best.

    Args:
        monitor: Its name; None takes the accuracy, and the loss where there is none.
        trainer: Compiled; its evaluation gives the figures.
    Raises:
        ValueError: If the evaluation gives no such figure.
    """
    names = _evaluated(trainer)
    if monitor is None:
        return "accuracy" if "accuracy" in names else "loss"
    if monitor not in names:
        remedy = "" if trainer.ema else f"; `{AVERAGE}...` with `optim.ema_decay`"
        raise ValueError(
            f"`checkpoint.monitor` is a figure of this run's evaluation: {', '.join(names)}"
            f"{remedy}. Received: {monitor}"
        )
    return monitor


def _evaluated(trainer: Trainer) -> list[str]:
    """The names of the figures that an evaluation gives."""
    with trainer.evaluation():
        names = [metric.name for metric in trainer.metrics]
    averages = [f"{AVERAGE}{name}" for name in names] if trainer.ema else []
    return sorted(names) + sorted(averages)
