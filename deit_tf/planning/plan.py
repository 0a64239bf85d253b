"""What a run will take, before it begins: nothing is written.

Memory and operations are read off the graph of the step; images per second are measured here, or
given for the machine that is meant.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tensorflow as tf

from deit_tf.config import TrainConfig, check_config
from deit_tf.data import Source, open_sources, steps_per_epoch
from deit_tf.data.order import WHOLE
from deit_tf.planning.graph import StepCost, step_cost
from deit_tf.runs import shaped_as_weights
from deit_tf.tasks import TASKS, Task
from deit_tf.train import compile_trainer
from deit_tf.training.precision import dtype_policy
from deit_tf.training.prefetch import AHEAD
from deit_tf.training.replicas import check_batch

# What a training takes on a CPU beside what is counted: its graphs, the library's scratch, pictures
# on their way. 550 MB of DeiT-Ti, 700 of DeiT-S, batch 32 at 224 pixels (docs/scale.md).
PROCESS_BYTES = 600e6
EVALUATION = 1 / 3  # of a training step, as the gradients are two products for each


def plan(
    config: TrainConfig,
    *,
    devices: int | None = None,
    memory: float | None = None,
    throughput: float | None = None,
    price: float | None = None,
    images: int | None = None,
    classes: int = 1000,
    seconds: float = 5.0,
    steps: int = 3,
) -> dict[str, Any]:
    """Say what a run will take.

    Args:
        config: The run.
        devices: How many it will train on; by default the GPUs here, or one.
        memory: Bytes of a device, to find `micro_batches` for.
        throughput: Images per second of training on all devices together; by default what real
            steps on one device here reach, times the devices.
        price: Of all devices together, per hour.
        images: Training images, where the data is not here; `data.source` is not opened then.
        classes: Their classes.
        seconds: How long the input is measured; 0 leaves that out.
        steps: Real steps that are measured, of which the fastest counts; 0 leaves that out.
    Returns:
        The figures by name; bytes as `..._bytes`. What cannot be said is None.
    Raises:
        ValueError, FileNotFoundError: As of training; for numbers that are not positive, or
            `seconds` and `steps` below 0.
    """
    _check_positive(devices=devices, memory=memory, throughput=throughput, price=price)
    _check_positive(images=images, classes=classes)
    for name, value in (("seconds", seconds), ("steps", steps)):
        if not 0 <= value < math.inf:
            raise ValueError(f"`{name}` must be 0 or more. Received: {value}")

    several = config.task == "multilabel"
    config = shaped_as_weights(replace(config, augment=config.augment.resolve(several)))
    check_config(config)
    devices = devices or _devices(config)
    check_batch(config.data.batch_size, devices, config.micro_batches)
    sources = _described(images, classes, several) if images else open_sources(config.data)
    size = sources[0].size
    steps_per_epoch(sources[0], config.data.batch_size)  # refused before anything is traced

    with dtype_policy(config.precision):
        part = config.data.batch_size // devices // config.micro_batches
        task = _task_of_part(config, sources, part)
        cost = step_cost(task.trainer.train_step, lambda count: _spec(task, count))
        found = _amounts(config, sources, task, cost, devices)
        found |= _memory(config, task, cost, devices, memory)

        measures = images is None
        input_rate = _input_rate(task, part, seconds) if measures and seconds else None
        if throughput is None and measures and steps:
            found["step_images_per_second"] = devices * _step_rate(task, part, steps)
    return found | _time(config, (size, sources[1].size), found, input_rate, throughput, price)


def _amounts(
    config: TrainConfig, sources: tuple[Source, Source], task: Task, cost: StepCost, devices: int
) -> dict[str, Any]:
    training, held_out = sources
    steps = steps_per_epoch(training, config.data.batch_size)
    flops = cost.flops(2) / 2
    return {
        "images": training.size,
        "held_out_images": held_out.size,
        "classes": len(training.class_names),
        "devices": devices,
        "steps_per_epoch": steps,
        "steps": steps * config.epochs,
        "parameters": task.trainer.network.count_params(),
        "flops_per_image": flops,
        "flops_of_the_run": flops * steps * config.epochs * config.data.batch_size,
    }


def _memory(
    config: TrainConfig, task: Task, cost: StepCost, devices: int, memory: float | None
) -> dict[str, Any]:
    """Bytes on one device, and the fewest micro-batches that fit `memory`."""
    share = config.data.batch_size // devices
    parts = [count for count in range(1, share + 1) if share % count == 0]
    each = {count: _device_bytes(task, cost, share, count) for count in parts}
    fits = [count for count in parts if memory and sum(each[count].values()) <= memory]
    found = {f"{name}_bytes": size for name, size in each[config.micro_batches].items()}
    return found | {
        "micro_batches": config.micro_batches,
        "memory_bytes": sum(each[config.micro_batches].values()),
        "micro_batches_that_fit": fits[0] if fits else None,
    }


def _device_bytes(task: Task, cost: StepCost, share: int, parts: int) -> dict[str, int]:
    """Bytes on one device by what holds them, for `share` images worked off in `parts`."""
    trainer = task.trainer
    learned = _bytes_of(trainer.learned)
    teacher = getattr(trainer, "teacher", None)
    image_bytes = sum(
        spec.shape[1:].num_elements() * spec.dtype.size for spec in tf.nest.flatten(_spec(task, 1))
    )
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    kept = {
        "weights": _bytes_of(trainer.network.weights),
        "optimizer": _bytes_of(trainer.optimizer.variables),
        "average": _bytes_of(trainer.ema.network.weights) if trainer.ema else 0,
    }
    return kept | {
        "teacher": _bytes_of(teacher.model.weights) if teacher else 0,
        "input": image_bytes * share * (1 + AHEAD),
        "activations": cost.peak_bytes(share // parts) + (learned if parts > 1 else 0),
        # the copy that is written; a GPU leaves it to the host, as it does the process
        "checkpoint": 0 if on_gpu else sum(kept.values()),
        "process": 0 if on_gpu else round(PROCESS_BYTES),
    }


def _time(
    config: TrainConfig,
    sizes: tuple[int, int],
    found: dict[str, Any],
    input_rate: float | None,
    throughput: float | None,
    price: float | None,
) -> dict[str, Any]:
    """Images per second, and hours and cost of the run."""
    step_rate = throughput or found.get("step_images_per_second")
    rate = step_rate
    if step_rate and input_rate and not throughput:
        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        # On a CPU both take turns on the same cores.
        both = 1 / (1 / step_rate + 1 / input_rate)
        rate = min(step_rate, input_rate) if on_gpu else both

    hours = None
    if rate:
        trained = found["steps"] * config.data.batch_size
        networks = 2 if config.optim.ema_decay is not None else 1
        evaluated = config.epochs * sizes[1] * networks
        hours = (trained / rate + EVALUATION * evaluated / step_rate) / 3600
    return {
        "input_images_per_second": input_rate,
        "input_must_give": step_rate,
        "images_per_second": rate,
        "hours": hours,
        "cost": hours * price if hours and price else None,
    }


def _task_of_part(config: TrainConfig, sources: tuple[Source, Source], part: int) -> Task:
    """The run with `part` images to a batch, compiled: what a device works off at a time."""
    data = replace(config.data, batch_size=part, class_weights=None)  # they take no memory
    alone = replace(config, data=data, micro_batches=1)
    task = TASKS[config.task](alone, sources)
    compile_trainer(task, alone, sources[0].size)
    return task


def _input_rate(task: Task, part: int, seconds: float) -> float:
    """Images per second that the input gives by itself, after its first batch."""
    batches = _forever(task)
    next(batches)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        next(batches)
        count += part
    return count / (time.perf_counter() - started)


def _step_rate(task: Task, part: int, steps: int) -> float:
    """Images per second of the fastest of some real steps on one device, over one batch again and
    again: what else runs here makes the others slower.
    """
    step = tf.function(task.trainer.train_step, autograph=False)
    batch = next(_forever(task))
    float(step(batch)["loss"])  # traces, and warms up
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        float(step(batch)["loss"])
        seconds.append(time.perf_counter() - started)
    return part / min(seconds)


def _forever(task: Task) -> Iterator[Any]:
    while True:
        yield from task.batches(0, WHOLE)


def _spec(task: Task, images: int) -> Any:
    """The shapes of a batch of so many images."""
    return tf.nest.map_structure(
        lambda spec: tf.TensorSpec((images, *spec.shape[1:]), spec.dtype),
        task.batches(0, WHOLE).element_spec,
    )


def _described(images: int, classes: int, multilabel: bool) -> tuple[Source, Source]:
    """Sources of so many images, which cannot be read."""
    names = tuple(map(str, range(classes)))
    label = tf.zeros(classes) if multilabel else tf.constant(0, tf.int64)
    item = {"index": tf.constant(0, tf.int64), "image": "", "label": label}
    nothing = tf.data.Dataset.from_tensors(item).take(0)

    def read(seed):
        return nothing

    training = Source("the images to come", names, images, read, multilabel=multilabel)
    return training, replace(training, size=0)


def _devices(config: TrainConfig) -> int:
    gpus = len(tf.config.list_physical_devices("GPU"))
    return max(gpus, 1) if config.strategy != "none" else 1


def _bytes_of(variables) -> int:
    return sum(
        tf.TensorShape(variable.shape).num_elements() * tf.as_dtype(variable.dtype).size
        for variable in variables
    )


def _check_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"`{name}` must be positive. Received: {number}")
