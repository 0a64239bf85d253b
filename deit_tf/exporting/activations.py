"""What makes probabilities of logits: a softmax where an image has one class, a sigmoid where it
has any number of labels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

SOFTMAX, SIGMOID = "softmax", "sigmoid"
ACTIVATIONS: Mapping[str, Callable[[Any], tf.Tensor]] = {
    SOFTMAX: tf.nn.softmax,
    SIGMOID: tf.nn.sigmoid,
}


def check_activation(activation: str) -> None:
    """Refuse an activation that is not in `ACTIVATIONS`, by ValueError."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"`activation` is one of {', '.join(ACTIVATIONS)}. Received: {activation!r}"
        )
