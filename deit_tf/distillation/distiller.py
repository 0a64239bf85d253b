"""Distillation through attention: a student, a frozen teacher, and the step that joins them.

Paper, section 4; facebookresearch/deit losses.py and engine.py. What training makes is
`distiller.student`.
"""

from typing import Literal

import keras
import tensorflow as tf
from keras import ops

from deit_tf import losses
from deit_tf.config import IMAGENET_MEAN, IMAGENET_STD, Triple
from deit_tf.distillation.teacher import Teacher
from deit_tf.models import heads
from deit_tf.training.trainer import Judged, Trainer

Kind = Literal["hard", "soft", "none"]


@keras.saving.register_keras_serializable("deit_tf")
class Distiller(Trainer):
    """Trains a DeiT with `fit`, with or without a teacher.

    The class head learns the true labels, the distillation head the teacher's:
    `(1 - alpha) * base + alpha * distillation`. A student without distillation token learns both
    with its one head. With kind `none` the mean of the heads learns the true labels, as in plain
    `fit`.

    Args:
        student: From build_deit or create_model.
        teacher: The teacher; not needed for `none`. It is no part of what is saved.
        kind: `hard` (the paper's), `soft` or `none`.
        alpha: Weight of the teacher's part, 0..1.
        temperature: Softmax temperature of `soft`, above 0.
        normalization: Of `soft`: `batchmean`, or `numel` as the original (see
            losses.soft_distillation).
        label_smoothing: Spread over all classes of the true labels in training, never of the
            teacher's; leave it 0 where the data is smoothed already.
        train_heads: With kind `none` and two heads: `mean` has the mean of their logits learn the
            labels, `both` each head by itself.
        mean: Mean of the student's normalization, so that the teacher can undo it.
        std: Its standard deviation.
    Call arguments:
        images: float32 [B, H, W, 3], normalized; in `fit` with labels int [B] or float [B, C], or
            with `{"labels": those, "teacher_logits": float [B, C]}`, and then no teacher is run.
    Returns:
        float32 [B, C] logits of the student.
    Raises:
        ValueError: For arguments out of range, or a teacher that cannot teach this student.
    Differs: with `none` the original trains the class head alone but averages the untrained
        distillation head in at inference.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: Teacher | None = None,
        *,
        kind: Kind = "hard",
        alpha: float = 0.5,
        temperature: float = 1.0,
        normalization: losses.Normalization = "batchmean",
        label_smoothing: float = 0.0,
        train_heads: Literal["mean", "both"] = "mean",
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        **kwargs,
    ):
        _check_choice("kind", kind, ("hard", "soft", "none"))
        _check_choice("normalization", normalization, ("batchmean", "numel"))
        _check_choice("train_heads", train_heads, ("mean", "both") if kind == "none" else ("mean",))
        _check_range("alpha", alpha, 0 <= alpha <= 1, "lies in 0..1")
        _check_range("temperature", temperature, temperature > 0, "is above 0")
        _check_range("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "lies in [0, 1)")
        both = heads(student)
        names = ["loss", "base_loss", "accuracy", *(f"accuracy_{head}" for head in both.output)]
        names += ["distillation_loss", "teacher_agreement"] if kind != "none" else []
        super().__init__(student, names, **kwargs)
        # Behind a lambda, or Keras would save the student a second time; the teacher is a plain
        # object.
        self._heads = lambda images, training: both(images, training=training)
        self.kind, self.alpha, self.temperature = kind, alpha, temperature
        self.normalization, self.label_smoothing, self.train_heads = (
            normalization,
            label_smoothing,
            train_heads,
        )
        self.mean, self.std = tuple(mean), tuple(std)
        self.teacher = teacher

    @property
    def student(self) -> keras.Model:
        """What is trained, and worth saving."""
        return self.network

    @property
    def distills(self) -> bool:
        """Whether the loss needs a teacher."""
        return self.kind != "none"

    @property
    def teacher(self) -> Teacher | None:
        """The teacher; set it again after loading a saved Distiller."""
        return self._teacher

    @teacher.setter
    def teacher(self, teacher: Teacher | None):
        if teacher is not None:
            teacher.check(self.student)
        self._teacher = teacher

    def judge(self, data, training):
        images, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        labels, teacher_logits = self._taught(images, labels)
        targets = self._targets(labels)
        logits = self._heads(images, training=training)
        smoothed = losses.smooth(targets, self.label_smoothing) if training else targets
        base, distillation = self._parts(logits, smoothed, teacher_logits)
        values = {"loss": self._total(base, distillation), "base_loss": base}  # [B] each
        truth, mean = ops.argmax(targets, axis=-1), _mean_of_heads(logits)  # [B], [B, C]
        values["accuracy"] = _agree(mean, truth)
        values |= {f"accuracy_{head}": _agree(each, truth) for head, each in logits.items()}
        if self.distills:
            values["distillation_loss"] = distillation
            values["teacher_agreement"] = _agree(mean, ops.argmax(teacher_logits, axis=-1))
        return Judged(values, weight, labels, mean)

    def over(self, network):
        return type(self)(network, self.teacher, **self._settings())

    def _taught(self, images, labels):
        """The true labels and the teacher's logits [B, C]: out of the batch where it holds them,
        else computed.
        """
        if isinstance(labels, dict):
            return labels["labels"], labels["teacher_logits"] if self.distills else None
        if not self.distills:
            return labels, None
        self._require_teacher()
        return labels, self.teacher.logits(images, self.mean, self.std)

    def _require_teacher(self):
        if self.distills and self.teacher is None:
            raise ValueError(
                f"Distiller(kind={self.kind!r}) has no teacher. Pass `teacher=Teacher(...)`, or "
                "set `distiller.teacher` after loading, or choose kind='none'."
            )
        if self.distills:
            self.teacher.check_frozen()

    def _targets(self, labels):
        """Labels int [B] or [B, 1], or soft [B, C], to float32 [B, C]."""
        classes = self.student.output_shape[-1]
        if labels.shape.rank == 2 and labels.shape[-1] == classes and labels.dtype.is_floating:
            return tf.cast(labels, tf.float32)
        return (
            tf.one_hot(tf.reshape(labels, [-1]), classes)
            if labels.dtype.is_integer
            else _refuse_labels(labels, classes)
        )

    def _parts(self, logits, targets, teacher_logits):
        """The two parts of the loss, [B] each; without a teacher the second is None."""
        if not self.distills and self.train_heads == "mean":
            return losses.cross_entropy(_mean_of_heads(logits), targets), None
        if not self.distills:
            return sum(losses.cross_entropy(each, targets) for each in logits.values()) / len(
                logits
            ), None
        base = losses.cross_entropy(logits["cls"], targets)
        pupil = logits.get("dist", logits["cls"])
        if self.kind == "hard":
            return base, losses.hard_distillation(pupil, teacher_logits)
        return base, losses.soft_distillation(
            pupil, teacher_logits, self.temperature, self.normalization
        )

    def _total(self, base, distillation):
        return (
            base if distillation is None else (1 - self.alpha) * base + self.alpha * distillation
        )  # [B]

    def get_config(self):
        student = keras.saving.serialize_keras_object(self.student)
        return {"student": student, **self._settings(), "name": self.name}

    def _settings(self):
        names = (
            "kind",
            "alpha",
            "temperature",
            "normalization",
            "label_smoothing",
            "train_heads",
            "mean",
            "std",
        )
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("student")), **config)


def _mean_of_heads(logits):
    return sum(logits.values()) / len(logits)  # [B, C]


def _agree(logits, classes):
    """1.0 where the top class is `classes` [B], else 0.0."""
    return ops.cast(ops.argmax(logits, axis=-1) == classes, "float32")  # [B]


def _check_choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(
            f"`{name}` is one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}"
        )


def _check_range(name, value, fits, rule):
    if not fits:
        raise ValueError(f"`{name}` {rule}. Received: {name}={value}")


def _refuse_labels(labels, classes):
    raise ValueError(
        f"Labels are whole numbers [B] or probabilities float [B, {classes}]. "
        f"Received: {labels.dtype.name} {tuple(labels.shape)}"
    )
