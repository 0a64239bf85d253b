"""Training runs: from a config to a run directory, for a student and for its teacher."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras
import tensorflow as tf

from deit_tf.config import TrainConfig
from deit_tf.data import (
    ImageProcessor,
    Source,
    eval_dataset,
    masked_dataset,
    masked_eval_dataset,
    open_sources,
    padded,
    steps_per_epoch,
    train_dataset,
)
from deit_tf.distillation.distiller import Distiller
from deit_tf.distillation.teacher import Teacher, build_teacher, load_teacher
from deit_tf.distillation.teacher_labels import Cache, open_cache, student_size
from deit_tf.files import replacing, write_json
from deit_tf.models import heads
from deit_tf.models.mimetic import mimetic_init
from deit_tf.runs import MODELS, read_config, write_config
from deit_tf.training.checkpoints import Checkpoints
from deit_tf.training.loop import Loop
from deit_tf.training.metrics import Curves
from deit_tf.training.optim import build_optimizer, scaled_lr
from deit_tf.training.replicas import check_batch, is_chief, meet, open_strategy
from deit_tf.training.trainer import LabelTrainer, MaskedTrainer, Trainer
from deit_tf.zoo import create_masked_model, create_model

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
# Written first and deleted never: a folder without it is no run directory.
MARKER = "facts.json"
# What a run that starts anew replaces in its directory.
OWN_FOLDERS = ("tensorboard", CHECKPOINTS)
OWN_FILES = ("config.yaml", "labels.txt", "metrics.jsonl", "summary.json")
OWN_MODELS = tuple(
    f"{Path(name).stem}{kind}.keras" for name in MODELS for kind in ("", "_best", "_ema")
)
# What a run may change when it goes on, as it has no part in what it computes.
FREE = (
    "out",
    "data.num_parallel_calls",
    "data.verify",
    "distill.labels",
    "checkpoint.every_steps",
    "checkpoint.keep",
)


# What learns, by the paths of the weights (`model.trainable`).
LEARNS = {"all": None, "heads": "^head(_dist)?/", "attention": "^head(_dist)?/|/attn/"}


@dataclass(frozen=True)
class Task:
    """What a run trains.

    Args:
        trainer: Not compiled yet.
        file: Stem of the model files: `student`, `teacher` or `masked`.
        kind: What it learns from, for the summary.
        batches: Gives the global batches from a step on.
        evaluation: Batches to evaluate on; the last may be smaller.
        learns: As of `Trainer.compile`.
    """

    trainer: Trainer
    file: str
    kind: str
    batches: Callable[[int], tf.data.Dataset]
    evaluation: tf.data.Dataset
    learns: str | None = None


def train(config: TrainConfig, overwrite: bool = False, accept_changes: bool = False) -> Path:
    """Train the student that `config` describes, with its teacher if it has one, or pre-train its
    trunk.

    A run that was stopped goes on where it was: call this again.

    Args:
        config: The run.
        overwrite: Whether to replace what is in `config.out`, finished or not, and start anew.
        accept_changes: Whether to go on with a stopped run although its config differs, if it has
            as many steps per epoch.
    Returns:
        The run directory.
    Raises:
        FileExistsError: If `config.out` holds a finished run, or files that are not of a run.
        FileNotFoundError, ValueError: If the config names what is not there, or its parts do not
            fit, or it differs from that of the stopped run; nothing is written then.
        FloatingPointError: If the loss is no longer finite; no model is saved then.
        ConnectionError: If a worker of the cluster is gone.
        OSError: If the disk is full; the checkpoints before stay whole.
    """
    build = _masked_task if config.task == "masked" else _student_task
    return _run(config, build, overwrite, accept_changes)


def train_teacher(
    config: TrainConfig, overwrite: bool = False, accept_changes: bool = False
) -> Path:
    """Train the convnet of `config.teacher` on the student's data, into `config.out`.

    Takes, returns and raises what `train` does. `epochs`, `optim` and `augment` are those of
    `config.teacher`.
    """
    log.info(
        "The teacher's are teacher.epochs, teacher.optim, teacher.augment; epochs, optim, "
        "augment the student's."
    )
    config = replace(
        config, teacher=replace(config.teacher, augment=config.teacher.augment.resolve())
    )
    return _run(config, _teacher_task, overwrite, accept_changes, _teachers_recipe)


def _teachers_recipe(config: TrainConfig) -> TrainConfig:
    teacher = config.teacher
    return replace(config, augment=teacher.augment, optim=teacher.optim, epochs=teacher.epochs)


def _run(
    config: TrainConfig,
    build: Callable[[TrainConfig, tuple[Source, Source]], Task],
    overwrite: bool,
    accept: bool,
    recipe: Callable[[TrainConfig], TrainConfig] = lambda config: config,
) -> Path:
    """Run what `recipe` makes of `config`; config.yaml gets `config` itself, for the student to
    take.
    """
    given = replace(config, augment=config.augment.resolve())
    config = recipe(given)
    _check(config)
    strategy = open_strategy(config.strategy)  # before anything is computed
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    sources = open_sources(config.data)
    steps = steps_per_epoch(sources[0], config.data.batch_size)
    check_batch(config.data.batch_size, strategy.num_replicas_in_sync, config.micro_batches)
    facts = {
        "training_images": sources[0].size,
        "evaluation_images": sources[1].size,
        "labels": list(sources[0].class_names),
        "replicas": strategy.num_replicas_in_sync,
        "steps_per_epoch": steps,
    }
    _refuse_to_destroy(config, facts, overwrite, accept, recipe)
    with strategy.scope(), _reproducible(config):
        task = build(config, sources)
        _compile(task, config, sources[0], strategy)
        task.batches(0)  # an augmentation that makes no sense is refused before anything is written
        _start(given, facts, strategy, overwrite)
        seconds = _train(task, config, strategy, steps)
        _finish(task, config, facts, strategy, seconds)
    return Path(config.out)


def _check(config: TrainConfig) -> None:
    """Refuse numbers that make no run, before the data is opened."""
    if config.epochs < 1:
        raise ValueError(f"`epochs` must be positive. Received: {config.epochs}")
    if config.checkpoint.every_steps is not None and config.checkpoint.every_steps < 1:
        raise ValueError(
            "`checkpoint.every_steps` is positive or null. Received: "
            f"{config.checkpoint.every_steps}"
        )
    if config.checkpoint.keep < 1:
        raise ValueError(f"`checkpoint.keep` is at least 1. Received: {config.checkpoint.keep}")
    _check_model(config)
    if config.xla and config.strategy != "none":
        raise ValueError(
            "`xla` works on one device: XLA cannot compile a step that reaches for the "
            "variables of other replicas. Set `strategy` to none, or `xla` to false."
        )
    if config.xla and config.deterministic:
        raise ValueError(
            "`xla` promises no deterministic kernels. Set `deterministic` to false, or `xla` "
            "to false."
        )
    if config.distill.train_heads != "mean" and config.distill.kind != "none":
        raise ValueError(
            "`distill.train_heads` is for `distill.kind` none: with a teacher each head has a "
            f"part of its own. Received: train_heads={config.distill.train_heads!r}, "
            f"kind={config.distill.kind!r}"
        )


def _check_model(config: TrainConfig) -> None:
    if config.model.init != "timm" and config.model.weights is not None:
        raise ValueError(
            "`model.init` is for fresh weights: set it to timm, or `model.weights` to null. "
            f"Received: init={config.model.init!r}, weights={config.model.weights!r}"
        )
    if config.task == "masked" and config.model.trainable != "all":
        raise ValueError(
            "`model.trainable` is for `task` classify: pre-training changes the whole trunk. "
            f"Set it to all. Received: {config.model.trainable!r}"
        )


def _student_task(config: TrainConfig, sources: tuple[Source, Source]) -> Task:
    labels, distill = _class_names(config, sources[0]), config.distill
    if (
        distill.kind != "none"
        and distill.teacher
        and Path(config.out).resolve() == _home(distill.teacher)
    ):
        raise ValueError(
            f"`out` must not be where the teacher is, {distill.teacher}. Received: {config.out}"
        )
    student = create_model(config.model.name, num_classes=len(labels), **config.model.overrides())
    if config.model.init == "mimetic":
        mimetic_init(student, config.seed)
    if distill.train_heads == "cls":
        student = keras.Model(student.input, heads(student).output["cls"], name=student.name)
    cache = None
    if distill.labels and distill.kind != "none":
        cache = open_cache(distill.labels, config, sources, student.input_shape[1:3])
    distiller = Distiller(
        student,
        None if cache else _teacher(config, labels),
        kind=distill.kind,
        alpha=distill.alpha,
        temperature=distill.temperature,
        normalization=distill.normalization,
        train_heads="both" if distill.train_heads == "both" else "mean",
        mean=config.data.mean,
        std=config.data.std,
    )
    return Task(
        distiller,
        "student",
        distill.kind,
        *_batches(student, config, sources, cache),
        LEARNS[config.model.trainable],
    )


def _home(path: str) -> Path:
    """The folder of a file; another path as it is."""
    whole = Path(path).resolve()
    return whole.parent if whole.is_file() else whole


def _class_names(config: TrainConfig, source: Source) -> tuple[str, ...]:
    """The classes to tell apart; refuses less than two."""
    if len(source.class_names) < 2:
        raise ValueError(
            "`data.source` needs two classes at least to tell apart, each a folder of images "
            f"where it is a folder. Found in {config.data.source}: "
            f"{', '.join(source.class_names) or 'none'}"
        )
    return source.class_names


def _teacher(config: TrainConfig, labels: tuple[str, ...]) -> Teacher | None:
    if config.distill.kind == "none":
        return None
    if config.distill.teacher is None:
        raise ValueError(
            f"`distill.kind` {config.distill.kind!r} needs a teacher. Train one with `deit-tf "
            "train-teacher` and set `distill.teacher` to its run; or set `distill.labels` to "
            "what `deit-tf label` made, or `distill.kind` to none."
        )
    return load_teacher(config.distill.teacher, labels)


def _masked_task(config: TrainConfig, sources: tuple[Source, Source]) -> Task:
    """Pre-train a trunk by masked image modeling (SimMIM)."""
    network = create_masked_model(config.model.name, **config.model.overrides())
    if config.model.init == "mimetic":
        mimetic_init(network, config.seed)
    training, held_out = sources
    size, patch = network.output_shape[1:3], network.get_layer("patch_embed").patch_size
    processor = ImageProcessor(size, config.data.crop_ratio, config.data.mean, config.data.std)

    def batches(first_step):
        return masked_dataset(
            training,
            config.data,
            config.augment,
            config.mask,
            size,
            patch,
            epochs=config.epochs,
            seed=config.seed,
            first_step=first_step,
        )

    evaluation = masked_eval_dataset(held_out, config.data, config.mask, processor, patch)
    return Task(MaskedTrainer(network), "masked", "masked", batches, evaluation)


def _teacher_task(config: TrainConfig, sources: tuple[Source, Source]) -> Task:
    size = config.teacher.image_size or student_size(config)
    classes = len(_class_names(config, sources[0]))
    network = build_teacher(
        config.teacher, classes, image_size=size, mean=config.data.mean, std=config.data.std
    )
    return Task(LabelTrainer(network), "teacher", "teacher", *_batches(network, config, sources))


def _batches(
    network: keras.Model,
    config: TrainConfig,
    sources: tuple[Source, Source],
    cache: Cache | None = None,
) -> tuple[Callable[[int], tf.data.Dataset], tf.data.Dataset]:
    """Labeled batches to train on, from a step on, and those to evaluate on; with the teacher's
    labels of `cache`.
    """
    training, held_out = sources
    size, classes = network.input_shape[1:3], len(training.class_names)
    processor = ImageProcessor(size, config.data.crop_ratio, config.data.mean, config.data.std)

    def batches(first_step):
        stream = train_dataset(
            training,
            config.data,
            config.augment,
            size,
            epochs=config.epochs,
            seed=config.seed,
            first_step=first_step,
        )
        return cache.attach(stream, first_step) if cache else stream

    evaluation = eval_dataset(held_out, config.data, processor)
    if cache:
        return batches, cache.attach_held_out(evaluation)
    return batches, evaluation.map(lambda images, labels: (images, tf.one_hot(labels, classes)))


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


def _compile(
    task: Task, config: TrainConfig, source: Source, strategy: tf.distribute.Strategy
) -> None:
    batch, steps = config.data.batch_size, steps_per_epoch(source, config.data.batch_size)
    peak, replicas = scaled_lr(config.optim, batch), strategy.num_replicas_in_sync
    log.info(
        "%d images, %d classes, %d steps per epoch", source.size, len(source.class_names), steps
    )
    log.info(
        "Effective batch %d = %d replicas x %d micro-batches x %d images; so the learning rate "
        "peaks at %.3g (lr %.3g)",
        batch,
        replicas,
        config.micro_batches,
        batch // replicas // config.micro_batches,
        peak,
        config.optim.lr,
    )
    if config.optim.min_lr > peak:
        log.warning(
            "`optim.min_lr` %.3g exceeds that peak: the learning rate will rise.",
            config.optim.min_lr,
        )
    optimizer = build_optimizer(config.optim, batch, steps, config.epochs)
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


def _refuse_to_destroy(
    config: TrainConfig,
    facts: dict,
    overwrite: bool,
    accept: bool,
    recipe: Callable[[TrainConfig], TrainConfig],
) -> None:
    """Refuse a folder that is no run's, or one with a finished run, or with one that was stopped
    and was another.
    """
    out = Path(config.out)
    _refuse_foreign(out)
    checkpoints = list((out / CHECKPOINTS).glob("*.safetensors"))
    if overwrite:
        return
    if (out / "summary.json").exists() or (
        not checkpoints and any((out / name).exists() for name in MODELS)
    ):
        raise FileExistsError(
            f"{out} holds a finished run. Choose another --out, or pass --overwrite."
        )
    if not checkpoints:
        return
    then = json.loads((out / MARKER).read_text())
    _refuse_other_steps(out, then, facts)
    if accept:
        return
    then |= _flat(asdict(recipe(read_config(out / "config.yaml"))))
    now = _flat(asdict(config)) | facts
    differing = [
        key for key in now if key not in FREE and _plain(now[key]) != _plain(then.get(key))
    ]
    if differing:
        told = "; ".join(f"{key}: {then.get(key)} then, {now[key]} now" for key in differing[:8])
        raise ValueError(
            f"{out} holds a stopped run of another config. {told}. Restore those to go on with "
            "it, pass --accept-changes to go on all the same, or --overwrite to start over."
        )


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that no run made but which holds what a run would replace, or another
    model.
    """
    if (out / MARKER).exists() or not out.is_dir():
        return
    found = [name for name in (*OWN_FOLDERS, *OWN_FILES) if (out / name).exists()]
    if found := found + sorted(path.name for path in out.glob("*.keras")):
        raise FileExistsError(
            f"{out} is no run directory, and holds {', '.join(found[:8])}. Choose another --out."
        )


