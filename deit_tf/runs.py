"""A run directory: what training leaves behind, and how it is found again.

config.yaml    the resolved config; `deit-tf train --config RUN/config.yaml` takes it
labels.txt     class names, one per line, by label
student.keras  or teacher.keras, masked.keras: the model; student_best.keras, that of the best
    epoch;
               student_ema.keras, the moving average
metrics.jsonl  one line per epoch
tensorboard/   the same as curves
checkpoints/   from which a stopped run goes on; they may be deleted when it is finished
facts.json     the data that it trains on, in numbers
summary.json   what the final evaluation gave; its run is finished
"""

import json
import logging
import re
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import yaml
from jsonargparse import ArgumentParser

from deit_tf.config import TrainConfig
from deit_tf.data import ImageProcessor, open_sources, sample
from deit_tf.files import replacing
from deit_tf.weights.files import HUB, KERAS_FILES
from deit_tf.zoo import restore_model

log = logging.getLogger(__name__)

MODELS = KERAS_FILES
SAMPLES = 32
ANY_SIZE = 224  # what a network that takes any size is fed, the original's


@dataclass(frozen=True)
class Run:
    """A trained model with what is needed to feed it.

    Args:
        name: What to call it.
        model: The network, from normalized images to logits.
        processor: What it expects of its images.
        labels: Class names by label; None where nothing tells them.
        config: How it was trained; None for a model file that is not in a run.
    """

    name: str
    model: keras.Model
    processor: ImageProcessor
    labels: tuple[str, ...] | None
    config: TrainConfig | None

    @cached_property
    def samples(self) -> np.ndarray | None:
        """Up to 32 held-out images, float32 [n, H, W, 3], normalized; None where the data is not at
        hand.
        """
        if self.config is None:
            return None
        try:
            _, held_out = open_sources(replace(self.config.data, verify=False))
        except (FileNotFoundError, ValueError):
            return None
        return np.stack([image for _, image in sample(held_out, self.processor, SAMPLES)])


def load_run(path: str | Path, name: str | None = None) -> Run:
    """Load a run directory, a `.keras` file in or outside of one, or weights of another library.

    Args:
        path: The run or file; or what `read_weights` takes, `hf://` included.
        name: Weights of another library: the name of the model, where their files do not tell it.
    Raises:
        FileNotFoundError: If there is no model at `path`.
        ValueError: If weights do not tell their model, or are damaged; if a run's config is.
    """
    if not is_keras(path):
        return _foreign_run(path, name)
    file = _model_file(Path(path))
    model = load_network(file)
    folder = file.parent
    config = run_config(folder)
    # A masked model has its mask as a second input.
    declared = next(tensor.shape[1:3] for tensor in model.inputs if len(tensor.shape) == 4)
    size = declared if all(declared) else ANY_SIZE
    processor = ImageProcessor.from_config(config.data, size) if config else ImageProcessor(size)
    labels = (
        (folder / "labels.txt").read_text().splitlines()
        if (folder / "labels.txt").is_file()
        else None
    )
    return Run(
        folder.name if config else file.stem,
        model,
        processor,
        tuple(labels) if labels else None,
        config,
    )


def run_config(folder: Path) -> TrainConfig | None:
    """The config of a run directory; None of any other folder, though other tools have a
    config.yaml as well.

    Raises:
        ValueError: If `folder` is a run, as its facts.json tells, and its config is damaged.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        return None
    if (folder / "facts.json").is_file():
        return read_config(file)
    if not any(folder.glob("*.keras")):
        return None
    try:
        return read_config(file)
    except ValueError as error:
        log.warning("%s is no run: its config.yaml is passed over. %s", folder, error)
        return None


def is_keras(source: str | Path) -> bool:
    """Whether `source` is ours to load: a run, a .keras file, or nothing at all; and no weights of
    another library.
    """
    path = Path(source)
    ours = (
        not path.exists()
        or path.suffix == ".keras"
        or any((path / name).is_file() for name in MODELS)
    )
    return ours and not str(source).startswith(HUB)


def _foreign_run(source: str | Path, name: str | None) -> Run:
    """A model from the weights of another library, with the preprocessing that lies beside them."""
    model, facts = restore_model(source, name)
    size = model.input_shape[1:3]
    processor = ImageProcessor(size)
    if facts.preprocessor:
        processor = ImageProcessor.from_preprocessor_config(facts.preprocessor)
    else:
        log.warning(
            "%s tells no preprocessing: that of the original is taken, %s.", source, processor
        )
    return Run(model.name, model, processor, facts.labels, None)


def load_network(path: str | Path) -> keras.Model:
    """Load the model of a run directory, or a `.keras` file, alone.

    Raises:
        FileNotFoundError: If there is no model at `path`.
    """
    return keras.saving.load_model(_model_file(Path(path)), compile=False)


def class_order(names: Sequence[str], labels: Sequence[str] | None, classes: int) -> list[int]:
    """The output of a model for each class of a data set.

    Args:
        names: Class names of the data: those of the model; or all of its wnids (ImageNet), which
            the outputs follow in sorted order; or numbers of outputs (the folders of ImageNet-V2).
        labels: Class names of the model by output; None where nothing tells them.
        classes: Number of outputs.
    Raises:
        ValueError: If the model does not know a class.
    """
    if labels is not None and tuple(names) == tuple(labels):
        return list(range(classes))  # a name may stand for two classes, as ImageNet's `crane` does
    if labels is not None and set(names) <= set(labels):
        return [labels.index(name) for name in names]
    if all(name.isdecimal() and int(name) < classes for name in names):
        return [int(name) for name in names]
    if len(names) == classes and (
        labels is None or all(re.fullmatch(r"n\d{8}", name) for name in names)
    ):
        return list(range(classes))
    if labels is None:
        raise ValueError(
            f"The data has {len(names)} classes, the model {classes} and no names for them."
        )
    unknown = [name for name in names if name not in labels]
    raise ValueError(f"The model does not know these classes of the data: {', '.join(unknown[:5])}")


def _model_file(path: Path) -> Path:
    """The model file of a run directory, or the file itself."""
    file = (
        next((path / name for name in MODELS if (path / name).is_file()), path)
        if path.is_dir()
        else path
    )
    if file.suffix != ".keras" or not file.is_file():
        raise FileNotFoundError(
            f"{path} is no run directory (with {' or '.join(MODELS)}), no .keras file and no "
            "file or folder of weights."
        )
    return file


def read_config(path: str | Path) -> TrainConfig:
    """Read a config file.

    Raises:
        ValueError: For an unknown key or a value of the wrong type, which it names.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, as_group=False)
    try:
        return TrainConfig(**vars(parser.instantiate(parser.parse_path(str(path)))))
    except (
        ArgumentError,
        TypeError,
    ) as error:  # the latter for a number where a group of settings belongs
        raise ValueError(
            f"{path} is no config of deit-tf: {' '.join(str(error).split())}"
        ) from error


def write_config(config: TrainConfig, path: Path) -> None:
    """Write a config file that `--config` takes."""
    with replacing(path) as temporary:
        temporary.write_text(
            yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False)
        )
