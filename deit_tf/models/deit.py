"""DeiT as a functional Keras model (Touvron et al. 2021, sections 3 and 4; facebookresearch/deit
models.py), and DeiT III (Touvron, Cord and Jegou 2022; models_v2.py).
"""

import keras
import numpy as np

from deit_tf.config import MAX_PARAMETERS, ModelConfig, check_model, height_width
from deit_tf.models.layers import (
    LINEAR_STD,
    Block,
    Dropout,
    LayerNorm,
    PatchEmbed,
    Tokens,
    token,
)
from deit_tf.models.parts import called
from deit_tf.models.variants import count_parameters


def build_deit(config: ModelConfig, name: str = "deit") -> keras.Model:
    """Build the model that `config` describes.

    Args:
        config: The model in numbers.
        name: Name of the Keras model.
    Returns:
        A model from float32 [B, H, W, num_channels], normalized, to float32 [B, C] logits: the mean
        of both heads where there are two. No output depends on `training`; drop path and dropout
        alone do.
    Raises:
        ValueError: If the patch does not divide the image, the heads not the width, or a number is
            out of its bounds (`check_model`, `MAX_PARAMETERS`).
    Differs: the original returns both heads while training and their mean otherwise; here the mean
        is the output and `heads(model)` gives both. Heads compute in float32 at every precision.
    """
    height, width = _check(config)
    image = keras.Input((height, width, config.num_channels), name="image")
    x = PatchEmbed(config.patch_size, config.embed_dim, name="patch_embed")(image)  # [B, N, D]
    x = Tokens(config.distilled, config.no_embed_class, name="tokens")(x)  # [B, N + 2, D]

    for i, rate in enumerate(_drop_path_rates(config)):
        x = Block(
            config.num_heads,
            config.mlp_ratio,
            rate,
            config.layer_norm_eps,
            config.remat,
            config.init_values,
            name=f"blocks.{i}",
        )(x)

    x = LayerNorm(epsilon=config.layer_norm_eps, name="norm")(x)
    logits = _head("head", config, token(x, 0))  # [B, C]
    if config.distilled:
        logits = keras.layers.Average(name="logits", dtype="float32")(
            [logits, _head("head_dist", config, token(x, 1))]
        )
    return called(keras.Model(image, logits, name=name))


def heads(model: keras.Model) -> keras.Model:
    """Give each head of a DeiT its own output; the layers are shared with `model`.

    Returns:
        A model from the same images to `{"cls": [B, C], "dist": [B, C]}` logits, or `{"cls": [B,
        C]}` alone for a model without distillation token.
    Raises:
        ValueError: If `model` has no layer named `head`.
    """
    layers = {layer.name: layer for layer in model.layers}
    if "head" not in layers:
        raise ValueError(
            "`heads` takes a model with a layer named 'head', as build_deit makes it. "
            f"Received: {model.name}"
        )
    outputs = {"cls": layers["head"].output}
    if "head_dist" in layers:
        outputs["dist"] = layers["head_dist"].output
    return keras.Model(model.input, outputs, name=f"{model.name}_heads")


def class_head(model: keras.Model) -> keras.Model:
    """Give a DeiT the logits of its class head alone; the layers are shared with `model`.

    A distilled model keeps its distillation token, as DeiTForImageClassification of Hugging Face
    and keras-hub's DeiT do.

    Returns:
        A model of the same name, from the same images to float32 [B, C] logits.
    Raises:
        ValueError: If `model` has no layer named `head`.
    """
    return keras.Model(model.input, heads(model).output["cls"], name=model.name)


def _drop_path_rates(config: ModelConfig) -> list[float]:
    """Stochastic depth of each block, from the first to the last."""
    first = config.drop_path_rate if config.uniform_drop_path else 0.0
    return np.linspace(first, config.drop_path_rate, config.depth).tolist()


def _head(name: str, config: ModelConfig, x: keras.KerasTensor) -> keras.KerasTensor:
    """Logits [B, C] of a token [B, D]."""
    if config.drop_rate:
        x = Dropout(config.drop_rate, name=f"{name}_drop")(x)
    init = keras.initializers.RandomNormal(stddev=LINEAR_STD)
    return keras.layers.Dense(
        config.num_classes, kernel_initializer=init, dtype="float32", name=name
    )(x)


def _check(config: ModelConfig) -> tuple[int, int]:
    """Refuse a config that makes no model; returns height and width in pixels."""
    check_model(config)
    size, patch = config.image_size, config.patch_size
    height, width = height_width(size)
    if height % patch or width % patch:
        nearest = tuple(max(1, round(side / patch)) * patch for side in (height, width))
        raise ValueError(
            f"`image_size` must be a multiple of patch_size={patch} on both sides. Received: "
            f"image_size={size}; the nearest that fits is {nearest}."
        )
    if config.embed_dim % config.num_heads:
        raise ValueError(
            f"`num_heads` must divide embed_dim={config.embed_dim}. Received: "
            f"num_heads={config.num_heads}"
        )
    if (count := count_parameters(config)) > MAX_PARAMETERS:
        raise ValueError(
            f"A model has at most {MAX_PARAMETERS:,} weights. Lower `embed_dim`, `depth`, "
            f"`image_size` or `num_classes`, or raise `patch_size`. Received: {count:,} weights"
        )

    return height, width
