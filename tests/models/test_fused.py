"""Gradients by hand against TensorFlow's own, at both precisions, and what the graph rewriter makes
of a block."""

import json
import os
import platform
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from deit_tf.models import fused
from deit_tf.models.layers import Block

ROWS, WIDTH, UNITS = 40, 24, 16
ROUNDING = 2e-6  # float32 keeps 1.2e-7 per operation; sums over 40 rows of values near 1
# bfloat16 keeps 2^-9 = 0.2 % per rounding; some ten roundings lie between input and gradient.
COARSE = 0.02


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def plain_linear(x, kernel, bias):
    return tf.matmul(x, kernel) + bias


def plain_gelu(x):
    return tf.nn.gelu(x, approximate=False)


def plain_layer_norm(x, gamma, beta):
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    return (x - mean) / tf.sqrt(variance + 1e-6) * gamma + beta


def plain_attention(q, k, v):
    return tf.nn.softmax(q @ tf.linalg.matrix_transpose(k)) @ v


CASES = {
    "linear": (
        fused.linear,
        plain_linear,
        (normal(ROWS, WIDTH), normal(WIDTH, UNITS, seed=1) / 5, normal(UNITS, seed=2)),
    ),
    "gelu": (lambda x: fused.gelu(x, training=True), plain_gelu, (3 * normal(ROWS, WIDTH),)),
    "layer_norm": (
        lambda x, gamma, beta: fused.layer_norm(x, gamma, beta, 1e-6, training=True),
        plain_layer_norm,
        (2 * normal(ROWS, WIDTH) + 1, normal(WIDTH, seed=1), normal(WIDTH, seed=2)),
    ),
    "attention": (
        lambda q, k, v: fused.attention(q, k, v, training=True),
        plain_attention,
        tuple(normal(2, 3, 9, 8, seed=seed) for seed in range(3)),
    ),
}


def value_and_gradients(function, inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(*inputs)
        weights = tf.cast(normal(*outputs.shape, seed=9), outputs.dtype)
        total = tf.reduce_sum(tf.cast(outputs * weights, tf.float32))
    return [tf.cast(each, tf.float32).numpy() for each in (outputs, *tape.gradient(total, inputs))]


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_tensorflows(name, graph):
    function, plain, inputs = CASES[name]
    function = tf.function(function) if graph else function
    for ours, theirs in zip(
        value_and_gradients(function, inputs), value_and_gradients(plain, inputs), strict=True
    ):
        assert np.abs(ours - theirs).max() < ROUNDING * max(1, np.abs(theirs).max()), name


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_stays_near_float32(name):
    function, plain, inputs = CASES[name]
    coarse = [tf.cast(each, tf.bfloat16) for each in inputs]
    exact = [tf.cast(each, tf.float32) for each in coarse]  # the same numbers
    for ours, theirs in zip(
        value_and_gradients(function, coarse), value_and_gradients(plain, exact), strict=True
    ):
        assert np.linalg.norm(ours - theirs) < COARSE * np.linalg.norm(theirs), name


def test_gelu_outside_of_training_is_the_exact_one():
    x = tf.linspace(-8.0, 8.0, 1001)
    np.testing.assert_allclose(
        fused.gelu(x, training=False), plain_gelu(x), atol=1e-6
    )  # |x| 2^-24 from 1 + erf
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = fused.gelu(x, training=False)
    assert np.isfinite(tape.gradient(y, x)).all()


def kernels_of(block, tokens):
    """The kernels that TensorFlow runs a block with, each with what is fused into it, and what
    they give."""
    signature = [tf.TensorSpec((None, *tokens.shape[1:]))]
    context.context().enable_graph_collection()
    try:
        run = tf.function(lambda x: block(x, training=False), signature, autograph=False)
        result = run(tokens)
        graphs = context.context().export_run_metadata().function_graphs
    finally:
        context.context().disable_graph_collection()
    nodes = [node for graph in graphs for node in graph.post_optimization_graph.node]
    named = [[node.op, *map(bytes.decode, node.attr["fused_ops"].list.s)] for node in nodes]
    return named, result


def kernels_of_a_block():
    """The kernels, after a check of what they compute."""
    block = Block(num_heads=2, mlp_ratio=4.0, drop_path_rate=0.0, layer_norm_eps=1e-6)
    tokens = normal(2, 9, WIDTH)
    expected = block(tokens)
    kernels, result = kernels_of(block, tokens)
    np.testing.assert_allclose(result, expected, atol=1e-5)  # the same products, fused or not
    return kernels


def test_products_take_their_bias_along():
    """On every CPU, whatever else its kernels can do."""
    fused_with_bias = [k for k in kernels_of_a_block() if k[:2] == ["_FusedMatMul", "BiasAdd"]]
    assert len(fused_with_bias) == 4  # qkv, proj, fc1, fc2


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN for x86-64")
def test_onednn_takes_gelu_along():
    """TensorFlow chooses oneDNN by itself only on CPUs of a kind, and then once per process."""
    answer = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    kernels = json.loads(answer.stdout.splitlines()[-1])
    assert kernels.count(["_FusedMatMul", "BiasAdd"]) == 3  # qkv, proj, fc2
    assert kernels.count(["_FusedMatMul", "BiasAdd", "GeluExact"]) == 1  # fc1
    assert ["Erf"] not in kernels


def test_a_quantized_layer_keeps_its_own_arithmetic():
    block = Block(num_heads=2, mlp_ratio=4.0, drop_path_rate=0.0, layer_norm_eps=1e-6)
    tokens = normal(2, 9, WIDTH)
    before = keras.ops.convert_to_numpy(block(tokens))
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        layer.quantize("int8")
    difference = np.abs(keras.ops.convert_to_numpy(block(tokens)) - before).max()
    assert 0 < difference < 0.05 * np.abs(before).max()  # int8: 1 / 127 per weight and activation


if __name__ == "__main__":
    json.dump(kernels_of_a_block(), sys.stdout)