def _refuse_other_steps(out: Path, then: dict, now: dict) -> None:
    """Refuse to go on with another number of steps per epoch, by which checkpoints and learning
    rate are counted.
    """
    steps = now["steps_per_epoch"]
    before = then.get("steps_per_epoch", steps)
    if before != steps:
        raise ValueError(
            f"{out} holds a stopped run of {before} steps per epoch, which `data.batch_size` "
            "and the images decide; its checkpoints are counted in them. Go on with the "
            f"settings and images it had, or pass --overwrite to start over. Received: {steps} "
            "steps per epoch"
        )


def _start(
    config: TrainConfig, facts: dict, strategy: tf.distribute.Strategy, overwrite: bool
) -> None:
    """Make the run directory, without what an earlier run left of itself; what goes on stays."""
    out = Path(config.out)
    if is_chief(strategy):
        out.mkdir(parents=True, exist_ok=True)
        if overwrite or not list((out / CHECKPOINTS).glob("*.safetensors")):
            for folder in OWN_FOLDERS:
                shutil.rmtree(out / folder, ignore_errors=True)
            for name in (*OWN_MODELS, "metrics.jsonl", "summary.json"):
                (out / name).unlink(missing_ok=True)
        for torn in (*out.glob(".*.partial.*"), *(out / CHECKPOINTS).glob(".*.partial.*")):
            torn.unlink()
        write_json(
            facts, out / MARKER
        )  # first, so that a folder with anything else of a run has it
        write_config(config, out / "config.yaml")
        with replacing(out / "labels.txt") as temporary:
            temporary.write_text("".join(f"{label}\n" for label in facts["labels"]))
    meet(strategy)  # the others go on when that is done


