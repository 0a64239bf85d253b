"""The model of a run, or of anyone's file, with what is needed to feed it."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np

from deit_tf.config import TrainConfig
from deit_tf.data import ImageProcessor, Source, open_sources, sample
from deit_tf.data.folders import SplitRule
from deit_tf.exporting.activations import SIGMOID, SOFTMAX
from deit_tf.files import CLASS_NAMES_FILE, check_class_names, read_class_names
from deit_tf.models.detection import own_normalization
from deit_tf.models.parts import called, image_size, num_channels
from deit_tf.runs.folder import RunFolder, run_config
from deit_tf.weights.files import load_keras, remote_prefix, split_choice
from deit_tf.zoo import restore_model

log = logging.getLogger(__name__)

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
        split_rule: How its folder of images was split.
        assumed: Whether nothing tells what it expects of its images, so that `processor` is the
            original's.
    """

    name: str
    model: keras.Model
    processor: ImageProcessor
    labels: tuple[str, ...] | None
    config: TrainConfig | None
    split_rule: SplitRule = "threshold"
    assumed: bool = False

    @property
    def activation(self) -> str:
        """What makes probabilities of its logits; a softmax, where nothing tells."""
        several = self.config is not None and self.config.task == "multilabel"
        return SIGMOID if several else SOFTMAX

    @cached_property
    def sources(self) -> tuple[Source, Source]:
        """The images that it was trained on, and those held out; whoever asks, asks here.

        Raises:
            FileNotFoundError: If they are not at hand, or nothing tells which they were.
            ValueError: If they are no longer what they were, such as a folder without classes.
        """
        if self.config is None:
            raise FileNotFoundError(
                f"{self.name} lies in no run that tells its images; pass others."
            )
        return open_sources(self.config.data, self.split_rule)

    @cached_property
    def samples(self) -> np.ndarray | None:
        """Up to 32 held-out images, float32 [n, H, W, 3], normalized; None without any at hand."""
        try:
            _, held_out = self.sources
        except (FileNotFoundError, ValueError):
            return None
        return np.stack([image for _, image in sample(held_out, self.processor, SAMPLES)])


def load_run(path: str | Path, name: str | None = None) -> Run:
    """Load a run folder, a `.keras` file in or outside of one, or weights of another library.

    Args:
        path: The run or file; or what `read_weights` takes, `hf://` included.
        name: Weights of another library: the name of the model, where their files do not tell it.
    Raises:
        FileNotFoundError: If there is no model at `path`.
        ValueError: If weights do not tell their model, or are damaged; if a run's config is, or its
            class names are not as many as its classes.
    """
    if not is_keras(path):
        return _foreign_run(path, name)
    file = model_file(Path(path))
    model, folder = called(load_keras(file)), file.parent
    config = run_config(folder)

    declared = image_size(model)
    size = declared if all(declared) else ANY_SIZE
    own = own_normalization(model)
    if config:
        processor = ImageProcessor.from_config(config.data, size)
    elif own:
        processor = ImageProcessor(size, mean=own[0], std=own[1])
    else:
        processor = ImageProcessor.assumed(size, num_channels(model))

    class_names = _class_names(folder / CLASS_NAMES_FILE, model)
    if config is None:
        return Run(file.stem, model, processor, class_names, None, assumed=True)
    rule = RunFolder(folder).split_rule
    return Run(folder.name, model, processor, class_names, config, rule)


def _class_names(file: Path, model: keras.Model) -> tuple[str, ...] | None:
    """The class names beside a model, one for each class if it is a classifier."""
    if not file.is_file():
        return None
    names = read_class_names(file)
    if len(model.output_shape) == 2:
        try:
            check_class_names(names, model.output_shape[-1])
        except ValueError as error:
            raise ValueError(f"{file} does not fit the model beside it. {error}") from error
    return names


def is_keras(source: str | Path) -> bool:
    """Whether `source` is ours to load: a run, a `.keras` file, or nothing at all."""
    if remote_prefix(source):
        return False
    path, average = split_choice(source)
    if average:
        return False
    return not path.exists() or path.suffix == ".keras" or RunFolder(path).find_model() is not None


def _foreign_run(source: str | Path, name: str | None) -> Run:
    """A model from the weights of another library, with the preprocessing that lies beside them."""
    model, facts = restore_model(source, name)
    processor = ImageProcessor.assumed(model.input_shape[1:3], model.input_shape[-1])
    if facts.preprocessor:
        try:
            processor = ImageProcessor.from_preprocessor_config(facts.preprocessor)
        except ValueError as error:
            raise ValueError(f"The preprocessing beside {facts.source}: {error}") from error
    return Run(model.name, model, processor, facts.labels, None, assumed=not facts.preprocessor)


def warn_if_assumed(run: Run, path: str | Path) -> None:
    """Say so where nothing tells what the model at `path` expects; whoever feeds it calls this."""
    if run.assumed:
        warn_of_assumption(path, run.processor)


def warn_of_assumption(path: str | Path, processor: ImageProcessor) -> None:
    """Say that nothing tells what the model at `path` expects, and what is taken instead."""
    log.warning(
        "%s lies in no run and does not say what images it expects: the original's preprocessing "
        "is assumed, %s.",
        path,
        processor,
    )


def load_model(path: str | Path) -> keras.Model:
    """Load the model of a run folder, or a `.keras` file, alone.

    As `keras.models.load_model` after `import deit_tf`, in Keras's safe mode and not compiled;
    without that import Keras says `Could not locate class 'PatchEmbed'`.

    Raises:
        FileNotFoundError: If there is no model at `path`.
        ValueError: If the file is damaged.
    """
    return called(load_keras(model_file(Path(path))))


def class_order(names: Sequence[str], labels: Sequence[str] | None, classes: int) -> list[int]:
    """The output of a model for each class of a data set.

    Names are names: a folder `1` is the class called 1 where the model has classes of such names.

    Args:
        names: Class names of the data: those of the model; or all of its wnids (ImageNet), which
            the outputs follow in sorted order; or numbers of outputs, where the model knows no
            names, or as the 1,000 folders of ImageNet-V2.
        labels: Class names of the model by output; None where nothing tells them.
        classes: Number of outputs.
    Raises:
        ValueError: If the model does not know a class.
    """
    if labels is not None and tuple(names) == tuple(labels):
        return list(range(classes))  # a name may stand for two classes, as ImageNet's `crane` does
    if labels is not None and set(names) <= set(labels):
        return [labels.index(name) for name in names]

    numbered = all(name.isdecimal() and int(name) < classes for name in names)
    if numbered and (labels is None or _is_imagenet_v2(names, labels)):
        return [int(name) for name in names]
    wnids = all(re.fullmatch(r"n\d{8}", name) for name in names)
    if len(names) == classes and (labels is None or wnids):
        return list(range(classes))

    if labels is None:
        raise ValueError(
            f"The data has {len(names)} classes, the model {classes} and no names for them."
        )

    unknown = [name for name in names if name not in labels]
    raise ValueError(f"The model does not know these classes of the data: {', '.join(unknown[:5])}")


def _is_imagenet_v2(names: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether the folders are 0 to 999, and the model knows a thousand classes by words."""
    words = not any(label.isdecimal() for label in labels)
    return words and len(names) == len(labels) == 1000


def model_file(path: Path) -> Path:
    """The model file of a run folder, or the file itself."""
    file = RunFolder(path).find_model() if path.is_dir() else path
    if file is None or file.suffix != ".keras" or not file.is_file():
        raise FileNotFoundError(
            f"{path} is no run folder with a model, no .keras file and no file or folder of "
            "weights."
        )
    return file
