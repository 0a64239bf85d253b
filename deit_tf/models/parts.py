"""The parts of a model, found by what they are: blocks, heads, the image among the inputs."""

import keras

from deit_tf.config import CHANNELS
from deit_tf.models.layers import Block, Tokens

HEADS = ("head", "head_dist")  # timm's names: of the class token, of the distillation token


def blocks(model: keras.Model) -> list[Block]:
    """The transformer blocks of a model, from input to output; of a convnet, none."""
    return [layer for layer in model.layers if isinstance(layer, Block)]


def is_deit(model: keras.Model) -> bool:
    """Whether `model` is a DeiT classifier, as build_deit makes it; a masked model is none."""
    layers = {layer.name: layer for layer in model.layers}
    return "head" in layers and isinstance(layers.get("tokens"), Tokens) and bool(blocks(model))


def has_two_heads(model: keras.Model) -> bool:
    """Whether `model` is a DeiT with a class head and a distillation head."""
    return set(HEADS) <= {layer.name for layer in model.layers}


def called(model: keras.Model) -> keras.Model:
    """The model, which has been called once on its own symbolic input, if it has one of images:
    `model.export` as ONNX refuses what is built and was never called. Nothing is computed here.
    """
    if len(getattr(model, "inputs", None) or ()) == 1:
        model(model.inputs[0])
    return model


def image_size(model: keras.Model) -> tuple[int | None, int | None]:
    """Height and width of a model's images in pixels, None where it takes any.

    The image is the input of four axes; the mask of a masked model has two.
    """
    return next(tuple(each.shape[1:3]) for each in model.inputs if len(each.shape) == 4)


def num_channels(model: keras.Model) -> int:
    """Channels of a model's images; 3 where it takes any."""
    return next(each.shape[3] for each in model.inputs if len(each.shape) == 4) or CHANNELS
