"""One training step: in each precision, with XLA, with deterministic kernels; its memory; and loss
scaling.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import deit_tf
from deit_tf.config import (
    AugmentConfig,
    DataConfig,
    DistillConfig,
    OptimConfig,
    StudentConfig,
    TrainConfig,
)
from deit_tf.planning.plan import plan
from deit_tf.training.precision import dtype_policy
from deit_tf.training.prefetch import AHEAD
from deit_tf.zoo import create_regnety
from gpu.devices import peak_bytes

CLASSES = 1000
# How TensorFlow names what has no deterministic kernel, or else the node that failed.
REFUSED = (
    r"[Dd]eterministic GPU implementation of (.+?)(?: is)? not (?:currently )?available",
    r"Determinism is not yet supported in GPU implementation of ([^.\n]+)",
    r"Determinism is not yet supported for ([^.\n]+)",
    r"((?:GPU )?[\w ]+?) do(?:es)? not yet have a deterministic",
    r"\{\{node (?:[^}/]*/)*([^}/]+)\}\}",
    r"\[Op:(\w+)\]",
)
DETERMINISM = "etermini"  # what all of these messages have
HIGHEST_SCALE = 2.0**40  # of a loss: float16 ends at 2 ** 16, so that the first steps overflow
SCALED_STEPS = 40


@dataclass(frozen=True)
class Setup:
    """What the steps are of.

    Args:
        model: A student.
        image_size: Pixels.
        batch: Images of one device.
        steps: How many are timed.
    """

    model: str = "deit_tiny_distilled_patch16_224"
    image_size: int = 224
    batch: int = 64
    steps: int = 10

    def images(self, count: int | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """A batch of noise with labels, [B, H, W, 3] and [B, C]."""
        count, draw = count or self.batch, np.random.default_rng(0)
        shape = (count, self.image_size, self.image_size, 3)
        labels = draw.integers(CLASSES, size=count)
        return tf.constant(draw.normal(size=shape), tf.float32), tf.one_hot(labels, CLASSES)


def step(setup: dict, precision: str, xla: bool, deterministic: bool) -> dict:
    """Train a student by a convnet on one batch: twice from the same start where the kernels are
    deterministic, so that the bits can be compared.

    Returns:
        `first_loss` and `loss`, `images_per_second`, `peak_bytes`, `same_bits`; or `refused`, the
        operation that has no such kernel, with the `error`.
    """
    setup = Setup(**setup)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    try:
        losses, rate = _train(setup, precision, xla)
        again = _train(setup, precision, xla)[0] if deterministic else losses
    except tf.errors.OpError as error:
        if not deterministic or DETERMINISM not in str(error):
            raise
        return {"refused": refused_operation(str(error)), "error": str(error)[:300]}

    return {
        "first_loss": losses[0],
        "loss": losses[-1],
        "images_per_second": rate,
        "peak_bytes": peak_bytes(_kind()),
        "same_bits": losses == again,
    }


def refused_operation(message: str) -> str:
    """The operation that an error of TensorFlow names, or `unknown`."""
    found = (re.search(pattern, message) for pattern in REFUSED)
    return next((match.group(1) for match in found if match), "unknown")


def _train(setup: Setup, precision: str, xla: bool) -> tuple[list[float], float]:
    """The loss of each step, and images per second but for the first step, which traces."""
    keras.utils.set_random_seed(0)
    size = {"image_size": setup.image_size, "num_classes": CLASSES}
    with dtype_policy(precision):
        student = deit_tf.create_model(setup.model, drop_path_rate=0.1, **size)
        convnet = create_regnety("regnety_002", **size)
    convnet.trainable = False
    trainer = deit_tf.Distiller(student, deit_tf.Teacher(convnet))
    run = compiled(trainer, precision, xla)

    batch, losses = setup.images(), []
    for number in range(setup.steps + 1):
        losses.append(float(run(batch)["loss"]))
        trainer.reset_metrics()  # or it would be the mean so far
        if number == 0:
            started = time.perf_counter()
    seconds = time.perf_counter() - started
    return losses, setup.steps * setup.batch / seconds


def compiled(trainer: Any, precision: str, xla: bool = False) -> Callable:
    """The training step of a trainer, as the command compiles it."""
    optimizer = deit_tf.optim.AdamW(1e-4)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    trainer.compile(optimizer, clip_norm=1.0, ema_decay=0.99)
    optimizer.build(trainer.learned)
    return tf.function(trainer.train_step, jit_compile=xla or None, autograph=False)


def memory(setup: dict, precision: str) -> dict:
    """Memory at its highest over some steps, and what `deit-tf plan` says of them.

    Returns:
        `measured_bytes`, `planned_bytes` and `ratio`, the first over the second.
    """
    setup = Setup(**setup)
    planned = _planned(setup, precision)

    before = 0 if _kind() == "gpu" else peak_bytes("cpu")
    keras.utils.set_random_seed(0)
    size = {"image_size": setup.image_size, "num_classes": CLASSES}
    with dtype_policy(precision):
        student = deit_tf.create_model(setup.model, drop_path_rate=0.1, **size)
    run, batch = compiled(deit_tf.Distiller(student, kind="none"), precision), setup.images()
    for _ in range(3):
        float(run(batch)["loss"])

    measured = peak_bytes(_kind()) - before
    ratio = measured / planned
    return {"measured_bytes": measured, "planned_bytes": planned, "ratio": ratio}


def _planned(setup: Setup, precision: str) -> float:
    """Bytes of a device by `plan`, but for the batches that an input makes ahead."""
    config = TrainConfig(
        model=StudentConfig(setup.model, image_size=setup.image_size),
        data=DataConfig(batch_size=setup.batch),
        augment=AugmentConfig("none"),
        optim=OptimConfig(ema_decay=0.99, clip_norm=1.0),
        distill=DistillConfig(kind="none"),
        precision=precision,
    )
    found = plan(config, images=100 * setup.batch, classes=CLASSES, devices=1)
    return found["memory_bytes"] - found["input_bytes"] * AHEAD / (1 + AHEAD)


def loss_scaling(setup: dict) -> dict:
    """float16 from a scale at which the gradient overflows.

    Returns:
        `skipped` steps; whether they `kept` the weights; the `scale` after them; and whether the
        steps then `moved` the weights, with a finite `loss`.
    """
    setup = Setup(**setup)
    keras.utils.set_random_seed(0)
    size = {"image_size": setup.image_size, "num_classes": CLASSES}
    with dtype_policy("mixed_float16"):
        student = deit_tf.create_model(setup.model, **size)
    trainer = deit_tf.Distiller(student, kind="none")
    inner = deit_tf.optim.AdamW(1e-4)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=HIGHEST_SCALE)
    trainer.compile(optimizer)
    optimizer.build(trainer.learned)
    run, batch = tf.function(trainer.train_step, autograph=False), setup.images()

    before, skipped, kept = student.get_weights(), 0, True
    for _ in range(SCALED_STEPS):
        figures = run(batch)
        if int(figures["skipped_steps"]) == skipped:
            break
        skipped += 1
        kept = kept and _same(before, student.get_weights())

    return {
        "skipped": skipped,
        "kept": kept,
        "scale": float(optimizer.dynamic_scale),
        "moved": not _same(before, student.get_weights()),
        "loss": float(figures["loss"]),
    }


def _same(weights: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(weights, others, strict=True))


def _kind() -> str:
    return "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
