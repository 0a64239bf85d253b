"""A run folder: what training leaves behind, and how it is found again.

config.yaml    the resolved config; `deit-tf train --config RUN/config.yaml` takes it
facts.json     the data and the teacher that it trains with, in numbers and checksums
labels.txt     class names, one per line, by label
student.keras  or teacher.keras, masked.keras: the model; student_best.keras, that of the best
               epoch; student_epoch0012.keras, that of one of several best; student_ema.keras, the
               moving average
first_batch.png  what the first step was fed
metrics.jsonl  one line per epoch
tensorboard/   the same as curves
checkpoints/   from which a stopped run goes on; they may be deleted when it is finished
summary.json   what the final evaluation gave; its run is finished
report.html    the page about it
"""

import functools
import json
import logging
import re
import shutil
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentParser

from deit_tf.config import TrainConfig
from deit_tf.config_files import BOUNDED_YAML
from deit_tf.data.folders import SplitRule
from deit_tf.files import (
    CLASS_NAMES_FILE,
    locked,
    read_json,
    remove_partial,
    write_class_names,
    write_json,
    write_text,
)

log = logging.getLogger(__name__)

TRAINED = ("student", "teacher", "masked")  # what a run may train: the stem of its model files
VERSIONS = ("", "_best", "_ema")

# Of the summary.
_NUMBERS = ("parameters", "training_seconds", "evaluation_images")

# What a run may change when it goes on.
FREE = (
    "out",
    "data.num_parallel_calls",
    "data.verify",
    "distill.labels",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.keep_best",
    "checkpoint.patience",
    "log_steps",
    "onednn",  # it rounds otherwise, as another CPU does: `train` warns of it
)


