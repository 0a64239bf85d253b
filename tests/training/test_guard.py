"""What is no longer finite stops a training."""

import pytest

from deit_tf.training.guard import OVERFLOWS, FiniteGuard


def overflow(guard: FiniteGuard, epochs: int, steps: int) -> None:
    """Every step is skipped; the count of skipped steps begins anew with each epoch."""
    for epoch in range(epochs):
        guard.begin_epoch()
        for step in range(1, steps + 1):
            figures = {"loss": 1.0, "gradient_norm": 0.0, "skipped_steps": float(step)}
            guard.check_step(figures, f"step {step} of epoch {epoch + 1}", 1e-3, "")


@pytest.mark.parametrize("steps", [1, 4, OVERFLOWS, 3 * OVERFLOWS])
def test_overflows_in_a_row_are_counted_over_epochs(steps):
    with pytest.raises(FloatingPointError, match=f"{OVERFLOWS} steps overflowed at step"):
        overflow(FiniteGuard("mixed_float16"), OVERFLOWS, steps)


def test_a_step_that_counts_ends_the_row():
    guard = FiniteGuard("mixed_float16")
    for _ in range(3):
        overflow(guard, 1, OVERFLOWS - 1)
        figures = {"loss": 1.0, "gradient_norm": 1.0, "skipped_steps": OVERFLOWS - 1.0}
        guard.check_step(figures, "the last step", 1e-3, "")
