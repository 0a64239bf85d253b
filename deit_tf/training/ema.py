"""Exponential moving average of a network's weights, held by a second network like it.

As timm's ModelEma (timm/utils/model_ema.py) and tensorflow-addons' MovingAverage, it starts at the
initial weights.
"""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

EMA = "ema/"  # what precedes the names of its variables
AVERAGE = "ema_"  # and those of its figures


class Ema:
    """A plain object, so that no Keras model saves its network along.

    Args:
        network: Whose weights to average; trainable or not, all of them, as timm does.
        decay: Share d in [0, 1) of the average that stays at each update: d * average + (1 - d) *
            weights. The original keeps 0.99996, sensible from about 50,000 updates on.
    Raises:
        ValueError: If `decay` lies outside [0, 1).
    Differs: `ema_momentum` of a Keras optimizer starts at the weights after the first step, and
        overwrites the raw weights at the end of `fit`; here they stay apart.
    """

    def __init__(self, network: keras.Model, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(
                "`ema_decay` lies in [0, 1), or is None for no average. Received: "
                f"ema_decay={decay}"
            )
        self.decay = decay
        self.network = keras.models.clone_model(network)
        self.restart(network)

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """The average, by names that do not depend on what else was built in this process."""
        return {f"{EMA}{i:04d}": weight for i, weight in enumerate(self.network.weights)}

    def load(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Take the average from `arrays`, if they hold one that fits; returns whether they do."""
        variables = self.variables
        fits = all(
            name in arrays and tuple(arrays[name].shape) == tuple(variable.shape)
            for name, variable in variables.items()
        )
        if fits:
            for name, variable in variables.items():
                variable.assign(np.asarray(arrays[name]))
        return fits

    def restart(self, network: keras.Model) -> None:
        """Begin again at the weights of `network`."""
        self.network.set_weights(network.get_weights())

    def update(self, network: keras.Model, applied: tf.Tensor) -> None:
        """Move towards `network`, in a replica context.

        Args:
            network: The network after a step.
            applied: bool []; false leaves the average as it is, after a step that was skipped.
        """
        pairs = [
            (a.value, w.value) for a, w in zip(self.network.weights, network.weights, strict=True)
        ]

        def move(average, weight, applied):
            average.assign_add(tf.where(applied, (1 - self.decay) * (weight - average), 0))

        def on_all_replicas(strategy, applied):
            for average, weight in pairs:
                strategy.extended.update(average, move, args=(weight, applied), group=False)

        tf.distribute.get_replica_context().merge_call(on_all_replicas, args=(applied,))
