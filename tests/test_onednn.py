"""TensorFlow's oneDNN kernels are asked for in time, and never against the user's word."""

import logging
import os
import sys

import pytest

import deit_tf
from deit_tf import onednn
from deit_tf.files import write_json
from deit_tf.runs import RunFolder
from deit_tf.train import _warn_of_kernels


@pytest.fixture
def fresh(monkeypatch):
    """A process on an x86-64 CPU that has not loaded TensorFlow, nor been given a setting."""
    monkeypatch.setattr(onednn.platform, "machine", lambda: "x86_64")
    monkeypatch.delitem(sys.modules, "tensorflow")
    monkeypatch.delenv(onednn.SETTING, raising=False)
    return monkeypatch


def test_the_kernels_are_asked_for(fresh):
    onednn.prefer()
    assert os.environ[onednn.SETTING] == "1"


def test_the_setting_of_the_user_stays(fresh):
    fresh.setenv(onednn.SETTING, "0")
    onednn.prefer()
    assert os.environ[onednn.SETTING] == "0"


@pytest.mark.parametrize("reason", ["too late", "another CPU"])
def test_nothing_is_asked_for_in_vain(fresh, reason):
    if reason == "too late":
        fresh.setitem(sys.modules, "tensorflow", object())
    else:
        fresh.setattr(onednn.platform, "machine", lambda: "aarch64")
    onednn.prefer()
    assert onednn.SETTING not in os.environ


@pytest.mark.skipif(onednn.platform.machine() not in onednn.X86_64, reason="oneDNN for x86-64")
def test_tensorflow_runs_them_in_these_tests():
    """The package is imported before TensorFlow here, so what `make test` shows holds with them."""
    assert onednn.is_on() is (os.environ[onednn.SETTING] == "1")


def test_training_says_so_where_tensorflow_was_loaded_without_them(monkeypatch, caplog):
    monkeypatch.setattr(onednn.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv(onednn.SETTING, raising=False)
    monkeypatch.setattr(onednn, "is_on", lambda: False)
    student = deit_tf.create_model("deit_test", num_classes=2, image_size=16, patch_size=8)
    deit_tf.Distiller(student, kind="none").compile()
    assert "loaded before deit_tf, without its oneDNN kernels" in caplog.text


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        (True, False, "kernels on and goes on with them off"),
        (False, True, "kernels off and goes on with them on"),
        (True, True, ""),
        (None, True, ""),  # a run of before: it did not say
    ],
)
def test_a_run_that_goes_on_with_other_kernels_says_so(
    caplog, monkeypatch, tmp_path, then, now, words
):
    monkeypatch.setenv(onednn.SETTING, str(int(now)))
    folder = RunFolder(tmp_path)
    write_json({} if then is None else {"onednn": then}, folder.facts)
    with caplog.at_level(logging.WARNING):
        _warn_of_kernels(folder, {"onednn": now})
    assert words in caplog.text
    assert bool(caplog.text) == bool(words)
