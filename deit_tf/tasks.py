"""What a run trains on what: a student, with its teacher; a teacher; a trunk on masked images.

`TASKS` has what `task` in a config builds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from deit_tf.config import TrainConfig, check_target_threshold
from deit_tf.data import (
    ImageProcessor,
    Source,
    eval_dataset,
    masked_dataset,
    masked_eval_dataset,
    train_dataset,
)
from deit_tf.data.class_weights import class_weights
from deit_tf.data.order import Part
from deit_tf.distillation.distiller import Distiller
from deit_tf.distillation.kinds import NONE
from deit_tf.distillation.multilabel import MultilabelDistiller
from deit_tf.distillation.teacher import Teacher
from deit_tf.distillation.teacher_labels import Cache, open_cache, student_processor
from deit_tf.distillation.teacher_sources import build_teacher, load_teacher
from deit_tf.models import class_head
from deit_tf.models.mimetic import mimetic_init
from deit_tf.training.trainer import LabelTrainer, MaskedTrainer, Trainer
from deit_tf.zoo import create_application, create_masked_model, create_model

Sources = tuple[Source, Source]  # to train on, and held out

# What learns, by the paths of the weights (`model.trainable`).
LEARNS = {"all": None, "heads": "^head(_dist)?/", "attention": "^head(_dist)?/|/attn/"}


@dataclass(frozen=True)
class Task:
    """What a run trains.

    Args:
        trainer: Not compiled yet.
        trained: What the model files are called: `student`, `teacher` or `masked`.
        kind: What it learns from, for the summary.
        batches: Gives a part of the batches, as of `train_dataset`, from a step on.
        evaluation: Gives a part of those to evaluate on; the last may be smaller.
        learns: As of `Trainer.compile`.
    """

    trainer: Trainer
    trained: str
    kind: str
    batches: Callable[[int, Part], tf.data.Dataset]
    evaluation: Callable[[Part], tf.data.Dataset]
    learns: str | None = None


def student_task(config: TrainConfig, sources: Sources) -> Task:
    """A student that learns labels, and from a teacher where the config has one.

    Raises:
        ValueError: If the data has less than two classes, images of several labels, or the teacher
            cannot teach them.
        FileNotFoundError: If the teacher, or weights to start from, are not there.
    """
    class_names, distill = _class_names(config, sources[0]), config.distill
    _check_out(config)
    if config.loss == "binary_cross_entropy":
        smoothing = config.augment.resolve().label_smoothing
        check_target_threshold(config.bce_target_thresh, smoothing, len(class_names))
    student = _build_student(config, len(class_names))
    processor = ImageProcessor.from_config(config.data, student.input_shape[1:3])

    cache = None
    if distill.labels and distill.kind != NONE:
        cache = open_cache(distill.labels, config, sources, processor)
    distiller = Distiller(
        student,
        None if cache else _teacher(config, class_names, processor),
        kind=distill.kind,
        alpha=distill.alpha,
        temperature=distill.temperature,
        normalization=distill.normalization,
        train_heads="both" if distill.train_heads == "both" else "mean",
        loss=config.loss,
        bce_target_thresh=config.bce_target_thresh,
        bce_sum=config.bce_sum,
        cosub=distill.cosub,
        processor=processor,
        class_weights=class_weights(config.data.class_weights, sources[0]),
    )

    batches, evaluation = _labeled(config, sources, processor, cache)
    learns = LEARNS[config.model.trainable]
    return Task(distiller, "student", distill.kind, batches, evaluation, learns)


def multilabel_task(config: TrainConfig, sources: Sources) -> Task:
    """A student that learns any number of labels of an image, and from a teacher of the same task
    where the config has one.

    Raises:
        ValueError: If the data has less than two classes, images of one label each, or the teacher
            cannot teach them.
        FileNotFoundError: If the teacher, or weights to start from, are not there.
    """
    class_names, distill = _class_names(config, sources[0]), config.distill
    _check_out(config)
    student = _build_student(config, len(class_names))
    processor = ImageProcessor.from_config(config.data, student.input_shape[1:3])
    distiller = MultilabelDistiller(
        student,
        _teacher(config, class_names, processor),
        kind=distill.kind,
        alpha=distill.alpha,
        temperature=distill.temperature,
        train_heads="both" if distill.train_heads == "both" else "mean",
        processor=processor,
        class_weights=class_weights(config.data.class_weights, sources[0]),
    )

    batches, evaluation = _labeled(config, sources, processor)
    learns = LEARNS[config.model.trainable]
    return Task(distiller, "student", distill.kind, batches, evaluation, learns)


def teacher_task(config: TrainConfig, sources: Sources) -> Task:
    """The convnet of `config.teacher`, on labels alone; of several labels where `task` is so.

    Raises:
        ValueError: If the data has less than two classes, or there is no such convnet.
    """
    classes = len(_class_names(config, sources[0]))
    size = config.teacher.image_size or student_processor(config).size
    processor = ImageProcessor.from_config(config.data, size)
    network = build_teacher(config.teacher, classes, processor)
    weights = class_weights(config.data.class_weights, sources[0])
    if config.task == "multilabel":
        trainer = MultilabelDistiller(network, kind=NONE, class_weights=weights)
    else:
        trainer = LabelTrainer(network, class_weights=weights)

    batches, evaluation = _labeled(config, sources, processor)
    return Task(trainer, "teacher", "teacher", batches, evaluation)


def masked_task(config: TrainConfig, sources: Sources) -> Task:
    """A trunk that guesses hidden patches (SimMIM).

    Raises:
        ValueError: If the mask does not fit the model.
    """
    network = create_masked_model(
        config.model.name, num_channels=len(config.data.mean), **config.model.overrides()
    )
    if config.model.init == "mimetic":
        mimetic_init(network, config.seed)
    training, held_out = sources
    patch = network.get_layer("patch_embed").patch_size
    processor = ImageProcessor.from_config(config.data, network.output_shape[1:3])

    def batches(first_step: int, part: Part) -> tf.data.Dataset:
        return masked_dataset(
            training,
            config.data,
            config.augment,
            config.mask,
            processor,
            patch,
            epochs=config.epochs,
            seed=config.seed,
            first_step=first_step,
            part=part,
        )

    def evaluation(part: Part) -> tf.data.Dataset:
        return masked_eval_dataset(held_out, config.data, config.mask, processor, patch, part=part)

    return Task(MaskedTrainer(network), "masked", "masked", batches, evaluation)


def _build_student(config: TrainConfig, classes: int) -> keras.Model:
    if config.model.application:
        return create_application(
            config.model.application,
            num_classes=classes,
            processor=student_processor(config),
            weights=config.model.weights,
            setting="model.weights",
        )

    student = create_model(
        config.model.name,
        num_classes=classes,
        num_channels=len(config.data.mean),
        **config.model.overrides(),
    )
    if config.model.init == "mimetic":
        mimetic_init(student, config.seed)
    if config.distill.train_heads == "cls":
        student = class_head(student)
    return student


def _teacher(
    config: TrainConfig, class_names: tuple[str, ...], processor: ImageProcessor
) -> Teacher | None:
    distill = config.distill
    if distill.kind == NONE:
        return None
    if distill.teacher is None:
        raise ValueError(
            f"`distill.kind` {distill.kind!r} needs a teacher. Train one with `deit-tf "
            "train-teacher` and set `distill.teacher` to its run; or set `distill.labels` to what "
            "`deit-tf label` made, or `distill.kind` to none."
        )
    return load_teacher(distill.teacher, class_names, processor, config.task == "multilabel")


def _labeled(
    config: TrainConfig,
    sources: Sources,
    processor: ImageProcessor,
    cache: Cache | None = None,
) -> tuple[Callable[[int, Part], tf.data.Dataset], Callable[[Part], tf.data.Dataset]]:
    """Parts of the labeled batches to train on from a step on, and to evaluate on; with teacher
    labels.
    """
    training, held_out = sources
    classes = len(training.class_names)

    def batches(first_step: int, part: Part) -> tf.data.Dataset:
        stream = train_dataset(
            training,
            config.data,
            config.augment,
            processor,
            epochs=config.epochs,
            seed=config.seed,
            first_step=first_step,
            part=part,
        )
        return cache.attach(stream, first_step, part) if cache else stream

    def evaluation(part: Part) -> tf.data.Dataset:
        stream = eval_dataset(held_out, config.data, processor, part=part)
        if cache:
            return cache.attach_held_out(stream, part)
        if held_out.multilabel:
            return stream
        return stream.map(lambda images, labels: (images, tf.one_hot(labels, classes)))

    return batches, evaluation


# What `task` builds, from a config and its sources.
TASKS: dict[str, Callable[[TrainConfig, Sources], Task]] = {
    "classify": student_task,
    "multilabel": multilabel_task,
    "masked": masked_task,
}


def _class_names(config: TrainConfig, source: Source) -> tuple[str, ...]:
    """The classes to tell apart, two at least, of images with as many labels as the task learns."""
    several = config.task == "multilabel"
    if source.multilabel and not several:
        raise ValueError(
            f"{source.name} has images of several labels, or of none: a softmax cannot learn them. "
            f"Set `task` to multilabel. Received: {config.task}"
        )
    if several and not source.multilabel:
        raise ValueError(
            "`task` multilabel takes images of any number of labels: as `data.source` a `.csv` or "
            "`.jsonl` file that names them, or a builder of TensorFlow Datasets with a sequence of "
            f"them. {source.name} has one class for each image: set `task` to classify."
        )
    if len(source.class_names) < 2:
        raise ValueError(
            "`data.source` needs two classes at least to tell apart, each a folder of images where "
            f"it is a folder. Found in {config.data.source}: "
            f"{', '.join(source.class_names) or 'none'}"
        )
    return source.class_names


def _check_out(config: TrainConfig) -> None:
    """Check that the student does not replace its teacher."""
    distill = config.distill
    if distill.kind == NONE or not distill.teacher:
        return
    place = Path(distill.teacher).resolve()
    home = place.parent if place.is_file() else place
    if Path(config.out).resolve() == home:
        raise ValueError(
            f"`out` must not be where the teacher is, {distill.teacher}. Received: {config.out}"
        )
