"""A frozen network that labels the student's batch, in its own normalization, size and class order.

Paper, section 4: the teacher is a convnet and sees exactly the images that the student sees.
"""

import functools
import logging
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from deit_tf.config import IMAGENET_MEAN, IMAGENET_STD, PerChannel
from deit_tf.data import ImageProcessor
from deit_tf.models.detection import (
    gives_probabilities,
    own_normalization,
    renormalization,
    unknown_preprocessing,
)

log = logging.getLogger(__name__)

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


class Teacher:
    """Any classifier as a teacher; a plain object, so that no Keras model saves it along.

    What is not given is detected in the network, or refused.

    Args:
        model: From images [B, h, w, 3] to [B, K] logits or probabilities; frozen, that is with
            `model.trainable = False`.
        processor: What it expects of its images: size and normalization; how it crops plays no
            part. By default the size that `model` declares, or the student's where it takes any;
            and pixels 0..255 or 0..1 where it normalizes them itself, else ImageNet's statistics.
        class_order: For each class of the student the index of the teacher's output that means it;
            by default the order is the same.
        from_logits: Whether `model` gives logits; otherwise probabilities. By default whether it
            does not end in a softmax.
        bgr: Whether it takes the channels as blue, green, red (the Caffe networks of
            keras.applications).
        name: Name in error messages; by default the model's.
    Raises:
        ValueError: If `model` is no classifier, has trainable weights, takes another size than
            `processor` makes, normalizes by itself what `processor` has normalized already, or
            does so in a way that cannot be told and there is no `processor`.
    """

    def __init__(
        self,
        model: keras.Model,
        processor: ImageProcessor | None = None,
        *,
        class_order: Sequence[int] | None = None,
        from_logits: bool | None = None,
        bgr: bool = False,
        name: str | None = None,
    ):
        _check_classifier(model)
        self.model, self.name, self.bgr = model, name or model.name, bgr
        self.from_logits = not gives_probabilities(model) if from_logits is None else from_logits
        self.class_order = None if class_order is None else list(class_order)
        self.mean, self.std = self._normalization(processor)
        self.image_size = self._image_size(processor)
        self.check_frozen()

    def _normalization(self, processor: ImageProcessor | None) -> tuple[PerChannel, PerChannel]:
        """Mean and deviation of its images: given, undone by itself, or ImageNet's."""
        own = own_normalization(self.model)
        if processor is None:
            self._check_known()
            if own is not None:
                log.info("Teacher %r normalizes its images itself.", self.name)
            return own or IMAGENET

        given = (tuple(processor.mean), tuple(processor.std))
        if own is not None and not np.allclose(given, own):
            raise ValueError(
                f"Teacher {self.name!r} normalizes its images itself, and would do so twice. Leave "
                f"`processor` out, or pass one with mean={own[0]}, std={own[1]}. Received: "
                f"mean={given[0]}, std={given[1]}"
            )

        return given

    def _check_known(self) -> None:
        if first := unknown_preprocessing(self.model):
            raise ValueError(
                f"Teacher {self.name!r} begins with an operation that may be a normalization "
                f"({first}), and what images it takes cannot be told. Pass `processor`: "
                "`deit_tf.ImageProcessor(mean=(0, 0, 0), std=(1 / 255,) * 3)` for pixels 0..255, "
                "std=(1, 1, 1) for 0..1."
            )

    def _image_size(self, processor: ImageProcessor | None) -> tuple[int, int] | None:
        """Height and width that it takes, in pixels; None where it takes any."""
        height, width = self.model.input_shape[1:3]
        declared = (height, width) if height and width else None
        if processor is None:
            return declared
        if declared and declared != processor.size:
            raise ValueError(
                f"Teacher {self.name!r} takes images of {declared[0]} x {declared[1]} pixels, and "
                f"`processor` makes them of that size. Received: {processor.size}"
            )
        return processor.size

    def check_frozen(self) -> None:
        """Check that the network has no trainable weights.

        Raises:
            ValueError: If it has.
        """
        if self.model.trainable_variables:
            raise ValueError(
                f"Teacher {self.name!r} has {len(self.model.trainable_variables)} trainable "
                "weights, and a teacher is frozen. Set `model.trainable = False` on the model you "
                "pass."
            )

    def logits(self, images: tf.Tensor, processor: ImageProcessor) -> tf.Tensor:
        """Label a batch that was made for the student.

        Args:
            images: float32 [B, H, W, 3], normalized as `processor` does.
            processor: What the student expects.
        Returns:
            float32 [B, C] logits in the student's class order; no gradient flows back.
        """
        outputs = self._outputs(images, processor)  # [B, K]
        if not self.from_logits:
            outputs = tf.math.log(tf.maximum(outputs, keras.config.epsilon()))
        if self.class_order is not None:
            outputs = tf.gather(outputs, self.class_order, axis=-1)
        return tf.stop_gradient(outputs)

    def _outputs(self, images: tf.Tensor, processor: ImageProcessor) -> tf.Tensor:
        """What the network gives, float32 [B, K], for images made by the student's processor."""
        return tf.cast(self.model(self._adapt(images, processor), training=False), tf.float32)

    def check(self, classes: int, image_shape: Sequence[int]) -> None:
        """Check that it can teach a student, by running it on two images of noise.

        Args:
            classes: Of the student.
            image_shape: [H, W, 3] of the student's images.
        Raises:
            ValueError: If it is not frozen, has another class count, or gives no finite numbers, or
                none that are what `from_logits` says.
        """
        self.check_frozen()
        self._check_channels(image_shape[-1])
        outputs = self.model.output_shape[-1]
        if self.class_order is not None:
            _check_order(self.name, self.class_order, classes, outputs)
        elif outputs != classes:
            raise ValueError(
                f"Teacher {self.name!r} has {outputs} classes and the student {classes}. Train a "
                "teacher on the same classes (`deit-tf train-teacher`), or pass `class_order` to "
                "pick the student's among the teacher's."
            )

        shape = (2, *image_shape)
        noise = tf.constant(np.random.default_rng(0).normal(size=shape).astype("float32"))
        answers = self._outputs(noise, ImageProcessor(shape[1:3])).numpy()
        if not np.isfinite(answers).all():
            raise ValueError(
                f"Teacher {self.name!r} gives numbers that are not finite. Check its weights and "
                "precision."
            )

        self._check_probabilities(answers)

    def _check_channels(self, channels: int) -> None:
        taken = self.model.input_shape[-1]
        if taken not in (None, channels):
            raise ValueError(
                f"Teacher {self.name!r} takes images of {taken} channel(s), and the student's have "
                f"{channels}. Train a teacher on the same images (`deit-tf train-teacher`), or put "
                "a layer before it that makes its channels of them."
            )

    def _check_probabilities(self, answers: np.ndarray) -> None:
        """Refuse probabilities that were said to be logits, and the other way round."""
        sums = answers.sum(-1)
        probabilities = bool(answers.min() >= 0 and np.allclose(sums, 1, atol=1e-2))
        if probabilities == self.from_logits:
            found = "probabilities" if probabilities else "no probabilities"
            raise ValueError(
                f"Teacher {self.name!r} gives {found}: its outputs sum to {sums[0]:.4g}. Pass "
                f"from_logits={not self.from_logits}. Received: from_logits={self.from_logits}"
            )

    def _adapt(self, images: tf.Tensor, processor: ImageProcessor) -> tf.Tensor:
        """From the student's normalization and size to the teacher's."""
        given = (tuple(processor.mean), tuple(processor.std))
        if given != (tuple(self.mean), tuple(self.std)):
            scale, offset = renormalization(*given, self.mean, self.std)
            images = images * scale + offset
        if self.image_size and tuple(images.shape[1:3]) != tuple(self.image_size):
            images = resized(images, self.image_size)
        return images[..., ::-1] if self.bgr else images


