"""Keras's side of a comparison: the model as it is exported, what it is fed, and what it says."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

NOISE_IMAGES = 4
BATCH = 8  # rows at a time, or as many images as have the values of eight of 224 pixels


def float32_twin(model: keras.Model) -> keras.Model:
    """`model` itself, or a copy that computes in float32 where a layer does not (bfloat16 is no
    .tflite type).
    """
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, keras.Layer):  # `x[:, 0]` is an operation, no layer
            config["dtype"] = "float32"
        return layer.__class__.from_config(config)

    twin = keras.models.clone_model(model, clone_function=clone, recursive=True)
    twin.set_weights(model.get_weights())
    return twin


def keras_logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """What an artifact of `model` should give, float32 [n, C] logits, of normalized images [n, H,
    W, 3]; computed in float32, as artifacts are.
    """
    twin = float32_twin(model)
    return in_batches(lambda part: twin(part, training=False), images)


def in_batches(run: Callable[[Sequence], Any], batch: Sequence) -> Any:
    """What `run` gives of a batch of any size, an array or a dict of arrays, in bounded memory: a
    few rows at a time.
    """
    rows = BATCH
    if isinstance(batch, np.ndarray):
        rows = max(BATCH, BATCH * 224 * 224 * 3 // max(batch[:1].size, 1))
    parts = [run(batch[i : i + rows]) for i in range(0, len(batch), rows)]
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def comparison_images(model: keras.Model, images: np.ndarray | None) -> np.ndarray:
    """Images to compare an artifact on, float32 [n, H, W, 3]: those given, or noise.

    Raises:
        ValueError: If `model` is no classifier of images of a fixed size, or `images` do not fit
            it.
    """
    shape = _image_shape(model)
    if images is None:
        return np.random.default_rng(0).standard_normal((NOISE_IMAGES, *shape), np.float32)

    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise ValueError(f"`images` must be [n, *{shape}] with n > 0. Received: {images.shape}")
    return images


def _image_shape(model: keras.Model) -> tuple[int, int, int]:
    """Shape of one image, if `model` takes images of one size and gives logits."""
    shape, output = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    takes_images = isinstance(shape, tuple) and len(shape) == 4
    gives_logits = isinstance(output, tuple) and len(output) == 2
    if not (takes_images and gives_logits):
        raise ValueError(
            "`model` takes images [B, H, W, 3] and returns logits [B, C]; of a Distiller, "
            f"export `.student`. Received: {getattr(model, 'name', model)!r} from {shape} to "
            f"{output}"
        )
    if None in shape[1:]:
        raise ValueError(
            f"`model` must have a fixed image size. Received: {model.name!r} with input {shape}"
        )

    return shape[1:]
