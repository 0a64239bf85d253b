"""Folders of pictures: none is trained on and held out, and what is left out is named."""

import logging
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from deit_tf.config import DataConfig
from deit_tf.data import open_sources
from deit_tf.data.folders import find_splits, hold_out, scan
from deit_tf.data.sources import open_whole


def write(path, seed=0, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)


def seed_of(*place):
    """A seed of its own, the same in every process."""
    return zlib.crc32(repr(place).encode())


@pytest.fixture
def folder(tmp_path):
    for name, count in {"cat": 7, "dog": 12, "owl": 1}.items():
        for i in range(count):
            write(tmp_path / name / f"{i}.{'png' if i % 2 else 'jpg'}", seed=seed_of(name, i))
    return tmp_path


def contents(source):
    return [item["image"] for item in source.read(None).as_numpy_iterator()]


def open_folder(folder, **kwargs):
    return open_sources(DataConfig(str(folder), **kwargs))


def test_a_share_of_each_class_is_held_out(folder):
    train, held_out = open_folder(folder, holdout=0.25)
    assert train.class_names == held_out.class_names == ("cat", "dog", "owl")
    assert train.size + held_out.size == 20
    files = scan(folder)
    for name, paths in hold_out(files, 0.25)[1].items():
        below = [
            path for path in files[name] if zlib.crc32(os.path.basename(path).encode()) < 2**30
        ]
        assert paths == below or len(paths) == (len(files[name]) > 1), name


def test_the_share_is_about_what_was_asked_for(tmp_path):
    files = {"cat": [f"{tmp_path}/{i}.jpg" for i in range(4000)]}
    # 4,000 draws of 0.1: three standard deviations are 57
    assert abs(len(hold_out(files, 0.1)[1]["cat"]) - 400) < 57


def test_the_folder_that_a_command_runs_in(folder, monkeypatch, caplog):
    (folder / "dog" / "broken.png").write_bytes(b"\x89PNG and no more")
    monkeypatch.chdir(folder)
    train, held_out = open_folder(".", holdout=0.25)
    assert train.size + held_out.size == 20
    assert "cannot be decoded: dog/broken.png" in caplog.text


@pytest.mark.parametrize("change", ["another", "broken", "gone"])
def test_no_file_decides_for_another(folder, change):
    before = contents(open_folder(folder, holdout=0.25)[1])
    if change == "another":
        for i in range(5):
            write(folder / "dog" / f"another {i}.png", seed=1000 + i)
    elif change == "broken":
        (folder / "dog" / "broken.jpg").write_bytes(b"no picture")
    else:
        trained = hold_out(scan(folder), 0.25)[0]["dog"][0]
        os.unlink(trained)

    trained, held_out = open_folder(folder, holdout=0.25)
    assert not set(before) & set(contents(trained))
    assert set(before) <= set(contents(held_out))


def test_who_does_not_decode_holds_out_the_same(folder):
    (folder / "cat" / "broken.jpg").write_bytes(b"no picture")
    checked = open_folder(folder, holdout=0.25)[1]
    unchecked = open_folder(folder, holdout=0.25, verify=False)[1]
    assert set(contents(unchecked)) - set(contents(checked)) <= {b"no picture"}


def test_older_runs_keep_their_split(folder):
    files = scan(folder)
    train, held_out = hold_out(files, 0.25, "rank")
    assert {name: len(paths) for name, paths in held_out.items()} == {"cat": 2, "dog": 3, "owl": 0}
    assert {name: len(paths) for name, paths in train.items()} == {"cat": 5, "dog": 9, "owl": 1}


SPELLINGS = [("train", "val"), ("Train", "Val"), ("Training", "Testing"), ("training", "dev")]


