"""Training runs: from a config to a run directory, for a student and for its teacher."""

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from deit_tf.config import TrainConfig
from deit_tf.data import (
    ImageProcessor,
    Source,
    eval_dataset,
    masked_dataset,
    masked_eval_dataset,
    open_sources,
    steps_per_epoch,
    train_dataset,
)
from deit_tf.distill import Distiller
from deit_tf.models import create_masked_model, create_model
from deit_tf.optim import build_optimizer, scaled_lr
from deit_tf.runs import MODELS, JsonLines, load_teacher, replacing, write_config, write_json
from deit_tf.teachers import build_teacher

log = logging.getLogger(__name__)


def train(config: TrainConfig, overwrite: bool = False) -> Path:
    """Train the student that `config` describes, with its teacher if it has one, or pre-train its trunk.

    Args:
        config: The run.
        overwrite: Whether to replace a finished run in `config.out`.
    Returns:
        The run directory.
    Raises:
        FileExistsError: If `config.out` holds a finished run.
        FileNotFoundError, ValueError: If the config names what is not there, or its parts do not fit;
            nothing is written then.
        FloatingPointError: If the loss is no longer finite; no model is saved then.
    """
    sources = _prepare(config, overwrite)
    return (_train_masked if config.task == "masked" else _train_student)(config, sources)


def _train_student(config: TrainConfig, sources: tuple[Source, Source]) -> Path:
    labels = sources[0].class_names
    teacher = None
    if config.distill.kind != "none":
        if config.distill.teacher is None:
            raise ValueError(
                f"`distill.kind` {config.distill.kind!r} needs a teacher. Train one with `deit-tf train-teacher` and "
                "set `distill.teacher` to its run, or set `distill.kind` to none."
            )
        teacher = load_teacher(config.distill.teacher, labels)
    with _reproducible(config):
        student = create_model(config.model.name, num_classes=len(labels), **config.model.overrides())
        distiller = Distiller(
            student,
            teacher,
            kind=config.distill.kind,
            alpha=config.distill.alpha,
            temperature=config.distill.temperature,
            normalization=config.distill.normalization,
            mean=config.data.mean,
            std=config.data.std,
        )
        distiller.compile(_optimizer(config, sources[0]))
        return _fit(distiller, student, "student.keras", config, sources, config.distill.kind)


def _train_masked(config: TrainConfig, sources: tuple[Source, Source]) -> Path:
    """Pre-train a trunk by masked image modelling (SimMIM)."""
    with _reproducible(config):
        network = create_masked_model(config.model.name, **config.model.overrides())
        network.compile(_optimizer(config, sources[0]))
        return _fit(network, network, "masked.keras", config, sources, "masked")


def train_teacher(config: TrainConfig, overwrite: bool = False) -> Path:
    """Train the convnet of `config.teacher` on the student's data, into `config.out`.

    Takes, returns and raises what `train` does.
    """
    teacher = config.teacher
    size = teacher.image_size or config.model.image_size or 224
    config = replace(config, augment=teacher.augment, optim=teacher.optim, epochs=teacher.epochs)
    sources = _prepare(config, overwrite)
    with _reproducible(config):
        network = build_teacher(
            teacher, len(sources[0].class_names), image_size=size, mean=config.data.mean, std=config.data.std
        )
        network.compile(
            _optimizer(config, sources[0]),
            keras.losses.CategoricalCrossentropy(from_logits=True),
            metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        )
        return _fit(network, network, "teacher.keras", config, sources, "teacher")


def _prepare(config: TrainConfig, overwrite: bool) -> tuple[Source, Source]:
    """Open the data and refuse what would fail or destroy something later."""
    finished = [name for name in MODELS if (Path(config.out) / name).exists()]
    if finished and not overwrite:
        raise FileExistsError(f"{config.out} holds a finished run. Choose another --out, or pass --overwrite.")
    if config.epochs < 1:
        raise ValueError(f"`epochs` must be positive. Received: {config.epochs}")
    sources = open_sources(config.data)
    steps_per_epoch(sources[0], config.data.batch_size)
    return sources


