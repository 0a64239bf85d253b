"""A run that stopped early, and is extended."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deit_tf.cli import main
from deit_tf.config import CheckpointConfig
from deit_tf.evaluation.report import _best_rows, _epochs, compare
from deit_tf.runs import RunFolder, load_model, read_config
from deit_tf.train import train
from deit_tf.training.optim import build_schedule

DEMO = read_config(Path(__file__).parent.parent / "configs" / "demo_digits.yaml")
# One narrow block, and a learning rate by which nothing gets better after the first epoch.
STANDING = replace(
    DEMO,
    model=replace(DEMO.model, depth=1, embed_dim=24),
    data=replace(DEMO.data, batch_size=256),
    optim=replace(DEMO.optim, lr=1e-12, min_lr=1e-13, warmup_lr=0.0, warmup_epochs=0),
    distill=replace(DEMO.distill, kind="none"),
    epochs=7,
    log_steps=2,
    checkpoint=CheckpointConfig(patience=2, keep_best=2),
)
STEPS = 5  # of an epoch: 1,437 images


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "run"
    return RunFolder(train(replace(STANDING, out=str(out))))


def test_the_summary_tells_that_it_stopped_early(stopped):
    summary = stopped.read_summary()
    assert [line["epoch"] for line in stopped.read_metrics()] == [1, 2, 3]
    assert (summary["epochs"], summary["stopped_early"], summary["best_epoch"]) == (3, True, 1)
    assert summary["best"] == {"accuracy": stopped.read_metrics()[0]["val_accuracy"]}


def test_the_models_of_several_best_epochs_stay(stopped):
    names = [file.name for file in stopped.models_of_epochs()]
    assert names == ["student_epoch0001.keras", "student_epoch0002.keras"]
    first, best = (
        load_model(stopped.model("student", version)).get_weights()
        for version in ("_epoch0001", "_best")
    )
    for mine, other in zip(first, best, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_the_first_batch_is_drawn(stopped):
    events = EventAccumulator(str(stopped.tensorboard / "train"))
    events.Reload()
    assert len(events.Tensors("first_batch")) == 1
    width, height = Image.open(stopped.first_batch).size
    assert width == 6 * (96 + 16) and height > 4 * (96 + 8 + 48)


def test_compare_tells_the_epochs_of_runs_that_stopped_early(stopped):
    table = compare([str(stopped.path)])
    column = [column.header for column in table.columns].index("epochs")
    assert [*table.columns[column].cells] == ["3"]


def test_the_report_tells_that_it_stopped_early(stopped):
    summary = stopped.read_summary()
    assert _epochs(summary, 7) == "3 of 7 epochs: nothing better came, and it stopped early"
    figure = summary["best"]["accuracy"]
    assert _best_rows(summary) == [("Best epoch", f"1, by accuracy held out: {figure:.4f}")]
    older = {"epochs": 7}  # of before there was a choice
    assert (_epochs(older, 7), _best_rows(older)) == ("7 epochs", [])
    assert _epochs({"epochs": 9, "extended_from": [3]}, 9) == "9 epochs, extended from 3"


def test_it_would_stop_at_once_where_it_is_extended(stopped):
    with pytest.raises(ValueError, match=r"must exceed 2, or be null: .* after epoch 1, .*: 2"):
        train(replace(STANDING, out=str(stopped.path)), extend=True)
    assert stopped.summary.exists()


def test_an_end_that_is_no_later_is_refused(stopped):
    config = replace(STANDING, out=str(stopped.path), checkpoint=CheckpointConfig(), epochs=6)
    with pytest.raises(ValueError, match="the 3 that .* fewer than the 7 it .*: epochs=6"):
        train(config, extend=True)


def test_without_extend_the_refusal_names_it(stopped, tmp_path):
    more = replace(STANDING, out=str(stopped.path), epochs=9)
    with pytest.raises(FileExistsError, match="--extend with more --epochs"):
        train(more)
    with pytest.raises(FileNotFoundError, match="has no checkpoints to go on from"):
        train(replace(more, out=str(tmp_path / "new")), extend=True)
    assert not (tmp_path / "new").exists()


def test_an_extended_run_goes_on_by_the_schedule_of_all_epochs(stopped, caplog, capsys):
    """The last test of the file, as it changes the run."""
    before = stopped.read_summary()
    arguments = ["train", "--config", str(stopped.config), "--checkpoint.patience", "null"]
    with caplog.at_level("INFO"):
        main([*arguments, "--epochs", "9", "--extend"])
    then, now = (build_schedule(STANDING.optim, 256, STEPS, epochs) for epochs in (7, 9))
    assert (
        "from step 15 on that of a run of 9 epochs, "
        f"{float(now(15)):.3g} there instead of {float(then(15)):.3g}"
    ) in caplog.text

    summary, epochs = stopped.read_summary(), stopped.read_metrics()
    assert [line["epoch"] for line in epochs] == [*range(1, 10)]
    for epoch in (4, 9):
        rate = epochs[epoch - 1]["learning_rate"]
        assert rate == pytest.approx(float(now(epoch * STEPS)), rel=1e-6)
    assert (summary["epochs"], summary["stopped_early"]) == (9, False)
    assert summary["extended_from"] == [3]
    assert summary["training_seconds"] > before["training_seconds"]
    assert json.loads(stopped.facts.read_text())["extended"][0]["epochs"] == 3
