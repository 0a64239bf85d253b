"""A training run: check, open, build, compile, train, finish."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deit_tf import onednn
from deit_tf.config import AugmentConfig, DistillConfig, TrainConfig, check_config
from deit_tf.data import Source, open_sources, padded, steps_per_epoch
from deit_tf.data.order import WHOLE
from deit_tf.data.pipeline import kept_if_small
from deit_tf.data.unreadable import naming_unreadable
from deit_tf.distillation.fingerprint import changing_facts
from deit_tf.distillation.teacher_labels import labels_teacher
from deit_tf.evaluation.preview import sheet_of_batch
from deit_tf.files import read_json, replacing, write_json
from deit_tf.runs import (
    ModelFiles,
    RunFolder,
    read_config,
    shaped_as_begun,
    shaped_as_weights,
    working_folder,
)
from deit_tf.runs.extension import (
    EXTENDED,
    check_extension,
    check_patience,
    ends_so_far,
    say_schedule,
)
from deit_tf.tasks import TASKS, Task, teacher_task
from deit_tf.training.best import BestEpochs, monitored
from deit_tf.training.checkpoints import Checkpoints
from deit_tf.training.loop import Loop, Outcome
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


def train(
    config: TrainConfig,
    overwrite: bool = False,
    accept_changes: bool = False,
    extend: bool = False,
) -> Path:
    """Train the student that `config` describes, with its teacher, or pre-train its trunk.

    A run that was stopped goes on where it was: call this again.

    Args:
        config: The run.
        overwrite: Whether to replace what is in `config.out`, finished or not, and start anew.
        accept_changes: Whether to go on with a stopped run although its config differs, if it has
            as many steps per epoch.
        extend: Whether the run in `config.out`, finished or stopped, goes on to more epochs; its
            learning rate is then that of a run of as many, at the step where it is.
    Returns:
        The run folder; of one on an object store, the copy here.
    Raises:
        FileExistsError: If `config.out` holds a finished run, or files that are not of a run.
        BlockingIOError: If another process trains into it.
        FileNotFoundError, ValueError: If the config names what is not there, or its parts do not
            fit, or it differs from that of the stopped run, or the run that is to be extended has
            as many epochs; nothing is written then.
        FloatingPointError: If the loss is no longer finite; no model is saved then.
        ConnectionError: If a worker of the cluster is gone.
        OSError: If the disk is full; the checkpoints before stay whole.
        KeyboardInterrupt, SystemExit: At Ctrl-C and SIGTERM, after a checkpoint was written.
    """
    how = _How(overwrite, accept_changes, extend)
    return _run(config, TASKS[config.task], how)


def train_teacher(
    config: TrainConfig,
    overwrite: bool = False,
    accept_changes: bool = False,
    extend: bool = False,
) -> Path:
    """Train the convnet of `config.teacher` on the student's data, into `config.out`.

    Takes, returns and raises what `train` does. `epochs`, `optim` and `augment` are those of
    `config.teacher`.
    """
    log.info("A teacher is trained by the settings teacher.epochs, teacher.optim, teacher.augment.")
    augment = config.teacher.augment.resolve(config.task == "multilabel")
    config = replace(config, teacher=replace(config.teacher, augment=augment))
    how = _How(overwrite, accept_changes, extend)
    return _run(config, teacher_task, how, _recipe_of_teacher)


@dataclass(frozen=True)
class _How:
    """What may be done to the run that is there, as of `train`."""

    overwrite: bool
    accept_changes: bool
    extend: bool


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
    how: _How,
    recipe: Callable[[TrainConfig], TrainConfig] = lambda config: config,
) -> Path:
    """Run what `recipe` makes of `config`; config.yaml gets `config` itself, for the student."""
    given = replace(config, augment=config.augment.resolve(config.task == "multilabel"))
    check_config(recipe(given))
    strategy = open_strategy(config.strategy)  # before anything is computed
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()

    with working_folder(config.out, worker_of(strategy)[0]) as folder:
        goes_on = folder.is_stopped and not how.overwrite
        if goes_on:
            given = _as_begun(given, folder)
        else:
            given = shaped_as_weights(given)
        config = recipe(given)
        rule = folder.split_rule if goes_on else "threshold"
        sources = open_sources(config.data, rule)
        facts = _facts(config, sources, strategy) | {"split": rule}

        with _kept_for_this_process(folder, strategy), naming_unreadable(*sources):
            folder.check_free(facts, how.overwrite, how.extend)
            if goes_on:
                _check_going_on(config, folder, facts, how, recipe)
                facts |= ends_so_far(folder)

            with strategy.scope(), dtype_policy(config.precision):
                keras.utils.set_random_seed(config.seed)
                task = build(config, sources)
                _say_batch(config, sources[0], strategy)
                compile_trainer(task, config, sources[0].size)
                best = _best_epochs(task, config)
                if how.extend:
                    check_patience(folder, best)
                task.batches(0, WHOLE)  # senseless augmentation is refused before a file is there
                _begin(folder, given, facts, how.overwrite, strategy)
                _train(task, config, folder, facts, strategy, best)

    return folder.path


def _check_going_on(
    config: TrainConfig,
    folder: RunFolder,
    facts: dict[str, Any],
    how: _How,
    recipe: Callable[[TrainConfig], TrainConfig],
) -> None:
    """Check that the run in `folder` may go on as `config`."""
    _warn_of_kernels(folder, facts)
    if how.accept_changes and not how.extend:
        return

    begun = _as_begun(recipe(read_config(folder.config)), folder)
    if how.extend:
        check_extension(folder, config, begun)
        if config.epochs != begun.epochs:
            say_schedule(folder, config, begun.epochs, facts["steps_per_epoch"])
        teacher = replace(begun.teacher, epochs=config.teacher.epochs)
        begun = replace(begun, epochs=config.epochs, teacher=teacher)
    if not how.accept_changes:
        folder.check_unchanged(config, _resolved_as(config, begun), facts)


def _as_begun(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """With what a stopped run did before there was a setting for it, or since it has begun."""
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

    if config.model.weights is not None:  # which shaped the student then
        config = shaped_as_begun(config, read_config(folder.config))
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


def _best_epochs(task: Task, config: TrainConfig) -> BestEpochs:
    checkpoint = config.checkpoint
    monitor = monitored(checkpoint.monitor, task.trainer)
    return BestEpochs(monitor, checkpoint.patience, checkpoint.keep_best)


def _train(
    task: Task,
    config: TrainConfig,
    folder: RunFolder,
    facts: dict[str, Any],
    strategy: tf.distribute.Strategy,
    best: BestEpochs,
) -> None:
    """Run the loop; write the models, and last of all the summary: then the run is finished."""
    trainer, chief = task.trainer, is_chief(strategy)
    part = worker_of(strategy)
    share = config.data.batch_size // part[1]
    evaluations = -(-facts["evaluation_images"] // config.data.batch_size)
    evaluation = padded(task.evaluation(part), share, evaluations)
    if (
        strategy.num_replicas_in_sync == 1
    ):  # several are fed from a function, in which nothing stays
        evaluation = kept_if_small(evaluation, evaluations)

    models = ModelFiles(folder, task.trained, chief, several_best=best.keep > 1)
    figures = EpochFigures(folder.metrics, folder.tensorboard, chief)
    checkpoints = Checkpoints(
        folder.checkpoints, config.checkpoint.keep, chief, folder.on_checkpoint
    )

    started = time.perf_counter()
    outcome = Loop(
        trainer,
        lambda first_step: task.batches(first_step, part),
        evaluation,
        epochs=config.epochs,
        steps=facts["steps_per_epoch"],
        batch_size=config.data.batch_size,
        strategy=strategy,
        checkpoints=checkpoints,
        every_steps=config.checkpoint.every_steps,
        log_steps=config.log_steps,
        figures=figures,
        best=best,
        models=models,
        on_first_batch=lambda batch: _draw(batch, config, folder, facts["labels"], figures),
        xla=config.xla,
        precision=config.precision,
    ).run()
    seconds = time.perf_counter() - started

    if trainer.ema:
        models.write(trainer.ema.network, "_ema")
    models.write(trainer.network)
    synchronize(strategy)  # or the first to leave would look like a failure to the others
    if chief:
        write_json(_summary(task, config, facts, outcome, best, seconds), folder.summary)


def _draw(
    batch: Any,
    config: TrainConfig,
    folder: RunFolder,
    class_names: list[str],
    figures: EpochFigures,
) -> None:
    """Draw what the first step is fed, as a file and beside the curves."""
    if not figures.writes:
        return
    sheet = sheet_of_batch(batch, config, class_names)
    with replacing(folder.first_batch) as temporary:
        sheet.save(temporary)
    figures.write_picture(folder.first_batch.stem, np.asarray(sheet))


def _summary(
    task: Task,
    config: TrainConfig,
    facts: dict[str, Any],
    outcome: Outcome,
    best: BestEpochs,
    seconds: float,
) -> dict[str, Any]:
    """What summary.json tells of a finished run; `evaluation` is of the model of the last epoch."""
    network, before = task.trainer.network, facts.get(EXTENDED, [])
    return {
        "model": network.name,
        "parameters": network.count_params(),
        "kind": task.kind,
        "seed": config.seed,
        "epochs": outcome.epochs,
        "stopped_early": outcome.epochs < config.epochs,
        "best_epoch": outcome.best_epoch,
        "best": {best.monitor: outcome.best},
        "extended_from": [end["epochs"] for end in before],
        "training_seconds": round(seconds + sum(end["training_seconds"] for end in before), 1),
        "training_images": facts["training_images"],
        "evaluation_images": facts["evaluation_images"],
        "evaluation": outcome.evaluation,
    }
