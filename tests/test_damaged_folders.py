"""Every file of a run folder and of a label folder, damaged: it is read, or refused by its name.

Bits and bytes are flipped and files are cut; entries are replaced by everything foreign. No reader
hangs, and none allocates more than a bound.
"""

import json
import time
import tracemalloc

import numpy as np
import pytest

from deit_tf.config import TrainConfig
from deit_tf.distillation.label_files import LAYOUT_FACTS, read_manifest
from deit_tf.evaluation.report import compare
from deit_tf.files import read_class_names
from deit_tf.runs import RunFolder, read_config, write_config

MUTATIONS = {"config.yaml": 20}  # whose parser takes a while; of each other file:
MOST_MUTATIONS = 200
SECONDS = 60.0  # of one read; a hang, on a machine that does other things too
BYTES = 32e6  # that one read may hold at a time; the files have a few thousand
NUMBERS = {"parameters": 5, "training_seconds": 2.5, "evaluation_images": 9, "training_images": 9}
FOREIGN = [None, True, -1, 0, 1.5, 10**30, float("nan"), "", "x", "a\nb", [], [None], {}, {"x": []}]
MANIFEST = dict.fromkeys(LAYOUT_FACTS, 8) | {
    "data.classes": ["a", "b"],
    "steps_per_file": 3,
    "software": {"keras": "3"},
}


@pytest.fixture
def folder(tmp_path):
    """A finished run and labels, with every file that is read by hand."""
    run = RunFolder(tmp_path)
    evaluation = {"loss": 1.0, "accuracy": 0.5}
    summary = {"kind": "hard", "model": "deit_test", "evaluation": evaluation, **NUMBERS}
    run.summary.write_text(json.dumps(summary))
    run.facts.write_text(json.dumps({"split": "threshold", "steps_per_epoch": 3, "labels": ["a"]}))
    run.metrics.write_text("".join(f'{{"epoch": {i}, "loss": {1 / i}}}\n' for i in (1, 2, 3)))
    run.class_names.write_text("ant\nbee\n[/x]\n", encoding="utf-8")
    write_config(TrainConfig(epochs=3), run.config)
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    return run


READERS = {
    "config.yaml": lambda run: read_config(run.config),
    "facts.json": lambda run: run.split_rule,
    "summary.json": lambda run: compare([str(run.path)]),
    "metrics.jsonl": lambda run: run.read_metrics(),
    "labels.txt": lambda run: read_class_names(run.class_names),
    "manifest.json": lambda run: read_manifest(run.path),
}


def damaged(content, random):
    """Content that is cut, or has a bit or a byte changed."""
    content, kind = bytearray(content), random.integers(3)
    if kind == 0:
        return bytes(content[: random.integers(len(content))])
    content[random.integers(len(content))] ^= (
        1 << random.integers(8) if kind == 1 else random.integers(1, 256)
    )
    return bytes(content)


def is_read(read, run, name):
    """Whether a damaged file is read; otherwise it is named, in one sentence, and soon."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        read(run)
        return True
    except ValueError as error:
        assert name in str(error) and len(str(error)) < 1000, error
        return False
    finally:
        assert time.perf_counter() - started < SECONDS
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < BYTES


@pytest.mark.parametrize("name", READERS)
def test_any_damage_is_read_or_named(folder, name):
    file, random = folder.path / name, np.random.default_rng(0)
    whole, refused = file.read_bytes(), 0
    for _ in range(MUTATIONS.get(name, MOST_MUTATIONS)):
        file.write_bytes(damaged(whole, random))
        refused += not is_read(READERS[name], folder, name)
    assert refused > 0  # and what is a digit for another is read


@pytest.mark.parametrize("name", ["facts.json", "summary.json", "manifest.json"])
def test_any_entry_of_another_kind_is_read_or_named(folder, name):
    file = folder.path / name
    content, refused = json.loads(file.read_text()), 0
    mutated = [{key: v for key, v in content.items() if key != left_out} for left_out in content]
    mutated += [{**content, key: foreign} for key in content for foreign in FOREIGN]
    for each in [*mutated, *FOREIGN]:
        file.write_text(json.dumps(each))
        refused += not is_read(READERS[name], folder, name)
    assert refused > len(FOREIGN) / 2
