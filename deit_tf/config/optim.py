"""The optimizer and its schedule."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, under a warmed-up cosine (original main.py; paper, table 9).

    Args:
        optimizer: `adamw`; `lamb`, DeiT III's, with `clip_norm` 1 as there; or `sgd` with
            Nesterov's momentum, for some fine-tuning.
        lr: Learning rate for a batch of 512; it is scaled by batch_size / 512.
        scale_lr: Whether to scale it so; false takes `lr` as it is.
        warmup_lr: Learning rate of the first step; not scaled.
        min_lr: Learning rate at the end of the cosine; not scaled.
        warmup_epochs: Length of the linear warm-up, in epochs.
        weight_decay: Decay of kernels only: of `adamw` decoupled, applied as lr * weight_decay; of
            `lamb` part of the direction, of `sgd` of the gradient.
        momentum: Of `sgd`, per step.
        beta_1: Decay of the first moment, per step.
        beta_2: Decay of the second moment, per step.
        epsilon: Added to the root of the second moment.
        clip_norm: Largest global norm of a gradient; null clips nothing.
        layer_decay: Factor of the learning rate from each block to the one below, for fine-tuning,
            such as 0.75; 1 trains all layers alike.
        ema_decay: Decay of a moving average of the weights, per step, such as the original's
            0.99996; it is evaluated and saved beside them. Null keeps none.
        legacy_epoch_lr: Whether the learning rate changes once an epoch and lags one behind, as the
            original's.
    """

    optimizer: Literal["adamw", "lamb", "sgd"] = "adamw"
    lr: float = 5e-4
    scale_lr: bool = True
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    momentum: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = None
    layer_decay: float = 1.0
    ema_decay: float | None = None
    legacy_epoch_lr: bool = False


_OPTIM_LIMITS: dict[str, float] = {
    **dict.fromkeys(("lr", "warmup_lr", "min_lr", "warmup_epochs"), math.inf),
    **dict.fromkeys(("weight_decay", "epsilon"), math.inf),
    **dict.fromkeys(("momentum", "beta_1", "beta_2"), 1.0),
}


def check_optim(config: OptimConfig) -> None:
    """Check the ranges of the settings.

    Raises:
        ValueError: If one is out of its range; it is named.
    """
    for name, high in _OPTIM_LIMITS.items():
        value = getattr(config, name)
        if not 0 <= value <= high or not math.isfinite(value):
            raise ValueError(f"`optim.{name}` lies in 0..{high:g}. Received: {value}")
