"""The layers of a vision transformer, in keras.ops alone.

Layers and variables bear the names of timm's modules (timm/models/vision_transformer.py), so that a
weight's path is its key in timm once "/" is ".". Shapes: B batch, N tokens, D width, h heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import keras
from keras import ops

from deit_tf.models import fused

LINEAR_STD = 0.02


def _linear(units: int, name: str, **kwargs) -> keras.layers.Dense:
    """A Dense layer as the original initializes it.

    The original's trunc_normal_(std=0.02) cuts at +-2, which is 100 sigma: a plain normal. Keras's
    TruncatedNormal cuts at 2 sigma and would give a deviation of 0.0176.
    """
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.RandomNormal(stddev=LINEAR_STD),
        name=name,
        **kwargs,
    )


def _project(layer: keras.layers.Dense, rows, training):
    """`layer(rows)` of [M, K]: two axes, so that product and bias become one kernel."""
    if not training:
        return layer(rows)
    return fused.linear(rows, _tensor(layer.kernel), _tensor(layer.bias))


def _tensor(variable):
    """The value of a variable at the compute dtype; `keras.ops.convert_to_tensor` may hand back the
    variable itself.
    """
    return ops.reshape(variable, variable.shape)


_DRAW: ContextVar = ContextVar("draw", default=None)


@contextmanager
def numbered_draw(number) -> Iterator[None]:
    """While open, the masks of drop path are a pure function of each layer's seed and `number`, an
    integer tensor.

    So they differ between replicas and come back after a restart; Keras's own state does neither.
    """
    token = _DRAW.set(number)
    try:
        yield
    finally:
        _DRAW.reset(token)


class StepSeed(keras.random.SeedGenerator):
    """A SeedGenerator that keeps no state within `numbered_draw`."""

    def next(self, ordered=True):
        number = _DRAW.get()
        if number is None:
            return super().next(ordered)
        return ops.stack(
            [self.state[0], ops.cast(number, self.state.dtype)]
        )  # [2]: the layer's seed, the number


def number_draws(model: keras.Model) -> None:
    """Let the layers of Keras in a model, such as its dropout, draw as ours do: within
    `numbered_draw` by its number and without a state, so that a run goes on with the same masks.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            number_draws(layer)
        generator = getattr(layer, "seed_generator", None)
        if type(generator) is keras.random.SeedGenerator:
            # In its place: a layer that is built takes no other one.
            generator.__class__ = StepSeed


@keras.saving.register_keras_serializable("deit_tf")
class DropPath(keras.layers.Layer):
    """Stochastic depth: drops a residual branch, per sample, and rescales the branches it keeps.

    Args:
        rate: Probability in [0, 1) that a sample loses the branch.
        seed: Seed of the masks; by default each layer draws its own, so that no two share masks.
    Raises:
        ValueError: If `rate` lies outside [0, 1).
    Source: Huang et al. 2016; timm/layers/drop.py.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` is a probability in [0, 1). Received: rate={rate}")
        self.rate, self.seed = rate, seed
        self.seed_generator = StepSeed(seed) if rate else None

    def call(self, x, training=False):  # [B, ...]
        if not training or not self.rate:
            return x
        drawn = keras.random.uniform(self._mask_shape(x), dtype="float32", seed=self.seed_generator)
        keep = drawn >= self.rate
        return x * (ops.cast(keep, x.dtype) / (1 - self.rate))

    def _mask_shape(self, x):
        return (ops.shape(x)[0],) + (1,) * (x.ndim - 1)  # [B, 1, ...]

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable("deit_tf")
class Dropout(DropPath):
    """Drops single numbers, each by itself, and rescales those it keeps; drawn as drop path is.

    Args:
        rate: Probability in [0, 1) that a number is lost.
        seed: As of DropPath.
    """

    def _mask_shape(self, x):
        return ops.shape(x)


@keras.saving.register_keras_serializable("deit_tf")
class LayerNorm(keras.layers.LayerNormalization):
    """Keras's layer over the last axis, in half its time on CPUs; in float32 at every precision."""

    def build(self, shape):
        super().build(shape)
        last = self.axis in ([-1], [len(shape) - 1])
        if not (last and self.scale and self.center):
            raise ValueError(
                "`LayerNorm` scales and shifts the last axis, and takes keras.layers."
                f"LayerNormalization's place there alone. Received: axis={self.axis}, "
                f"scale={self.scale}, center={self.center} for shape {tuple(shape)}"
            )

    def call(self, x, training=False):  # [..., D]
        rows = ops.reshape(x, (-1, x.shape[-1]))
        rows = fused.layer_norm(
            rows, _tensor(self.gamma), _tensor(self.beta), self.epsilon, training
        )
        rows = ops.cast(rows, self.compute_dtype)  # Keras does not cast what comes in here
        return ops.reshape(rows, (-1, *x.shape[1:]))