@pytest.mark.parametrize("training, evaluation", SPELLINGS)
def test_splits_are_known_by_any_usual_name(folder, tmp_path, training, evaluation):
    root = tmp_path / "split"
    for name in ("cat", "dog"):
        (root / training).mkdir(parents=True, exist_ok=True)
        (folder / name).rename(root / training / name)
        write(root / evaluation / name / "x.png", seed=ord(name[0]))
    train, held_out = open_folder(root)
    assert train.class_names == ("cat", "dog") and (train.size, held_out.size) == (19, 2)
    assert open_whole(DataConfig(str(root))).size == 2


def test_a_class_to_evaluate_on_must_be_trained_on(tmp_path):
    for place in ("train/cat", "train/dog", "val/cat", "val/bat"):
        write(tmp_path / place / "x.png", seed=len(place))
    with pytest.raises(ValueError, match="classes that .*train has not: bat"):
        open_folder(tmp_path)


def test_a_second_split_to_evaluate_on_is_named_as_unused(tmp_path, caplog):
    for place in ("train/cat", "train/dog", "validation/cat", "validation/dog", "test/cat"):
        write(tmp_path / place / "x.png", seed=len(place))
    assert find_splits(tmp_path) == (tmp_path / "train", tmp_path / "validation")
    assert "evaluated on validation; not used: test" in caplog.text


@pytest.mark.parametrize(
    "places, found",
    [
        (["val/cat", "test/cat"], "val, test"),
        (["train", "val/cat"], "train, val"),
        (["train/cat", "Training/cat", "val/cat"], "train, Training, val"),
    ],
)
def test_folders_that_look_like_splits_and_are_none_are_refused(tmp_path, places, found):
    for place in places:
        write(tmp_path / place / "x.png")
    with pytest.raises(ValueError, match=f"named as splits.*Found: {found}"):
        open_folder(tmp_path)


def test_pictures_to_evaluate_on_without_class_folders_are_refused(tmp_path):
    for place in ("train/cat", "train/dog", "test"):
        write(tmp_path / place / "x.png")
    with pytest.raises(ValueError, match="test is to evaluate on, and holds no class folders"):
        open_folder(tmp_path)


