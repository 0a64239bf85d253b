"""Activations that are computed again: the same gradients to the bit, and the flag goes along."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import deit_tf
from deit_tf.models.layers import Block, numbered_draw
from deit_tf.models.parts import blocks

RATE, IMAGES = 0.4, 16  # so that some of the masks drop something
KEPT = dict(drop_path_rate=RATE, depth=2, embed_dim=24, num_classes=5)


@pytest.fixture(scope="module")
def pair():
    """A model that keeps its activations, and the same one that computes them again."""
    keeps = deit_tf.create_model("deit_test", **KEPT)
    remats = keras.models.clone_model(keeps, clone_function=computing_again)
    remats.set_weights(keeps.get_weights())
    return keeps, remats


def computing_again(layer):
    remat = {"remat": True} if isinstance(layer, Block) else {}
    return type(layer).from_config(layer.get_config() | remat)


def gradients(model, draw=None, jit_compile=None):
    """Of a sum of logits; masks numbered by `draw`, or by Keras's own state, set to the same."""
    random = np.random.default_rng(0)
    images = random.normal(size=(IMAGES, *model.input_shape[1:])).astype("float32")
    weights = random.normal(size=(IMAGES, model.output_shape[-1])).astype("float32")
    for number, block in enumerate(blocks(model)):
        for drop in (block.drop_path1, block.drop_path2):
            if drop.seed_generator:
                drop.seed_generator.state.assign([number, 0])

    @tf.function(autograph=False, jit_compile=jit_compile)
    def of_batch():
        with tf.GradientTape() as tape:
            if draw is None:
                logits = model(images, training=True)
            else:
                with numbered_draw(tf.constant(draw, tf.int64)):
                    logits = model(images, training=True)
            loss = tf.reduce_sum(logits * weights)
        # outside of `numbered_draw`, as in the trainer: here the blocks are computed again
        return tape.gradient(loss, model.trainable_variables)

    return [gradient.numpy() for gradient in of_batch()]


@pytest.mark.parametrize("draw", [3, None], ids=["numbered", "of Keras"])
def test_gradients_are_the_same_bits_under_the_same_masks(pair, draw):
    kept, again = (gradients(model, draw) for model in pair)
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_masks_would_be_seen(pair):
    one, other = (gradients(pair[1], draw) for draw in (3, 4))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_xla_computes_again_too(pair):
    # XLA fuses and sums in another order: float32 rounds at 6e-8, over sums of some hundred
    kept, again = (gradients(model, 3, jit_compile=True) for model in pair)
    largest = max(np.abs(gradient).max() for gradient in kept)
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * largest)


def test_products_run_twice_in_training_and_once_in_inference(pair):
    def products(model, training):
        def run(images):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(images, training=training))
            return tape.gradient(loss, model.trainable_variables) if training else loss

        image = tf.TensorSpec((1, *model.input_shape[1:]))
        graph = tf.function(run, autograph=False).get_concrete_function(image).graph
        return sum("MatMul" in operation.type for operation in graph.get_operations())

    kept, again = (products(model, training=True) for model in pair)
    # qkv, scores, values, proj, fc1, fc2; the gradients of a row of ones are products of their own
    assert again - kept == 6 * KEPT["depth"]
    assert len({products(model, training=False) for model in pair}) == 1


def test_the_flag_goes_along(pair, tmp_path):
    model = pair[1]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    masked = deit_tf.create_masked_model("deit_test", remat=True)
    for each in (loaded, keras.models.clone_model(model), masked):
        assert [block.remat for block in blocks(each)] == [True, True]


def test_an_older_file_keeps_its_activations():
    config = Block(3, 4.0, 0.0, 1e-6).get_config()
    del config["remat"]
    assert Block.from_config(config).remat is False
