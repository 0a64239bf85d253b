"""A model in any of its forms, as one callable from images to logits; and what it sees in image
files.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deit_tf.config import TrainConfig
from deit_tf.data import ImageProcessor
from deit_tf.exporting.saved_model import HEADS, has_two_heads, load_saved_model
from deit_tf.exporting.sidecar import read_sidecar, sidecar_path
from deit_tf.exporting.tflite import SUFFIX, load_tflite
from deit_tf.models import heads
from deit_tf.runs import Run, is_keras, load_run, run_config

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
    """

    predict: Callable[[np.ndarray], dict[str, np.ndarray]]
    processor: ImageProcessor
    labels: tuple[str, ...] | None
    config: TrainConfig | None


def open_model(
    path: str,
    run: str | None = None,
    name: str | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> Opened:
    """Open a model in whatever form it has.

    Args:
        path: A run directory, a .keras file, weights of another library (`hf://` as well), a
            SavedModel directory or a .tflite file.
        run: The run whose image processor and labels to use; by default the one that `path` lies
            in, or what lies beside a .tflite file.
        name: Weights of another library: the name of the model, where their files do not tell it.
        strategy: Replicas to spread each batch over; a Keras model alone.
    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If `strategy` is given for a SavedModel or .tflite file, or the model is no
            classifier.
        ExportError: If a SavedModel does not load in a C++ session.
    """
    file = Path(path)
    saved = (file / "saved_model.pb").is_file()
    if not (saved or file.suffix == SUFFIX):
        return _open_keras(path, run, name, strategy)
    if strategy is not None:
        raise ValueError(f"`strategy` spreads a Keras model over replicas. Received: {path}")
    described = load_run(run) if run else _nearest_run(file)
    loaded = load_saved_model(file) if saved else load_tflite(file)
    processor, labels = (
        (described.processor, described.labels) if described else _own_description(file, loaded)
    )
    predict = _both_heads(loaded) if saved else lambda images: {"mean": loaded(images)}
    return Opened(predict, processor, labels, described.config if described else None)


def predict_files(
    path: str,
    images: Sequence[str],
    *,
    top: int = 5,
    run: str | None = None,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Name what is in image files.

    Args:
        path: A model, as `open_model` takes it.
        images: Files.
        top: Classes to name for each, C at most.
        run: As in `open_model`.
        name: As in `open_model`.
    Returns:
        Per file `image` and `classes`, a list of `class`, `label` and `probability`, most probable
        first.
    Raises:
        FileNotFoundError: If a file or the model is not there.
        ValueError: If a file is no image, which is named, or `top` is not positive.
    """
    if top < 1:
        raise ValueError(f"`top` is a number of classes from 1. Received: {top}")
    opened = open_model(path, run, name)
    results = []
    for image in images:
        logits = opened.predict(opened.processor.batch([image]))["mean"]  # [1, C]
        probabilities = tf.nn.softmax(np.float64(logits[0])).numpy()  # [C]
        best = np.argsort(-probabilities, kind="stable")[:top]
        named = opened.labels or [str(i) for i in range(len(probabilities))]
        classes = [
            {"class": int(i), "label": named[i], "probability": float(probabilities[i])}
            for i in best
        ]
        results.append({"image": str(image), "classes": classes})
    return results


def run_above(path: str | Path) -> Path | None:
    """The nearest run directory that `path` is or lies in."""
    here = Path(path).resolve()
    return next(
        (folder for folder in (here, *here.parents) if run_config(folder) is not None), None
    )


def _own_description(file: Path, loaded: Any) -> tuple[ImageProcessor, tuple[str, ...] | None]:
    """Processor and labels of an export outside of a run: from the JSON file beside it, or the
    labels within it.
    """
    told = _beside(file) if file.suffix == SUFFIX and sidecar_path(file).is_file() else {}
    labels = tuple(told.get("labels") or getattr(loaded, "labels", ())) or None
    if "mean" not in told:
        processor = ImageProcessor(loaded.image_size)
        log.warning(
            "%s lies in no run (--run RUN): the original's preprocessing is assumed, %s.",
            file,
            processor,
        )
        return processor, labels
    fields = ("image_size", "mean", "std", "resize_to", "interpolation")
    values = {
        name: tuple(told[name]) if isinstance(told[name], list) else told[name] for name in fields
    }
    return ImageProcessor(**values), labels


def _beside(file: Path) -> dict[str, Any]:
    """The JSON file beside a .tflite file, if it is one of ours."""
    try:
        return read_sidecar(file)
    except (KeyError, TypeError):  # another tool's
        log.warning(
            "%s was not written by an export of deit_tf and is passed over.", sidecar_path(file)
        )
        return {}


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
        if described.config is None and is_keras(run or path):
            processor = described.processor
            log.warning(
                "%s lies in no run (--run RUN): the original's preprocessing is assumed, %s.",
                path,
                processor,
            )
        network = heads(own.model) if has_two_heads(own.model) else own.model
    call = network.predict_on_batch if strategy is None else _spread(network, strategy)

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        logits = call(images)
        if not isinstance(logits, dict):
            return {"mean": np.asarray(logits)}
        return {"mean": (logits["cls"] + logits["dist"]) / 2, **logits}

    return Opened(predict, described.processor, described.labels, described.config)


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


def _both_heads(saved) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A SavedModel with its heads, where it has a signature for them."""
    if HEADS not in saved.signatures:
        return lambda images: {"mean": saved(images)}
    return lambda images: {
        "mean": saved(images),
        **saved.run(HEADS, np.asarray(images, np.float32)),
    }


def _nearest_run(path: Path) -> Run | None:
    folder = run_above(path)
    return load_run(folder) if folder else None
