"""Pictures and runs on an object store, here on TensorFlow's store in memory, `ram://`."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deit_tf.cli import main
from deit_tf.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    DistillConfig,
    StudentConfig,
    TrainConfig,
)
from deit_tf.data import open_sources
from deit_tf.data.folders import image_sizes
from deit_tf.files import CACHE_VARIABLE
from deit_tf.object_store import StorePath, is_url, local_or_stored
from deit_tf.runs import RunFolder, load_model, local_copy
from deit_tf.runs.mirror import Mirror
from deit_tf.train import train
from deit_tf.training.checkpoints import Checkpoints


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_pictures(folder):
    """Two classes of six pictures each, in a folder within, and what is no picture."""
    for name in ("ant", "bee"):
        place = folder / name / "more"
        place.mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng([i, len(name), ord(name[0])]).integers(
                256, size=(12, 10, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(place / f"{i}.png")
        (folder / name / "notes.txt").write_text("no picture")
        (folder / name / ".hidden.png").write_bytes(b"")


def upload(folder, url):
    for file in folder.rglob("*"):
        if file.is_file():
            there = f"{url}/{file.relative_to(folder).as_posix()}"
            tf.io.gfile.makedirs(there.rpartition("/")[0])
            tf.io.gfile.copy(str(file), there, overwrite=True)


def items(source):
    return [(int(item["label"]), item["image"]) for item in source.read(None).as_numpy_iterator()]


def test_urls_and_what_only_looks_like_one():
    assert is_url("gs://bucket/images") and is_url(b"ram://images")
    assert not any(map(is_url, ("hf://timm/x", "kaggle://x", "tfds:mnist", "digits", "C:/images")))
    assert local_or_stored("gs://bucket/images/") == StorePath("gs://bucket/images")
    with pytest.raises(ValueError, match="TensorFlow reads the stores gs://.*Received: s3://x"):
        local_or_stored("s3://x")


def test_pictures_on_a_store_are_those_of_the_folder(tmp_path, caplog):
    folder, url = tmp_path / "images", "ram://pictures"
    write_pictures(folder)
    (folder / "bee" / "broken.png").write_bytes(b"\x89PNG and no more")
    upload(folder, url)

    here = open_sources(DataConfig(str(folder), holdout=0.3))
    caplog.clear()
    there = open_sources(DataConfig(url, holdout=0.3))

    for mine, stored in zip(here, there, strict=True):
        assert items(mine) == items(stored)
        assert mine.class_names == stored.class_names
    assert "cannot be decoded: bee/broken.png" in caplog.text
    assert "hidden" in caplog.text and "bee/notes.txt" in caplog.text
    assert {*image_sizes(StorePath(url))} == {*image_sizes(folder)}


def test_splits_on_a_store(tmp_path):
    url = "ram://split_pictures"
    for split in ("train", "val"):
        write_pictures(tmp_path / split)
    upload(tmp_path, url)
    training, held_out = open_sources(DataConfig(url))
    assert (training.size, held_out.size) == (12, 12)
    assert training.files[0] == b"ram://split_pictures/train/ant/more/0.png"


def test_a_folder_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="'ram://nowhere', and there is no such folder"):
        open_sources(DataConfig("ram://nowhere"))


def config_of(out, **changes):
    config = TrainConfig(
        model=StudentConfig("deit_test", image_size=16, patch_size=8, depth=1),
        data=DataConfig("digits", batch_size=256),
        augment=AugmentConfig("none"),
        distill=DistillConfig("none"),
        checkpoint=CheckpointConfig(every_steps=2, keep=2),
        epochs=2,
        out=str(out),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run that was never stopped, in a folder here."""
    out = tmp_path_factory.mktemp("here") / "run"
    return load_model(train(config_of(out))).get_weights()


def test_a_run_on_a_store_goes_on_on_another_machine(whole, cache, tmp_path, monkeypatch, capsys):
    url = "ram://runs/student"
    write = Checkpoints.write

    def stop_in_the_second_epoch(self, variables, position, steps):
        write(self, variables, position, steps)
        if steps == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(url))
    assert not tf.io.gfile.exists(f"{url}/summary.json")
    kept = tf.io.gfile.listdir(f"{url}/checkpoints")
    assert len(kept) >= 2

    shutil.rmtree(cache)  # another machine has no copy
    train(config_of(url))

    shutil.rmtree(cache)
    main(["evaluate", url, "--json"])
    assert '"images": 360' in capsys.readouterr().out
    run = RunFolder(tmp_path / "copy")
    shutil.copytree(local_copy(url), run.path)
    assert run.read_summary()["epochs"] == 2 and len(run.read_metrics()) == 2
    for mine, expected in zip(load_model(run.path).get_weights(), whole, strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_a_copy_follows_the_store_and_keeps_what_it_could_not_send(tmp_path):
    mirror = Mirror(StorePath.of("ram://mirrored"))
    mirror.fetch()
    for name in ("a", "b", "within/c"):
        file = mirror.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    mirror.send()
    assert tf.io.gfile.GFile("ram://mirrored/within/c").read() == "within/c"

    tf.io.gfile.remove("ram://mirrored/a")  # another machine removes one, and writes another
    tf.io.gfile.remove("ram://mirrored/b")
    with tf.io.gfile.GFile("ram://mirrored/b", "w") as file:
        file.write("changed there")
    (mirror.folder / "within/c").write_text("newer here")
    mirror.fetch()
    assert not (mirror.folder / "a").exists()
    assert (mirror.folder / "b").read_text() == "changed there"
    assert (mirror.folder / "within/c").read_text() == "newer here"

    (mirror.folder / "b").unlink()
    mirror.send()
    assert not tf.io.gfile.exists("ram://mirrored/b")
    assert tf.io.gfile.GFile("ram://mirrored/within/c").read() == "newer here"


def test_what_is_no_run_is_not_written_to_a_store(capsys):
    with pytest.raises(SystemExit):
        main(["preview", "--data.source", "digits", "--file", "ram://sheet.png"])
    assert "`--file` is written on this machine" in capsys.readouterr().err


def test_a_store_that_refuses_is_named_and_the_copy_stays(monkeypatch):
    mirror = Mirror(StorePath.of("ram://full"))
    mirror.fetch()
    (mirror.folder / "a").write_text("a")

    def refuse(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "the quota is used up.")

    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "rename", refuse)
        with pytest.raises(OSError, match="ram://full and its copy.*the quota is used up. What is"):
            mirror.send()
    assert (mirror.folder / "a").read_text() == "a"
    mirror.send()
    assert tf.io.gfile.GFile("ram://full/a").read() == "a"
