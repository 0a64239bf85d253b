"""The models by name: timm's names, the original's numbers (facebookresearch/deit models.py)."""

import difflib

from deit_tf.config import ModelConfig

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


def find_variant(name: str) -> ModelConfig:
    """The numbers of a model by its name.

    Raises:
        ValueError: For an unknown name, with the nearest ones.
    """
    if name not in VARIANTS:
        nearest = difflib.get_close_matches(name, VARIANTS, n=3) or list(VARIANTS)
        raise ValueError(
            f"Unknown model name={name!r}. Did you mean {' or '.join(map(repr, nearest))}?"
        )
    return VARIANTS[name]
