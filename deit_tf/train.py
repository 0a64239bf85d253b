"""A training run: check, open, build, compile, train, finish."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from deit_tf import onednn
from deit_tf.config import AugmentConfig, DistillConfig, TrainConfig, check_config
from deit_tf.data import Source, open_sources, padded, steps_per_epoch
from deit_tf.data.order import WHOLE
from deit_tf.data.unreadable import naming_unreadable
from deit_tf.distillation.fingerprint import changing_facts
from deit_tf.distillation.teacher_labels import labels_teacher
from deit_tf.files import read_json, replacing, write_json
from deit_tf.runs import RunFolder, read_config, working_folder
from deit_tf.tasks import TASKS, Task, teacher_task
from deit_tf.training.checkpoints import Checkpoints
from deit_tf.training.loop import Loop
from deit_tf.training.metrics import EpochFigures
from deit_tf.training.optim import build_optimizer, scaled_lr
from deit_tf.training.precision import dtype_policy
from deit_tf.training.replicas import (
    check_batch,
    is_chief,
    open_strategy,
    synchronize,
    worker_of,
)

log = logging.getLogger(__name__)


def train(config: TrainConfig, overwrite: bool = False, accept_changes: bool = False) -> Path:
    """Train the student that `config` describes, with its teacher, or pre-train its trunk.

    A run that was stopped goes on where it was: call this again.

    Args:
        config: The run.
        overwrite: Whether to replace what is in `config.out`, finished or not, and start anew.
        accept_changes: Whether to go on with a stopped run although its config differs, if it has
            as many steps per epoch.
    Returns:
        The run folder; of one on an object store, the copy here.
    Raises:
        FileExistsError: If `config.out` holds a finished run, or files that are not of a run.
        BlockingIOError: If another process trains into it.
        FileNotFoundError, ValueError: If the config names what is not there, or its parts do not
            fit, or it differs from that of the stopped run; nothing is written then.
        FloatingPointError: If the loss is no longer finite; no model is saved then.
        ConnectionError: If a worker of the cluster is gone.
        OSError: If the disk is full; the checkpoints before stay whole.
        KeyboardInterrupt, SystemExit: At Ctrl-C and SIGTERM, after a checkpoint was written.
    """
    return _run(config, TASKS[config.task], overwrite, accept_changes)


def train_teacher(
    config: TrainConfig, overwrite: bool = False, accept_changes: bool = False
) -> Path:
    """Train the convnet of `config.teacher` on the student's data, into `config.out`.

    Takes, returns and raises what `train` does. `epochs`, `optim` and `augment` are those of
    `config.teacher`.
    """
    log.info("A teacher is trained by the settings teacher.epochs, teacher.optim, teacher.augment.")
    augment = config.teacher.augment.resolve(config.task == "multilabel")
    config = replace(config, teacher=replace(config.teacher, augment=augment))
    return _run(config, teacher_task, overwrite, accept_changes, _recipe_of_teacher)


def _recipe_of_teacher(config: TrainConfig) -> TrainConfig:
    teacher = config.teacher
    alone = DistillConfig(kind="none")  # it learns from the labels
    return replace(
        config,
        augment=teacher.augment,
        optim=teacher.optim,
        epochs=teacher.epochs,
        distill=alone,
        loss="cross_entropy",  # `loss` is the student's
    )


def _run(
    config: TrainConfig,
    build: Callable[[TrainConfig, tuple[Source, Source]], Task],
    overwrite: bool,
    accept_changes: bool,
    recipe: Callable[[TrainConfig], TrainConfig] = lambda config: config,
) -> Path:
    """Run what `recipe` makes of `config`; config.yaml gets `config` itself, for the student."""
    given = replace(config, augment=config.augment.resolve(config.task == "multilabel"))
    config = recipe(given)
    check_config(config)
    strategy = open_strategy(config.strategy)  # before anything is computed
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()

    with working_folder(config.out, worker_of(strategy)[0]) as folder:
        goes_on = folder.is_stopped and not overwrite
        if goes_on:
            config, given = _as_begun(config, folder), _as_begun(given, folder)
        rule = folder.split_rule if goes_on else "threshold"
        sources = open_sources(config.data, rule)
        facts = _facts(config, sources, strategy) | {"split": rule}

        with _kept_for_this_process(folder, strategy), naming_unreadable(*sources):
            folder.check_free(facts, overwrite)
            if goes_on and not accept_changes:
                begun = _as_begun(recipe(read_config(folder.config)), folder)
                folder.check_unchanged(config, _resolved_as(config, begun), facts)
            if goes_on:
                _warn_of_kernels(folder, facts)

            with strategy.scope(), dtype_policy(config.precision):
                keras.utils.set_random_seed(config.seed)
                task = build(config, sources)
                _say_batch(config, sources[0], strategy)
                compile_trainer(task, config, sources[0].size)
                task.batches(0, WHOLE)  # senseless augmentation is refused before a file is there
                _begin(folder, given, facts, overwrite, strategy)
                _train(task, config, folder, facts, strategy)

    return folder.path


def _as_begun(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """With what a stopped run did before there was a setting for it."""
    if not folder.tells("exif_orientation"):  # photographs were not turned
        config = replace(config, data=replace(config.data, exif_orientation=False))

    if not folder.tells("shuffle_mb"):  # a buffer was bounded in images alone
        config = replace(config, data=replace(config.data, shuffle_mb=None))

    if not folder.tells("mix_group"):  # the whole batch shared one draw
        whole = max(2, config.data.batch_size)
        augment = replace(config.augment, mix_group=whole)
        teachers = replace(config.teacher.augment, mix_group=whole)
        teacher = replace(config.teacher, augment=teachers)
        config = replace(config, augment=augment, teacher=teacher)

    return config


def _resolved_as(config: TrainConfig, begun: TrainConfig) -> TrainConfig:
    """What a run began with, with the settings of augmentation that there were none of then, where
    `config` has them resolved.
    """

    def alike(now: AugmentConfig, then: AugmentConfig) -> AugmentConfig:
        return then.resolve() if now == now.resolve() else then

    teachers = alike(config.teacher.augment, begun.teacher.augment)
    teacher = replace(begun.teacher, augment=teachers)
    return replace(begun, augment=alike(config.augment, begun.augment), teacher=teacher)


def _facts(
    config: TrainConfig, sources: tuple[Source, Source], strategy: tf.distribute.Strategy
) -> dict[str, Any]:
    """The data and the teacher in numbers and checksums: what must be the same to go on."""
    training, held_out = sources
    batch_size, replicas = config.data.batch_size, strategy.num_replicas_in_sync
    check_batch(batch_size, replicas, config.micro_batches)
    return {
        "training_images": training.size,
        "evaluation_images": held_out.size,
        "labels": list(training.class_names),
        "replicas": replicas,
        "steps_per_epoch": steps_per_epoch(training, batch_size),
        "onednn": onednn.is_on(),
        **changing_facts(config, sources),
        **labels_teacher(config),
    }


def _warn_of_kernels(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Say so where a run goes on with kernels that round otherwise than those it began with."""
    before = read_json(folder.facts).get("onednn")
    if before not in (None, facts["onednn"]):
        log.warning(
            "The run began with TensorFlow's oneDNN kernels %s and goes on with them %s: sums are "
            "rounded otherwise. To keep the bits, set %s=%d.",
            *(("on", "off") if before else ("off", "on")),
            onednn.SETTING,
            before,
        )


