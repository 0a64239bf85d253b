"""benchmarks/serve_load.py in small: the server holds under load, and the benchmark sees faults."""

import importlib
import os
import threading
from argparse import Namespace
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from toy_models import picture, serving


@pytest.fixture
def serve_load(monkeypatch):
    """The benchmark, as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("serve_load")


def mean_colors(name, seed):
    """A classifier that is exported in a moment."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((32, 32, 3))
    means = keras.layers.GlobalAveragePooling2D()(images)  # [B, 3]
    return keras.Model(images, keras.layers.Dense(10)(means), name=name)


@pytest.fixture
def here(serve_load, monkeypatch):
    """Have the benchmark serve a small model, in this process: another one would take most of the
    time to load TensorFlow."""
    with ExitStack() as stack:

        def start(folder):
            models, *addresses = stack.enter_context(serving(folder))
            models.poll(0.1)
            process = SimpleNamespace(
                pid=os.getpid(), poll=lambda: None, terminate=models.stop, wait=lambda seconds: 0
            )
            return process, *addresses

        monkeypatch.setattr(serve_load, "start_server", start)
        monkeypatch.setattr(serve_load, "make_model", mean_colors)
        yield


def test_a_server_under_load_while_versions_come(serve_load, here):
    """One bad request in twenty, a good and two broken versions."""
    figures = serve_load.run(Namespace(model="colors", requests=140, clients=4, swap=True))
    assert figures["faults"] == [] and figures["alive"] and figures["requests"] >= 140
    assert figures["states"] == {1: "END", 2: "AVAILABLE", 3: "END", 4: "END"}
    assert set(figures["answered_by_version"]) == {"1", "2", "not told"}  # REST does not tell
    assert len(figures["by_kind"]) == 9  # two good ones, seven bad ones


def test_the_load_sees_what_is_wrong(serve_load):
    """A right answer for another picture, a refusal of a good one and an answer to a bad one are
    faults."""
    files, logits = [picture()] * serve_load.PICTURES, np.arange(240.0).reshape(24, 10)
    load = serve_load.Load(files, np.zeros((24, 32, 32, 3), "float32"), {1: logits, 2: logits + 1})
    answers = {
        "right": lambda r: (logits[list(r.pictures)], 1),
        "another picture": lambda r: (logits[list(r.pictures)] + 10, 1),
        "a version that nobody added": lambda r: (logits[list(r.pictures)] + 1, 2),
    }
    faults = {}
    held = threading.Event()
    held.set()
    for name, ask in answers.items():
        load.outcome, load.answered = serve_load.Outcome(), 0
        load.client(ask, 40, held)
        faults[name] = Counter(fault.split(":")[0] for fault in load.outcome.faults)
    assert list(faults["right"].values()) == [1, 1]  # both bad requests were answered
    assert sum(faults["another picture"].values()) == 40
    assert sum(faults["a version that nobody added"].values()) == 40

    def refuse(request):
        raise serve_load.RefusedError("INVALID_ARGUMENT: no")

    load.outcome, load.answered = serve_load.Outcome(), 0
    load.client(refuse, 40, held)
    assert len(load.outcome.faults) == 40  # good ones refused, bad ones with another error
