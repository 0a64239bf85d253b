"""What a classifier does to its images and its outputs by itself, as its layers show it; and the
way from one normalization to another.
"""

import keras
import numpy as np

from deit_tf.config import PerChannel

Normalization = tuple[PerChannel, PerChannel]

PIXELS: Normalization = ((0.0,) * 3, (1 / 255,) * 3)  # takes 0..255
UNIT: Normalization = ((0.0,) * 3, (1.0,) * 3)  # takes 0..1
# What leaves their values as they are.
_MOVES_PIXELS = (
    keras.layers.InputLayer,
    keras.layers.Resizing,
    keras.layers.CenterCrop,
    keras.layers.Cropping2D,
    keras.layers.RandomCrop,
    keras.layers.RandomFlip,
    keras.layers.RandomRotation,
    keras.layers.RandomTranslation,
    keras.layers.RandomZoom,
    keras.layers.ZeroPadding2D,
)
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
        model: The network; what changes the values of its images first shows it, in a model within
            it too.
    Returns:
        `PIXELS` for a Rescaling or Normalization of 0..255, `UNIT` for one of 0..1; None where the
        that is another layer.
    """
    first = _first_operation(model)
    if isinstance(first, keras.layers.Rescaling):
        scale = float(np.max(np.abs(first.scale)))
        # Others are `renormalize` of `build_teacher`, from the normalization of its processor.
        return PIXELS if scale < LARGEST_PIXEL_SCALE else None
    if isinstance(first, keras.layers.Normalization) and first.input_mean is not None:
        return PIXELS if np.max(np.abs(first.input_mean)) > SMALLEST_PIXEL_MEAN else UNIT
    if isinstance(first, keras.layers.Normalization):
        return PIXELS if np.max(np.abs(first.mean)) > SMALLEST_PIXEL_MEAN else UNIT
    return None


def renormalization(
    mean: PerChannel, std: PerChannel, new_mean: PerChannel, new_std: PerChannel
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset, float32 [channels] each, from one normalization to another.

    Raises:
        ValueError: If the two are of other numbers of channels.
    """
    if len(mean) != len(new_mean):
        raise ValueError(
            f"A teacher sees the student's images, which have {len(mean)} channels, and this one "
            f"takes {len(new_mean)}. Train one on the same images by `deit-tf train-teacher`, or "
            "set `distill.kind` to none."
        )
    scale = np.divide(std, new_std)
    offset = np.subtract(mean, new_mean) / new_std
    return scale.astype("float32"), offset.astype("float32")


def unknown_preprocessing(model: keras.Model) -> str | None:
    """The name of an operation that a network begins with and which tells no normalization, such
    as the division of `images / 255`; None where it begins with a layer.
    """
    first = _first_operation(model)
    is_layer = first is None or isinstance(first, keras.Layer)
    return None if is_layer else type(first).__name__


def _first_operation(model: keras.Model) -> keras.Operation | None:
    """What changes the values of the images first, looked for in models within the model as well;
    None where nothing does.
    """
    for operation in getattr(model, "operations", model.layers):
        if isinstance(operation, keras.Model):
            operation = _first_operation(operation)
        if operation is not None and not isinstance(operation, _MOVES_PIXELS):
            return operation
    return None
