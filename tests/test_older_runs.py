"""A run folder and teacher labels of an earlier version load, and the run goes on.

They are of digits, a DeiT of one block, stopped after 50 of 88 steps (configs/demo_digits.yaml with
model.name deit_test, model.depth 1, model.embed_dim 24, model.patch_size 8, epochs 2).
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deit_tf.data import open_sources
from deit_tf.distillation.teacher_labels import open_cache
from deit_tf.runs import RunFolder, load_run, read_config
from deit_tf.train import train

GOLDEN = Path(__file__).parent / "golden"


def test_its_model_loads():
    run = load_run(GOLDEN / "older_run" / "student_best.keras")
    assert run.labels == tuple("0123456789") and run.processor.size == (16, 16)
    assert run.split_rule == "rank"


def test_its_labels_fit():
    config = read_config(GOLDEN / "older_run" / "config.yaml")
    sources = open_sources(config.data)
    assert open_cache(GOLDEN / "older_labels", config, sources).epochs == 2

    # They are of one draw per batch, whatever is mixed.
    mixed = replace(config, augment=replace(config.augment, mixup=0.8, mix_group=16))
    with pytest.raises(ValueError, match=r"augment\.mix_group: then 32, now 16"):
        open_cache(GOLDEN / "older_labels", mixed, sources)


def test_it_goes_on(tmp_path, caplog):
    out = shutil.copytree(GOLDEN / "older_run", tmp_path / "run")
    config = read_config(out / "config.yaml")
    labels = str(GOLDEN / "older_labels")
    caplog.set_level("INFO")
    train(replace(config, out=str(out), distill=replace(config.distill, labels=labels)))

    assert "Going on from" in caplog.text and "1 epochs and 6 steps" in caplog.text
    summary = RunFolder(out).read_summary()
    assert summary["epochs"] == 2 and summary["training_images"] == 1437
    assert (out / "student.keras").is_file()
    # It turned no photographs when it began, and mixed by one draw per batch; now it says so.
    begun = read_config(out / "config.yaml")
    assert not begun.data.exif_orientation
    assert begun.augment.mix_group == begun.teacher.augment.mix_group == begun.data.batch_size == 32
