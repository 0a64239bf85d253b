"""AdamW by the original's rule, with one update for many small weights."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from deit_tf.training.layer_decay import LayerDecay

# Numbers in a weight: up to here an operation costs more than its arithmetic, above it the copies
# would.
SMALL = 65_536


@keras.saving.register_keras_serializable("deit_tf")
class AdamW(LayerDecay, keras.optimizers.AdamW):
    """keras.optimizers.AdamW with the original's rule of what is decayed, and its epsilon.

    Takes the arguments of keras.optimizers.AdamW as well.

    Args:
        layer_decay: Factor in (0, 1] of the learning rate, weight decay included, from each block
            to the one below it; 1 trains all layers alike.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        weight_decay=0.05,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        layer_decay: float = 1.0,
        **kwargs,
    ):
        super().__init__(learning_rate, weight_decay, beta_1, beta_2, epsilon, **kwargs)
        self.layer_decay = layer_decay

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate * self.scale_of(variable))

    @property
    def _updates_together(self) -> bool:
        """Whether small weights are updated together, with the bits of Keras's update of each by
        itself, which replicas have.
        """
        return not (self.amsgrad or tf.distribute.has_strategy())

    def _apply_weight_decay(self, variables):
        if self._updates_together:
            return  # with the rest of the update
        # Keras decays all variables by one rate: one call for each rate that there is.
        rate = self.weight_decay
        for scale in sorted({self.scale_of(v) for v in variables}):
            self.weight_decay = rate * scale
            super()._apply_weight_decay([v for v in variables if self.scale_of(v) == scale])
        self.weight_decay = rate

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if not self._updates_together:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return

        alike = defaultdict(list)
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            decayed = self._use_weight_decay(variable)
            alike[variable.dtype, self.scale_of(variable), decayed].append((variable, gradient))

        for (dtype, scale, decayed), pairs in alike.items():
            update = self._update_of(learning_rate, dtype, scale, decayed)
            small = [pair for pair in pairs if math.prod(pair[0].shape) <= SMALL]
            large = [pair for pair in pairs if math.prod(pair[0].shape) > SMALL]
            for some in (small, *([pair] for pair in large)):
                if some:
                    self._update(update, some)

    def _update_of(self, learning_rate, dtype: str, scale: float, decayed: bool) -> Callable:
        """The arithmetic of keras.optimizers.AdamW, in its order: of a weight, its gradient and
        both moments to the next weight and moments.
        """
        rate, scaled = tf.cast(learning_rate, dtype), tf.cast(learning_rate * scale, dtype)
        decay = tf.cast(self.weight_decay * scale, dtype)
        step = tf.cast(self.iterations + 1, dtype)
        first_power, second_power = (
            tf.pow(tf.cast(beta, dtype), step) for beta in (self.beta_1, self.beta_2)
        )
        alpha = scaled * tf.sqrt(1 - second_power) / (1 - first_power)
        first_share = tf.constant(1 - self.beta_1, dtype)
        second_share = tf.constant(1 - self.beta_2, dtype)
        epsilon = tf.constant(self.epsilon, dtype)

        def update(weight, gradient, first, second):
            if decayed:
                weight -= weight * decay * rate
            first += (gradient - first) * first_share
            second += (tf.square(gradient) - second) * second_share
            return weight - first * alpha / (tf.sqrt(second) + epsilon), first, second

        return update

    def _update(self, update: Callable, pairs: Sequence[tuple]) -> None:
        """Update weights as one, given with their gradients."""
        variables, gradients = zip(*pairs, strict=True)
        indices = [self._get_variable_index(variable) for variable in variables]
        firsts = [self._momentums[i] for i in indices]
        seconds = [self._velocities[i] for i in indices]

        gradients = [tf.cast(gradient, variables[0].dtype) for gradient in gradients]
        values = [_joined(each) for each in (variables, gradients, firsts, seconds)]
        shapes = [tf.constant(list(variable.shape), tf.int32) for variable in variables]
        for state, value in zip((variables, firsts, seconds), update(*values), strict=True):
            for variable, part in zip(state, _parted(value, shapes), strict=True):
                variable.value.assign(part, read_value=False)


def _joined(tensors: Sequence) -> tf.Tensor:
    """Several tensors as one [N]; a single one as it is."""
    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
    if len(tensors) == 1:
        return tensors[0]
    flat = tf.constant([-1])
    return tf.concat([tf.reshape(tensor, flat) for tensor in tensors], axis=0)


def _parted(joined: tf.Tensor, shapes: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """What `_joined` made of tensors of these shapes, apart again."""
    if len(shapes) == 1:
        return [joined]
    parts = tf.split(joined, [math.prod(tf.get_static_value(shape)) for shape in shapes])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
