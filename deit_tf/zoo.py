"""The models by name, with fresh weights or those of a file, a folder or the hub."""

import difflib
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import keras

from deit_tf.config import ModelConfig, Size
from deit_tf.models.deit import build_deit
from deit_tf.models.masked import build_masked_on
from deit_tf.models.regnet import REGNETY, build_regnety
from deit_tf.models.variants import VARIANTS, find_variant
from deit_tf.weights.configs import CONFIG, Facts
from deit_tf.weights.files import HEAD_WIDTH, load_weights, read_weights
from deit_tf.weights.names import describe


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: Size | None = None,
    drop_path_rate: float = 0.0,
    weights: str | Path | None = None,
    heads: Literal["keep", "new"] | None = None,
    **overrides,
) -> keras.Model:
    """Build a DeiT by name, with fresh weights or with those of a file, a folder or the hub.

    Args:
        name: One of `list_models()`.
        num_classes: Classes C of each head; by default those of the weights, else 1000. Another
            number than the weights have gives fresh heads.
        image_size: Height and width in pixels, or one number; by default that of the name. The
            position embedding of weights for another size is resized.
        drop_path_rate: Stochastic depth of the last block, for training; the paper takes 0.1.
        weights: What `read_weights` takes: a file or folder of timm, Hugging Face or the original,
            a `.keras` file or run, or `hf://facebook/deit-tiny-distilled-patch16-224`. The epsilon
            of their layer norms is kept.
        heads: `new` passes over the heads of the weights, `keep` insists on them; by default they
            are kept where they have as many classes.
        **overrides: Other fields of `ModelConfig`, such as `patch_size` or `layer_norm_eps`.
    Returns:
        A model from float32 [B, H, W, 3], normalized, to float32 [B, C] logits.
    Raises:
        ValueError: For an unknown name (with the nearest ones), an unknown field, or numbers that
            make no model; for weights that are damaged or do not fit, in their number of attention
            heads too.
        FileNotFoundError: If there are no such weights, or the hub cannot be reached.
    """
    variant = find_variant(name)
    known = [field.name for field in fields(ModelConfig)]
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(
            f"Unknown argument {unknown[0]!r} of create_model. Allowed: {', '.join(known)}"
        )

    size = {} if image_size is None else {"image_size": image_size}
    classes = {} if num_classes is None else {"num_classes": num_classes}
    config = replace(variant, drop_path_rate=drop_path_rate, **classes, **size, **overrides)
    if weights is None:
        return build_deit(config, name=name)
    state, facts = read_weights(weights)
    if facts.num_heads not in (None, config.num_heads):
        # the shapes may fit all the same, and attention would be scrambled in silence
        raise ValueError(
            f"`num_heads` must be {facts.num_heads}, that of the weights in {weights}; pass it, "
            f"or the name of their model. Received: num_heads={config.num_heads} for {name!r}"
        )
    if num_classes is None:
        config = replace(config, num_classes=describe(state).get("num_classes", config.num_classes))
    if "layer_norm_eps" not in overrides:
        config = replace(config, layer_norm_eps=facts.layer_norm_eps or config.layer_norm_eps)
    model = build_deit(config, name=name)
    load_weights(model, state, facts, heads)

    return model


def create_masked_model(name: str, **overrides) -> keras.Model:
    """Build a masked image model by the name of its trunk.

    Args:
        name: One of `list_models()`.
        **overrides: As of `create_model`, such as `image_size` or `drop_path_rate`.
    Returns:
        What `build_masked` returns; `deit_tf.MaskedTrainer` trains it.
    """
    return build_masked_on(create_model(name, num_classes=1, **overrides), f"{name}_masked")


def create_regnety(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: Size = 224,
    weights: str | Path | None = None,
) -> keras.Model:
    """Build a RegNetY by timm's name, with fresh weights or those of a file; `regnety_160` is the
    paper's teacher.

    Args:
        name: One of `REGNETY`.
        num_classes: Classes C; by default those of the weights, else 1000. Another number than the
            weights have gives a fresh head.
        image_size: Height and width in pixels, or one number for a square.
        weights: What `read_weights` takes, such as `hf://timm/regnety_160.deit_in1k`.
    Returns:
        A model from float32 [B, H, W, 3], normalized, to float32 [B, C] logits.
    Raises:
        ValueError: For an unknown name, with the nearest ones; for weights that do not fit.
        FileNotFoundError: If there are no such weights, or the hub cannot be reached.
    """
    if name not in REGNETY:
        nearest = difflib.get_close_matches(name, REGNETY, n=3) or list(REGNETY)
        raise ValueError(
            f"Unknown network name={name!r}. Did you mean {' or '.join(map(repr, nearest))}?"
        )
    state, facts = read_weights(weights) if weights is not None else ({}, None)
    if num_classes is None:
        num_classes = describe(state).get("num_classes", 1000)
    model = build_regnety(*REGNETY[name], num_classes=num_classes, image_size=image_size, name=name)
    if facts is not None:
        load_weights(model, state, facts)
    return model


def restore_model(source: str | Path, name: str | None = None) -> tuple[keras.Model, Facts]:
    """Build the very model that weights belong to, as their shapes and the files beside them tell
    it.

    Args:
        source: What `read_weights` takes.
        name: Name of the model, of `list_models()` or a RegNetY, where nothing tells it.
    Returns:
        The model, and what the files tell about it.
    Raises:
        ValueError: If the model cannot be told, or the weights do not fit the name.
        FileNotFoundError: If there are no such weights, or the hub cannot be reached.
    """
    state, facts = read_weights(source)
    described = describe(state)
    if (name or facts.architecture) in REGNETY:
        return create_regnety(
            name or facts.architecture, image_size=facts.image_size or 224, weights=source
        ), facts
    if name:
        return create_model(name, image_size=facts.image_size, weights=source), facts
    heads = facts.num_heads or _published_heads(described)
    if "num_classes" not in described or not heads:
        raise ValueError(
            f"{source}: its weights do not tell a classifier. They have no head, or the number "
            "of attention heads is unknown. Pass the name of the model "
            f"({', '.join(VARIANTS)}), or, for another shape, put a {CONFIG} with "
            "`num_attention_heads` beside the weights."
        )

    size = {"image_size": facts.image_size} if facts.image_size else {}
    config = ModelConfig(**described | size, num_heads=heads)
    published = next(
        (name for name, variant in VARIANTS.items() if _same_shape(variant, config)), "deit"
    )
    config = replace(config, layer_norm_eps=facts.layer_norm_eps or config.layer_norm_eps)
    model = build_deit(config, name=published)
    load_weights(model, state, facts)

    return model, facts


def _published_heads(described: dict[str, int | float | bool]) -> int:
    """Attention heads of the published models of a shape, at any image size; 0 where the shape is
    none of theirs.
    """
    shape = ("patch_size", "embed_dim", "depth", "mlp_ratio")
    published = any(
        all(described.get(f) == getattr(variant, f) for f in shape) for variant in VARIANTS.values()
    )
    return described["embed_dim"] // HEAD_WIDTH if published else 0


def _same_shape(variant: ModelConfig, config: ModelConfig) -> bool:
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    square = config.image_size in (side, (side, side))
    untold = dict(num_classes=variant.num_classes, uniform_drop_path=variant.uniform_drop_path)
    return square and variant == replace(config, image_size=side, **untold)
