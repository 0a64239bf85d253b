"""A DeiT in numbers, and the student that a config describes by what differs from one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, Literal

from deit_tf.config.bounds import (
    CHANNELS,
    MAX_CHANNELS,
    MAX_CLASSES,
    MAX_DEPTH,
    MAX_MLP_RATIO,
    MAX_SIDE,
    MAX_WIDTH,
    Size,
    height_width,
    is_number,
)


@dataclass(frozen=True)
class ModelConfig:
    """One DeiT in numbers (paper, table 1).

    Args:
        image_size: Height and width in pixels, or one number for a square.
        patch_size: Side of a patch in pixels; it divides both sides of the image.
        embed_dim: Width D of a token; a multiple of `num_heads`.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        mlp_ratio: Width of the hidden layer of the MLP, in units of `embed_dim`.
        num_classes: Classes C of each head.
        num_channels: Channels of an image: 3 for RGB, 1 for gray.
        distilled: Whether there is a distillation token with a head of its own.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        drop_rate: Dropout of a token before its head, as in DeiT III and timm.
        layer_norm_eps: 1e-6 as in the original and timm; Hugging Face uses 1e-12.
        init_values: Where LayerScale's factors start, one per channel of a residual branch, such as
            1e-6; null leaves the branches as they are (DeiT III).
        no_embed_class: Whether the patches alone get a position embedding, and not the tokens
            before them (DeiT III).
        uniform_drop_path: Whether every block drops at `drop_path_rate`, instead of at rates that
            rise from 0 (DeiT III; timm's rise there as well).
        remat: Whether training computes the activations of the blocks again instead of keeping
            them.
    """

    image_size: Size = 224
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    num_channels: int = CHANNELS
    distilled: bool = True
    drop_path_rate: float = 0.0
    drop_rate: float = 0.0
    layer_norm_eps: float = 1e-6
    init_values: float | None = None
    no_embed_class: bool = False
    uniform_drop_path: bool = False
    remat: bool = False


# Whole numbers from 1 to these.
_COUNTS: Mapping[str, int] = {
    "patch_size": MAX_SIDE,
    "embed_dim": MAX_WIDTH,
    "depth": MAX_DEPTH,
    "num_heads": MAX_WIDTH,
    "num_classes": MAX_CLASSES,
    "num_channels": MAX_CHANNELS,
}


def check_model(config: ModelConfig) -> None:
    """Check that the numbers of a model are within their bounds, whoever gave them.

    Raises:
        ValueError: If one is not; it names the field, what is allowed, and what came.
    """
    height_width(config.image_size)
    for name, most in _COUNTS.items():
        value = getattr(config, name)
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or not 1 <= value <= most:
            raise ValueError(
                f"`{name}` is a whole number from 1 to {most:,}. Received: {name}={value!r}"
            )

    ratio = config.mlp_ratio
    if not is_number(ratio) or ratio > MAX_MLP_RATIO or ratio * config.embed_dim < 1:
        raise ValueError(
            f"`mlp_ratio` is a number above 0 and up to {MAX_MLP_RATIO:g}, which leaves the hidden "
            f"layer a unit. Received: mlp_ratio={ratio!r}"
        )
    for name in ("drop_path_rate", "drop_rate"):
        rate = getattr(config, name)
        if not is_number(rate) or not 0 <= rate < 1:
            raise ValueError(f"`{name}` is a probability in [0, 1). Received: {name}={rate!r}")
    start = config.init_values
    if start is not None and not (is_number(start) and start > 0):
        raise ValueError(
            f"`init_values` is a number above 0, or null. Received: init_values={start!r}"
        )
    check_epsilon(config.layer_norm_eps)


def check_epsilon(value: Any) -> None:
    """Check what a layer norm adds to a variance.

    Raises:
        ValueError: If it is no number above 0 and below 1.
    """
    if not is_number(value) or not 0 < value < 1:
        raise ValueError(
            f"`layer_norm_eps` is a number above 0 and below 1. Received: {str(value)[:100]}"
        )


APPLICATION = "keras:"  # before the name of a network of keras.applications


@dataclass(frozen=True)
class StudentConfig:
    """The model to train: a name of `deit-tf models` and what differs from it.

    The numbers of classes and of channels come from the data. `keras:NAME`, such as
    `keras:MobileNetV3Small`, is a convnet of keras.applications: of these settings it has
    `image_size`, 224 by default, `weights` and `trainable` all or heads.

    Args:
        name: A name of `deit-tf models`, or `keras:NAME`.
        image_size: Height and width in pixels, or one number for a square.
        patch_size: Side of a patch in pixels.
        embed_dim: Width of a token.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        init_values: Where LayerScale's factors start, such as 1e-4 (DeiT III); null keeps the named
            model's.
        drop_path_rate: Stochastic depth of the last block, of DeiT III of each; the paper trains
            with 0.1.
        drop_rate: Dropout of a token before its head, for training.
        weights: What to start from: a run, such as a masked one, a `.keras` file, another library's
            file or folder, `hf://...`, or `imagenet` of `keras:NAME`; other heads, or
            of other classes, start fresh, and null all.
        init: How fresh weights are drawn: `timm`, as the original's; or `mimetic`, with attention
            like that of trained models, for small data from scratch (Trockman and Kolter 2023).
        trainable: What learns: `all`; `heads` alone; or `attention` and heads (Touvron et al. 2022,
            "Three things").
        remat: Whether training computes the activations of the blocks again instead of keeping
            them: less memory, more time, the same numbers.
    """

    name: str = "deit_tiny_distilled_patch16_224"
    image_size: Size | None = None
    patch_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    init_values: float | None = None
    drop_path_rate: float = 0.1
    drop_rate: float = 0.0
    weights: str | None = None
    init: Literal["timm", "mimetic"] = "timm"
    trainable: Literal["all", "heads", "attention"] = "all"
    remat: bool = False

    @property
    def application(self) -> str | None:
        """The network of keras.applications that it names; None of a DeiT."""
        is_one = self.name.startswith(APPLICATION)
        return self.name.removeprefix(APPLICATION) if is_one else None

    def overrides(self) -> dict[str, Any]:
        """What differs from the named model, as keyword arguments of `create_model`."""
        others = ("name", "init", "trainable")
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in others and value is not None
        }
