"""What the benchmarks count and compute; what they measure is not tested."""

import sys
from pathlib import Path

import pytest
import tensorflow as tf

from deit_tf import build_deit
from deit_tf.config import ModelConfig
from deit_tf.models.variants import VARIANTS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import distill_step
import machine
import peer_worker
import peers

TINY = ModelConfig(embed_dim=192, num_heads=3)
PRODUCTS = {"MatMul", "BatchMatMulV2", "Conv2D"}


def operations(function, *inputs):
    """FLOPs of the matrix products of a traced function, from the shapes in its graph."""
    total = 0
    for node in (
        tf.function(function, autograph=False).get_concrete_function(*inputs).graph.get_operations()
    ):
        if node.type not in PRODUCTS:
            continue
        left, right = (node.inputs[i].shape.as_list() for i in (0, 1))
        if node.type == "Conv2D":
            shared = right[0] * right[1] * right[2]
        elif node.type == "MatMul":
            shared = left[0 if node.get_attr("transpose_a") else 1]
        else:
            shared = left[-2 if node.get_attr("adj_x") else -1]
        total += 2 * node.outputs[0].shape.num_elements() * shared
    return total


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(
            image_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10
        ),
        ModelConfig(
            image_size=(48, 32),
            patch_size=16,
            embed_dim=32,
            depth=1,
            num_heads=2,
            num_classes=7,
            distilled=False,
        ),
    ],
)
def test_counted_operations_are_those_of_the_graph(config):
    model = build_deit(config)
    image = tf.zeros((1, *model.input_shape[1:]))
    assert machine.forward_flops(config) == operations(lambda x: model(x, training=False), image)


def test_the_backward_pass_costs_two_products_per_product():
    assert machine.train_flops(TINY) == 3 * machine.forward_flops(TINY) - 2 * 196 * 768 * 192


def test_deit_tiny_needs_as_many_operations_as_timm_counts():
    # timm's results/benchmark tables: 1.27 GMACs for deit_tiny_distilled_patch16_224, two
    # operations each.
    assert machine.forward_flops(TINY) / 2e9 == pytest.approx(1.27, abs=0.01)


def test_the_benchmarks_measure_the_model_whose_operations_they_count():
    assert peers.MODEL == VARIANTS[peer_worker.NAME] == VARIANTS[distill_step.NAME]
    sizes = (
        peers.MODEL.embed_dim,
        peers.MODEL.depth,
        peers.MODEL.num_heads,
        peers.MODEL.image_size,
    )
    assert sizes == (peer_worker.WIDTH, peer_worker.DEPTH, peer_worker.HEADS, peer_worker.SIDE)


def test_a_contender_that_cannot_run_says_why():
    options = peers.parser("", steps=1, batches=[1]).parse_args(["--threads", "1"])
    options.python = {"timm": sys.executable}
    worker = peers.Worker(peers.Contender("timm", "float32"), "inference", 1, options)
    worker.close()
    assert "No module named" in worker.error


def test_every_contender_of_a_table_has_a_name_of_its_own():
    for task in peers.TASKS:
        for precision in ("float32", "bfloat16"):
            names = [contender.name for contender in peers.contenders(task, precision)]
            assert len(names) == len(set(names)) and peers.OURS in names


def test_the_ratio_is_of_the_whole_to_its_parts():
    seconds = {
        distill_step.STUDENT: [2.0, 1.0],
        distill_step.TEACHER: [3.0, 4.0],
        distill_step.WHOLE: [6.0, 5.0],
    }
    assert distill_step.ratio(seconds) == 5 / 4
