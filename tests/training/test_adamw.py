"""Weights that are updated together get the bits of Keras's update of each by itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from deit_tf.training import adamw
from deit_tf.training.adamw import AdamW

STEPS = 3
SHAPES = {"tokens": (1, 7, 13), "blocks.0": (13, 39), "blocks.1": (39, 13), "head": (13, 3)}


class OneByOne(AdamW):
    """By Keras's own update, as over several replicas."""

    _updates_together = False


def trained(optimizer):
    """A few weights with their biases, and the optimizer, after a few steps."""
    draw, weights = np.random.default_rng(0), []
    for layer, shape in SHAPES.items():
        with keras.name_scope(layer):
            for name, part in (("kernel", shape), ("bias", shape[-1:])):
                weights.append(keras.Variable(draw.normal(size=part), name=name))

    optimizer.build(weights)
    update = tf.function(lambda gradients: optimizer.apply(gradients, weights), autograph=False)
    for _ in range(STEPS):
        scales = 10 ** draw.uniform(-6, 1, size=len(weights))
        drawn = [s * draw.normal(size=w.shape) for s, w in zip(scales, weights, strict=True)]
        update([tf.constant(gradient, tf.float32) for gradient in drawn])
    return [variable.numpy() for variable in (*weights, *optimizer.variables)]


@pytest.mark.parametrize(  # alone, some together, all together
    ("small", "layer_decay"), [(0, 0.75), (100, 1.0), (100, 0.75), (adamw.SMALL, 1.0)]
)
def test_together_they_get_the_bits_of_each_alone(monkeypatch, small, layer_decay):
    monkeypatch.setattr(adamw, "SMALL", small)
    together, alone = (trained(made(1e-2, layer_decay=layer_decay)) for made in (AdamW, OneByOne))
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_shares_of_the_moments_would_be_seen(monkeypatch):
    before = trained(AdamW(1e-2))
    after = trained(AdamW(1e-2, beta_1=0.9001))
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
