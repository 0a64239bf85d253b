"""Mimetic initialization: attention that begins like that of trained models (Trockman and Kolter
2023).

For training from scratch on small data, or for few epochs: https://arxiv.org/abs/2305.09828,
    sections 3 and 4.
"""

import keras
import numpy as np

from deit_tf.models.parts import blocks, image_size

# Z is a random matrix, I the identity: queries times keys of a head, and values times projection.
ATTENTION = (0.7, 0.7)  # 0.7 Z + 0.7 I: a token looks at tokens like itself
VALUES = (0.4, -0.4)  # 0.4 Z - 0.4 I
PERIOD = 10_000  # of the slowest sinusoid, in patches, up to a factor of 2 pi


def mimetic_init(model: keras.Model, seed: int = 0) -> None:
    """Draw the attention of a fresh DeiT anew, and set its position embeddings to sinusoids; the
    rest stays.

    Args:
        model: A DeiT, in place.
        seed: Seed of the draws.
    Raises:
        ValueError: If the width is no multiple of 4, which sinusoids of two axes need.
    """
    random = np.random.default_rng(seed)
    for block in blocks(model):
        queries, keys = _queries_and_keys(random, block.attn.proj.units, block.attn.num_heads)
        values, projection = _factors(random, block.attn.proj.units, *VALUES)
        block.attn.qkv.kernel.assign(np.concatenate([queries, keys, values], axis=1))
        block.attn.proj.kernel.assign(projection.T)
    patch = model.get_layer("patch_embed").patch_size
    height, width = image_size(model)
    position = model.get_layer("tokens").pos_embed  # [1, tokens + N, D]
    waves = sinusoids(height // patch, width // patch, position.shape[-1])
    tokens = position.shape[1] - len(waves)
    position.assign(np.concatenate([position[0, :tokens], waves])[None])


def sinusoids(rows: int, columns: int, width: int) -> np.ndarray:
    """Sines and cosines of column and row, [rows * columns, width], a quarter of the width each.

    Raises:
        ValueError: If `width` is no multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"`embed_dim` must be a multiple of 4 for mimetic initialization. Received: {width}"
        )
    rates = PERIOD ** -(np.arange(width // 4) / (width // 4))
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [np.outer(axis.ravel(), rates) for axis in (x, y)]  # [N, D / 4] each
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)


def _queries_and_keys(
    random: np.random.Generator, width: int, heads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kernels [D, D] of queries and keys, head after head; of each product what D / heads
    dimensions can hold.
    """
    pairs = [_factors(random, width, *ATTENTION) for _ in range(heads)]
    queries, keys = zip(
        *((left[:, : width // heads], right[:, : width // heads]) for left, right in pairs),
        strict=True,
    )
    return np.concatenate(queries, axis=1), np.concatenate(keys, axis=1)


def _factors(
    random: np.random.Generator, width: int, scale: float, diagonal: float
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices A and B, [D, D], with A B^T = scale Z + diagonal I, the largest singular values
    first.
    """
    noise = random.normal(size=(width, width)) / np.sqrt(width)
    left, values, right = np.linalg.svd(scale * noise + diagonal * np.eye(width))
    return left * np.sqrt(values), right.T * np.sqrt(values)
