"""Stops a training whose numbers are no longer finite, before a checkpoint holds them."""

import math

OVERFLOWS = 20  # steps in a row that float16 may skip
REMEDY = (
    "Lower `optim.lr`, lengthen `optim.warmup_epochs`, set `optim.clip_norm` (1.0, say), or "
    "train in float32."
)


class FiniteGuard:
    """Watches the figures of each step, in order."""

    def __init__(self):
        self._skipped, self._in_a_row = 0.0, 0

    def begin_epoch(self) -> None:
        """Count anew as the figures do; steps skipped in a row go on."""
        self._skipped = 0.0

    def fault(self, figures: dict[str, float]) -> str:
        """What is wrong with the figures of a step; empty where nothing is.

        Args:
            figures: Means so far, `loss` and `gradient_norm` among them.
        """
        skipped = figures.get("skipped_steps", 0.0)
        self._in_a_row = self._in_a_row + 1 if skipped > self._skipped else 0
        self._skipped = skipped

        for name in ("loss", "gradient_norm"):
            if not math.isfinite(figures[name]):
                return f"The {name.replace('_', ' ')} is {figures[name]}"
        return f"{OVERFLOWS} steps overflowed" if self._in_a_row >= OVERFLOWS else ""

    def check_held_out(self, loss: float, epoch: int, precision: str) -> None:
        """Check the held-out loss after an epoch.

        Raises:
            FloatingPointError: If it is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The held-out loss is {loss} after epoch {epoch} in {precision}, though that "
                f"of training is finite. {REMEDY} The last checkpoint is from before this epoch's "
                "end."
            )
