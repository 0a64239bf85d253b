"""The same training by timm and torch: what it starts from and is fed, and what it answers."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np

from deit_tf.config import TrainConfig
from deit_tf.data import ImageProcessor, eval_dataset, open_sources, steps_per_epoch
from deit_tf.data.order import WHOLE
from deit_tf.files import read_json, write_json
from deit_tf.tasks import Task, student_task
from deit_tf.training.optim import build_optimizer
from deit_tf.weights.names import to_reference
from evidence.measures import BOTH, share

SCRIPT = Path(__file__).parent / "torch_training.py"
ROUNDING = 1e-3  # of a gray level, by which a picture may differ from whole ones


def train_reference(config: TrainConfig, folder: Path, python: str) -> dict[str, Any]:
    """Train a run of the plan by timm and torch.

    Args:
        config: The run, as it trains here.
        folder: Where its batches and its state lie meanwhile; it is removed at the end.
        python: The interpreter that has torch and timm.
    Returns:
        `accuracy` by head, `images`, `curve`, `training_seconds` and versions; or `failed`.
    """
    ready = folder / "spec.json"
    if not ready.is_file():
        prepare(config, folder)
    done = subprocess.run([python, SCRIPT, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The reference training failed: {done.stderr[-2000:]}")

    figures = read_json(folder / "figures.json")
    logits, truth = np.load(folder / "answers.npz"), np.load(folder / "held_out.npz")["labels"]
    shutil.rmtree(folder)
    if not all(np.isfinite(logits[head]).all() for head in logits):
        return {"failed": "its logits are not finite"}
    return {
        "images": len(truth),
        "accuracy": accuracies(logits, truth),
        "curve": figures["curve"],
        "training_seconds": round(figures["seconds"], 1),
        "reference_versions": {name: figures[name] for name in ("torch", "timm")},
    }


def accuracies(logits: Mapping[str, np.ndarray], truth: np.ndarray) -> dict[str, float]:
    """Shares by head; of two also both together."""
    heads = {head: logits[head] for head in logits}
    if "dist" in heads:
        heads[BOTH] = (heads["cls"] + heads["dist"]) / 2
    return {head: share(each.argmax(-1) == truth) for head, each in heads.items()}


def prepare(config: TrainConfig, folder: Path) -> None:
    """Write what the reference needs; spec.json last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sources = open_sources(config.data)
    keras.utils.set_random_seed(config.seed)
    task = student_task(config, sources)
    network = task.trainer.network
    np.savez(folder / "weights.npz", **to_reference(network, "timm"))

    processor = ImageProcessor.from_config(config.data, network.input_shape[1:3])
    steps = steps_per_epoch(sources[0], config.data.batch_size)
    _write_epochs(task, config.epochs, steps, processor, folder)
    held_out = list(eval_dataset(sources[1], config.data, processor).as_numpy_iterator())
    images, labels = (np.concatenate(parts) for parts in zip(*held_out, strict=True))
    np.savez(folder / "held_out.npz", images=pixels(images, processor), labels=labels)

    write_json(_spec(config, network, steps, processor), folder / "spec.json")
    keras.backend.clear_session()


def _write_epochs(
    task: Task, epochs: int, steps: int, processor: ImageProcessor, folder: Path
) -> None:
    batches = task.batches(0, WHOLE).as_numpy_iterator()
    for epoch in range(epochs):
        parts = [plain(*next(batches), processor) for _ in range(steps)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        np.savez(folder / f"epoch-{epoch}.npz", **joined)


def plain(images: np.ndarray, labels, processor: ImageProcessor) -> dict[str, np.ndarray]:
    """A batch as pixels, labels and, if it has them, the teacher's decisions.

    Raises:
        ValueError: If its labels are mixed or smoothed.
    """
    decisions = {}
    if isinstance(labels, Mapping):
        decisions = {"teacher": labels["teacher_logits"].argmax(-1)}
        labels = labels["labels"]
    if not np.array_equal(labels.max(-1), np.ones(len(labels))):
        raise ValueError("The reference takes one label for each image: no mixing, no smoothing.")
    return {"images": pixels(images, processor), "labels": labels.argmax(-1), **decisions}


def pixels(images: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """uint8 [B, H, W, 3] of normalized images.

    Raises:
        ValueError: If they are not of whole gray levels, as erasing would make them.
    """
    levels = 255 * (images * np.float32(processor.std) + np.float32(processor.mean))
    whole = np.round(levels)
    if np.abs(levels - whole).max() > ROUNDING or whole.min() < 0 or whole.max() > 255:
        raise ValueError("The reference takes images of whole gray levels: no erasing.")
    return whole.astype(np.uint8)


def _spec(
    config: TrainConfig, network: keras.Model, steps: int, processor: ImageProcessor
) -> dict[str, Any]:
    """Model, optimizer and the learning rate of each step."""
    model = config.model
    optimizer = build_optimizer(config.optim, config.data.batch_size, steps, config.epochs)
    rates = []
    for step in range(steps * config.epochs):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))

    distilled = any(layer.name == "head_dist" for layer in network.layers)
    return {
        "distilled": distilled,
        "model": {
            "img_size": model.image_size,
            "patch_size": model.patch_size,
            "embed_dim": model.embed_dim,
            "depth": model.depth,
            "num_heads": model.num_heads,
            "num_classes": network.output_shape[-1],
        },
        "batch_size": config.data.batch_size,
        "alpha": config.distill.alpha,
        "optim": json.loads(json.dumps(asdict(config.optim))),
        "rates": [rates[e * steps : (e + 1) * steps] for e in range(config.epochs)],
        "mean": list(processor.mean),
        "std": list(processor.std),
    }
