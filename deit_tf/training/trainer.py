"""One training step for every network: accumulation, replicas, clipping, loss scaling, average.

A subclass computes the loss of a batch; `fit` of Keras and the training loop (loop.py) run the same
`train_step`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from deit_tf import losses, onednn
from deit_tf.models.layers import number_draws, numbered_draw
from deit_tf.models.parts import called
from deit_tf.training.ema import EMA, Ema
from deit_tf.training.inputs import check_images, distributions

TRAINING_ONLY = {"gradient_norm", "skipped_steps"}


@dataclass(frozen=True)
class BatchResult:
    """Loss and figures of a batch.

    Args:
        values: Figures by name, [B] each; `loss` is what is minimized.
        weight: Weight of each image, [B], or None.
        labels: For the metrics of `compile`; None leaves those out.
        prediction: Logits [B, C] for the same.
    """

    values: dict[str, tf.Tensor]
    weight: tf.Tensor | None = None
    labels: Any = None
    prediction: tf.Tensor | None = None

    def mean_loss(self) -> tf.Tensor:
        """The loss of the batch, []."""
        loss = self.values["loss"]
        return tf.reduce_mean(
            loss if self.weight is None else loss * tf.cast(self.weight, loss.dtype)
        )


class Trainer(keras.Model):
    """A network and how it learns. Subclasses define `batch_result` and `with_network`.

    Args:
        network: What is trained.
        names: Names of the figures that `batch_result` gives.
    """

    def __init__(self, network: keras.Model, names: list[str], **kwargs):
        super().__init__(**kwargs)
        number_draws(network)
        self.network = network
        self.means = {name: keras.metrics.Mean(name=name) for name in names}
        self.gradient_norm = keras.metrics.Mean(name="gradient_norm")
        self.skipped_steps = keras.metrics.Sum(name="skipped_steps")
        self.micro_batches, self.clip_norm, self.learns, self.ema = 1, None, None, None
        self.evaluates = False
        self._average_is_loaded = False
        self.build(network.input_shape)

    def build(self, input_shape):
        """Nothing to make: the network comes built."""
        self.built = True

    def call(self, inputs, training=False):
        return self.network(inputs, training=training)

    def summary(self, *args, **kwargs):
        """As of keras.Model, layer by layer of the network, which is all that has weights here."""
        self.network.summary(*args, **kwargs)

    def batch_result(self, data: Any, training: bool) -> BatchResult:
        """Run the network on a batch: its loss and figures."""
        raise NotImplementedError

    def with_network(self, network: keras.Model) -> "Trainer":
        """The same trainer of another network, to evaluate it."""
        raise NotImplementedError

    def compile(
        self,
        optimizer="rmsprop",
        metrics=None,
        *,
        micro_batches: int = 1,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        learns: str | None = None,
        **kwargs,
    ):
        """Configure training.

        Args:
            optimizer: A Keras optimizer, wrapped in a LossScaleOptimizer for float16. Each step of
                `fit` is one step of its schedule, whatever `micro_batches`.
            metrics: Keras metrics of the labels and the logits.
            micro_batches: Parts that each replica works off one after another before it updates, to
                save memory; they divide its share of the batch. Batch normalization sees one part
                at a time.
            clip_norm: Largest global norm of the gradient of the whole batch, above 0; None clips
                nothing.
            ema_decay: Decay of a moving average of the weights, `self.ema.network`, such as
                0.99996.
            learns: Regular expression that the paths of the weights to train contain, such as
                `attn/|head`; None trains all that are trainable.
            **kwargs: As of keras.Model.compile, but for `loss`.
        Raises:
            ValueError: For values out of range; if a `loss` is given, as this class has its own.
        """
        if kwargs.pop("loss", None) is not None:
            raise ValueError(f"`loss` must be left out: {type(self).__name__} computes it.")
        if micro_batches < 1:
            raise ValueError(
                f"`micro_batches` is at least 1. Received: micro_batches={micro_batches}"
            )
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"`clip_norm` is above 0, or None. Received: clip_norm={clip_norm}")
        onednn.warn_if_missed()
        super().compile(optimizer=optimizer, metrics=metrics, **kwargs)
        self.micro_batches, self.clip_norm, self.learns = micro_batches, clip_norm, learns
        if not self.learned:
            raise ValueError(f"`learns` leaves no weight to train. Received: learns={learns!r}")
        self.ema = Ema(self.network, ema_decay) if ema_decay is not None else None

    # The moving average is saved with the trainer's weights, and comes back with them

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.ema:
            for name, variable in self.ema.variables.items():
                store[_flat(name)] = variable.numpy()

    def load_own_variables(self, store):
        arrays = {name: store[name] for name in store.keys()}  # noqa: SIM118, an HDF5 group
        names = self.ema.variables if self.ema else {}
        average = {name: arrays[_flat(name)] for name in names if _flat(name) in arrays}
        self._average_is_loaded = bool(self.ema) and self.ema.load(average)
        own = {name: array for name, array in arrays.items() if not name.startswith(_flat(EMA))}
        super().load_own_variables(own)

    def load_weights(self, filepath, **kwargs):
        """As of keras.Model; the average comes with them, or begins at them where there is none."""
        super().load_weights(filepath, **kwargs)
        if self.ema and not self._average_is_loaded:
            self.ema.restart(self.network)

    def get_compile_config(self):
        own = {
            "micro_batches": self.micro_batches,
            "clip_norm": self.clip_norm,
            "learns": self.learns,
        }
        return {
            **super().get_compile_config(),
            **own,
            "ema_decay": self.ema.decay if self.ema else None,
        }

    def compile_from_config(self, config):
        """Compile as the saved one was; Keras leaves this to a class with a `compile` of its
        own.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.learned)

    @property
    def learned(self) -> list[keras.Variable]:
        """The weights that a step changes by their gradient."""
        return [
            v
            for v in self.network.trainable_variables
            if not self.learns or re.search(self.learns, v.path)
        ]

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled, as float16 needs it; a step with an overflow is then
        skipped.
        """
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    @property
    def metrics(self):
        # Keras's own tracker is named "loss" too; the one of this class takes its place.
        left_out = set(self.means)
        if self.evaluates:
            left_out |= TRAINING_ONLY
        elif not self.scales_loss:
            left_out.add(self.skipped_steps.name)
        return [*self.means.values(), *(m for m in super().metrics if m.name not in left_out)]

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """While open, the figures are those of an evaluation."""
        self.evaluates = True
        try:
            yield
        finally:
            self.evaluates = False

    def evaluate(self, *args, **kwargs):
        """As of keras.Model; on several replicas give it `deit_tf.data.padded` batches, which count
        exactly.
        """
        with self.evaluation():
            return super().evaluate(*args, **kwargs)

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Export the network alone, as `export` of keras.Model does; it compares nothing, as
        `deit_tf.export_saved_model` and `deit_tf.export_onnx` do.
        """
        called(self.network).export(filepath, format=format, **kwargs)

    def make_train_function(self, force=False):
        """As of keras.Model. The optimizer's variables come first: a function that makes variables
        is traced twice.
        """
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.learned)
        return super().make_train_function(force)

    def train_step(self, data):
        """Update the network once on `data`, this replica's share of the batch.

        Returns:
            The metrics so far.
        """
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            _check_scaling(self.optimizer)
        scale = self.optimizer.scale_loss(1.0)
        gradients = self._accumulate(
            data, scale, context
        )  # of the mean loss of this replica, times scale
        gradients = self._mean_over_replicas(gradients, context)
        norm = tf.linalg.global_norm(gradients)  # of the whole batch, times scale
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm * scale, use_norm=norm)
        if context.num_replicas_in_sync > 1:
            # Keras adds up gradients over the replicas, which hold the same here.
            gradients = [gradient / context.num_replicas_in_sync for gradient in gradients]
        self.optimizer.apply(gradients, self.learned)
        # A non-finite gradient is applied, and shows, unless the loss is scaled: then the optimizer
        # skips the step.
        finite = tf.math.is_finite(norm)
        if self.ema:
            self.ema.update(self.network, applied=finite)
        self._count_step(norm / scale, finite)

        return self.get_metrics_result()

    def test_step(self, data):
        """Evaluate a batch; returns the metrics so far."""
        self._update_metrics(self.batch_result(data, training=False))
        return self.get_metrics_result()

    def _accumulate(self, data, scale, context):
        """Gradients of the mean loss over the micro-batches, times `scale`, one after another."""
        count = self.micro_batches
        step = tf.cast(self.optimizer.iterations, tf.int64) * count * context.num_replicas_in_sync
        draws = (
            step + tf.cast(context.replica_id_in_sync_group, tf.int64) * count
        )  # own masks for each part
        if count == 1:
            return self._gradients(data, scale, draws)
        parts = tf.nest.map_structure(lambda x: _split(x, count), data)  # [count, B / count, ...]

        def add(i, sums):
            part = tf.nest.map_structure(lambda x: x[i], parts)
            gradients = self._gradients(part, scale / count, draws + tf.cast(i, tf.int64))
            return i + 1, [
                total + gradient for total, gradient in zip(sums, gradients, strict=True)
            ]

        zeros = [tf.zeros(v.shape, v.dtype) for v in self.learned]
        _, sums = tf.while_loop(
            lambda i, _: i < count,
            add,
            (tf.constant(0), zeros),
            parallel_iterations=1,
            maximum_iterations=count,
        )

        return sums

    def _gradients(self, data, scale, draw):
        """Gradients of the mean loss of `data`, times `scale`; its figures are counted."""
        with tf.GradientTape() as tape, numbered_draw(draw):
            result = self.batch_result(data, training=True)
            loss = result.mean_loss() * scale
        self._update_metrics(result)
        return tape.gradient(loss, self.learned, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def _mean_over_replicas(self, gradients, context):
        if context.num_replicas_in_sync == 1:
            return gradients
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)

    def _count_step(self, norm, finite):
        if not self.scales_loss:
            self.gradient_norm.update_state(norm)
            return
        self.gradient_norm.update_state(tf.where(finite, norm, 0), tf.cast(finite, tf.float32))
        share = (
            1 / tf.distribute.get_strategy().num_replicas_in_sync
        )  # a Sum adds up over the replicas
        self.skipped_steps.update_state(tf.where(finite, 0.0, share))

    def _update_metrics(self, result: BatchResult):
        """Update every metric."""
        for name, value in result.values.items():  # [B] each
            weight = result.weight
            if self.scales_loss:  # an overflow belongs to the step that is skipped
                finite = tf.math.is_finite(value)
                weight = tf.cast(finite, tf.float32) * (
                    1.0 if weight is None else tf.cast(weight, tf.float32)
                )
                value = tf.where(finite, value, 0)
            self.means[name].update_state(value, weight)

        if result.prediction is not None:
            self.compute_metrics(
                None, result.labels, result.prediction, sample_weight=result.weight
            )


