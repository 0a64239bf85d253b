"""What a classifier does to its images and its outputs by itself, as its layers show it."""

import keras
import numpy as np

from deit_tf.config import PerChannel

Normalization = tuple[PerChannel, PerChannel]

PIXELS: Normalization = ((0.0,) * 3, (1 / 255,) * 3)  # takes 0..255
UNIT: Normalization = ((0.0,) * 3, (1.0,) * 3)  # takes 0..1
# A factor by which no image of mean 0 and deviation 1 would be multiplied, but pixels are.
LARGEST_PIXEL_SCALE = 0.1
# A mean that is one of pixels and not of values in 0..1.
SMALLEST_PIXEL_MEAN = 2.0


def gives_probabilities(model: keras.Model, *activations: str) -> bool:
    """Whether a classifier ends in one of these activations, by default a softmax, that of a model
    within it included.
    """
    activations = activations or ("softmax",)
    last = model
    while isinstance(last, keras.Model):
        last = [None, *getattr(last, "operations", last.layers)][-1]
    named = [getattr(keras.activations, name) for name in activations]
    is_softmax = type(last).__name__ == "Softmax" and "softmax" in activations
    return is_softmax or getattr(last, "activation", None) in named


def own_normalization(model: keras.Model) -> Normalization | None:
    """Mean and deviation of the images that a network takes which normalizes them itself.

    Args:
        model: The network; its first layer that is no input shows it, in a model within it too.
    Returns:
        `PIXELS` for a Rescaling or Normalization of 0..255, `UNIT` for one of 0..1; None where the
        first layer is another.
    """
    first = _first_layer(model)
    if isinstance(first, keras.layers.Rescaling):
        scale = float(np.max(np.abs(first.scale)))
        # Others are `renormalize` of `build_teacher`, from the normalization of its processor.
        return PIXELS if scale < LARGEST_PIXEL_SCALE else None
    if isinstance(first, keras.layers.Normalization) and first.input_mean is not None:
        return PIXELS if np.max(np.abs(first.input_mean)) > SMALLEST_PIXEL_MEAN else UNIT
    if isinstance(first, keras.layers.Normalization):
        return PIXELS if np.max(np.abs(first.mean)) > SMALLEST_PIXEL_MEAN else UNIT
    return None


def _first_layer(model: keras.Model) -> keras.Layer | None:
    """The first layer that is no input, looked for in models within the model as well."""
    layers = [each for each in model.layers if not isinstance(each, keras.layers.InputLayer)]
    if not layers:
        return None
    return _first_layer(layers[0]) if isinstance(layers[0], keras.Model) else layers[0]
