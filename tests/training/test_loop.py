"""Figures of an epoch that began before the run was stopped."""

from types import SimpleNamespace

import pytest

from deit_tf.training.checkpoints import Position
from deit_tf.training.loop import Loop


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