class LabelTrainer(Trainer):
    """A classifier of any architecture that learns labels: how a teacher is made.

    Args:
        network: From images [B, H, W, 3] to logits [B, C]. A batch is images and labels, whole
            numbers [B] or distributions [B, C].
        class_weights: What an image of each class counts for in training, [C].
    """

    def __init__(self, network: keras.Model, *, class_weights=None, **kwargs):
        super().__init__(network, ["loss", "accuracy"], **kwargs)
        self.class_weights = class_weights

    def batch_result(self, data, training):
        images, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        check_images(images, self.network)
        targets = distributions(labels, self.network.output_shape[-1], weight)  # [B, C]
        logits = tf.cast(self.network(images, training=training), tf.float32)  # [B, C]
        right = tf.argmax(logits, axis=-1) == tf.argmax(targets, axis=-1)
        loss = losses.cross_entropy(logits, targets)  # [B]
        if training and self.class_weights is not None:
            loss *= losses.image_weights(targets, self.class_weights)
        values = {"loss": loss, "accuracy": tf.cast(right, tf.float32)}
        return BatchResult(values, weight, labels, logits)

    def with_network(self, network):
        return LabelTrainer(network)


class MaskedTrainer(Trainer):
    """Masked image modeling (SimMIM): an L1 loss on the hidden pixels.

        trainer = deit_tf.MaskedTrainer(deit_tf.create_masked_model("deit_tiny_patch16_224"))
        trainer.compile(keras.optimizers.AdamW(1e-3))
        trainer.fit(batches)
        trainer.network.save("masked.keras")

    Args:
        network: From `create_masked_model`. A batch is what it takes, `{"image", "mask"}`; where
            it is divided, into micro-batches or over replicas, all masks hide equally many patches,
            so that the parts weigh the same.
    """

    def __init__(self, network: keras.Model, **kwargs):
        super().__init__(network, ["loss"], **kwargs)

    def batch_result(self, data, training):
        batch, _, weight = keras.utils.unpack_x_y_sample_weight(data)
        reconstruction = self.network(batch, training=training)
        loss = losses.masked_l1_of_each(batch["image"], reconstruction, batch["mask"], weight)
        return BatchResult({"loss": loss}, weight)

    def with_network(self, network):
        return MaskedTrainer(network)


