"""Pictures that are gone or cut short while they are read: every command names them in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deit_tf import train
from deit_tf.cli import main
from deit_tf.config import DataConfig
from deit_tf.data import eval_dataset, open_sources
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.data.unreadable import naming_unreadable, unreadable

SMALL = "--model.name deit_test --model.image_size 16 --model.depth 1 --model.embed_dim 24".split()
RECIPE = "--augment.recipe none --epochs 1 --data.batch_size 4 --distill.kind none".split()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for i in range(6):
            path = tmp_path / "pictures" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(256, size=(20, 20, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


HARM = {"gone": lambda path: path.unlink(), "cut": cut, "empty": lambda path: path.write_bytes(b"")}


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("harm", HARM)
def test_a_training_names_the_picture(folder, tmp_path, capsys, monkeypatch, harm):
    picture, begin = folder / "dog" / "3.jpg", train._begin

    def begin_and_harm(*arguments):
        begin(*arguments)
        HARM[harm](picture)  # after every file was checked

    monkeypatch.setattr(train, "_begin", begin_and_harm)
    with pytest.raises(SystemExit) as stop:
        arguments = ["--data.source", str(folder), "--out", str(tmp_path / "run")]
        main(["train", *SMALL, *RECIPE, *arguments])
    line = last_line(capsys)
    assert (
        stop.value.code == 2
        and "cannot be read, as they are gone, cut short or none (1): " in line
        and str(picture) in line
    )
    assert "Put them back as they were and run the same command again" in line


@pytest.mark.parametrize("command", ["train", "preview"])
def test_without_the_check_before_it_is_named_all_the_same(folder, tmp_path, capsys, command):
    for picture in folder.glob("dog/*.jpg"):
        cut(picture)
    out = {"train": ["--out", f"{tmp_path}/run"], "preview": ["--file", f"{tmp_path}/s.png"]}
    with pytest.raises(SystemExit):
        source = ["--data.source", str(folder), "--data.verify", "false"]
        main([command, *SMALL, *RECIPE, *source, *out[command]])
    line = last_line(capsys)
    assert "cannot be read" in line and str(folder / "dog") in line and "`data.verify`" in line


def test_another_error_of_tensorflow_stays(folder):
    source, _ = open_sources(DataConfig(str(folder)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="mine"), naming_unreadable(source):
        tf.debugging.assert_equal(1, 2, "mine")


def test_of_pictures_without_files_none_is_named():
    assert unreadable(open_sources(DataConfig("digits"))[0]) == []


def test_the_files_of_a_source_are_those_it_reads(folder):
    (folder / "cat" / "\udcff.jpg").write_bytes((folder / "cat" / "0.jpg").read_bytes())
    train_images, _ = open_sources(DataConfig(str(folder)))
    items = train_images.read(None).as_numpy_iterator()
    assert [item["image"] for item in items] == [
        Path(os.fsdecode(file)).read_bytes() for file in train_images.files
    ]
    (folder / "cat" / "\udcff.jpg").unlink()
    with pytest.raises(ValueError, match=r"cat/\\xff.jpg"), naming_unreadable(None, train_images):
        list(eval_dataset(train_images, DataConfig(batch_size=2), ImageProcessor(16)))
