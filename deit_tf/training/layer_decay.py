"""What of a network is decayed, and how fast each of its layers learns."""

import re

import keras

# Rank-1 weights are not decayed either: biases and norms. dist_token is decayed, as in the
# original.
NOT_DECAYED = ("pos_embed", "cls_token")


class LayerDecay:
    """Mix-in of an optimizer: the original's rule of what is decayed, and learning rates that fall
    from block to block.

    Both are worked out whenever the optimizer is built, so that they outlive saving and loading,
    where Keras forgets `exclude_from_weight_decay`.

    Source: timm 0.3.2 optim_factory.py, add_weight_decay, with the model's no_weight_decay(); for
        `layer_decay` timm's param_groups_layer_decay.
    """

    layer_decay = 1.0

    def build(self, variables):
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"`layer_decay` lies in (0, 1]. Received: layer_decay={self.layer_decay}"
            )
        if not self.built:
            self.exclude_from_weight_decay(var_list=[v for v in variables if not is_decayed(v)])
            scales = layer_scales(variables, self.layer_decay)
            self._scales = {
                self._var_key(v): scale for v, scale in zip(variables, scales, strict=True)
            }
        super().build(variables)

    def scale_of(self, variable) -> float:
        """Factor of the learning rate of a variable."""
        return self._scales[self._var_key(variable)]

    def get_config(self):
        return {**super().get_config(), "layer_decay": self.layer_decay}


def layer_scales(variables: list[keras.Variable], layer_decay: float) -> list[float]:
    """Factor of the learning rate for each variable: 1 for norm and heads, less by one power for
    each layer down.

    The last block has power 1, the first as many as there are blocks, patches and tokens one more.
    """
    blocks = [
        int(found[1]) if (found := re.search(r"(?:^|/)blocks\.(\d+)/", v.path)) else None
        for v in variables
    ]
    depth = max((block + 1 for block in blocks if block is not None), default=0)

    def power(variable, block):
        if block is not None:
            return depth - block
        below = re.search(r"(?:^|/)(?:patch_embed|tokens|mask_patches)/", variable.path)
        return depth + 1 if below else 0

    return [layer_decay ** power(v, block) for v, block in zip(variables, blocks, strict=True)]


def is_decayed(variable: keras.Variable) -> bool:
    """Whether the original decays a weight: kernels and the distillation token, nothing else."""
    return len(variable.shape) > 1 and variable.name not in NOT_DECAYED
