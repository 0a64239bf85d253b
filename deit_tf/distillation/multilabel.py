"""Distillation of images that have any number of labels: each class is there or not, by itself."""

from collections.abc import Sequence
from typing import Literal

import keras
from keras import ops

from deit_tf import losses
from deit_tf.data import ImageProcessor
from deit_tf.distillation.distiller import Distiller
from deit_tf.distillation.kinds import MULTILABEL_LOSSES
from deit_tf.distillation.teacher import Teacher
from deit_tf.models.detection import gives_probabilities
from deit_tf.training.inputs import multi_labels

# Of a Distiller's settings those that it has as well.
SETTINGS = ("kind", "alpha", "temperature", "train_heads", "processor", "class_weights")


@keras.saving.register_keras_serializable("deit_tf")
class MultilabelDistiller(Distiller):
    """Trains a classifier of images with any number of labels, with or without a teacher.

    Its logits are meant for a sigmoid. The figure beside the losses is `f1_samples`, the F1 score
    of an image's labels at probability 1/2, 1 where there are none and none were found.

    Args:
        student: As of `Distiller`.
        teacher: A teacher of the same task, whose network gives logits for a sigmoid.
        kind: What the student learns of each class from the teacher: `hard`, whether its
            probability is above 1/2; `soft`, the probability; or `none`.
        alpha: Weight of the teacher's part, 0..1.
        temperature: Of `soft`, above 0; divides the logits of both.
        train_heads: As of `Distiller`.
        processor: As of `Distiller`.
        class_weights: Factors of the loss where a class is there, in training, [C].
    Call arguments:
        images: As of `Distiller`; the labels in `fit` are float [B, C], 1 where a class is there.
    Returns:
        float32 [B, C] logits of the student.
    Raises:
        ValueError: For arguments out of range, or a teacher or student that ends in a softmax or a
            sigmoid.
    """

    score = "f1_samples"

    def __init__(
        self,
        student: keras.Model,
        teacher: Teacher | None = None,
        *,
        kind: Literal["hard", "soft", "none"] = "hard",
        alpha: float = 0.5,
        temperature: float = 1.0,
        train_heads: Literal["mean", "both"] = "mean",
        processor: ImageProcessor | None = None,
        class_weights: Sequence[float] | None = None,
        **kwargs,
    ):
        _check_logits("student", student)
        super().__init__(
            student,
            teacher,
            kind=kind,
            alpha=alpha,
            temperature=temperature,
            train_heads=train_heads,
            processor=processor,
            class_weights=class_weights,
            **kwargs,
        )

    @property
    def teacher(self) -> Teacher | None:
        """The teacher; set it again after loading a saved one of these."""
        return self._teacher

    @teacher.setter
    def teacher(self, teacher: Teacher | None):
        if teacher is not None:
            _check_logits("teacher", teacher.model)
        Distiller.teacher.fset(self, teacher)

    def _targets(self, labels, weight):
        return multi_labels(labels, self.student.output_shape[-1], weight)

    def _loss_of(self, logits, targets, class_weights):
        return losses.multilabel_cross_entropy(logits, targets, class_weights)

    def _distillation(self, logits, teacher_logits):
        return MULTILABEL_LOSSES[self.kind](logits, teacher_logits, self.temperature)

    def _score(self, logits, targets):
        """F1 of the labels of each image, [B]; of mixed labels those of a share above 1/2."""
        found = ops.cast(logits > 0, "float32")  # [B, C]
        there = ops.cast(targets > 0.5, "float32")
        both, either = ops.sum(found * there, axis=-1), ops.sum(found + there, axis=-1)  # [B]
        return ops.where(either == 0, 1.0, 2 * both / ops.maximum(either, 1.0))

    def _agreement(self, logits, others):
        """Share of the classes that both take to be there, or not, [B]."""
        return ops.mean(ops.cast((logits > 0) == (others > 0), "float32"), axis=-1)

    def _settings(self):
        settings = super()._settings()
        return {name: settings[name] for name in SETTINGS}


def _check_logits(name: str, model: keras.Model) -> None:
    if gives_probabilities(model, "softmax", "sigmoid"):
        raise ValueError(
            f"`{name}` must give logits of several labels, and its last layer makes probabilities "
            f"of them: make it without that activation. Received: {model.name}"
        )
