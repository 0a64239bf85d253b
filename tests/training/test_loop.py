"""Figures of steps, looked at now and then, and of an epoch that began before a stop."""

from types import SimpleNamespace

import pytest
import tensorflow as tf

from deit_tf.training.checkpoints import Position
from deit_tf.training.guard import FiniteGuard
from deit_tf.training.loop import Loop
from deit_tf.training.metrics import StepFigures

NAMES = ["gradient_norm", "loss"]


def pending(*losses):
    figures = StepFigures(NAMES)
    for step, loss in enumerate(losses, 1):
        figures.add(step, tf.constant([0.5, loss]))
    return figures


def test_steps_are_looked_at_once_and_in_order():
    figures = pending(4.0, 3.0)
    shown = [(step, row["loss"]) for step, row in figures.fetch()]
    assert shown == [(1, 4.0), (2, 3.0)]
    assert list(figures.fetch()) == []
    figures.add(3, tf.constant([0.5, 2.0]))
    assert list(figures.fetch()) == [(3, {"gradient_norm": 0.5, "loss": 2.0})]


def test_the_step_is_named_where_the_loss_was_first_not_finite():
    loop = SimpleNamespace(
        checkpoints=SimpleNamespace(files=lambda: ["step-1"]),
        _learning_rate=lambda: 1e-3,
        precision="float32",
    )
    nan = float("nan")
    running = SimpleNamespace(guard=FiniteGuard(), pending=pending(4.0, 3.0, nan, nan))
    with pytest.raises(FloatingPointError, match="nan at step 3 of epoch 3, .* is step-1"):
        Loop._check_finite(loop, Position(epoch=2), running)
    running = SimpleNamespace(guard=FiniteGuard(), pending=pending(4.0, 3.0))
    assert Loop._check_finite(loop, Position(), running)["loss"] == 3.0


@pytest.mark.parametrize(
    ("then", "now", "means"),
    [
        ({"loss": 4.0}, {"loss": 2.0}, {"loss": 2.5}),
        ({"loss": 4.0, "distillation_loss": 1.0}, {"loss": 2.0}, {"loss": 2.5}),
        ({"loss": 4.0}, {"loss": 2.0, "skipped_steps": 3.0}, {"loss": 2.5, "skipped_steps": 3.0}),
        ({"skipped_steps": 2.0}, {"skipped_steps": 3.0}, {"skipped_steps": 5.0}),
    ],
)
def test_means_go_on_with_the_figures_that_the_run_has_now(then, now, means):
    """Under `accept_changes` it may have others than before."""
    loop = SimpleNamespace(trainer=SimpleNamespace(get_metrics_result=lambda: now))
    assert Loop._means(loop, Position(epoch=0, step=1, figures=then), step=4) == means
