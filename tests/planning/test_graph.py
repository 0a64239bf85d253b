"""Operations and memory that are read off a graph, against what is known by hand."""

import keras
import pytest
import tensorflow as tf

import deit_tf
from deit_tf.planning.graph import matrix_flops, step_cost
from deit_tf.training.optim import AdamW

WIDTH, FLOAT = 64, 4  # of a row; bytes


def rows(count):
    return tf.TensorSpec((count, WIDTH))


def test_a_chain_in_place_takes_one_tensor_and_a_product_two():
    kernel = tf.Variable(tf.ones((WIDTH, WIDTH)))
    one = WIDTH * FLOAT

    def chain(x):
        return tf.exp(tf.exp(tf.exp(x + 1.0)))

    def products(x):
        return tf.matmul(tf.matmul(tf.matmul(x, kernel), kernel), kernel)

    assert step_cost(chain, rows).peak_bytes(8) == 8 * one
    # what is read and what is made
    assert step_cost(products, rows).peak_bytes(8) == 2 * 8 * one


def test_what_nobody_needs_costs_nothing():
    kernel = tf.Variable(tf.ones((WIDTH, WIDTH)))

    def step(x):
        tf.matmul(x, kernel)
        return tf.exp(x)

    cost = step_cost(step, rows)
    assert cost.flops(8) == 0 and cost.peak_bytes(8) == 8 * WIDTH * FLOAT


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_convolution_and_its_gradients_are_three_products(padding):
    kernel = tf.Variable(tf.ones((3, 3, 4, 8)))

    def forward(x):
        return tf.nn.conv2d(x, kernel, 1, padding)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(forward(x)))
        return tape.gradient(loss, [x, kernel])

    side = 8 if padding == "SAME" else 6
    image = tf.TensorSpec((1, 8, 8, 4))
    once = 2 * 3 * 3 * 4 * 8 * side * side
    for function, times in ((forward, 1), (step, 3)):
        graph = tf.function(function).get_concrete_function(image).graph
        assert matrix_flops(graph) == times * once


@pytest.fixture(scope="module")
def costs():
    """Of a training step, with the activations kept and computed again."""
    found = {}
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        student = deit_tf.create_model("deit_test", num_classes=5, remat=remat)
        distiller = deit_tf.Distiller(student, kind="none")
        distiller.compile(AdamW(1e-4))
        distiller.optimizer.build(distiller.learned)
        found[remat] = step_cost(
            distiller.train_step,
            lambda count: (tf.TensorSpec((count, 32, 32, 3)), tf.TensorSpec((count, 5))),
        )
    return found


def test_memory_is_a_constant_and_a_multiple_of_the_images(costs):
    peaks = [costs[False].peak_bytes(count) for count in (64, 128, 256)]
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=1e-3)


def test_computing_again_takes_less_memory_and_another_forward_pass(costs):
    kept, again = costs[False], costs[True]
    assert again.peak_bytes(64) < 0.75 * kept.peak_bytes(64)
    assert 1.1 < again.flops(64) / kept.flops(64) < 4 / 3
