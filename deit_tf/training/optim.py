"""The original's optimizers, AdamW (adamw.py) and DeiT III's LAMB, under a warmed-up cosine
(facebookresearch/deit main.py, README_revenge.md; timm 0.3.2 cosine_lr.py).
"""

import math

import keras
from keras import ops

from deit_tf.config import OptimConfig
from deit_tf.training.adamw import AdamW
from deit_tf.training.layer_decay import LayerDecay

REFERENCE_BATCH = 512


def scaled_lr(config: OptimConfig, batch_size: int) -> float:
    """Peak learning rate for a batch of `batch_size` images: lr * batch_size / 512 (paper, section
    6).
    """
    return config.lr * batch_size / REFERENCE_BATCH if config.scale_lr else config.lr


@keras.saving.register_keras_serializable("deit_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then the cosine that has run since step 0 (timm's, not shifted by the
    warm-up).

    Args:
        peak: Learning rate that the warm-up aims at.
        total_steps: Steps of the whole run.
        warmup_steps: Steps of the warm-up.
        warmup_lr: Learning rate of step 0.
        min_lr: Learning rate after `total_steps`.
        held_steps: None changes the rate at every step. A number holds it for as many steps, an
            epoch, and lags one epoch behind, so that the first two share `warmup_lr`, as the
            original's does.
    Raises:
        ValueError: If there is no step, or the warm-up is longer than the run.
    Differs: steps by default, where the original holds the rate for an epoch and lags one behind;
        keras.optimizers.schedules.CosineDecay starts its cosine after the warm-up.
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        warmup_steps: int = 0,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        held_steps: int | None = None,
    ):
        if total_steps < 1 or not 0 <= warmup_steps <= total_steps:
            raise ValueError(
                "`warmup_steps` lies between 0 and `total_steps`, which is at least 1; shorten "
                f"the warm-up or train longer. Received: warmup_steps={warmup_steps}, "
                f"total_steps={total_steps}"
            )
        self.peak, self.min_lr, self.warmup_lr = peak, min_lr, warmup_lr
        self.total_steps, self.warmup_steps, self.held_steps = total_steps, warmup_steps, held_steps

    def __call__(self, step):
        if self.held_steps:
            step = ops.maximum(ops.cast(step, "int64") // self.held_steps - 1, 0) * self.held_steps
        step = ops.cast(step, "float32")
        progress = ops.minimum(step / self.total_steps, 1.0)
        cosine = self.min_lr + 0.5 * (self.peak - self.min_lr) * (1 + ops.cos(math.pi * progress))
        warmup = self.warmup_lr + step * (self.peak - self.warmup_lr) / max(self.warmup_steps, 1)
        return ops.where(step < self.warmup_steps, warmup, cosine)

    def get_config(self):
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "warmup_lr": self.warmup_lr,
            "min_lr": self.min_lr,
            "held_steps": self.held_steps,
        }


@keras.saving.register_keras_serializable("deit_tf")
class SGD(LayerDecay, keras.optimizers.SGD):
    """torch's SGD with Nesterov's momentum, its weight decay being part of the gradient.

    Args:
        learning_rate: A number or a schedule.
        weight_decay: Added to the gradient of what is decayed, times the weight.
        momentum: Share of the last step's direction that stays.
        layer_decay: As of AdamW.
    Source: timm 0.3.2 optim_factory.py, `sgd`; torch.optim.SGD.
    Differs: keras.optimizers.SGD keeps the learning rate in its momentum, and decays apart from the
        gradient.
    """

    def __init__(
        self,
        learning_rate=1e-2,
        weight_decay=1e-4,
        momentum=0.9,
        layer_decay: float = 1.0,
        **kwargs,
    ):
        super().__init__(learning_rate, momentum, nesterov=True, **kwargs)
        self.decay, self.layer_decay = weight_decay, layer_decay

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype) * self.scale_of(variable)
        gradient = ops.cast(gradient, variable.dtype)
        if self._use_weight_decay(variable):
            gradient = gradient + self.decay * variable
        if not self.momentum:  # Keras makes no momentums then
            self.assign_sub(variable, rate * gradient)
            return
        direction = self.momentums[self._get_variable_index(variable)]
        self.assign(direction, self.momentum * direction + gradient)
        self.assign_sub(variable, rate * (gradient + self.momentum * direction))

    def get_config(self):
        config = super().get_config()
        del config["nesterov"]
        return {**config, "weight_decay": self.decay}