@keras.saving.register_keras_serializable("deit_tf")
class Attention(keras.layers.Layer):
    """Multi-head self-attention with one fused projection to queries, keys and values.

    Args:
        num_heads: Number of heads h; it divides the width D.
    Call arguments:
        x: [B, N, D].
    Returns:
        [B, N, D].
    Source: paper, section 3; timm/models/vision_transformer.py, Attention.
    """

    def __init__(self, num_heads: int, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, shape):
        width = shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width {width}. Received: num_heads={self.num_heads}"
            )
        self.qkv = _linear(3 * width, "qkv", dtype=self.dtype_policy)
        self.proj = _linear(width, "proj", dtype=self.dtype_policy)
        self.qkv.build(shape)
        self.proj.build(shape)

    def _queries_keys_values(self, x, training):
        """Queries, scaled, keys and values of [B, N, D]: [B, h, N, d] each, d = D / h."""
        tokens, width = x.shape[1:]
        head_dim = width // self.num_heads
        qkv = _project(self.qkv, ops.reshape(x, (-1, width)), training)  # [B N, 3 D]
        # Not [B, N, 3, h, d], as the reference has it: mobile GPUs take four axes at most.
        qkv = ops.reshape(qkv, (-1, tokens, 3 * self.num_heads, head_dim))  # [B, N, 3 h, d]
        q, k, v = ops.split(ops.transpose(qkv, (0, 2, 1, 3)), 3, axis=1)
        return q * head_dim**-0.5, k, v

    def attend(self, x):
        """Attention weights [B, h, N, N], rows summing to 1, and values [B, h, N, D / h]."""
        q, k, v = self._queries_keys_values(x, training=False)
        return fused.attention_weights(q, k), v

    def call(self, x, training=False):  # [B, N, D]
        q, k, v = self._queries_keys_values(x, training)
        mixed = ops.swapaxes(fused.attention(q, k, v, training), 1, 2)  # [B, N, h, D/h]
        rows = _project(self.proj, ops.reshape(mixed, (-1, x.shape[-1])), training)  # [B N, D]
        return ops.reshape(rows, (-1, *x.shape[1:]))

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}


@keras.saving.register_keras_serializable("deit_tf")
class Mlp(keras.layers.Layer):
    """Two linear layers around the exact (erf) GELU.

    Args:
        hidden_dim: Width of the layer between.
    """

    def __init__(self, hidden_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim

    def build(self, shape):
        self.fc1 = _linear(self.hidden_dim, "fc1", dtype=self.dtype_policy)
        self.fc2 = _linear(shape[-1], "fc2", dtype=self.dtype_policy)
        self.fc1.build(shape)
        self.fc2.build((*shape[:-1], self.hidden_dim))

    def call(self, x, training=False):  # [B, N, D]
        hidden = _project(
            self.fc1, ops.reshape(x, (-1, x.shape[-1])), training
        )  # [B N, hidden_dim]
        rows = _project(self.fc2, fused.gelu(hidden, training), training)  # [B N, D]
        return ops.reshape(rows, (-1, *x.shape[1:]))

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "hidden_dim": self.hidden_dim}


@keras.saving.register_keras_serializable("deit_tf")
class LayerScale(keras.layers.Layer):
    """Multiply each channel by a learned factor.

    Args:
        init_values: Where the factors start; small, so that a deep network begins as the identity.
    Source: Touvron et al. 2021 ("Going deeper with image transformers"), section 2; timm's
        LayerScale.
    """

    def __init__(self, init_values: float, **kwargs):
        super().__init__(**kwargs)
        self.init_values = init_values

    def build(self, shape):
        start = keras.initializers.Constant(self.init_values)
        self.gamma = self.add_weight((shape[-1],), start, name="gamma")

    def call(self, x):  # [..., D]
        return x * self.gamma

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "init_values": self.init_values}


