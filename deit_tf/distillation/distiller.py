"""Distillation through attention: a student, a frozen teacher, and the step that joins them.

Paper, section 4; facebookresearch/deit losses.py and engine.py. What training makes is
`distiller.student`.
"""

from dataclasses import asdict
from typing import Literal

import keras
from keras import ops

from deit_tf import losses
from deit_tf.data import ImageProcessor
from deit_tf.distillation.detection import gives_probabilities
from deit_tf.distillation.kinds import KINDS, NONE
from deit_tf.distillation.teacher import Teacher
from deit_tf.models import heads
from deit_tf.models.parts import image_size
from deit_tf.training.inputs import check_images, distributions
from deit_tf.training.trainer import BatchResult, Trainer


@keras.saving.register_keras_serializable("deit_tf")
class Distiller(Trainer):
    """Trains a classifier with `fit`, with or without a teacher.

    The class head learns the true labels, the distillation head the teacher's:
    `(1 - alpha) * base + alpha * distillation`. A student without distillation token learns both
    with its one head. With kind `none` the mean of the heads learns the true labels, as in plain
    `fit`.

    Args:
        student: From build_deit or create_model; or any Keras classifier with one output, logits.
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
        processor: What the student expects of its images, so that the teacher can undo their
            normalization; by default the original's.
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
        kind: Literal["hard", "soft", "none"] = "hard",
        alpha: float = 0.5,
        temperature: float = 1.0,
        normalization: losses.Normalization = "batchmean",
        label_smoothing: float = 0.0,
        train_heads: Literal["mean", "both"] = "mean",
        processor: ImageProcessor | None = None,
        **kwargs,
    ):
        _check_choice("kind", kind, (*KINDS, NONE))
        _check_choice("normalization", normalization, ("batchmean", "numel"))
        _check_choice("train_heads", train_heads, ("mean", "both") if kind == "none" else ("mean",))
        _check_range("alpha", alpha, 0 <= alpha <= 1, "lies in 0..1")
        _check_range("temperature", temperature, temperature > 0, "is above 0")
        _check_range("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "lies in [0, 1)")
        networks = _heads(student)
        names = ["loss", "base_loss", "accuracy", *(f"accuracy_{head}" for head in networks.output)]
        names += ["distillation_loss", "teacher_agreement"] if kind != NONE else []
        super().__init__(student, names, **kwargs)

        # Behind a lambda, or Keras would save the student a second time; the teacher is a plain
        # object.
        self._heads = lambda images, training: networks(images, training=training)
        self.kind, self.alpha, self.temperature = kind, alpha, temperature
        self.normalization, self.label_smoothing = normalization, label_smoothing
        self.train_heads = train_heads
        declared = image_size(student)
        self.processor = processor or (
            ImageProcessor(declared) if all(declared) else ImageProcessor()
        )
        self.teacher = teacher

    @property
    def student(self) -> keras.Model:
        """What is trained, and worth saving."""
        return self.network

    @property
    def distills(self) -> bool:
        """Whether the loss needs a teacher."""
        return self.kind != NONE

    @property
    def teacher(self) -> Teacher | None:
        """The teacher; set it again after loading a saved Distiller."""
        return self._teacher

    @teacher.setter
    def teacher(self, teacher: Teacher | None):
        if teacher is not None:
            shape = self.student.input_shape[1:]  # [H, W, channels], None where it takes any
            made = (*self.processor.size, self.processor.num_channels)
            size = [n or given for n, given in zip(shape, made, strict=True)]
            teacher.check(self.student.output_shape[-1], size)
        self._teacher = teacher

    def batch_result(self, data, training):
        images, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        check_images(images, self.student)
        labels, teacher_logits = self._labels_and_teacher_logits(images, labels)
        targets = distributions(labels, self.student.output_shape[-1], weight)  # [B, C]
        logits = self._heads(images, training=training)  # [B, C] of each head

        smoothed = losses.smooth(targets, self.label_smoothing) if training else targets
        base, distillation = self._parts(logits, smoothed, teacher_logits)
        values = {"loss": self._total(base, distillation), "base_loss": base}  # [B] each

        true_class, mean = ops.argmax(targets, axis=-1), _mean_of_heads(logits)  # [B], [B, C]
        values["accuracy"] = _agreement(mean, true_class)
        for head, each in logits.items():
            values[f"accuracy_{head}"] = _agreement(each, true_class)
        if self.distills:
            values["distillation_loss"] = distillation
            values["teacher_agreement"] = _agreement(mean, ops.argmax(teacher_logits, axis=-1))

        return BatchResult(values, weight, labels, mean)

    def with_network(self, network):
        return type(self)(network, self.teacher, **self._settings())

    def _labels_and_teacher_logits(self, images, labels):
        """True labels and teacher logits [B, C]: out of the batch where it holds them."""
        if isinstance(labels, dict):
            return labels["labels"], labels["teacher_logits"] if self.distills else None
        if not self.distills:
            return labels, None
        self._require_teacher()
        return labels, self.teacher.logits(images, self.processor)

    def _require_teacher(self):
        if self.teacher is None:
            raise ValueError(
                f"Distiller(kind={self.kind!r}) has no teacher. Pass `teacher=Teacher(...)`, or "
                "set `distiller.teacher` after loading, or choose kind='none'."
            )
        self.teacher.check_frozen()

    def _parts(self, logits, targets, teacher_logits):
        """The two parts of the loss, [B] each; without a teacher the second is None."""
        if not self.distills and self.train_heads == "mean":
            return losses.cross_entropy(_mean_of_heads(logits), targets), None
        if not self.distills:
            return sum(losses.cross_entropy(each, targets) for each in logits.values()) / len(
                logits
            ), None

        base = losses.cross_entropy(logits["cls"], targets)
        distillation = KINDS[self.kind].loss(
            logits.get("dist", logits["cls"]),
            teacher_logits,
            temperature=self.temperature,
            normalization=self.normalization,
        )

        return base, distillation

    def _total(self, base, distillation):
        return (
            base if distillation is None else (1 - self.alpha) * base + self.alpha * distillation
        )  # [B]

    def get_config(self):
        student = keras.saving.serialize_keras_object(self.student)
        settings = self._settings() | {"processor": asdict(self.processor)}
        return {"student": student, **settings, "name": self.name}

    def _settings(self):
        return {
            "kind": self.kind,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "normalization": self.normalization,
            "label_smoothing": self.label_smoothing,
            "train_heads": self.train_heads,
            "processor": self.processor,
        }

    @classmethod
    def from_config(cls, config):
        student = keras.saving.deserialize_keras_object(config.pop("student"))
        if "mean" in config:  # of a file from before the processor: its normalization alone
            size = student.input_shape[1:3]
            normalization = {"mean": config.pop("mean"), "std": config.pop("std")}
            config["processor"] = {"image_size": size, **normalization}
        fields = {key: _tuple(value) for key, value in config.pop("processor").items()}
        return cls(student, processor=ImageProcessor(**fields), **config)


def _heads(student: keras.Model) -> keras.Model:
    """A model from images to the logits [B, C] of each head, by name; of a single one `cls`.

    Raises:
        ValueError: If the student has several outputs, less than two classes, or ends in a softmax.
    """
    shape = student.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[-1] < 2:
        raise ValueError(
            "`student` must be a classifier with one output, logits [B, C] of two classes at "
            f"least. Received: {student.name} with output {shape}"
        )
    if any(layer.name == "head" for layer in student.layers):
        return heads(student)
    if gives_probabilities(student):
        raise ValueError(
            "`student` must give logits, and its last layer is a softmax: make it with "
            f"`classifier_activation=None` or without that activation. Received: {student.name}"
        )

    return keras.Model(student.input, {"cls": student.output}, name=f"{student.name}_heads")


def _mean_of_heads(logits):
    return sum(logits.values()) / len(logits)  # [B, C]


def _agreement(logits, classes):
    """1.0 where the top class is `classes` [B], else 0.0."""
    return ops.cast(ops.argmax(logits, axis=-1) == classes, "float32")  # [B]


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _check_choice(name, value, allowed):
    if value not in allowed:
        allowed = ", ".join(map(repr, allowed))
        raise ValueError(f"`{name}` is one of {allowed}. Received: {name}={value!r}")


def _check_range(name, value, fits, rule):
    if not fits:
        raise ValueError(f"`{name}` {rule}. Received: {name}={value}")
