"""Masked image modeling (SimMIM, Xie et al. 2022) on the trunk of a DeiT.

The names and the loss are Hugging Face's DeiTForMaskedImageModeling, so that its weights load.
"""

from dataclasses import replace

import keras
from keras import ops

from deit_tf.config import ModelConfig
from deit_tf.models.deit import build_deit
from deit_tf.models.layers import LINEAR_STD, MaskPatches, PixelShuffle
from deit_tf.models.parts import blocks


@keras.saving.register_keras_serializable("deit_tf")
class MaskedImageModel(keras.Model):
    """What older `.keras` files call a masked model, which is an ordinary functional model."""

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The model that such a file describes."""
        return keras.Model.from_config(config, custom_objects)


def build_masked(config: ModelConfig, name: str = "deit_masked") -> keras.Model:
    """Build the masked image model that `config` describes.

    Args:
        config: The model in numbers; `num_classes` plays no part.
        name: Name of the Keras model.
    Returns:
        A model from `image`, float32 [B, H, W, 3], normalized, and `mask`, [B, H/P * W/P], 1 or
        true where a patch is hidden, row by row, to the reconstruction float32 [B, H, W, 3];
        `deit_tf.MaskedTrainer` trains it.
    Raises:
        ValueError: As `build_deit`.
    """
    return build_masked_on(build_deit(replace(config, num_classes=1)), name)


def build_masked_on(trunk: keras.Model, name: str) -> keras.Model:
    """Run the layers of a classifier, up to its final norm, on masked patches, and decode.

    Args:
        trunk: From `build_deit`; its heads play no part.
        name: Name of the Keras model.
    Returns:
        What `build_masked` returns.
    """
    patch_embed, tokens = trunk.get_layer("patch_embed"), trunk.get_layer("tokens")
    rows, columns = patch_embed.grid(trunk.input_shape)
    image = keras.Input(trunk.input_shape[1:], name="image")
    # Numbers and not bool: under MirroredStrategy Keras 3.15 adds up the first batch of all
    # replicas.
    mask = keras.Input((rows * columns,), name="mask")
    x = tokens(MaskPatches(name="mask_patches")(patch_embed(image), mask))  # [B, N + 2, D]

    for block in blocks(trunk):
        x = block(x)
    x = trunk.get_layer("norm")(x)[:, tokens.prefix :]  # [B, N, D]
    x = ops.reshape(x, (-1, rows, columns, patch_embed.embed_dim))
    x = _decoder(image.shape[-1], patch_embed.patch_size)(x)  # [B, H/P, W/P, channels P P]
    reconstruction = PixelShuffle(patch_embed.patch_size, dtype="float32", name="decoder.1")(x)
    return keras.Model({"image": image, "mask": mask}, reconstruction, name=name)


def _decoder(channels: int, patch_size: int) -> keras.layers.Layer:
    init = keras.initializers.RandomNormal(stddev=LINEAR_STD)
    return keras.layers.Conv2D(
        channels * patch_size**2, 1, kernel_initializer=init, dtype="float32", name="decoder.0"
    )