@contextmanager
def _reproducible(config: TrainConfig) -> Iterator[None]:
    """Seed the weights, and build in the precision asked for."""
    keras.utils.set_random_seed(config.seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _optimizer(config: TrainConfig, source: Source) -> keras.optimizers.Optimizer:
    batch, steps = config.data.batch_size, steps_per_epoch(source, config.data.batch_size)
    peak = scaled_lr(config.optim, batch)
    log.info("%d images, %d classes, %d steps per epoch", source.size, len(source.class_names), steps)
    log.info("Batch %d, so the learning rate peaks at %.3g (lr %.3g)", batch, peak, config.optim.lr)
    if config.optim.min_lr > peak:
        log.warning("`optim.min_lr` %.3g exceeds that peak: the learning rate will rise.", config.optim.min_lr)
    return build_optimizer(config.optim, batch, steps, config.epochs)


def _fit(
    fitted: keras.Model,
    network: keras.Model,
    file: str,
    config: TrainConfig,
    sources: tuple[Source, Source],
    kind: str,
) -> Path:
    """Fit a compiled model, evaluate it, and write the run directory."""
    out = Path(config.out)
    training = sources[0]
    batches, evaluation = (_masked_batches if kind == "masked" else _batches)(network, config, sources)
    _start(out, replace(config, augment=config.augment.resolve()), training.class_names)
    verbose = 1 if sys.stdout.isatty() else 2
    started = time.perf_counter()
    history = fitted.fit(
        batches,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch(training, config.data.batch_size),
        validation_data=evaluation,
        shuffle=False,  # the data set does it
        verbose=verbose,
        callbacks=[
            keras.callbacks.TerminateOnNaN(),
            JsonLines(out / "metrics.jsonl", config.data.batch_size),
            keras.callbacks.TensorBoard(str(out / "tensorboard")),
        ],
    ).history
    seconds = time.perf_counter() - started
    if not np.isfinite(history["loss"][-1]):
        raise FloatingPointError(
            f"The loss is {history['loss'][-1]} in epoch {len(history['loss'])} at learning rate "
            f"{float(fitted.optimizer.learning_rate):.3g} in {config.precision}. No model was saved; lower `optim.lr`, "
            "lengthen `optim.warmup_epochs`, or train in float32."
        )
    with replacing(out / file) as temporary:
        network.save(temporary)
    figures = {k.removeprefix("val_"): v[-1] for k, v in history.items() if k.startswith("val_")}
    write_json(_summary(network, config, sources, kind, seconds, figures), out / "summary.json")
    return out


def _batches(network: keras.Model, config: TrainConfig, sources: tuple[Source, Source]):
    """Labelled batches to train on, and those to evaluate on."""
    training, held_out = sources
    size = network.input_shape[1:3]
    processor = ImageProcessor(size, config.data.crop_ratio, config.data.mean, config.data.std)
    batches = train_dataset(training, config.data, config.augment, size, epochs=config.epochs, seed=config.seed)
    return batches, _one_hot(eval_dataset(held_out, config.data, processor), len(training.class_names))


def _masked_batches(network: keras.Model, config: TrainConfig, sources: tuple[Source, Source]):
    """Batches of images and masks to train on, and those to evaluate on."""
    training, held_out = sources
    size, patch = network.output_shape[1:3], network.get_layer("patch_embed").patch_size
    processor = ImageProcessor(size, config.data.crop_ratio, config.data.mean, config.data.std)
    batches = masked_dataset(
        training, config.data, config.augment, config.mask, size, patch, epochs=config.epochs, seed=config.seed
    )
    return batches, masked_eval_dataset(held_out, config.data, config.mask, processor, patch)


def _start(out: Path, config: TrainConfig, labels: tuple[str, ...]) -> None:
    """Make the run directory, without what an earlier run left of itself."""
    shutil.rmtree(out / "tensorboard", ignore_errors=True)
    for name in (*MODELS, "metrics.jsonl", "summary.json"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_config(config, out / "config.yaml")
    with replacing(out / "labels.txt") as temporary:
        temporary.write_text("".join(f"{label}\n" for label in labels))


def _summary(
    network: keras.Model, config: TrainConfig, sources: tuple[Source, Source], kind: str, seconds: float, figures: dict
) -> dict:
    return {
        "model": network.name,
        "parameters": network.count_params(),
        "kind": kind,
        "seed": config.seed,
        "epochs": config.epochs,
        "training_seconds": round(seconds, 1),
        "training_images": sources[0].size,
        "evaluation_images": sources[1].size,
        "evaluation": figures,
    }


def _one_hot(dataset: tf.data.Dataset, classes: int) -> tf.data.Dataset:
    return dataset.map(lambda images, labels: (images, tf.one_hot(labels, classes)))
