"""Mimetic initialization: the products that the paper asks for, near tokens first, the same from
the same seed."""

import keras
import numpy as np
import pytest

import deit_tf
from deit_tf.models.mimetic import mimetic_init, sinusoids


def build(seed=0, **overrides):
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model(
        "deit_test", **{"num_classes": 10, "image_size": 32, "patch_size": 4, **overrides}
    )
    mimetic_init(model, seed)
    return model


def test_values_times_projection():
    attention = build(embed_dim=96).get_layer("blocks.1").attn
    product = attention.qkv.kernel.numpy()[:, 192:] @ attention.proj.kernel.numpy()
    # 0.4 Z - 0.4 I: 96 entries on the diagonal, of deviation 0.4 / sqrt(96) = 0.04
    assert np.diag(product).mean() == pytest.approx(-0.4, abs=3 * 0.04 / np.sqrt(96))
    assert (product + 0.4 * np.eye(96)).std() == pytest.approx(0.4 / np.sqrt(96), rel=0.03)


def test_queries_times_keys_are_the_best_of_their_rank():
    attention = build(embed_dim=96).get_layer("blocks.0").attn
    kernel, width = attention.qkv.kernel.numpy(), 96 // attention.num_heads
    for head in range(attention.num_heads):
        columns = slice(head * width, (head + 1) * width)
        product = kernel[:, :96][:, columns] @ kernel[:, 96:192][:, columns].T
        # the largest third of the singular values of 0.7 Z + 0.7 I keeps more than a third of its
        # trace of 67
        assert 67 / 3 < np.trace(product) < 67
        assert np.linalg.matrix_rank(product) == width


def test_tokens_look_at_their_neighbors():
    """Of noise, where the pictures say nothing, before any training."""
    fresh = deit_tf.create_model(
        "deit_test", num_classes=10, image_size=32, patch_size=4, embed_dim=96
    )
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")

    def distance(model):
        """Mean distance in patches, weighted by the attention of the first block."""
        attention = deit_tf.attention_maps(model).predict(images, verbose=0)["attentions"][
            :, 0, :, 2:, 2:
        ]
        cells = np.stack(np.divmod(np.arange(64), 8), axis=-1)
        apart = np.linalg.norm(cells[:, None] - cells[None], axis=-1)  # [N, N]
        return (attention * apart).sum() / attention.sum()

    assert distance(build(embed_dim=96)) < 0.7 * distance(fresh)


def test_same_seed_same_weights():
    first, second, third = build(), build(), build(seed=1)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [model.get_layer("blocks.0").attn.qkv.kernel.numpy() for model in (first, third)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_sinusoids_of_a_grid():
    waves = sinusoids(2, 3, 8)  # [6, 8]: two rates
    assert waves.shape == (6, 8)
    np.testing.assert_allclose(waves[5, [0, 2, 4, 6]], [np.sin(2), np.cos(2), np.sin(1), np.cos(1)])
    np.testing.assert_allclose(waves[5, 1], np.sin(2 / 100))
    with pytest.raises(ValueError, match="multiple of 4"):
        sinusoids(2, 3, 6)
