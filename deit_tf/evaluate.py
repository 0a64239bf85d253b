"""Accuracy of a model in any of its forms, on the same images: Keras, SavedModel, .tflite."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.progress import track

from deit_tf.config import DataConfig
from deit_tf.data import ImageProcessor, Source, eval_dataset, open_sources
from deit_tf.data.sources import open_whole
from deit_tf.models import heads
from deit_tf.runs import Run, load_run
from deit_tf.serving import load_saved_model
from deit_tf.tflite import load_tflite

Predictor = Callable[[np.ndarray], dict[str, np.ndarray]]


def evaluate(
    path: str, run: str | None = None, source: str | None = None, batch_size: int | None = None
) -> dict[str, int | float]:
    """Count how often the true class is the top one, and among the top five.

    Args:
        path: A run directory, a .keras file, a SavedModel directory or a .tflite file.
        run: The run whose data, image processor and labels to use; by default the one that `path`
            lies in.
        source: Other images, named as `data.source`; of a folder without `train/` and `val/` all.
        batch_size: Images per step; by default that of the run.
    Returns:
        `images`, `top1` and `top5` of the model's output, and `top1_cls`, `top1_dist` of its heads
        where it has them; shares in 0..1.
    Raises:
        FileNotFoundError: If there is nothing at `path`, or no run to take the data from.
        ValueError: If the images have a class that the model does not know.
    """
    described = _describe(path, run)
    data = described.config.data if described and described.config else DataConfig(source=source or "")
    data = replace(data, batch_size=batch_size or data.batch_size)
    if not data.source:
        raise FileNotFoundError(f"{path} lies in no run directory. Pass --run RUN, or --source for the images.")
    images = open_whole(replace(data, source=source)) if source else open_sources(data)[1]
    predict, size = _predictor(Path(path), described)
    processor = described.processor if described else ImageProcessor(size)
    labels = described.labels if described else None
    return _count(predict, images, data, processor, _order(images.class_names, labels))


def _describe(path: str, run: str | None) -> Run | None:
    """The run that tells about `path`: the one asked for, or the nearest folder above that is one."""
    if run is not None:
        return load_run(run)
    here = Path(path).resolve()
    for folder in (here, *here.parents):
        if (folder / "config.yaml").is_file():
            return load_run(here if here.suffix == ".keras" else folder)
    return load_run(here) if here.suffix == ".keras" else None


def _predictor(path: Path, described: Run | None) -> tuple[Predictor, tuple[int, int]]:
    """What turns normalised images [B, H, W, 3] into logits [B, C] by name, and its image size."""
    if path.suffix == ".tflite":
        lite = load_tflite(path)
        return lambda images: {"mean": lite(images)}, lite.image_size
    if (path / "saved_model.pb").is_file():
        saved = load_saved_model(path)
        return lambda images: {"mean": saved(images)}, saved.image_size
    if not path.exists() or described is None:
        raise FileNotFoundError(f"{path} is no run directory, .keras file, SavedModel directory or .tflite file.")
    model = described.model
    if not any(layer.name == "head_dist" for layer in model.layers):
        return lambda images: {"mean": model.predict_on_batch(images)}, model.input_shape[1:3]
    both = heads(model)

    def predict(images):
        logits = both.predict_on_batch(images)
        return {"mean": (logits["cls"] + logits["dist"]) / 2, **logits}

    return predict, model.input_shape[1:3]


def _order(names: tuple[str, ...], labels: tuple[str, ...] | None) -> np.ndarray:
    """The model's output for each class of the data."""
    if labels is None:
        return np.arange(len(names))
    if unknown := [name for name in names if name not in labels]:
        raise ValueError(f"The model does not know these classes of the data: {', '.join(unknown[:5])}")
    return np.array([labels.index(name) for name in names])


def _count(
    predict: Predictor, source: Source, data: DataConfig, processor: ImageProcessor, order: np.ndarray
) -> dict[str, int | float]:
    hits: dict[str, int] = {}
    total = 0
    batches: tf.data.Dataset = eval_dataset(source, data, processor)
    steps = -(-source.size // data.batch_size)
    for images, labels in track(batches.as_numpy_iterator(), "Evaluating", total=steps, transient=True):
        truth = order[labels][:, None]  # [B, 1]
        total += len(images)
        for head, logits in predict(images).items():
            ranking = np.argsort(-logits, axis=-1, kind="stable")[:, :5]  # [B, 5]
            for name, top in ((f"top1_{head}", 1), (f"top5_{head}", 5)):
                hits[name] = hits.get(name, 0) + int((ranking[:, :top] == truth).any(-1).sum())
    shares = {name: count / total for name, count in hits.items()}
    per_head = {name: shares[name] for name in ("top1_cls", "top1_dist") if name in shares}
    return {"images": total, "top1": shares["top1_mean"], "top5": shares["top5_mean"], **per_head}
