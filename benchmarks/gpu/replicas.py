"""MirroredStrategy on all devices against one: weights after some steps, and images per second."""

import time

import keras
import numpy as np
import tensorflow as tf

import deit_tf
from deit_tf.training.replicas import distribute
from gpu.devices import names, split_cpu
from gpu.steps import CLASSES, Setup

STEPS = 4  # after which weights are compared
LOGICAL = 2  # CPU devices, where there is no GPU


def mirrored(setup: dict, kind: str) -> dict:
    """Train the same global batch on one device and on all, then each device's own batch on all.

    Weights are compared without TensorFloat-32, whose products depend on their shapes.

    Returns:
        `devices`; `difference`, the largest of a weight, and `moved`, by how much the training
        changed one; `images_per_second` of one device and of all, each with `batch` images per
        device; `scaling`, the second over the first and the devices. Of one device `devices` alone.
    """
    setup = Setup(**setup)
    if kind == "cpu":
        split_cpu(LOGICAL)
    devices = names(kind)
    if len(devices) < 2:
        return {"devices": len(devices)}

    tf.config.experimental.enable_tensor_float_32_execution(False)
    one = tf.distribute.OneDeviceStrategy(devices[0])
    every = tf.distribute.MirroredStrategy(devices)
    start = _student(setup).get_weights()
    weights = [_trained(setup, strategy, len(devices)) for strategy in (one, every)]

    tf.config.experimental.enable_tensor_float_32_execution(True)
    rates = [_rate(setup, one, 1), _rate(setup, every, len(devices))]
    return {
        "devices": len(devices),
        "difference": _largest(*weights),
        "moved": _largest(weights[0], start),
        "images_per_second": rates,
        "scaling": rates[1] / rates[0] / len(devices),
    }


def _trained(setup: Setup, strategy: tf.distribute.Strategy, devices: int) -> list[np.ndarray]:
    """Weights after `STEPS` of a global batch that all devices share."""
    step, student = _step(setup, strategy)
    for batch in _batches(setup, strategy, setup.batch // devices * devices, STEPS):
        step(batch)
    return student.get_weights()


def _rate(setup: Setup, strategy: tf.distribute.Strategy, devices: int) -> float:
    """Images per second of steps with `batch` images to each device."""
    step, student = _step(setup, strategy)
    for number, batch in enumerate(
        _batches(setup, strategy, setup.batch * devices, setup.steps + 1)
    ):
        step(batch)
        if number == 0:
            _wait(student)
            started = time.perf_counter()

    _wait(student)
    return setup.steps * setup.batch * devices / (time.perf_counter() - started)


def _step(setup: Setup, strategy: tf.distribute.Strategy):
    with strategy.scope():
        student = _student(setup)
        trainer = deit_tf.Distiller(student, kind="none")
        trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        trainer.optimizer.build(trainer.learned)

    def of_batch(batch):
        strategy.run(trainer.train_step, (batch,))

    return tf.function(of_batch, autograph=False), student


def _student(setup: Setup) -> keras.Model:
    keras.utils.set_random_seed(0)
    return deit_tf.create_model(
        setup.model, image_size=setup.image_size, num_classes=CLASSES, drop_path_rate=0.0
    )


def _batches(setup: Setup, strategy: tf.distribute.Strategy, images: int, count: int):
    batch = tf.data.Dataset.from_tensors(setup.images(images)).repeat(count)
    return distribute(batch, strategy)


def _wait(student: keras.Model) -> None:
    """Until the device has done what it was given."""
    student.weights[-1].numpy()


def _largest(weights: list[np.ndarray], others: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(weights, others, strict=True))
