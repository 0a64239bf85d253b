"""A range test of the learning rate: the loss falls, then blows up; the suggestion lies between."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_tf.cli import main
from deit_tf.config import (
    AugmentConfig,
    DataConfig,
    DistillConfig,
    OptimConfig,
    StudentConfig,
    TrainConfig,
)
from deit_tf.planning.lr_range import LrRange, find_lr
from deit_tf.runs import write_config

CONFIG = TrainConfig(
    model=StudentConfig("deit_test", image_size=16, patch_size=8, depth=1, drop_path_rate=0.0),
    data=DataConfig("digits", batch_size=32),
    augment=AugmentConfig("none"),
    distill=DistillConfig(kind="none"),
)
RANGE = {"low": 4e-3, "high": 4e2, "steps": 60}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("range")
    return find_lr(CONFIG, str(folder / "lr.png"), **RANGE), folder


def test_the_loss_falls_and_then_blows_up(seen):
    found, _ = seen
    assert found.diverged and len(found.lr) < RANGE["steps"]
    start, least = found.smoothed[0], found.smoothed[found.lowest]
    assert start == pytest.approx(np.log(10), rel=0.2)  # ten classes, none known
    assert least < 0.9 * start and found.smoothed[-1] > 4 * least


def test_the_suggestion_lies_on_the_descent(seen):
    found, _ = seen
    assert RANGE["low"] < found.steepest < found.lr[found.lowest] < RANGE["high"]
    assert found.tenth == found.lr[found.lowest] / 10


def test_the_optimizer_gets_the_share_of_the_batch(seen):
    found, _ = seen
    np.testing.assert_allclose(found.learning_rate, found.lr * 32 / 512, rtol=1e-6)


def test_a_plot_and_its_numbers_and_nothing_else(seen):
    found, folder = seen
    assert {file.name for file in folder.iterdir()} == {"lr.png", "lr.jsonl"}
    assert Image.open(folder / "lr.png").size[0] > 700
    lines = [json.loads(line) for line in (folder / "lr.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(found.lr) + 1))
    np.testing.assert_allclose([line["lr"] for line in lines], found.lr)
    rising = np.array([line["lr"] for line in lines])
    np.testing.assert_allclose(rising[1:] / rising[:-1], 1e5 ** (1 / 59), rtol=1e-9)


def curve(smoothed, steps=None):
    lr = np.geomspace(1e-3, 10, len(smoothed))
    loss = np.array(smoothed, float)
    return LrRange(lr, lr, loss, loss, steps or len(smoothed))


def test_the_steepest_descent_of_a_known_curve():
    found = curve([2.0, 2.0, 1.9, 1.2, 1.1, 1.0, 3.0, 9.0])
    assert found.lowest == 5 and found.steepest == found.lr[2]  # (1.2 - 2.0) / 2 steps
    assert curve([1.0, 1.1, 1.2, 2.0, 3.0]).steepest is None
    endless = curve([2.0, 1.9, 1.5, 1.4, np.nan])
    assert endless.lowest == 3 and endless.steepest == endless.lr[1]


def test_the_command_with_rates_as_they_are(seen, tmp_path, monkeypatch, capsys):
    """The optimizer gets the same rates as above: the same training again, which writes no run."""
    monkeypatch.chdir(tmp_path)
    optim = OptimConfig(scale_lr=False)
    write_config(replace(CONFIG, optim=optim, out="runs/student"), tmp_path / "config.yaml")
    ends = ["--from", str(RANGE["low"] / 16), "--to", str(RANGE["high"] / 16)]
    main(["find-lr", "--config", "config.yaml", *ends, "--steps", str(RANGE["steps"])])

    found, _ = seen
    lines = [json.loads(line) for line in Path("find_lr.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == found.loss.tolist()
    assert [line["lr"] for line in lines] == [line["learning_rate"] for line in lines]
    printed = capsys.readouterr().out.splitlines()[-3:]
    assert printed == [
        f"Steepest descent of the loss: --optim.lr {found.steepest / 16:.2g}",
        f"A tenth of where it is least: --optim.lr {found.tenth / 16:.2g}",
        "Both are counted as `optim.lr` is, for the batch of 32 images as it is. Wrote find_lr.png",
    ]
    written = {"find_lr.png", "find_lr.jsonl", "config.yaml"}
    assert {file.name for file in tmp_path.iterdir()} == written


def test_the_command_says_what_lr_is_counted_for(monkeypatch, capsys):
    monkeypatch.setattr("deit_tf.planning.lr_range.find_lr", lambda *_, **__: curve([2, 1.5, 1]))
    main(["find-lr", "--data.batch_size", "512"])
    assert "for a batch of 512; these 512 images get 1 times as much" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1.0, "high": 1.0}, "rises from `--from`, above 0, to `--to`"),
        ({"low": 0.0}, "rises from `--from`"),
        ({"high": float("inf")}, "rises from `--from`"),
        ({"steps": 9}, "`steps` is 10 at least"),
        ({"file": "lr.jpg"}, "`file` ends in .png"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(tmp_path, options, message):
    file = str(tmp_path / options.pop("file", "lr.png"))
    with pytest.raises(ValueError, match=message):
        find_lr(CONFIG, file, **options)
    assert not list(tmp_path.iterdir())