@keras.saving.register_keras_serializable("deit_tf")
class Block(keras.layers.Layer):
    """Pre-norm transformer block.

    Args:
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP, in units of D.
        drop_path_rate: Stochastic depth of each of its two branches, drawn separately.
        layer_norm_eps: Added to the variance in both norms.
        remat: Whether training keeps no activation within the branches, and computes them again
            for the gradients: less memory, more time, the same numbers.
        init_values: Where LayerScale on both branches starts; None has none.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rate: float,
        layer_norm_eps: float,
        remat: bool = False,
        init_values: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads, self.mlp_ratio = num_heads, mlp_ratio
        self.drop_path_rate, self.layer_norm_eps = drop_path_rate, layer_norm_eps
        self.remat, self.init_values = remat, init_values

    def build(self, shape):
        policy = self.dtype_policy
        self.norm1 = LayerNorm(epsilon=self.layer_norm_eps, name="norm1", dtype=policy)
        self.attn = Attention(self.num_heads, name="attn", dtype=policy)
        self.ls1 = self._layer_scale("ls1")
        self.drop_path1 = DropPath(self.drop_path_rate, name="drop_path1", dtype=policy)
        self.norm2 = LayerNorm(epsilon=self.layer_norm_eps, name="norm2", dtype=policy)
        self.mlp = Mlp(int(shape[-1] * self.mlp_ratio), name="mlp", dtype=policy)
        self.ls2 = self._layer_scale("ls2")
        self.drop_path2 = DropPath(self.drop_path_rate, name="drop_path2", dtype=policy)

        for layer in (
            self.norm1,
            self.attn,
            self.ls1,
            self.drop_path1,
            self.norm2,
            self.mlp,
            self.ls2,
            self.drop_path2,
        ):
            layer.build(shape)

    def _layer_scale(self, name: str) -> keras.layers.Layer:
        if self.init_values is None:
            return keras.layers.Identity(name=name, dtype=self.dtype_policy)
        return LayerScale(self.init_values, name=name, dtype=self.dtype_policy)

    def after_attention(self, x, training=False):
        """What the MLP's branch starts from: x and the attention branch, [B, N, D]."""

        def attention(x):
            return self.ls1(self.attn(self.norm1(x, training=training), training=training))

        return x + self.drop_path1(self._rematerialized(attention, training)(x), training=training)

    def call(self, x, training=False):  # [B, N, D]
        def mlp(x):
            return self.ls2(self.mlp(self.norm2(x, training=training), training=training))

        x = self.after_attention(x, training)
        return x + self.drop_path2(self._rematerialized(mlp, training)(x), training=training)

    def _rematerialized(self, branch, training):
        # Not around drop path: its masks are drawn once, whoever numbers the draws.
        return keras.remat(branch) if self.remat and training else branch

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "drop_path_rate": self.drop_path_rate,
            "layer_norm_eps": self.layer_norm_eps,
            "remat": self.remat,
            "init_values": self.init_values,
        }


@keras.saving.register_keras_serializable("deit_tf")
class PatchEmbed(keras.layers.Layer):
    """Cut the image into patches and project each to a token, row by row.

    Args:
        patch_size: Side of a patch in pixels.
        embed_dim: Width D of a token.
    Call arguments:
        image: [B, H, W, 3].
    Returns:
        [B, H / patch_size * W / patch_size, D].
    """

    def __init__(self, patch_size: int, embed_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.patch_size, self.embed_dim = patch_size, embed_dim

    def build(self, shape):
        # The original leaves this convolution as torch makes it: uniform within 1 / sqrt(fan in),
        # the bias too.
        bound = (self.patch_size**2 * shape[-1]) ** -0.5
        self.proj = keras.layers.Conv2D(
            self.embed_dim,
            self.patch_size,
            strides=self.patch_size,
            kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
            bias_initializer=keras.initializers.RandomUniform(-bound, bound),
            name="proj",
            dtype=self.dtype_policy,
        )
        self.proj.build(shape)

    def call(self, image):
        grid = self.proj(image)  # [B, H/P, W/P, D]
        return ops.reshape(grid, (-1, grid.shape[1] * grid.shape[2], self.embed_dim))

    def grid(self, shape) -> tuple[int, int]:
        """Rows and columns of patches in images of shape [B, H, W, 3]."""
        return shape[1] // self.patch_size, shape[2] // self.patch_size

    def compute_output_shape(self, shape):
        rows, columns = self.grid(shape)
        return (shape[0], rows * columns, self.embed_dim)

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size, "embed_dim": self.embed_dim}