@pytest.mark.parametrize("beside", [None, "extra"])
def test_train_without_val_is_held_out_from(folder, tmp_path, caplog, beside):
    caplog.set_level(logging.INFO)
    root = tmp_path / "split"
    (root / "train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (folder / name).rename(root / "train" / name)
    if beside:
        write(root / beside / "cat" / "x.png")
    train, held_out = open_folder(root, holdout=0.25)
    assert train.class_names == held_out.class_names == ("cat", "dog")
    assert train.size + held_out.size == 19 and held_out.size
    assert "a share of train is held out" in caplog.text
    assert ("not used: extra" in caplog.text) == bool(beside)


def test_a_class_may_be_called_train(folder):
    (folder / "dog").rename(folder / "train")
    train, held_out = open_folder(folder)
    assert train.class_names == ("cat", "owl", "train") and train.size + held_out.size == 20


def test_open_whole_takes_every_image(folder):
    assert open_whole(DataConfig(str(folder))).size == 20


def test_to_evaluate_on_a_split_the_other_is_not_looked_at(tmp_path, caplog):
    for place in ("train/cat", "train/dog", "val/cat", "val/dog", "extra/cat"):
        for i in range(3):
            write(tmp_path / place / f"{i}.png", seed=seed_of(place, i))
    (tmp_path / "train" / "dog" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "val" / "dog" / "also broken.png").write_bytes(b"no picture")
    found = open_whole(DataConfig(str(tmp_path)))
    assert (found.size, found.class_names) == (6, ("cat", "dog"))
    assert caplog.text.count("not used: extra") == 1
    assert "also broken.png" in caplog.text and "dog/broken.png" not in caplog.text


def test_of_a_split_to_train_on_alone_the_same_share_is_evaluated(tmp_path):
    for place in ("train/cat", "train/dog"):
        for i in range(12):
            write(tmp_path / place / f"{i}.png", seed=seed_of(place, i))
    config = DataConfig(str(tmp_path), holdout=0.3)
    assert contents(open_whole(config)) == contents(open_sources(config)[1])


def test_hidden_copies_are_no_pictures(folder, caplog):
    for path in list((folder / "dog").iterdir()):
        copy = folder / "dog" / ".ipynb_checkpoints" / f"{path.stem}-checkpoint{path.suffix}"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    train, held_out = open_folder(folder)
    assert train.size + held_out.size == 20
    assert "Left out 1 of" in caplog.text and "hidden" in caplog.text
    assert ".ipynb_checkpoints" in caplog.text


def test_links_are_followed_but_not_in_a_circle(folder, tmp_path, caplog):
    root = tmp_path / "linked"
    root.mkdir()
    (root / "dog").symlink_to(folder / "dog")
    (root / "cat").mkdir()
    (root / "cat" / "others").symlink_to(folder / "cat")
    (root / "cat" / "back").symlink_to(root / "cat")
    (root / "cat" / "nowhere.jpg").symlink_to(root / "missing.jpg")
    train, held_out = open_folder(root)
    assert train.size + held_out.size == 19
    assert "Left out 2 of" in caplog.text and "lead nowhere or back" in caplog.text
    assert "cat/back" in caplog.text and "cat/nowhere.jpg" in caplog.text


@pytest.mark.parametrize("holder", [".", ".."])
def test_a_link_to_what_holds_the_classes_makes_no_class_of_the_others(tmp_path, caplog, holder):
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        for i in range(3):
            write(tmp_path / place / f"{i}.png", seed=seed_of(place, i))
    (tmp_path / "train" / "cat" / "back").symlink_to(tmp_path / "train" / holder)
    assert len(scan(tmp_path / "train")["cat"]) == 3
    assert "lead nowhere or back: cat/back" in caplog.text


def test_the_same_bytes_in_both_splits_are_told_once(tmp_path, caplog):
    for place in ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png"):
        write(tmp_path / place, seed=int(place[-5]) % 3)  # 1 and 4 are the same
    open_folder(tmp_path)
    copies = [r.message for r in caplog.records if "very bytes" in r.message]
    assert len(copies) == 1 and copies[0].startswith("1 held-out files")
    assert "val/dog/4.png" in copies[0] and "train/cat/1.png" in copies[0]


def test_bad_files_are_left_out_and_counted(folder, caplog):
    good = (folder / "cat" / "0.jpg").read_bytes()
    (folder / "cat" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "cat" / "text.png").write_text("no image")
    (folder / "cat" / "empty.jpg").write_bytes(b"")
    (folder / "dog" / "notes.txt").write_text("no image")
    train, held_out = open_folder(folder)
    assert train.size + held_out.size == 20
    broken = [r.message for r in caplog.records if "cannot be decoded" in r.message]
    assert sum(int(message.split()[2]) for message in broken) == 3
    assert "cat/cut.jpg" in " ".join(broken)
    assert "Left out 1 of" in caplog.text and "dog/notes.txt" in caplog.text


def test_names_need_not_be_utf8(folder):
    name = os.fsdecode(b"caf\xe9.png")
    write(folder / "dog" / name, seed=77)
    train, held_out = open_folder(folder)
    assert train.size + held_out.size == 21


@pytest.mark.parametrize("name", ["two\nlines", "line\u2028separator", os.fsdecode(b"caf\xe9")])
def test_class_names_that_no_file_can_hold_are_refused(folder, name):
    write(folder / name / "x.png")
    with pytest.raises(ValueError, match="text of one line.*rename"):
        open_folder(folder)


def test_folders_without_images_are_refused(folder, tmp_path):
    (folder / "yak").mkdir()
    with pytest.raises(ValueError, match="No images in class folder .*yak"):
        open_folder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no class folders"):
        open_folder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_folder(tmp_path / "missing")
