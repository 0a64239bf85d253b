"""Where teachers come from: runs, files, other libraries; and the convnets trained here."""

import logging
from collections.abc import Callable

import keras
import numpy as np

from deit_tf.config import APPLICATION, TeacherConfig
from deit_tf.data import ImageProcessor
from deit_tf.distillation.teacher import Teacher
from deit_tf.models import VARIANTS
from deit_tf.models.applications import application
from deit_tf.models.regnet import REGNETY
from deit_tf.models.resnet import RESNET, create_resnet
from deit_tf.runs import Run, class_order, is_keras, load_run
from deit_tf.runs.load import warn_if_assumed
from deit_tf.weights.downloads import explained_download
from deit_tf.zoo import create_application, create_regnety

log = logging.getLogger(__name__)

OTHER_TEACHERS = (
    "A run of `deit-tf train-teacher` or a file as `distill.teacher`, and `distill.kind` none, "
    "need no download."
)
LONGEST = 300  # characters of another library's error


def load_teacher(
    name: str,
    class_names: tuple[str, ...],
    student: ImageProcessor | None = None,
    multilabel: bool = False,
) -> Teacher:
    """Load a frozen teacher as `distill.teacher` names it.

    Args:
        name: As `DistillConfig` has it; what precedes a colon is looked up in `SOURCES`.
        class_names: The student's classes; the teacher's are brought into their order.
        student: What the student expects; a teacher that takes any size gets its images as they
            are.
        multilabel: Whether the student learns any number of labels of an image; its teacher must
            then have learned the same.
    Raises:
        FileNotFoundError: If there is no such run or file.
        ImportError: For `keras-hub:` where keras-hub is not installed.
        ValueError: If the teacher does not know all of the student's classes, or is of another
            task.
    """
    prefix, _, rest = name.partition(":")
    student = student or ImageProcessor()
    if prefix in SOURCES:
        if multilabel:
            raise ValueError(_of_another_task(name, multilabel))
        return SOURCES[prefix](rest, student)

    source, model = (rest, prefix) if prefix in (*REGNETY, *VARIANTS) else (name, None)
    run = load_run(source, model)
    if run.config is not None and (run.config.task == "multilabel") != multilabel:
        raise ValueError(_of_another_task(name, multilabel))
    return _run_teacher(name, source, run, class_names, student)


def _of_another_task(name: str, multilabel: bool) -> str:
    tells = "names one class" if multilabel else "says of each class whether it is there"
    remedy = f"{'with' if multilabel else 'without'} `--task multilabel`"
    return (
        f"Teacher {name!r} {tells}, and so cannot teach a student of this `task`. Train another "
        f"with `deit-tf train-teacher` {remedy}, or set `distill.kind` to none."
    )


def _run_teacher(
    name: str,
    source: str,
    run: Run,
    class_names: tuple[str, ...],
    student: ImageProcessor,
) -> Teacher:
    """The model of a run, a file, or weights of another library, loaded from `source`."""
    run.model.trainable = False
    processor = _with_size(run.processor, run.model, student)
    bare = run.assumed and is_keras(source)
    if bare:
        processor = None  # the network may show what it takes
    else:
        warn_if_assumed(run, source)

    order = None
    if run.labels:
        try:
            order = class_order(class_names, run.labels, run.model.output_shape[-1])
        except ValueError as error:
            raise ValueError(
                f"Teacher {name!r} does not know the student's classes. {error}"
            ) from error

    teacher = Teacher(run.model, processor, class_order=order, name=name)
    if bare:
        assumed = (
            "Teacher %r lies in no run: images normalized with mean %s and std %s are assumed."
        )
        log.warning(assumed, name, teacher.mean, teacher.std)
    return teacher


def application_teacher(
    name: str,
    student: ImageProcessor | None = None,
    *,
    weights: str | None = "imagenet",
    classes: int = 1000,
) -> Teacher:
    """Take a network of keras.applications, in the preprocessing that it was trained with.

    Args:
        name: Such as `ResNet50`.
        student: What the student expects, for a network that takes any size.
        weights: `imagenet` downloads the published weights; a file loads it; None starts fresh.
        classes: Number of classes; 1000 with `imagenet`.
    Raises:
        ValueError: If keras.applications has no such network, or its weights are for other classes.
        FileNotFoundError: If its weights cannot be downloaded.
    """
    constructor, (mean, std, bgr) = application(name)
    with explained_download(f"Teacher 'keras:{name}'", OTHER_TEACHERS):
        model = constructor(weights=weights, classes=classes, classifier_activation=None)
    model.trainable = False
    processor = ImageProcessor(224, mean=mean, std=std)
    return Teacher(model, _with_size(processor, model, student or ImageProcessor()), bgr=bgr)


