"""The kinds of distillation, one entry each: what the student's head learns from the teacher."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deit_tf import losses


@dataclass(frozen=True)
class Kind:
    """One way to learn from a teacher.

    Args:
        loss: From the student's and the teacher's logits [B, C], and the settings `temperature` and
            `normalization`, to the loss [B] in nats.
        needs_probabilities: Whether the teacher's decision alone is not enough.
        sentence: What the student learns from, for people.
    """

    loss: Callable[..., Any]
    needs_probabilities: bool
    sentence: str


def _hard(logits, teacher_logits, **_):
    return losses.hard_distillation(logits, teacher_logits)


KINDS: dict[str, Kind] = {
    "hard": Kind(
        _hard,
        needs_probabilities=False,
        sentence="true labels and the teacher's decisions (hard distillation)",
    ),
    "soft": Kind(
        losses.soft_distillation,
        needs_probabilities=True,
        sentence="true labels and the teacher's probabilities (soft distillation)",
    ),
}
NONE = "none"  # no teacher
# The same kinds for images of several labels, each class by itself; `normalization` plays no part.
MULTILABEL_LOSSES: dict[str, Callable[..., Any]] = {
    "hard": lambda logits, teacher_logits, _: losses.multilabel_hard_distillation(
        logits, teacher_logits
    ),
    "soft": losses.multilabel_soft_distillation,
}