def resized(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resize float32 [B, H, W, 3] to [B, *size, 3], as `tf.image.resize` does, bilinear with
    antialias.

    That is linear along each axis, and so a matrix, which XLA takes, unlike the operation itself.
    """
    height, width = images.shape[1:3]
    if height is None or width is None:  # nothing to make a matrix of, until it runs
        return tf.image.resize(images, size, "bilinear", antialias=True)
    rows, columns = _resize_matrix(height, size[0]), _resize_matrix(width, size[1])
    images = tf.einsum("hH,bHWc->bhWc", rows, images)
    return tf.einsum("wW,bhWc->bhwc", columns, images)


@functools.cache
def _resize_matrix(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: what the resize makes of the identity."""
    with tf.init_scope():  # at once, though a graph is being traced
        identity = tf.eye(old)[..., None]  # [old, old, 1]
        return tf.image.resize(identity, (new, old), "bilinear", antialias=True)[..., 0].numpy()


def _check_classifier(model: keras.Model) -> None:
    """Refuse a layer, or a model that gives images: one that prepares them teaches nothing."""
    taken, given = (getattr(model, name, None) for name in ("input_shape", "output_shape"))
    takes_images = isinstance(taken, tuple) and len(taken) == 4
    gives_classes = isinstance(given, tuple) and len(given) == 2
    if not (isinstance(model, keras.Model) and takes_images and gives_classes):
        raise ValueError(
            "`model` must be a Keras classifier, functional or Sequential, from images [B, h, w, "
            "3] to [B, K]. A model that only prepares images goes before it: `keras.Sequential("
            f"[preparation, classifier])`. Received: {getattr(model, 'name', model)!r}, a "
            f"{type(model).__name__} from {taken} to {given}"
        )


def _check_order(name: str, order: list[int], classes: int, outputs: int) -> None:
    if len(order) != classes or not all(0 <= index < outputs for index in order):
        raise ValueError(
            f"`class_order` of teacher {name!r} needs {classes} numbers from 0 to {outputs - 1}, "
            f"one per class of the student. Received {len(order)}: {order[:10]}"
        )
