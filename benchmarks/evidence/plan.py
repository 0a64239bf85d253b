"""What is run, fixed beforehand in a YAML file: arms, seeds, teachers, budget, recipe."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from deit_tf.config import TrainConfig
from deit_tf.files import sha256
from deit_tf.runs import read_config

KEYS = {
    "name",
    "photographs_per_class",
    "seeds",
    "common",
    "learning_rate",
    "teachers",
    "arms",
    "reference",
}
NO_TEACHER, USUAL, HARD, TOKEN, TWO_TOKENS = "none", "soft", "hard", "token", "two-class-tokens"


@dataclass(frozen=True)
class Arm:
    """One way of training the student.

    Args:
        name: As the plan has it.
        title: For people.
        teacher: A name of the plan's `teachers`, or None.
        seeds: How many of the plan's seeds it is run with, the first ones.
        last: Whether it waits until all seeds of the other arms are run.
        settings: What differs from the plan's `common`, as in a config file.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    teacher: str | None = None
    seeds: int | None = None
    last: bool = False


@dataclass(frozen=True)
class Plan:
    """A plan file.

    Args:
        file: Where it was read.
        name: Of the evidence.
        photographs_per_class: To train on; None takes all.
        seeds: Seeds in their order.
        common: Settings that all runs share, as in a config file.
        learning_rate: `candidates`, `seed` and `epochs` of the one search for it.
        teachers: Settings of each, and `train`, which is `teacher` or `student`.
        arms: In their order.
        reference: `arms` that timm and torch train as well, and with how many of the `seeds`.
    """

    file: Path
    name: str
    photographs_per_class: int | None
    seeds: tuple[int, ...]
    common: Mapping[str, Any]
    learning_rate: Mapping[str, Any]
    teachers: Mapping[str, Mapping[str, Any]]
    arms: tuple[Arm, ...]
    reference: Mapping[str, Any]

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, which every record names."""
        return sha256(self.file)

    def config(self, *settings: Mapping[str, Any]) -> TrainConfig:
        """A run's config: what all share, changed by each of `settings` in turn.

        Raises:
            ValueError: For a key that a config file does not have.
        """
        merged: dict[str, Any] = {}
        for each in (self.common, *settings):
            merged = _merged(merged, each)

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(yaml.safe_dump(merged), encoding="utf-8")
            return read_config(file)

    def search_configs(self) -> dict[float, TrainConfig]:
        """The runs among which the learning rate is chosen: of the arm without teacher alone."""
        search, base = self.learning_rate, self.config(self.arm(NO_TEACHER).settings)
        return {
            lr: replace(
                base,
                seed=search["seed"],
                epochs=search["epochs"],
                optim=replace(base.optim, lr=lr),
            )
            for lr in search["candidates"]
        }

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def runs(self, shard: tuple[int, int] = (1, 1)) -> Iterator[tuple[int, Arm]]:
        """Seed and arm of every run, in the order in which they are run.

        All arms of the first seed come first, so that whatever was run compares; a shard has whole
        seeds, as the arms of one share the teacher's labels.
        """
        part, parts = shard
        for last in (False, True):
            for number, seed in enumerate(self.seeds):
                if number % parts == part - 1:
                    yield from ((seed, arm) for arm in self.arms_of(number) if arm.last == last)

    def arms_of(self, number: int) -> list[Arm]:
        """The arms that the seed of this number is run with."""
        return [arm for arm in self.arms if number < (arm.seeds or len(self.seeds))]

    def is_referenced(self, seed: int, arm: Arm) -> bool:
        """Whether timm and torch train a run as well."""
        seeds = self.seeds[: self.reference["seeds"]]
        return arm.name in self.reference["arms"] and seed in seeds


def read_plan(file: Path) -> Plan:
    """Read a plan.

    Raises:
        ValueError: If a part is missing, unknown, or makes no config.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if set(content) != KEYS:
        raise ValueError(f"{file} has the keys {sorted(KEYS)}. Received: {sorted(content)}")

    arms = tuple(Arm(name, **arm) for name, arm in content.pop("arms").items())
    seeds = tuple(content.pop("seeds"))
    plan = Plan(file=file, arms=arms, seeds=seeds, **content)

    if plan.learning_rate["seed"] in seeds:
        raise ValueError(f"{file}: the learning rate is chosen on a seed of its own. {seeds}")
    for arm in arms:
        plan.config(arm.settings)
        if arm.teacher is not None and arm.teacher not in plan.teachers:
            raise ValueError(f"{file}: arm {arm.name} has an unknown teacher {arm.teacher!r}")
    return plan


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with what `changes` says otherwise."""
    merged = dict(settings)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged
