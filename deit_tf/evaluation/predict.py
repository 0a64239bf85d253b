"""A model in any of its forms, as one callable from images to logits; and what it sees in image
files.
"""

import glob
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deit_tf.config import TrainConfig
from deit_tf.data import ImageProcessor
from deit_tf.data.folders import IMAGE_SUFFIXES, SplitRule, all_images
from deit_tf.evaluation.runtimes import Runtime, runtime_path
from deit_tf.exporting.activations import ACTIVATIONS, SOFTMAX
from deit_tf.exporting.formats import Export, LoadedExport, find_export
from deit_tf.exporting.sidecar import Sidecar
from deit_tf.models import heads
from deit_tf.models.parts import has_two_heads
from deit_tf.runs import Run, load_run, run_config
from deit_tf.runs.load import warn_if_assumed, warn_of_assumption

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A model, and what is known about it.

    Args:
        predict: From normalized images, float32 [B, H, W, 3], to logits [B, C] by name: `mean`, the
            model's output, and `cls` and `dist` where both heads can be had.
        processor: What it expects of its images.
        labels: Class names by output; None where nothing tells them.
        config: How it was trained; None where nothing tells.
        assumed: Whether nothing tells what it expects of its images, so that `processor` is the
            original's.
        split_rule: How the folder of images of `config` was split.
        activation: A key of `ACTIVATIONS`: what makes probabilities of its logits.
        network: The Keras model, from normalized images to logits; None of an export.
    """

    predict: Callable[[np.ndarray], dict[str, np.ndarray]]
    processor: ImageProcessor
    labels: tuple[str, ...] | None
    config: TrainConfig | None
    assumed: bool = False
    split_rule: SplitRule = "threshold"
    activation: str = SOFTMAX
    network: keras.Model | None = None

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The probabilities [B, C] of logits, computed in float64; of a model of several labels
        each class has one by itself.
        """
        return ACTIVATIONS[self.activation](np.float64(logits)).numpy()

    def most_probable(self, logits: np.ndarray, top: int) -> list[list[dict[str, Any]]]:
        """Of each row of logits [B, C] the `top` classes, most probable first: `class` (its
        number), `label` (its name) and `probability`.
        """
        names = self.labels or [str(i) for i in range(logits.shape[-1])]
        return [
            [
                {"class": int(i), "label": names[i], "probability": float(row[i])}
                for i in np.argsort(-row, kind="stable")[:top]
            ]
            for row in self.probabilities(logits)
        ]