@keras.saving.register_keras_serializable("deit_tf")
class Lamb(LayerDecay, keras.optimizers.Lamb):
    """LAMB: Adam's direction, as long as the weight that it changes (You et al. 2020).

    What is not decayed keeps the length of its direction. The gradient is clipped outside, by
    `clip_norm` of the trainer or `global_clipnorm` here: 1.0 is what apex and timm do by default.

    Args:
        learning_rate: A number or a schedule.
        weight_decay: Added to the direction of what is decayed, times the weight, before its length
            is taken.
        beta_1: Decay of the first moment, per step.
        beta_2: Decay of the second moment, per step.
        epsilon: Added to the root of the second moment.
        layer_decay: As of AdamW.
    Source: timm/optim/lamb.py; NVIDIA apex, FusedLAMB, the original's.
    Differs: keras.optimizers.Lamb decays apart from the direction, whose length it takes without
        the decay, and gives biases and norms the length of their weights as well.
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
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)
        self.decay, self.layer_decay = weight_decay, layer_decay

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype) * self.scale_of(variable)
        gradient = ops.cast(gradient, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)

        # Adam
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        self.assign(first, first + (1 - self.beta_1) * (gradient - first))
        self.assign(second, second + (1 - self.beta_2) * (ops.square(gradient) - second))
        mean = first / (1 - ops.power(self.beta_1, step))
        square = second / (1 - ops.power(self.beta_2, step))
        direction = mean / (ops.sqrt(square) + self.epsilon)

        # the decay, and the length of the weight
        if self.decay and self._use_weight_decay(variable):
            direction = direction + self.decay * variable
            direction = direction * _trust_ratio(variable, direction)
        self.assign_sub(variable, rate * direction)

    def get_config(self):
        return {**super().get_config(), "weight_decay": self.decay}


def _trust_ratio(weight, direction):
    """Norm of a weight over that of its direction; 1 where either is 0."""
    numerator, norm = (ops.sqrt(ops.sum(ops.square(each))) for each in (weight, direction))
    nothing = (numerator == 0) | (norm == 0)
    return ops.where(nothing, 1.0, numerator / ops.where(nothing, 1.0, norm))


def build_schedule(
    config: OptimConfig, batch_size: int, steps_per_epoch: int, epochs: int
) -> WarmupCosine:
    """Make the learning rate of a run, by step; takes and raises what `build_optimizer` does."""
    total = steps_per_epoch * epochs
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total)
    return WarmupCosine(
        scaled_lr(config, batch_size),
        total,
        warmup,
        config.warmup_lr,
        config.min_lr,
        held_steps=steps_per_epoch if config.legacy_epoch_lr else None,
    )


def build_optimizer(
    config: OptimConfig, batch_size: int, steps_per_epoch: int, epochs: int
) -> AdamW | Lamb | SGD:
    """Make the optimizer of a run.

    Args:
        config: Its numbers.
        batch_size: Images per step over all devices.
        steps_per_epoch: Steps per epoch.
        epochs: Epochs of the run.
    Returns:
        The optimizer, with the schedule as its learning rate.
    Raises:
        ValueError: If `layer_decay` lies outside (0, 1], or the schedule has no steps.
    """
    schedule = build_schedule(config, batch_size, steps_per_epoch, epochs)
    if config.optimizer == "sgd":
        return SGD(schedule, config.weight_decay, config.momentum, config.layer_decay)

    make = Lamb if config.optimizer == "lamb" else AdamW
    return make(
        schedule,
        config.weight_decay,
        config.beta_1,
        config.beta_2,
        config.epsilon,
        config.layer_decay,
    )