def _kept_for_this_process(
    folder: RunFolder, strategy: tf.distribute.Strategy
) -> AbstractContextManager[None]:
    """Of a cluster the chief alone writes, and locks."""
    return folder.locked() if is_chief(strategy) else nullcontext()


def _say_batch(config: TrainConfig, source: Source, strategy: tf.distribute.Strategy) -> None:
    """Say what the run amounts to."""
    batch_size, replicas = config.data.batch_size, strategy.num_replicas_in_sync
    steps, peak = steps_per_epoch(source, batch_size), scaled_lr(config.optim, batch_size)
    log.info(
        "%d images, %d classes, %d steps per epoch", source.size, len(source.class_names), steps
    )
    log.info(
        "Effective batch %d = %d replicas x %d micro-batches x %d images; so the learning rate "
        "peaks at %.3g (lr %.3g)",
        batch_size,
        replicas,
        config.micro_batches,
        batch_size // replicas // config.micro_batches,
        peak,
        config.optim.lr,
    )
    if config.optim.min_lr > peak:
        rising = "`optim.min_lr` %.3g exceeds that peak: the learning rate will rise."
        log.warning(rising, config.optim.min_lr)


def compile_trainer(task: Task, config: TrainConfig, images: int) -> None:
    """Give the trainer its optimizer.

    Args:
        task: Whose trainer.
        config: The run.
        images: Images of an epoch.
    """
    batch_size = config.data.batch_size
    optimizer = build_optimizer(config.optim, batch_size, images // batch_size, config.epochs)
    if config.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    task.trainer.compile(
        optimizer,
        micro_batches=config.micro_batches,
        clip_norm=config.optim.clip_norm,
        ema_decay=config.optim.ema_decay,
        learns=task.learns,
        jit_compile=False,
    )
    optimizer.build(task.trainer.learned)


def _begin(
    folder: RunFolder,
    config: TrainConfig,
    facts: dict[str, Any],
    overwrite: bool,
    strategy: tf.distribute.Strategy,
) -> None:
    if is_chief(strategy):
        folder.begin(config, facts, overwrite)
    synchronize(strategy)  # the others go on when that is done


def _train(
    task: Task,
    config: TrainConfig,
    folder: RunFolder,
    facts: dict[str, Any],
    strategy: tf.distribute.Strategy,
) -> None:
    """Run the loop; write the models, and last of all the summary: then the run is finished."""
    trainer, chief = task.trainer, is_chief(strategy)

    def save(network: keras.Model, version: str = "") -> None:
        if chief:
            with replacing(folder.model(task.trained, version)) as temporary:
                network.save(temporary)

    part = worker_of(strategy)
    share = config.data.batch_size // part[1]
    evaluations = -(-facts["evaluation_images"] // config.data.batch_size)

    started = time.perf_counter()
    held_out = Loop(
        trainer,
        lambda first_step: task.batches(first_step, part),
        padded(task.evaluation(part), share, evaluations),
        epochs=config.epochs,
        steps=facts["steps_per_epoch"],
        batch_size=config.data.batch_size,
        strategy=strategy,
        checkpoints=Checkpoints(
            folder.checkpoints, config.checkpoint.keep, chief, folder.on_checkpoint
        ),
        every_steps=config.checkpoint.every_steps,
        log_steps=config.log_steps,
        figures=EpochFigures(folder.metrics, folder.tensorboard, chief),
        on_best=lambda: save(trainer.network, "_best"),
        xla=config.xla,
        precision=config.precision,
    ).run()
    seconds = round(time.perf_counter() - started, 1)

    if trainer.ema:
        save(trainer.ema.network, "_ema")
    save(trainer.network)
    synchronize(strategy)  # or the first to leave would look like a failure to the others
    if chief:
        summary = {
            "model": trainer.network.name,
            "parameters": trainer.network.count_params(),
            "kind": task.kind,
            "seed": config.seed,
            "epochs": config.epochs,
            "training_seconds": seconds,
            "training_images": facts["training_images"],
            "evaluation_images": facts["evaluation_images"],
            "evaluation": held_out,
        }
        write_json(summary, folder.summary)