@keras.saving.register_keras_serializable("deit_tf")
class Tokens(keras.layers.Layer):
    """Put the class token, and the distillation token, before the patches and add the position
    embedding.

    Args:
        distilled: Whether there is a distillation token, at index 1.
        no_embed_class: Whether the patches alone get a position embedding, as in DeiT III.
    Call arguments:
        patches: [B, N, D].
    Returns:
        [B, N + 1 or 2, D].
    Source: paper, section 4; facebookresearch/deit models.py, forward_features.
    """

    def __init__(self, distilled: bool, no_embed_class: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.distilled, self.no_embed_class = distilled, no_embed_class

    def _tokens(self, name: str, count: int, width: int):
        return self.add_weight(
            (1, count, width), keras.initializers.RandomNormal(stddev=LINEAR_STD), name=name
        )

    def build(self, shape):
        patches, width = shape[1:]
        self.cls_token = self._tokens("cls_token", 1, width)
        self.dist_token = self._tokens("dist_token", 1, width) if self.distilled else None
        places = patches if self.no_embed_class else patches + self.prefix
        self.pos_embed = self._tokens("pos_embed", places, width)

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches."""
        return 2 if self.distilled else 1

    def call(self, patches):
        first = [self.cls_token, self.dist_token] if self.distilled else [self.cls_token]
        first = [ops.broadcast_to(t, (ops.shape(patches)[0], 1, patches.shape[-1])) for t in first]
        first = [ops.cast(t, patches.dtype) for t in first]
        if self.no_embed_class:
            return ops.concatenate([*first, patches + self.pos_embed], axis=1)
        return ops.concatenate([*first, patches], axis=1) + self.pos_embed

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + self.prefix, shape[2])

    def get_config(self):
        return {
            **super().get_config(),
            "distilled": self.distilled,
            "no_embed_class": self.no_embed_class,
        }


def token(x, index: int):
    """One token of [B, N, D], [B, D]: a slice that keeps its axis, as mobile GPUs take no other."""
    return ops.reshape(x[:, index : index + 1], (-1, x.shape[-1]))


@keras.saving.register_keras_serializable("deit_tf")
class MaskPatches(keras.layers.Layer):
    """Put one learned token in the place of the masked patches.

    Call arguments:
        patches: [B, N, D].
        mask: [B, N], not 0 where a patch is hidden.
    Returns:
        [B, N, D].
    Source: SimMIM (Xie et al. 2022), section 3.1; microsoft/SimMIM models/simmim.py.
    """

    def build(self, patches_shape, mask_shape=None):
        width = patches_shape[-1]
        self.mask_token = self.add_weight(
            (1, 1, width), keras.initializers.RandomNormal(stddev=LINEAR_STD), name="mask_token"
        )

    def call(self, patches, mask):
        token = ops.cast(self.mask_token, patches.dtype)
        hidden = ops.expand_dims(ops.cast(mask, "bool"), -1)  # [B, N, 1]
        return ops.where(hidden, token, patches)

    def compute_output_shape(self, patches_shape, mask_shape=None):
        return patches_shape


@keras.saving.register_keras_serializable("deit_tf")
class PixelShuffle(keras.layers.Layer):
    """Spread the channels of a coarse grid over pixels, as torch.nn.PixelShuffle does.

    Args:
        scale: Pixels per cell and axis.
    Call arguments:
        x: [B, h, w, C * scale * scale], channels in torch's order (channel, row, column);
            TensorFlow's depth_to_space has (row, column, channel).
    Returns:
        [B, h * scale, w * scale, C].
    """

    def __init__(self, scale: int, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x):
        rows, columns, depth = x.shape[1:]
        pixels = self.scale**2
        x = ops.reshape(x, (-1, rows * columns, depth // pixels, pixels))  # [B, h w, C, pixels]
        x = ops.transpose(x, (0, 1, 3, 2))  # [B, h w, pixels, C]
        x = ops.reshape(x, (-1, rows, columns, depth))
        return ops.depth_to_space(x, self.scale, data_format="channels_last")

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] * self.scale, shape[2] * self.scale, shape[3] // self.scale**2)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}
