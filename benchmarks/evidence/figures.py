"""Means, deviations and paired differences of the runs of a plan; numbers in, numbers out."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student_t

from evidence.plan import HARD, NO_TEACHER, TOKEN, TWO_TOKENS, USUAL, Arm

ENOUGH = 3  # seeds, below which no interval is claimed
CONFIDENCE = 0.95
OURS, REFERENCE = "deit_tf", "timm"

HEADS = {"cls": "class head", "dist": "distillation head", "both": "both heads"}
# The heads by which arms with two tokens are evaluated; the others have one.
EVALUATED = {TOKEN: ("cls", "dist", "both"), TWO_TOKENS: ("both",)}

Accuracies = dict[int, float]  # by seed, shares


@dataclass(frozen=True)
class Spread:
    """What several seeds gave.

    Args:
        count: Seeds.
        mean: Of their figures.
        deviation: Standard deviation of the sample; None of one.
        half_width: Of the interval of `CONFIDENCE` around the mean; None below `ENOUGH`.
    """

    count: int
    mean: float
    deviation: float | None
    half_width: float | None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, deviation and Student's interval; None of no values."""
    count = len(values)
    if not count:
        return None
    deviation = statistics.stdev(values) if count > 1 else None
    half_width = None
    if count >= ENOUGH:
        quantile = student_t.ppf((1 + CONFIDENCE) / 2, count - 1)
        half_width = float(quantile * deviation / count**0.5)
    return Spread(count, statistics.fmean(values), deviation, half_width)


def paired(a: Accuracies, b: Accuracies) -> list[float]:
    """Differences a - b of the seeds that both have."""
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


@dataclass(frozen=True)
class Row:
    """A line of table 3: an arm, and the head that decides.

    Args:
        arm: The arm.
        head: A key of `HEADS`.
        accuracies: By seed; failed runs have none.
        failures: Seeds that diverged.
    """

    arm: Arm
    head: str
    accuracies: Accuracies
    failures: tuple[int, ...]


def rows(records: Iterable[Mapping[str, Any]], arms: Sequence[Arm], library=OURS) -> list[Row]:
    """Table 3: every arm by each head that it is evaluated by."""
    runs = [each for each in records if each["what"] == "run" and each["library"] == library]
    found = []
    for arm in arms:
        own = [run for run in runs if run["arm"] == arm.name]
        failures = tuple(run["seed"] for run in own if "failed" in run)
        for head in evaluated(arm):
            accuracies = {run["seed"]: run["accuracy"][head] for run in own if "failed" not in run}
            found.append(Row(arm, head, accuracies, failures))
    return found


def evaluated(arm: Arm) -> tuple[str, ...]:
    """The heads by which an arm is evaluated."""
    if arm.name in EVALUATED:
        return EVALUATED[arm.name]
    distilled = "distilled" in arm.settings["model"]["name"]
    return ("both",) if distilled else ("cls",)


def find(table: Sequence[Row], arm: str, head: str) -> Row:
    """The line of an arm and a head."""
    return next(row for row in table if (row.arm.name, row.head) == (arm, head))


def verdict(table: Sequence[Row]) -> list[str]:
    """What the data says of the paper's claims, for or against, in sentences."""
    token, none, soft, hard = (
        find(table, *which).accuracies
        for which in ((TOKEN, "both"), (NO_TEACHER, "cls"), (USUAL, "cls"), (HARD, "cls"))
    )
    claims = {
        "a student learns more with hard labels through the token than without a teacher": (
            token,
            none,
        ),
        "it learns more through the token than from the same hard labels on its one head": (
            token,
            hard,
        ),
        "hard labels teach its one head more than soft ones": (hard, soft),
    }
    return [_judgment(claim, paired(*pair)) for claim, pair in claims.items()]


def _judgment(claim: str, differences: Sequence[float]) -> str:
    found = spread(differences)
    if found is None:
        return f"That {claim}: not run yet."

    points = f"{100 * found.mean:+.1f} points"
    seeds = f"{found.count} seed{'s' if found.count > 1 else ''}"
    if found.bounds is None:
        signs = "for it" if min(differences) > 0 else "against it"
        signs = signs if min(differences) * max(differences) > 0 else "in both directions"
        return (
            f"That {claim}: {points} on {seeds}, which point {signs}; fewer than {ENOUGH} seeds "
            "prove nothing, and no interval is claimed."
        )

    low, high = (100 * bound for bound in found.bounds)
    words = "undecided"
    if low > 0 or high < 0:
        words = "supported" if low > 0 else "contradicted"
    return f"That {claim}: **{words}**, {points} [{low:+.1f}, {high:+.1f}] on {seeds}."