def keras_hub_teacher(preset: str, student: ImageProcessor | None = None) -> Teacher:
    """Take a classifier of keras-hub as teacher, in the preprocessing of its preset.

    Args:
        preset: Such as `resnet_50_imagenet`; a folder or `hf://` name that keras-hub takes as well.
        student: What the student expects, for a network that takes any size.
    Raises:
        ImportError: Where keras-hub is not installed.
        ValueError: If the preset tells no preprocessing, without which its answers would be wrong
            in silence.
        FileNotFoundError: If it cannot be loaded, or downloaded.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            f"Teacher 'keras-hub:{preset}' needs keras-hub, which is not installed: `pip install "
            "keras-hub`."
        ) from error

    try:
        model = keras_hub.models.ImageClassifier.from_preset(preset)
    except Exception as error:  # of any of the hubs that it asks
        reason = " ".join(str(error).split())[:LONGEST]
        raise FileNotFoundError(
            f"Teacher 'keras-hub:{preset}' cannot be loaded ({type(error).__name__}: {reason}). By "
            "hand: download the preset on a machine with a connection, as a folder, and set "
            f"`distill.teacher` to keras-hub:FOLDER. {OTHER_TEACHERS}"
        ) from error
    converter = getattr(model.preprocessor, "image_converter", None)
    if converter is None:
        raise ValueError(
            f"Teacher 'keras-hub:{preset}' has no image converter, so its normalization is unknown."
        )

    # The converter maps pixels 0..255 to scale * pixel + offset, per channel or for all.
    scale = np.broadcast_to(1.0 if converter.scale is None else np.ravel(converter.scale), 3)
    offset = np.broadcast_to(0.0 if converter.offset is None else np.ravel(converter.offset), 3)
    std = 1 / (255 * scale)
    mean, size = tuple(map(float, -offset * std)), converter.image_size

    model.trainable = False
    student = student or ImageProcessor()
    processor = ImageProcessor(
        tuple(size) if size and all(size) else student.size, mean=mean, std=tuple(map(float, std))
    )
    probabilities = getattr(model.output_dense, "activation", None) is keras.activations.softmax
    return Teacher(model, processor, from_logits=not probabilities, name=preset)


# What precedes the colon of `distill.teacher`: what makes a teacher of the rest.
SOURCES: dict[str, Callable[[str, ImageProcessor], Teacher]] = {
    "keras": application_teacher,
    "keras-hub": keras_hub_teacher,
}


def _with_size(
    processor: ImageProcessor, model: keras.Model, student: ImageProcessor
) -> ImageProcessor:
    """`processor` for the size that `model` declares; the student's where it takes any."""
    height, width = model.input_shape[1:3]
    size = (height, width) if height and width else student.size
    return ImageProcessor(size, mean=processor.mean, std=processor.std)


def build_teacher(
    config: TeacherConfig, num_classes: int, processor: ImageProcessor
) -> keras.Model:
    """Build the convnet that `deit-tf train-teacher` trains.

    Args:
        config: Its name and weights.
        num_classes: Classes C; the head is fresh, but that of a RegNetY whose weights have as many.
        processor: What makes its images: their size and normalization.
    Returns:
        A model from float32 [B, H, W, 3], normalized so, to float32 [B, C] logits.
    Raises:
        ValueError: For an unknown name, or weights for a network that has none here.
    """
    size = {
        "num_classes": num_classes,
        "image_size": processor.size,
        "num_channels": processor.num_channels,
    }
    if config.name in RESNET:
        if config.weights:
            raise ValueError(
                f"`teacher.weights` must be null for {config.name}, of which none are published."
            )
        return create_resnet(config.name, **size)
    if not config.name.startswith(APPLICATION):
        return create_regnety(config.name, weights=config.weights, **size)

    return create_application(
        config.name.removeprefix(APPLICATION),
        num_classes=num_classes,
        processor=processor,
        weights=config.weights,
        setting="teacher.weights",
    )
