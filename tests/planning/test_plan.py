"""A plan says what a run then takes, and writes nothing."""

import json
from pathlib import Path

import pytest

from deit_tf.cli import main
from deit_tf.config import AugmentConfig, DataConfig, DistillConfig, StudentConfig, TrainConfig
from deit_tf.planning.plan import plan

CONFIG = TrainConfig(
    model=StudentConfig("deit_test", depth=1, embed_dim=24),
    data=DataConfig(batch_size=64),
    augment=AugmentConfig("light"),
    distill=DistillConfig(kind="none"),
    epochs=3,
    micro_batches=2,
)


@pytest.fixture(scope="module")
def found():
    """Of ImageNet's numbers; nothing of it is here."""
    return plan(CONFIG, images=6400, classes=7, throughput=100.0, price=3.0, memory=1e9)


def test_steps_parameters_and_operations(found):
    assert found["classes"] == 7 and found["steps"] == 3 * 100
    flops = found["flops_per_image"]
    assert found["flops_of_the_run"] == pytest.approx(flops * 3 * 6400)
    assert found["weights_bytes"] == 4 * found["parameters"]
    # two moments of each weight, besides the learning rate and the count of steps
    assert found["optimizer_bytes"] == pytest.approx(2 * found["weights_bytes"], rel=1e-3)


def test_the_sum_of_the_memory_and_what_fits(found):
    kept = ("weights", "optimizer", "average")
    names = (*kept, "teacher", "input", "activations", "checkpoint", "process")
    assert found["memory_bytes"] == sum(found[f"{name}_bytes"] for name in names)
    assert found["checkpoint_bytes"] == sum(found[f"{name}_bytes"] for name in kept)
    assert found["micro_batches_that_fit"] == 1


def test_hours_and_cost_are_those_of_the_throughput(found):
    assert found["hours"] == pytest.approx(3 * 6400 / 100 / 3600)
    assert found["cost"] == pytest.approx(3 * found["hours"])
    assert found["input_must_give"] == 100 and found["input_images_per_second"] is None


def test_less_memory_takes_more_micro_batches(found):
    tight = found["memory_bytes"] - found["activations_bytes"] / 4
    less = plan(CONFIG, images=6400, classes=7, memory=tight)
    assert less["micro_batches_that_fit"] > 2


def test_the_command_measures_on_the_data_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = ["--model.name", "deit_test", "--model.depth", "1", "--distill.kind", "none"]
    main(["plan", *model, "--seconds", "0.1", "--steps", "1", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["images"] == 1437 and found["classes"] == 10
    alone = (found["step_images_per_second"], found["input_images_per_second"])
    assert 0 < found["images_per_second"] < min(alone)
    assert list(Path(tmp_path).iterdir()) == []


def test_the_command_says_where_nothing_fits(capsys):
    model = ["--model.name", "deit_test", "--model.depth", "1", "--distill.kind", "none"]
    light = ["--augment.recipe", "none", "--data.batch_size", "2"]
    main(["plan", *model, *light, "--images", "64", "--classes", "2", "--memory", "0.01GB"])
    assert "No number of micro-batches fits 0.01 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"price": -1.0}, "`price` must be positive. Received: -1.0"),
        ({"memory": float("nan")}, "`memory` must be positive. Received: nan"),
        ({"classes": 0}, "`classes` must be positive. Received: 0"),
        ({"seconds": -1.0}, "`seconds` must be 0 or more. Received: -1.0"),
        ({"seconds": float("inf")}, "`seconds` must be 0 or more. Received: inf"),
        ({"steps": -1}, "`steps` must be 0 or more. Received: -1"),
        ({"devices": 3}, "must be a multiple of 3 replicas times 2"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan(CONFIG, images=6400, **options)


def test_a_batch_beyond_the_images_is_refused():
    with pytest.raises(ValueError, match="lies between 1 and the 32 images"):
        plan(CONFIG, images=32)