def _flat(name: str) -> str:
    """A name for a Keras file, in which a slash would open a group."""
    return name.replace("/", "_")


def _split(x: tf.Tensor, count: int) -> tf.Tensor:
    """[B, ...] to [count, B / count, ...]."""
    if x.shape[0] is not None and x.shape[0] % count:
        raise ValueError(
            f"`micro_batches` must divide the {x.shape[0]} images of each replica. Received: "
            f"micro_batches={count}"
        )

    sentence = (
        "`micro_batches` must divide the images of each replica; leave out a smaller last batch "
        "(`drop_remainder=True`). Received: micro_batches"
    )
    size = tf.shape(x)[0]
    divides = tf.debugging.Assert(size % count == 0, [sentence, count, "for images", size])

    with tf.control_dependencies([divides] if divides is not None else []):
        return tf.reshape(x, (count, -1, *x.shape[1:]))


def _check_scaling(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuse what a Keras optimizer does to the gradient of one replica by itself."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    clipping = dict.fromkeys(("global_clipnorm", "clipnorm", "clipvalue"), "clip_norm")
    for argument, ours in {**clipping, "gradient_accumulation_steps": "micro_batches"}.items():
        if getattr(inner, argument) is not None:
            raise ValueError(
                f"`{argument}` of the optimizer acts on each replica by itself and must be None "
                f"on several; pass `{ours}` to `compile` instead. Received: "
                f"{argument}={getattr(inner, argument)}"
            )