@dataclass(frozen=True)
class RunFolder:
    """The places in a run folder; no other module knows the names of its files.

    Args:
        path: The folder.
        on_checkpoint: Called after each checkpoint that is written here.
    """

    path: Path
    on_checkpoint: Callable[[], None] = field(default=lambda: None, compare=False)

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def facts(self) -> Path:
        """Written first and deleted never: a folder without it is no run's."""
        return self.path / "facts.json"

    @property
    def class_names(self) -> Path:
        """Class names by label."""
        return self.path / CLASS_NAMES_FILE

    @property
    def metrics(self) -> Path:
        """Figures of each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def first_batch(self) -> Path:
        """A picture of what the first step was fed."""
        return self.path / "first_batch.png"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        """The final evaluation."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    def model(self, trained: str, version: str = "") -> Path:
        """The file of a model.

        Args:
            trained: One of `TRAINED`.
            version: One of `VERSIONS`: the last weights, the best ones, or their moving average;
                or `version_of_epoch`.
        """
        return self.path / f"{trained}{version}.keras"

    @staticmethod
    def version_of_epoch(epoch: int) -> str:
        """The version of a model that is kept as one of several best."""
        return f"_epoch{epoch:04d}"

    def models_of_epochs(self) -> list[Path]:
        """The model files that are kept as several best."""
        names = (f"{trained}_epoch[0-9][0-9][0-9][0-9]*.keras" for trained in TRAINED)
        return sorted(file for name in names for file in self.path.glob(name))

    def find_model(self, version: str = "") -> Path | None:
        """The model file that is there; None where the run has not written one."""
        files = (self.model(trained, version) for trained in TRAINED)
        return next((file for file in files if file.is_file()), None)

    def read_summary(self) -> dict[str, Any]:
        """What the final evaluation gave.

        Raises:
            FileNotFoundError: If the run is not finished.
            ValueError: If the file is damaged.
        """
        if not self.summary.is_file():
            raise FileNotFoundError(
                f"{self.path} is no finished run: it has no {self.summary.name}."
            )
        summary = read_json(self.summary, keys=("kind", "model", "evaluation", *_NUMBERS))
        figures, numbers = summary["evaluation"], [summary[name] for name in _NUMBERS]
        if not isinstance(figures, dict) or not _are_numbers([*numbers, *figures.values()]):
            raise ValueError(
                f"{self.summary} is damaged: `evaluation` is an object of numbers, and "
                f"{', '.join(_NUMBERS)} are numbers."
            )
        return summary

    def read_metrics(self) -> list[dict[str, Any]]:
        """The figures of each epoch that is complete.

        Raises:
            ValueError: If a line is damaged; it is named.
        """
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            epochs = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.metrics} is damaged: {error}") from error
        if not all(isinstance(each, dict) and _are_numbers(each.values()) for each in epochs):
            raise ValueError(f"{self.metrics} must hold one JSON object of numbers per line.")
        return epochs

    @property
    def is_stopped(self) -> bool:
        """Whether a run is here that can go on, finished or not: one with checkpoints."""
        return any(self.checkpoints.glob("*.safetensors"))

    @property
    def split_rule(self) -> SplitRule:
        """How the run splits a folder without splits; what it has begun with, it keeps to.

        Raises:
            ValueError: If the file that says so is damaged.
        """
        if not self.facts.is_file():
            return "threshold"
        rule = read_json(self.facts).get("split", "rank")  # runs of before did not say
        if rule not in get_args(SplitRule):
            raise ValueError(
                f"`split` in {self.facts} is one of {', '.join(get_args(SplitRule))}: the file is "
                f"damaged. Received: {str(rule)[:100]}"
            )
        return rule

    def tells(self, setting: str) -> bool:
        """Whether its config has a setting of this name; one of before does not have the latest."""
        return f"{setting}:".encode() in self.config.read_bytes()

    # A run begins, and goes on

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder for this process.

        Raises:
            BlockingIOError: If another process trains into it.
        """
        remedy = "Two would mix their files: wait for it, stop it, or choose another --out."
        with locked(self.path, ".lock", "trains into", remedy):
            yield

    def check_free(self, facts: Mapping[str, Any], overwrite: bool, extend: bool = False) -> None:
        """Check that nothing is lost if a run begins here, or that the one here may go on.

        Args:
            facts: What facts.json will hold.
            overwrite: Whether the run that is here may be replaced.
            extend: Whether a finished run may go on.
        Raises:
            FileExistsError: If the folder holds a finished run, or files that are not of a run.
            FileNotFoundError: If a run is to go on that is not here, or has no checkpoints.
            ValueError: If it holds a stopped run of other steps per epoch.
        """
        self._check_own()
        if overwrite:
            return
        if extend and not self.is_stopped:
            raise FileNotFoundError(
                f"--extend goes on with the run in --out, and {self.path} has no checkpoints to go "
                "on from. Leave it out; to start from a model, set `model.weights`."
            )
        is_finished = self.summary.exists() or (not self.is_stopped and self.find_model())
        if is_finished and not extend:
            raise FileExistsError(
                f"{self.path} holds a finished run. Choose another --out, pass --overwrite to "
                "replace it, or --extend with more --epochs to go on with it."
            )
        if self.is_stopped:
            _check_steps(self.path, read_json(self.facts), facts)

    def check_unchanged(self, config: TrainConfig, then: TrainConfig, facts: Mapping) -> None:
        """Check that a stopped run goes on as what it was.

        Args:
            config: The config now.
            then: The config in the folder.
            facts: What facts.json would hold now; what it did not hold then is not compared.
        Raises:
            ValueError: If something that decides the run differs; it is named.
        """
        before = read_json(self.facts) | _flat(asdict(then))
        now = {**facts, **_flat(asdict(config))}
        differing = [
            key
            for key in now
            if key not in FREE
            and (key in before or key not in facts)
            and _plain(now[key]) != _plain(before.get(key))
        ]
        if differing:
            named = "; ".join(
                f"{key}: {_short(before.get(key))} then, {_short(now[key])} now"
                for key in differing[:8]
            )
            raise ValueError(
                f"{self.path} holds a run of another config. {named}. Restore those to go "
                "on with it, pass --accept-changes to go on all the same, or --overwrite to start "
                "over."
            )

    def begin(self, config: TrainConfig, facts: Mapping[str, Any], overwrite: bool) -> None:
        """Make the folder, without what an earlier run left of itself; what goes on stays."""
        self.path.mkdir(parents=True, exist_ok=True)
        if overwrite or not self.is_stopped:
            for folder in (self.tensorboard, self.checkpoints):
                shutil.rmtree(folder, ignore_errors=True)
            models = [self.model(trained, version) for trained in TRAINED for version in VERSIONS]
            models += self.models_of_epochs()
            for file in (*models, self.metrics, self.summary, self.first_batch):
                file.unlink(missing_ok=True)

        self.summary.unlink(missing_ok=True)  # of the epochs before, where a finished run goes on
        remove_partial(self.path)
        remove_partial(self.checkpoints)

        write_json(facts, self.facts)  # first, so that a folder with anything else of a run has it
        write_config(config, self.config)
        write_class_names(facts["labels"], self.class_names)

    def _check_own(self) -> None:
        """Refuse a folder that no run made but which holds what a run would replace, or a model."""
        if self.facts.exists() or not self.path.is_dir():
            return
        places = (
            self.tensorboard,
            self.checkpoints,
            self.config,
            self.class_names,
            self.metrics,
            self.summary,
        )
        found = [place.name for place in places if place.exists()]
        found += sorted(file.name for file in self.path.glob("*.keras"))
        if found:
            raise FileExistsError(
                f"{self.path} is no run folder, and holds {', '.join(found[:8])}. Choose another "
                "--out."
            )


def _are_numbers(values: Iterable) -> bool:
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)


def _check_steps(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other steps per epoch, in which checkpoints and learning rate are counted."""
    steps = now["steps_per_epoch"]
    before = then.get("steps_per_epoch", steps)
    if before != steps:
        raise ValueError(
            f"{folder} holds a stopped run of {before} steps per epoch, which `data.batch_size` "
            "and the images decide; its checkpoints are counted in them. Go on with the settings "
            "and images it had, or pass --overwrite to start over. Received: "
            f"{steps} steps per epoch"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one of dotted keys."""
    flat = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    """The value; of a checksum its first digits."""
    is_checksum = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"{value[:12]}..." if is_checksum else str(value)


# The config as a file


def read_config(path: str | Path) -> TrainConfig:
    """Read a config file.

    Raises:
        ValueError: For an unknown key or a value of the wrong type, which it names.
    """
    parser = _config_parser()
    try:
        return TrainConfig(**vars(parser.instantiate(parser.parse_path(str(path)))))
    # ValueError for bytes that are no text, TypeError for a number where settings belong
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is no config of deit-tf: {' '.join(str(error).split())}"
        ) from error


@functools.cache  # it reads every docstring of the settings
def _config_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, parser_mode=BOUNDED_YAML)
    parser.add_class_arguments(TrainConfig, as_group=False)
    return parser


def write_config(config: TrainConfig, path: Path) -> None:
    """Write a config file that `--config` takes."""
    plain = json.loads(json.dumps(asdict(config)))  # lists for tuples
    write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), path)


def run_config(folder: Path) -> TrainConfig | None:
    """The config of a run folder; None of any other, though other tools have a config.yaml as well.

    Raises:
        ValueError: If `folder` is a run's, as its facts.json tells, and its config is damaged.
    """
    places = RunFolder(folder)
    if not places.config.is_file():
        return None
    if places.facts.is_file():
        return read_config(places.config)
    if not any(folder.glob("*.keras")):
        return None
    try:
        return read_config(places.config)
    except ValueError as error:
        log.warning("%s is no run: its %s is passed over. %s", folder, places.config.name, error)
        return None
