"""What a student must be, and what it expects of its images: a DeiT, or any Keras classifier of one
output.
"""

import logging

import keras
import numpy as np

from deit_tf.data import ImageProcessor
from deit_tf.models import heads
from deit_tf.models.detection import (
    PIXELS,
    gives_probabilities,
    own_normalization,
    unknown_preprocessing,
)
from deit_tf.models.parts import has_two_heads, image_size, is_deit

log = logging.getLogger(__name__)


def student_heads(student: keras.Model) -> keras.Model:
    """A model from images to the logits [B, C] of each head, by name; of a single one `cls`.

    Raises:
        ValueError: If the student is no functional model, takes anything but images, has several
            outputs, less than two classes, or ends in a softmax or sigmoid.
    """
    name = getattr(student, "name", student)
    if not getattr(student, "inputs", None) or not getattr(student, "outputs", None):
        raise ValueError(
            "`student` must be a functional or Sequential model that knows its input. Wrap another "
            "one: `image = keras.Input((H, W, 3)); keras.Model(image, model(image))`. Received: "
            f"{name}, a {type(student).__name__}"
        )

    taken, given = student.input_shape, student.output_shape
    if not isinstance(taken, tuple) or len(taken) != 4:
        raise ValueError(
            "`student` must take one batch of images, [B, H, W, channels]. Received: "
            f"{name} with input {taken}"
        )
    if not isinstance(given, tuple) or len(given) != 2 or given[-1] < 2:
        raise ValueError(
            "`student` must be a classifier with one output, logits [B, C] of two classes at "
            f"least. Received: {name} with output {given}"
        )
    if gives_probabilities(student, "softmax", "sigmoid"):
        raise ValueError(
            "`student` must give logits, and its last layer is a softmax or sigmoid: make it with "
            f"`classifier_activation=None` or without that activation. Received: {name}"
        )

    if is_deit(student) or has_two_heads(student):
        return heads(student)
    (image,), (logits,) = student.inputs, student.outputs
    return keras.Model(image, {"cls": logits}, name=f"{name}_heads")


def student_images(student: keras.Model, processor: ImageProcessor | None) -> ImageProcessor:
    """What a student expects of its images: what is given, or what its layers show.

    Args:
        student: The network.
        processor: What its user says; None where that is nothing.
    Raises:
        ValueError: If it normalizes by itself what `processor` has normalized already.
    """
    own = own_normalization(student)
    if processor is not None and own and not normalizes_as(processor, own):
        raise ValueError(
            f"Student {student.name!r} normalizes its images itself, and would do so twice. Make "
            "it without (`include_preprocessing=False`), or leave `processor` out and feed it "
            f"what `ImageProcessor(mean={own[0]}, std={own[1]})` makes. Received: "
            f"mean={tuple(processor.mean)}, std={tuple(processor.std)}"
        )
    if processor is not None:
        return processor

    declared = image_size(student)
    size = {"image_size": declared} if all(declared) else {}
    if own is None:
        _warn_of_unknown(student)
        return ImageProcessor(**size)
    values = "0..255" if own == PIXELS else "0..1"
    log.info("Student %r normalizes its images itself: it takes pixels %s.", student.name, values)
    return ImageProcessor(**size, mean=own[0], std=own[1])


def _warn_of_unknown(student: keras.Model) -> None:
    if first := unknown_preprocessing(student):
        log.warning(
            "Student %r begins with an operation that may be a normalization (%s): a teacher would "
            "take its images for normalized as the original's. Pass `processor` with the mean and "
            "std of what you feed it.",
            student.name,
            first,
        )


def normalizes_as(processor: ImageProcessor, normalization: tuple) -> bool:
    """Whether `processor` makes images of this mean and deviation."""
    given = (tuple(processor.mean), tuple(processor.std))
    return np.shape(given) == np.shape(normalization) and np.allclose(given, normalization)
