"""Distillation through attention: a student, a frozen teacher, and the step that joins them.

Paper, section 4; facebookresearch/deit losses.py and engine.py. What training makes is `distiller.student`.
"""

from typing import Literal

import keras
import tensorflow as tf
from keras import ops

from deit_tf import losses
from deit_tf.config import IMAGENET_MEAN, IMAGENET_STD, Triple
from deit_tf.models import heads
from deit_tf.teachers import Teacher

Kind = Literal["hard", "soft", "none"]


@keras.saving.register_keras_serializable("deit_tf")
class Distiller(keras.Model):
    """Trains a DeiT with `fit`, with or without a teacher.

    The class head learns the true labels, the distillation head the teacher's:
    `(1 - alpha) * base + alpha * distillation`. A student without distillation token learns both with
    its one head. With kind `none` the mean of the heads learns the true labels, as in plain `fit`.

    Args:
        student: From build_deit or create_model.
        teacher: The teacher; not needed for `none`. It is no part of what is saved.
        kind: `hard` (the paper's), `soft` or `none`.
        alpha: Weight of the teacher's part, 0..1.
        temperature: Softmax temperature of `soft`, above 0.
        normalization: Of `soft`: `batchmean`, or `numel` as the original (see losses.soft_distillation).
        label_smoothing: Spread over all classes of the true labels in training, never of the
            teacher's; leave it 0 where the data is smoothed already.
        mean: Mean of the student's normalisation, so that the teacher can undo it.
        std: Its standard deviation.
    Call arguments:
        images: float32 [B, H, W, 3], normalised; in `fit` with labels int [B] or float [B, C].
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
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_choice("kind", kind, ("hard", "soft", "none"))
        _check_choice("normalization", normalization, ("batchmean", "numel"))
        _check_range("alpha", alpha, 0 <= alpha <= 1, "lies in 0..1")
        _check_range("temperature", temperature, temperature > 0, "is above 0")
        _check_range("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "lies in [0, 1)")
        self.student = student
        both = heads(student)
        # Behind a lambda, or Keras would save the student a second time; the teacher is a plain object.
        self._heads = lambda images, training: both(images, training=training)
        self.kind, self.alpha, self.temperature = kind, alpha, temperature
        self.normalization, self.label_smoothing = normalization, label_smoothing
        self.mean, self.std = tuple(mean), tuple(std)
        names = ["loss", "base_loss", "accuracy", *(f"accuracy_{head}" for head in both.output)]
        names += ["distillation_loss", "teacher_agreement"] if self.distils else []
        self.means = {name: keras.metrics.Mean(name=name) for name in names}
        self.gradient_norm = keras.metrics.Mean(name="gradient_norm")
        self.teacher = teacher
        self.build(student.input_shape)

    @property
    def distils(self) -> bool:
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

    def build(self, input_shape):
        """Nothing to make: the student comes built."""
        self.built = True

    def call(self, images, training=False):
        return self.student(images, training=training)

    def compile(self, optimizer="rmsprop", metrics=None, **kwargs):
        """Configure training; `metrics` see the labels and the mean of the heads.

        Raises:
            ValueError: If a `loss` is given: the Distiller has its own.
        """
        if kwargs.pop("loss", None) is not None:
            raise ValueError("`loss` must be left out: Distiller computes it from `kind`, `alpha` and `temperature`.")
        super().compile(optimizer=optimizer, metrics=metrics, **kwargs)

    def compile_from_config(self, config):
        """Compile as the saved Distiller was; Keras leaves this to a class with a `compile` of its own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def train_step(self, data):
        images, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        targets = self._targets(labels)
        teacher_logits = self._teacher_logits(images)
        with tf.GradientTape() as tape:
            logits = self._heads(images, training=True)
            base, distillation = self._parts(logits, losses.smooth(targets, self.label_smoothing), teacher_logits)
            total = _weighted_mean(self._total(base, distillation), weight)
            # Keras sums gradients over replicas, so each replica gives its share.
            scale = self.optimizer.scale_loss(1.0 / tf.distribute.get_strategy().num_replicas_in_sync)
            share = total * scale
        gradients = tape.gradient(share, self.student.trainable_variables)
        self.gradient_norm.update_state(tf.linalg.global_norm(gradients) / scale)  # of this replica's batch
        self.optimizer.apply(gradients, self.student.trainable_variables)
        return self._report(images, labels, targets, logits, teacher_logits, base, distillation, weight)

    def test_step(self, data):
        images, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        targets = self._targets(labels)
        teacher_logits = self._teacher_logits(images)
        logits = self._heads(images, training=False)
        base, distillation = self._parts(logits, targets, teacher_logits)
        report = self._report(images, labels, targets, logits, teacher_logits, base, distillation, weight)
        return {name: value for name, value in report.items() if name != self.gradient_norm.name}

    def make_train_function(self, force=False):
        self._require_teacher()
        return super().make_train_function(force)

    def make_test_function(self, force=False):
        self._require_teacher()
        return super().make_test_function(force)

    @property
    def metrics(self):
        # Keras's own tracker is named "loss" too; the one of this class takes its place.
        return [*self.means.values(), *(m for m in super().metrics if m.name not in self.means)]

    def _require_teacher(self):
        if self.distils and self.teacher is None:
            raise ValueError(
                f"Distiller(kind={self.kind!r}) has no teacher. Pass `teacher=Teacher(...)`, or set "
                "`distiller.teacher` after loading, or choose kind='none'."
            )
        if self.distils:
            self.teacher.check_frozen()

    def _teacher_logits(self, images):
        return self.teacher.logits(images, self.mean, self.std) if self.distils else None  # [B, C]

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
        if not self.distils:
            return losses.cross_entropy(_mean_of_heads(logits), targets), None
        base = losses.cross_entropy(logits["cls"], targets)
        pupil = logits.get("dist", logits["cls"])
        if self.kind == "hard":
            return base, losses.hard_distillation(pupil, teacher_logits)
        return base, losses.soft_distillation(pupil, teacher_logits, self.temperature, self.normalization)

    def _total(self, base, distillation):
        return base if distillation is None else (1 - self.alpha) * base + self.alpha * distillation  # [B]

    def _report(self, images, labels, targets, logits, teacher_logits, base, distillation, weight):
        """Update every metric and return their values by name."""
        truth = ops.argmax(targets, axis=-1)  # [B]
        mean = _mean_of_heads(logits)  # [B, C]
        values = {"loss": self._total(base, distillation), "base_loss": base, "accuracy": _agree(mean, truth)}
        values |= {f"accuracy_{head}": _agree(each, truth) for head, each in logits.items()}
        if self.distils:
            values["distillation_loss"] = distillation
            values["teacher_agreement"] = _agree(mean, ops.argmax(teacher_logits, axis=-1))
        for name, value in values.items():  # [B] each
            self.means[name].update_state(value, weight)
        return self.compute_metrics(images, labels, mean, sample_weight=weight)

    def get_config(self):
        return {
            "student": keras.saving.serialize_keras_object(self.student),
            "kind": self.kind,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "normalization": self.normalization,
            "label_smoothing": self.label_smoothing,
            "mean": self.mean,
            "std": self.std,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("student")), **config)


def _mean_of_heads(logits):
    return sum(logits.values()) / len(logits)  # [B, C]


def _agree(logits, classes):
    """1.0 where the top class is `classes` [B], else 0.0."""
    return ops.cast(ops.argmax(logits, axis=-1) == classes, "float32")  # [B]


def _weighted_mean(values, weight):
    return ops.mean(values if weight is None else values * ops.cast(weight, values.dtype))


def _check_choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"`{name}` is one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}")


def _check_range(name, value, fits, rule):
    if not fits:
        raise ValueError(f"`{name}` {rule}. Received: {name}={value}")


def _refuse_labels(labels, classes):
    raise ValueError(
        f"Labels are whole numbers [B] or probabilities float [B, {classes}]. "
        f"Received: {labels.dtype.name} {tuple(labels.shape)}"
    )