def _train(task: Task, config: TrainConfig, strategy: tf.distribute.Strategy, steps: int) -> float:
    """Run the loop; returns its seconds."""
    out, chief = Path(config.out), is_chief(strategy)
    started = time.perf_counter()
    Loop(
        task.trainer,
        task.batches,
        padded(task.evaluation, config.data.batch_size),
        epochs=config.epochs,
        steps=steps,
        batch_size=config.data.batch_size,
        strategy=strategy,
        checkpoints=Checkpoints(out / CHECKPOINTS, config.checkpoint.keep, chief),
        every_steps=config.checkpoint.every_steps,
        curves=Curves(out, chief),
        on_best=lambda: _save(task.trainer.network, out / f"{task.file}_best.keras", chief),
        xla=config.xla,
        precision=config.precision,
    ).run()
    return time.perf_counter() - started


def _finish(
    task: Task, config: TrainConfig, facts: dict, strategy: tf.distribute.Strategy, seconds: float
) -> None:
    """Write the models, and last of all the summary: with it a run is finished."""
    out, network, chief = Path(config.out), task.trainer.network, is_chief(strategy)
    if task.trainer.ema:
        _save(task.trainer.ema.network, out / f"{task.file}_ema.keras", chief)
    _save(network, out / f"{task.file}.keras", chief)
    meet(strategy)  # or the first to leave would look like a failure to the others
    if not chief:
        return
    figures = {
        k.removeprefix("val_"): v for k, v in Curves(out).last().items() if k.startswith("val_")
    }
    summary = {
        "model": network.name,
        "parameters": network.count_params(),
        "kind": task.kind,
        "seed": config.seed,
        "epochs": config.epochs,
        "training_seconds": round(seconds, 1),
        "training_images": facts["training_images"],
        "evaluation_images": facts["evaluation_images"],
        "evaluation": figures,
    }
    write_json(summary, out / "summary.json")


def _save(network: keras.Model, file: Path, writes: bool) -> None:
    if writes:
        with replacing(file) as temporary:
            network.save(temporary)


def _flat(config: dict, prefix: str = "") -> dict:
    """A nested dict as one of dotted keys."""
    flat = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
