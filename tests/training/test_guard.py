"""What is no longer finite stops a training."""

import math

import pytest

from deit_tf.training.guard import OVERFLOWS, FiniteGuard


def overflow(guard: FiniteGuard, epochs: int, steps: int) -> list[str]:
    """Every step is skipped; the count of skipped steps begins anew with each epoch."""
    faults = []
    for _ in range(epochs):
        guard.begin_epoch()
        for step in range(1, steps + 1):
            figures = {"loss": 1.0, "gradient_norm": 0.0, "skipped_steps": float(step)}
            faults.append(guard.fault(figures))
    return faults


@pytest.mark.parametrize("steps", [1, 4, OVERFLOWS, 3 * OVERFLOWS])
def test_overflows_in_a_row_are_counted_over_epochs(steps):
    faults = overflow(FiniteGuard(), OVERFLOWS, steps)
    first = faults.index(f"{OVERFLOWS} steps overflowed")
    assert first == OVERFLOWS - 1 and not any(faults[:first])


def test_a_step_that_counts_ends_the_row():
    guard = FiniteGuard()
    for _ in range(3):
        assert not any(overflow(guard, 1, OVERFLOWS - 1))
        figures = {"loss": 1.0, "gradient_norm": 1.0, "skipped_steps": OVERFLOWS - 1.0}
        assert guard.fault(figures) == ""


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_named(name, value):
    figures = {"loss": 1.0, "gradient_norm": 1.0} | {name: value}
    assert FiniteGuard().fault(figures) == f"The {name.replace('_', ' ')} is {value}"
