"""Stops a training whose numbers are no longer finite, before a checkpoint holds them."""

import math

OVERFLOWS = 20  # steps in a row that float16 may skip
REMEDY = (
    "Lower `optim.lr`, lengthen `optim.warmup_epochs`, set `optim.clip_norm` (1.0, say), or "
    "train in float32."
)


class FiniteGuard:
    """Watches the figures of each step.

    Args:
        precision: Its name, for messages.
    """

    def __init__(self, precision: str):
        self.precision = precision
        self._skipped, self._in_a_row = 0.0, 0

    def begin_epoch(self) -> None:
        """Count anew as the figures do; steps skipped in a row go on."""
        self._skipped = 0.0

    def check_step(self, figures: dict[str, float], where: str, lr: float, last: str) -> None:
        """Check the figures of a step.

        Args:
            figures: Means so far, `loss` and `gradient_norm` among them.
            where: The step in words.
            lr: Learning rate of the step.
            last: The last good checkpoint in words; empty where there is none.
        Raises:
            FloatingPointError: If one is not finite, or float16 skipped too many steps in a row.
        """
        skipped = figures.get("skipped_steps", 0.0)
        self._in_a_row = self._in_a_row + 1 if skipped > self._skipped else 0
        self._skipped = skipped

        wrong = [name for name in ("loss", "gradient_norm") if not math.isfinite(figures[name])]
        if wrong:
            what = f"The {wrong[0].replace('_', ' ')} is {figures[wrong[0]]}"
        elif self._in_a_row >= OVERFLOWS:
            what = f"{OVERFLOWS} steps overflowed"
        else:
            return

        raise FloatingPointError(
            f"{what} at {where}, at learning rate {lr:.3g} in {self.precision}. {REMEDY} {last}"
        )

    def check_held_out(self, loss: float, epoch: int) -> None:
        """Check the held-out loss after an epoch.

        Raises:
            FloatingPointError: If it is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The held-out loss is {loss} after epoch {epoch} in {self.precision}, though that "
                f"of training is finite. {REMEDY} The last checkpoint is from before this epoch's "
                "end."
            )
