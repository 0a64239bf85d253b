"""The models by name: timm's names, the original's numbers (facebookresearch/deit models.py)."""

import difflib
from dataclasses import fields, replace

import keras

from deit_tf.config import ModelConfig, Size
from deit_tf.models.deit import build_deit

TINY = dict(embed_dim=192, num_heads=3)
SMALL = dict(embed_dim=384, num_heads=6)
BASE = dict(embed_dim=768, num_heads=12)

VARIANTS: dict[str, ModelConfig] = {
    "deit_tiny_patch16_224": ModelConfig(**TINY, distilled=False),
    "deit_small_patch16_224": ModelConfig(**SMALL, distilled=False),
    "deit_base_patch16_224": ModelConfig(**BASE, distilled=False),
    "deit_base_patch16_384": ModelConfig(**BASE, distilled=False, image_size=384),
    "deit_tiny_distilled_patch16_224": ModelConfig(**TINY),
    "deit_small_distilled_patch16_224": ModelConfig(**SMALL),
    "deit_base_distilled_patch16_224": ModelConfig(**BASE),
    "deit_base_distilled_patch16_384": ModelConfig(**BASE, image_size=384),
    # Not a published model: small enough for tests and first tries.
    "deit_test": ModelConfig(image_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3),
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return list(VARIANTS)


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: Size | None = None,
    drop_path_rate: float = 0.0,
    **overrides,
) -> keras.Model:
    """Build a DeiT by name, with fresh weights.

    Args:
        name: One of `list_models()`.
        num_classes: Classes C of each head.
        image_size: Height and width in pixels, or one number; by default that of the name.
        drop_path_rate: Stochastic depth of the last block, for training; the paper takes 0.1.
        **overrides: Other fields of `ModelConfig`, such as `patch_size` or `layer_norm_eps`.
    Returns:
        A model from float32 [B, H, W, 3], normalised, to float32 [B, C] logits.
    Raises:
        ValueError: For an unknown name (with the nearest ones), an unknown field, or numbers that
            make no model.
    """
    if name not in VARIANTS:
        nearest = difflib.get_close_matches(name, VARIANTS, n=3) or list(VARIANTS)
        raise ValueError(f"Unknown model name={name!r}. Did you mean {' or '.join(map(repr, nearest))}?")
    known = [field.name for field in fields(ModelConfig)]
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(f"Unknown argument {unknown[0]!r} of create_model. Allowed: {', '.join(known)}")
    size = {} if image_size is None else {"image_size": image_size}
    config = replace(VARIANTS[name], num_classes=num_classes, drop_path_rate=drop_path_rate, **size, **overrides)
    return build_deit(config, name=name)