def open_model(
    path: str,
    run: str | None = None,
    name: str | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> Opened:
    """Open a model in whatever form it has.

    Args:
        path: A run directory, a .keras file, weights of another library (`hf://` as well), a
            SavedModel directory (of a version, or of versions, which means the highest), a .tflite
            or an .onnx file.
        run: The run whose image processor and labels to use; by default what an export knows of
            itself, then the run that `path` lies in.
        name: Weights of another library: the name of the model, where their files do not tell it.
        strategy: Replicas to spread each batch over; a Keras model alone.
    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If `strategy` is given for an export, the model is no classifier, or an export
            is damaged or does not fit what describes it.
        ExportError: If a SavedModel does not load in a C++ session.
    """
    export = find_export(path)
    if export is None:
        return _open_keras(path, run, name, strategy)
    if strategy is not None:
        raise ValueError(
            f"`strategy` spreads a Keras model over replicas. Received: {path}, a "
            f"{export.format.name}"
        )
    return _open_export(export, run)


def find_images(given: Sequence[str]) -> list[str]:
    """The files that arguments of a command name.

    Args:
        given: Files, also such as are not there; folders, for the images in and below them, but
            for hidden ones; and patterns such as `in/**/*.jpg`.
    Returns:
        The files, those of a folder or pattern sorted.
    Raises:
        FileNotFoundError: If a folder holds no image, or a pattern fits none.
    """
    files = []
    for text in given:
        if Path(text).is_dir():
            found = all_images(Path(text))
        elif glob.has_magic(text) and not Path(text).exists():
            matches = sorted(map(Path, glob.glob(text, recursive=True)))
            found = [file for match in matches for file in _files_of(match)]
        else:
            found = [text]
        if not found:
            raise FileNotFoundError(f"No images ({' '.join(IMAGE_SUFFIXES)}) in {text}")
        files += map(str, found)

    return files


def predict_files(
    path: str,
    images: Sequence[str],
    *,
    top: int = 5,
    run: str | None = None,
    name: str | None = None,
    batch_size: int = 32,
    runtime: Runtime | None = None,
) -> Iterator[dict[str, Any]]:
    """Name what is in image files, however many.

    Args:
        path: A model, as `open_model` takes it.
        images: Files.
        top: Classes to name for each, C at most.
        run: As in `open_model`.
        name: As in `open_model`.
        batch_size: Images per step.
        runtime: What runs a run or a .keras file, as `runtime_path` of runtimes.py takes it.
    Returns:
        Per file `image` and `classes`, a list of `class`, `label` and `probability`, most probable
        first; or `image` and `error`, where the file cannot be read.
    Raises:
        FileNotFoundError: If the model is not there.
        ValueError: If `top` or `batch_size` is not positive, or `runtime` does not fit.
        ExportError: As of `runtime_path`.
    """
    if top < 1:
        raise ValueError(f"`top` is a number of classes from 1. Received: {top}")
    batches = in_batches(images, batch_size)
    opened = open_model(runtime_path(path, runtime, len(images)), run, name)
    return (answer for batch in batches for answer in _predict_batch(opened, batch, top))


def in_batches(images: Sequence[str], batch_size: int) -> list[Sequence[str]]:
    """Files by the batch.

    Raises:
        ValueError: If `batch_size` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is a number of images from 1. Received: {batch_size}")
    return [images[i : i + batch_size] for i in range(0, len(images), batch_size)]


def read_batch(
    processor: ImageProcessor, images: Sequence[str]
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Read files, of which some may be broken.

    Args:
        processor: What the model expects.
        images: Files.
    Returns:
        Per file a dict of `image`, its name, and `error` where it cannot be read; and what could
        be read, in the same order, float32 [n, H, W, 3], normalized, n being 0 where nothing could.
    """
    answers = [{"image": str(image)} for image in images]

    def read(answer: dict[str, Any]) -> np.ndarray | None:
        try:
            return processor.batch([answer["image"]])  # [1, H, W, 3]
        except Exception as error:  # whatever is wrong with one file, the others are answered
            answer["error"] = str(error) or type(error).__name__
            return None

    # The first by itself: it traces what the others share, for which all threads would wait, and
    # TensorFlow would warn of as many traces.
    found = [*map(read, answers[:1])]
    with ThreadPoolExecutor() as threads:  # decoding takes as long as a small model
        found += threads.map(read, answers[1:])
    nothing = np.zeros((0, *processor.size, processor.num_channels), np.float32)
    return answers, np.concatenate([nothing, *(each for each in found if each is not None)])


def _files_of(match: Path) -> list[Path]:
    return all_images(match) if match.is_dir() else [match]


def _predict_batch(opened: Opened, images: Sequence[str], top: int) -> list[dict[str, Any]]:
    """The answers of `predict_files` for a few files."""
    answers, pixels = read_batch(opened.processor, images)
    good = [answer for answer in answers if "error" not in answer]
    if good:
        logits = opened.predict(pixels)["mean"]  # [B, C]
        for answer, classes in zip(good, opened.most_probable(logits, top), strict=True):
            answer["classes"] = classes
    return answers


def run_above(path: str | Path) -> Path | None:
    """The nearest run directory that `path` is or lies in."""
    here = Path(path).resolve()
    return next(
        (folder for folder in (here, *here.parents) if run_config(folder) is not None), None
    )


def _open_export(export: Export, run: str | None) -> Opened:
    """Open an export: what it knows of itself holds, unless a run is named."""
    described = export.sidecar()
    own, loaded = described or Sidecar(), export.load()
    around = load_run(run) if run else _nearest_run(export.path)
    if run is not None and not around.assumed:
        processor, labels = around.processor, around.labels
        activation = around.activation
        if not own.agrees_with(processor):
            log.warning(
                "%s was exported for other images than %s makes, whose way is taken: %s.",
                export.path,
                run,
                processor,
            )
    else:
        processor = own.processor or _assumed_processor(export, loaded, around)
        labels = own.class_names or _names_in_graph(loaded) or (around and around.labels)
        activation = own.activation if described or not around else around.activation

    remedy = "Pass --run with the run that it was exported from."
    if processor.size != loaded.image_size:
        raise ValueError(
            f"{export.path} takes images of {loaded.image_size} pixels, and what describes it "
            f"makes others: {processor}. {remedy}"
        )
    if labels and len(labels) != loaded.num_classes:
        raise ValueError(
            f"{export.path} has {loaded.num_classes} classes, and what describes it names "
            f"{len(labels)}. {remedy}"
        )

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        return loaded.logits(images, processor)

    assumed = not (own.processor or around)
    opened = Opened(predict, processor, labels, None, assumed, activation=activation)
    if around is None:
        return opened
    return replace(opened, config=around.config, split_rule=around.split_rule)


def _assumed_processor(export: Export, loaded: LoadedExport, around: Run | None) -> ImageProcessor:
    """What an export may expect that does not say it; with a warning."""
    if around is None:
        processor = ImageProcessor(loaded.image_size)
        warn_of_assumption(export.path, processor)
        return processor

    log.warning(
        "%s does not say what images it expects; those of the run that it lies in, %s, are "
        "assumed: %s.",
        export.path,
        around.name,
        around.processor,
    )

    return around.processor


def _names_in_graph(loaded: LoadedExport) -> tuple[str, ...] | None:
    """Class names that an old SavedModel holds; numbers, which stand in for names, are none."""
    names = getattr(loaded, "class_names", ())
    numbers = tuple(map(str, range(loaded.num_classes)))
    return names if names and names != numbers else None


def _open_keras(
    path: str, run: str | None, name: str | None, strategy: tf.distribute.Strategy | None
) -> Opened:
    with (strategy or tf.distribute.get_strategy()).scope():
        own = load_run(path, name)
        if not isinstance(own.model.output_shape, tuple) or len(own.model.output_shape) != 2:
            raise ValueError(
                f"{path} is no classifier: it gives {own.model.output_shape} instead of logits "
                "[B, C]."
            )
        described = load_run(run) if run else own
        warn_if_assumed(described, run or path)
        network = heads(own.model) if has_two_heads(own.model) else own.model

    call = network.predict_on_batch if strategy is None else _spread(network, strategy)

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        logits = call(images)
        if not isinstance(logits, dict):
            return {"mean": np.asarray(logits)}
        return {"mean": (logits["cls"] + logits["dist"]) / 2, **logits}

    return Opened(
        predict,
        described.processor,
        described.labels,
        described.config,
        described.assumed,
        described.split_rule,
        described.activation,
        own.model,
    )


def _spread(network: keras.Model, strategy: tf.distribute.Strategy) -> Callable[[np.ndarray], Any]:
    """Run a batch in equal parts, one per replica, and put the answers together in order."""
    replicas = strategy.num_replicas_in_sync

    @tf.function(reduce_retracing=True)
    def step(images):
        return strategy.run(lambda part: network(part, training=False), args=(images,))

    def call(images: np.ndarray) -> Any:
        # The last batch is filled up with its first image, whose answers are cut off again: counts
        # stay exact.
        surplus = -len(images) % replicas
        parts = np.split(np.concatenate([images, np.repeat(images[:1], surplus, axis=0)]), replicas)
        spread = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )
        outputs = tf.nest.map_structure(strategy.experimental_local_results, step(spread))
        if isinstance(outputs, dict):
            return {
                head: np.concatenate(answers)[: len(images)] for head, answers in outputs.items()
            }
        return np.concatenate(outputs)[: len(images)]

    return call


def _nearest_run(path: Path) -> Run | None:
    folder = run_above(path)
    return load_run(folder) if folder else None
