"""The figures of an epoch on a disk that is full: one sentence, and what was there stays."""

import json
import resource
import signal
from contextlib import contextmanager

import pytest

from deit_tf.training.metrics import EpochFigures, RecentMean

FIGURES = {f"figure_{i}": 0.5 for i in range(20)}


@contextmanager
def files_of_at_most(size):
    """A file that grows larger is then an error, as a full disk is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [100, 1_000])  # too small for the line; for TensorBoard's alone
def test_figures_that_cannot_be_written_are_one_sentence(tmp_path, size):
    file, tensorboard = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    EpochFigures(file, tensorboard).write(1, {"loss": 1.0})
    with files_of_at_most(size), pytest.raises(OSError) as failed:
        EpochFigures(file, tensorboard).write(2, FIGURES)
    text = str(failed.value)
    assert "figures of epoch 2 could not be written" in text and str(file) in text
    assert "Free some space and run the same command again" in text

    again = EpochFigures(file, tensorboard)
    again.keep(1)
    assert [json.loads(line)["epoch"] for line in file.read_text().splitlines()] == [1]


def test_a_recent_mean_is_that_of_the_steps_since_the_last():
    losses = [4.0, 2.0, 3.0, 1.0, 0.0]
    recent = RecentMean()
    assert recent.update(2, sum(losses[:2]) / 2) == pytest.approx(3.0)
    assert recent.update(5, sum(losses) / 5) == pytest.approx(4 / 3)
