"""The models by name: timm's names, the original's numbers (facebookresearch/deit models.py,
models_v2.py).
"""

import difflib
from collections.abc import Collection

from deit_tf.config import ModelConfig

TINY = dict(embed_dim=192, num_heads=3)
SMALL = dict(embed_dim=384, num_heads=6)
MEDIUM = dict(embed_dim=512, num_heads=8)
BASE = dict(embed_dim=768, num_heads=12)
LARGE = dict(embed_dim=1024, num_heads=16, depth=24)
HUGE = dict(embed_dim=1280, num_heads=16, depth=32, patch_size=14)

# timm starts LayerScale at 1e-6, as here; the original at 1e-4.
DEIT3 = dict(distilled=False, init_values=1e-6, no_embed_class=True, uniform_drop_path=True)

TEST_MODEL = "deit_test"  # not a published model: small enough for tests and first tries

VARIANTS: dict[str, ModelConfig] = {
    "deit_tiny_patch16_224": ModelConfig(**TINY, distilled=False),
    "deit_small_patch16_224": ModelConfig(**SMALL, distilled=False),
    "deit_base_patch16_224": ModelConfig(**BASE, distilled=False),
    "deit_base_patch16_384": ModelConfig(**BASE, distilled=False, image_size=384),
    "deit_tiny_distilled_patch16_224": ModelConfig(**TINY),
    "deit_small_distilled_patch16_224": ModelConfig(**SMALL),
    "deit_base_distilled_patch16_224": ModelConfig(**BASE),
    "deit_base_distilled_patch16_384": ModelConfig(**BASE, image_size=384),
    "deit3_small_patch16_224": ModelConfig(**SMALL, **DEIT3),
    "deit3_small_patch16_384": ModelConfig(**SMALL, **DEIT3, image_size=384),
    "deit3_medium_patch16_224": ModelConfig(**MEDIUM, **DEIT3),
    "deit3_base_patch16_224": ModelConfig(**BASE, **DEIT3),
    "deit3_base_patch16_384": ModelConfig(**BASE, **DEIT3, image_size=384),
    "deit3_large_patch16_224": ModelConfig(**LARGE, **DEIT3),
    "deit3_large_patch16_384": ModelConfig(**LARGE, **DEIT3, image_size=384),
    "deit3_huge_patch14_224": ModelConfig(**HUGE, **DEIT3),
    TEST_MODEL: ModelConfig(image_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3),
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return list(VARIANTS)


def count_parameters(config: ModelConfig) -> int:
    """Number of weights of a DeiT, without building it.

    Args:
        config: The model; its patch divides the image.
    """
    size, patch, dim = config.image_size, config.patch_size, config.embed_dim
    height, width = (size, size) if isinstance(size, int) else size
    heads = 2 if config.distilled else 1  # each with a token of its own
    hidden = int(dim * config.mlp_ratio)

    patches = (height // patch) * (width // patch)
    patch_embed = config.num_channels * patch**2 * dim + dim
    places = patches if config.no_embed_class else patches + heads
    tokens = (heads + places) * dim  # with the position embedding

    norms = 2 * 2 * dim
    attention = dim * 3 * dim + 3 * dim + dim * dim + dim  # qkv, proj
    mlp = dim * hidden + hidden + hidden * dim + dim  # fc1, fc2
    scales = 0 if config.init_values is None else 2 * dim
    block = norms + attention + mlp + scales

    head = dim * config.num_classes + config.num_classes
    return patch_embed + tokens + config.depth * block + 2 * dim + heads * head


def find_variant(name: str) -> ModelConfig:
    """The numbers of a model by its name.

    Raises:
        ValueError: For an unknown name, with the nearest ones.
    """
    check_name(name, VARIANTS)
    return VARIANTS[name]


def check_name(name: str, known: Collection[str]) -> None:
    """Check that a model has one of the names that are known.

    Raises:
        ValueError: If it has not; it tells the nearest ones.
    """
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3) or list(known)
        raise ValueError(
            f"Unknown model name={name!r}. Did you mean {' or '.join(map(repr, nearest))}?"
        )
