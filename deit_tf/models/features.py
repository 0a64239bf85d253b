"""What a DeiT computes on the way to its logits: tokens, hidden states, attention maps and their
rollout.

Both models share the layers of the one they are made from. Hugging Face calls the same things
`output_hidden_states` and `output_attentions`; rollout is Abnar & Zuidema 2020, section 3.
"""

import keras
from keras import ops

from deit_tf.models.layers import Block, Tokens, token
from deit_tf.models.parts import blocks, has_two_heads, is_deit


def features(model: keras.Model) -> keras.Model:
    """Give the tokens of a DeiT as outputs, for retrieval, linear probes and inspection.

    Args:
        model: From build_deit or create_model.
    Returns:
        A model from the same images to `tokens` [B, N, D] after the final norm; `cls` [B, D] and,
        of a distilled model, `dist` [B, D], the first of these tokens; `hidden_states` [B, depth +
        1, N, D], the embeddings and then what each block gives, before the final norm, as Hugging
        Face orders
        them. For one output alone, which needs less memory: `keras.Model(f.input,
            f.output["cls"])`.
    Raises:
        ValueError: If `model` is no DeiT classifier.
    Differs: Hugging Face gives the hidden states as a tuple; here they are stacked, for SavedModel.
    """
    tokens = _tokens(model, "features")
    final = model.get_layer("norm").output  # [B, N, D]
    outputs = {"tokens": final, "cls": token(final, 0)}
    if tokens.distilled:
        outputs["dist"] = token(final, 1)
    outputs["hidden_states"] = ops.stack(
        [tokens.output, *(block.output for block in blocks(model))], axis=1
    )
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


def attention_maps(model: keras.Model) -> keras.Model:
    """Give the attention weights of every block, and where they come from in the image.

    Args:
        model: From build_deit or create_model.
    Returns:
        A model from the same images to `attentions` [B, depth, h, N, N], whose rows (queries) sum
        to 1, and `rollout` [B, H/P, W/P], non-negative and summing to 1: the share of each patch in
        the class token, or in the mean of class and distillation token. Save or export it with
        `export`; `.keras` files are for `model` itself.
    Raises:
        ValueError: If `model` is no DeiT classifier.
    """
    tokens = _tokens(model, "attention_maps")
    maps = attention_weights(model)
    height, width = model.get_layer("patch_embed").grid(model.input_shape)
    outputs = {
        "attentions": ops.stack(maps, axis=1),
        "rollout": ops.reshape(rollout(maps, tokens.prefix), (-1, height, width)),
    }
    return keras.Model(model.input, outputs, name=f"{model.name}_attention_maps")


def attention_weights(model: keras.Model) -> list:
    """The attention weights of every block of a DeiT, [B, h, N, N] each, as parts of its graph."""
    x, maps = _tokens(model, "attention_weights").output, []
    for block in blocks(model):
        maps.append(AttentionWeights(block, name=f"{block.name}.weights")(x))  # [B, h, N, N]
        x = block.output
    return maps


def token_rollouts(model: keras.Model) -> keras.Model:
    """Give the attention rollout of each token that a head reads.

    Args:
        model: From build_deit or create_model.
    Returns:
        A model from the same images to `cls` and, of a model with two heads, `dist`: each [B, H/P,
        W/P], non-negative and summing to 1, the share of each patch in the class token or in the
        distillation token. `rollout` of `attention_maps` is of both together.
    Raises:
        ValueError: If `model` is no DeiT classifier.
    """
    prefix = _tokens(model, "token_rollouts").prefix
    height, width = model.get_layer("patch_embed").grid(model.input_shape)
    flow = prefix_flow(attention_weights(model), prefix)  # [B, prefix, N - prefix]
    shares = flow / ops.sum(flow, axis=-1, keepdims=True)

    names = ("cls", "dist") if has_two_heads(model) else ("cls",)
    outputs = {
        name: ops.reshape(token(shares, i), (-1, height, width)) for i, name in enumerate(names)
    }
    return keras.Model(model.input, outputs, name=f"{model.name}_token_rollouts")


def rollout(attentions, prefix: int):
    """The rollout of all prefix tokens together.

    Args:
        attentions: One [B, h, N, N] per block, from the first to the last, rows summing to 1.
        prefix: Tokens before the patches, 1 or 2.
    Returns:
        float32 [B, N - prefix], rows summing to 1: mean over the prefix tokens.
    """
    patches = ops.mean(prefix_flow(attentions, prefix), axis=1)  # [B, N - prefix]
    return patches / ops.sum(patches, axis=-1, keepdims=True)


def prefix_flow(attentions, prefix: int):
    """Follow attention through all blocks, from the prefix tokens down to the patches.

    Args:
        attentions: As of `rollout`.
        prefix: As of `rollout`.
    Returns:
        float32 [B, prefix, N - prefix]; what a row lacks to 1 comes from the prefix tokens.
    Source: Abnar & Zuidema 2020: heads averaged, identity added for the residual branch, rows
        renormalized, matrices multiplied.
    """
    flow = None
    for weights in attentions:
        mean = ops.mean(ops.cast(weights, "float32"), axis=1)  # [B, N, N]
        step = mean + ops.eye(mean.shape[-1])
        step = step / ops.sum(step, axis=-1, keepdims=True)
        flow = step if flow is None else ops.matmul(step, flow)
    return flow[:, :prefix, prefix:]


class AttentionWeights(keras.layers.Layer):
    """Attention weights [B, h, N, N] of a block that another model owns, from the block's input [B,
    N, D].

    It has no config: what it shares with the other model would be copied, and no longer be the
        same.
    """

    def __init__(self, block: Block, **kwargs):
        super().__init__(dtype=block.dtype_policy, **kwargs)
        self.block = block

    def call(self, x):
        """[B, h, N, N] of [B, N, D]."""
        weights, _ = self.block.attn.attend(self.block.norm1(x))
        return weights

    def compute_output_shape(self, shape):
        """Shape of the weights."""
        return (shape[0], self.block.num_heads, shape[1], shape[1])


def _tokens(model: keras.Model, function: str) -> Tokens:
    """The layer that puts the tokens together; refuses what is no DeiT classifier."""
    if not is_deit(model):
        raise ValueError(
            f"`{function}` takes a DeiT classifier as build_deit makes it; of a masked model, "
            f"load the trunk into one (deit_tf.load_trunk). Received: {model.name}"
        )
    return model.get_layer("tokens")
