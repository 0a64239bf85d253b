"""Distillation through attention: a student, a frozen teacher, and the step that joins them.

Paper, section 4; facebookresearch/deit losses.py and engine.py. What training makes is
`distiller.student`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, get_args

import keras
from keras import ops

from deit_tf import losses
from deit_tf.config import Loss, check_cosub, check_target_threshold
from deit_tf.data import ImageProcessor
from deit_tf.distillation.kinds import KINDS, NONE
from deit_tf.distillation.student import normalizes_as, student_heads, student_images
from deit_tf.distillation.teacher import Teacher
from deit_tf.models.detection import PIXELS, own_normalization
from deit_tf.training.inputs import check_images, checked_pixels, distributions
from deit_tf.training.trainer import BatchResult, Trainer


@keras.saving.register_keras_serializable("deit_tf")
class Distiller(Trainer):
    """Trains a classifier with `fit`, with or without a teacher.

    The class head learns the true labels, the distillation head the teacher's:
    `(1 - alpha) * base + alpha * distillation`. A student without distillation token learns both
    with its one head. With kind `none` the mean of the heads learns the true labels, as in plain
    `fit`.

    Args:
        student: From build_deit or create_model; or any Keras classifier with one output, logits,
            which is trained as one head.
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
        loss: How the true labels are learned: `cross_entropy`, the paper's, or
            `binary_cross_entropy` of each class (DeiT III).
        bce_target_thresh: Of `binary_cross_entropy`: a target above it becomes 1, any other 0;
            0 is the original's, None leaves them as they are.
        bce_sum: Of `binary_cross_entropy`: whether it is summed up over the classes.
        cosub: With kind `none` and `binary_cross_entropy`: whether the student sees each batch
            twice, as two submodels that drop path draws, which learn from each other as well
            (Touvron et al. 2022, "Co-training 2L submodels").
        processor: What the student expects of its images, so that the teacher can undo their
            normalization; by default pixels 0..255 or 0..1 where the student normalizes them
            itself, as many networks of keras.applications do, else the original's.
        class_weights: What an image of each class counts for in training, in the part of the loss
            that is of the true labels, [C]: as `class_weight` of Keras's `fit`, and of mixed labels
            the mean by their shares.
    Call arguments:
        images: float32 [B, H, W, 3], normalized; in `fit` with labels int [B] or float [B, C], or
            with `{"labels": those, "teacher_logits": float [B, C]}`, and then no teacher is run.
    Returns:
        float32 [B, C] logits of the student.
    Raises:
        ValueError: For arguments out of range, a student that gives probabilities or would
            normalize its images twice, or a teacher that cannot teach it.
    Differs: with `none` the original trains the class head alone but averages the untrained
        distillation head in at inference.
    """

    score = "accuracy"  # the name of what `_score` gives

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
        loss: Loss = "cross_entropy",
        bce_target_thresh: float | None = 0.0,
        bce_sum: bool = False,
        cosub: bool = False,
        processor: ImageProcessor | None = None,
        class_weights: Sequence[float] | None = None,
        **kwargs,
    ):
        _check_teacher(teacher)
        _check_choice("kind", kind, (*KINDS, NONE))
        _check_choice("normalization", normalization, ("batchmean", "numel"))
        _check_choice("train_heads", train_heads, ("mean", "both") if kind == "none" else ("mean",))
        _check_choice("loss", loss, get_args(Loss))
        _check_range("alpha", alpha, 0 <= alpha <= 1, "lies in 0..1")
        _check_range("temperature", temperature, temperature > 0, "is above 0")
        _check_range("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "lies in [0, 1)")
        if cosub:
            check_cosub(kind, loss, train_heads)
        networks = student_heads(student)
        if loss == "binary_cross_entropy":
            classes = networks.output["cls"].shape[-1]
            check_target_threshold(bce_target_thresh, label_smoothing, classes)
        names = ["loss", "base_loss", self.score]
        names += [f"{self.score}_{head}" for head in networks.output]
        names += ["distillation_loss", "teacher_agreement"] if kind != NONE else []
        super().__init__(student, names, **kwargs)

        # Behind a lambda, or Keras would save the student a second time; the teacher is a plain
        # object.
        self._heads = lambda images, training: networks(images, training=training)
        self.kind, self.alpha, self.temperature = kind, alpha, temperature
        self.normalization, self.label_smoothing = normalization, label_smoothing
        self.train_heads, self.cosub = train_heads, cosub
        # Keras itself sets a `loss`, to that of `compile`
        self.label_loss, self.bce_target_thresh, self.bce_sum = loss, bce_target_thresh, bce_sum
        self.processor = student_images(student, processor)
        self._takes_pixels = own_normalization(student) == PIXELS
        _check_weights(class_weights, student.output_shape[-1])
        self.class_weights = None if class_weights is None else tuple(map(float, class_weights))
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
        if self._takes_pixels:
            images = checked_pixels(images, self.student.name)
        labels, teacher_logits = self._labels_and_teacher_logits(images, labels)
        targets = self._targets(labels, weight)  # [B, C]
        smoothed = losses.smooth(targets, self.label_smoothing) if training else targets
        class_weights = self.class_weights if training else None

        if training and self.cosub:
            logits, values = self._submodels(images, smoothed, class_weights)
        else:
            logits = self._heads(images, training=training)  # [B, C] of each head
            base, distillation = self._parts(logits, smoothed, teacher_logits, class_weights)
            values = {"loss": self._total(base, distillation), "base_loss": base}  # [B] each

        mean = _mean_of_heads(logits)  # [B, C]
        values[self.score] = self._score(mean, targets)
        for head, each in logits.items():
            values[f"{self.score}_{head}"] = self._score(each, targets)
        if self.distills:
            values["distillation_loss"] = distillation
            values["teacher_agreement"] = self._agreement(mean, teacher_logits)

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

    def _targets(self, labels, weight):
        """What the true labels ask of the logits, checked, [B, C]."""
        return distributions(labels, self.student.output_shape[-1], weight)

    def _parts(self, logits, targets, teacher_logits, class_weights):
        """The two parts of the loss, [B] each; without a teacher the second is None."""
        if not self.distills and self.train_heads == "mean":
            return self._loss_of(_mean_of_heads(logits), targets, class_weights), None
        if not self.distills:
            parts = [self._loss_of(each, targets, class_weights) for each in logits.values()]
            return sum(parts) / len(parts), None

        base = self._loss_of(logits["cls"], targets, class_weights)
        return base, self._distillation(logits.get("dist", logits["cls"]), teacher_logits)

    def _loss_of(self, logits, targets, class_weights):
        """How far logits are from the true labels, [B, C] both: [B]."""
        if self.label_loss == "cross_entropy":
            loss = losses.cross_entropy(logits, targets)
        else:
            binary = losses.binarize(targets, self.bce_target_thresh)
            loss = losses.binary_cross_entropy(logits, binary, self.bce_sum)

        if class_weights is None:
            return loss
        return loss * losses.image_weights(targets, class_weights)

    def _distillation(self, logits, teacher_logits):
        """The loss of one head on the teacher's labels, [B]."""
        return KINDS[self.kind].loss(
            logits,
            teacher_logits,
            temperature=self.temperature,
            normalization=self.normalization,
        )

    def _score(self, logits, targets):
        """How good an answer is, 0..1, [B]: whether its top class is the label's."""
        return self._agreement(logits, targets)

    def _agreement(self, logits, others):
        """1.0 where the top class is that of `others` [B, C], else 0.0: [B]."""
        same = ops.argmax(logits, axis=-1) == ops.argmax(others, axis=-1)
        return ops.cast(same, "float32")

    def _submodels(self, images, targets, class_weights):
        """Logits [B, C] of one of two submodels, by head, and the loss of both, [B] each.

        Source: facebookresearch/deit engine.py, `--cosub`.
        """
        twice = self._heads(ops.concatenate([images, images]), training=True)  # [2B, C]
        one, other = ops.split(_mean_of_heads(twice), 2)
        labeled = [self._loss_of(each, targets, class_weights) for each in (one, other)]
        base = sum(labeled) / 2
        each_other = (self._loss_beside(one, other) + self._loss_beside(other, one)) / 2

        logits = {head: ops.split(both, 2)[0] for head, both in twice.items()}
        return logits, {"loss": (base + each_other) / 2, "base_loss": base}

    def _loss_beside(self, logits, other):
        """How far logits are from the probabilities of another submodel, which stand still."""
        probabilities = ops.sigmoid(ops.stop_gradient(ops.cast(other, "float32")))
        return losses.binary_cross_entropy(logits, probabilities, self.bce_sum)

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
            "loss": self.label_loss,
            "bce_target_thresh": self.bce_target_thresh,
            "bce_sum": self.bce_sum,
            "cosub": self.cosub,
            "processor": self.processor,
            "class_weights": self.class_weights,
        }

    @classmethod
    def from_config(cls, config):
        student = keras.saving.deserialize_keras_object(config.pop("student"))
        if "mean" in config:  # of a file from before the processor: its normalization alone
            size = student.input_shape[1:3]
            normalization = {"mean": config.pop("mean"), "std": config.pop("std")}
            config["processor"] = {"image_size": size, **normalization}
        fields = {key: _tuple(value) for key, value in config.pop("processor").items()}
        processor, own = ImageProcessor(**fields), own_normalization(student)
        if own and not normalizes_as(processor, own):  # in a file of before that was looked at
            processor = None
        return cls(student, processor=processor, **config)


def _mean_of_heads(logits):
    return sum(logits.values()) / len(logits)  # [B, C]


def _check_teacher(teacher):
    # Before it is set: Keras itself refuses, in other words, to track a model in a built one.
    if teacher is not None and not isinstance(teacher, Teacher):
        raise ValueError(
            "`teacher` must be a deit_tf.Teacher, which knows what images its network takes: "
            "`deit_tf.Teacher(model)`, of a model that is frozen (`model.trainable = False`). "
            f"Received: {getattr(teacher, 'name', teacher)!r}, a {type(teacher).__name__}"
        )


def _check_weights(class_weights, classes):
    if class_weights is not None and len(class_weights) != classes:
        raise ValueError(
            f"`class_weights` are {classes} numbers, one for each class. Received: "
            f"{len(class_weights)}"
        )


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _check_choice(name, value, allowed):
    if value not in allowed:
        allowed = ", ".join(map(repr, allowed))
        raise ValueError(f"`{name}` is one of {allowed}. Received: {name}={value!r}")


def _check_range(name, value, fits, rule):
    if not fits:
        raise ValueError(f"`{name}` {rule}. Received: {name}={value}")
