"""What was found of image files is kept: who is known is not decoded again, whoever asks."""

import os
import threading
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image

from deit_tf.data import checked_files
from deit_tf.data.checked_files import BROKEN, fingerprints_of

AGO = 1_600_000_000  # long enough for a file to count as settled


def write(path, seed=0, changed=AGO):
    pixels = np.random.default_rng(seed).integers(256, size=(6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, (changed, changed))
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEIT_TF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for i in range(6):
        write(tmp_path / "images" / f"{i}.png", seed=i % 5)
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    os.utime(tmp_path / "images" / "broken.png", (AGO, AGO))
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded."""
    names, decode = [], checked_files._decoded

    def watched(paths, channels):
        names.extend(os.path.basename(path) for path in paths)
        return decode(paths, channels)

    monkeypatch.setattr(checked_files, "_decoded", watched)
    return names


def check(folder):
    paths = sorted(str(path) for path in folder.iterdir())
    return dict(zip(map(os.path.basename, paths), fingerprints_of(paths, folder), strict=True))


def test_a_file_is_decoded_once(folder, decoded):
    found = check(folder)
    assert found.pop("broken.png") == BROKEN and len(decoded) == 7
    assert found["0.png"] == found["5.png"] and len(set(found.values())) == 5

    decoded.clear()
    assert check(folder) == {**found, "broken.png": BROKEN} and not decoded


def test_new_and_changed_files_are_checked(folder, decoded):
    before = check(folder)
    decoded.clear()
    write(folder / "new.png", seed=7)
    write(folder / "1.png", seed=8, changed=AGO + 1)  # of the same size
    write(folder / "broken.png", seed=9)
    after = check(folder)
    assert sorted(decoded) == ["1.png", "broken.png", "new.png"]
    assert after["1.png"] != before["1.png"] and after["broken.png"] != BROKEN
    assert after["2.png"] == before["2.png"]


def test_a_file_that_has_just_been_written_is_checked_again(folder, decoded):
    Image.new("RGB", (5, 6)).save(folder / "young.png")
    for _ in range(2):
        decoded.clear()
        check(folder)
        assert "young.png" in decoded
    assert decoded == ["young.png"]


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "of another shape"])
def test_the_cache_may_be_lost(folder, decoded, damage, caplog):
    before = check(folder)
    (file,) = (folder.parent / "cache").rglob("*.npz")
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "other":
        file.write_bytes(b"something else")
    else:
        np.savez(file, keys=np.zeros(3), fingerprints=np.zeros(2, np.int64))
    decoded.clear()
    assert check(folder) == before and len(decoded) == 7
    assert ("is damaged" in caplog.text) == (damage != "gone")
    decoded.clear()
    assert check(folder) == before and not decoded


def test_a_cache_that_cannot_be_written_is_done_without(folder, decoded, monkeypatch, caplog):
    before = check(folder)
    monkeypatch.setenv("DEIT_TF_CACHE", str(folder / "0.png"))  # a file
    assert check(folder) == before and len(decoded) == 14
    assert "cannot be kept" in caplog.text


def test_what_a_stopped_process_found_stays(folder, decoded, monkeypatch):
    monkeypatch.setattr(checked_files, "KEPT_EVERY", 2)
    decode = checked_files._decoded

    def stopped(paths, channels):
        for i, found in enumerate(decode(paths, channels)):
            if i == 4:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checked_files, "_decoded", stopped)
        check(folder)
    decoded.clear()
    check(folder)
    assert decoded == ["3.png", "4.png", "5.png", "broken.png"]


def test_another_process_is_waited_for(folder, decoded, caplog):
    caplog.set_level("INFO")
    before = check(folder)
    (file,) = (folder.parent / "cache").rglob("*.npz")
    content = file.read_bytes()
    file.unlink()
    decoded.clear()

    found = []
    with filelock.FileLock(file.with_suffix(".lock")):
        other = threading.Thread(target=lambda: found.append(check(folder)))
        other.start()
        other.join(1.0)
        assert other.is_alive() and "waiting for it" in caplog.text
        file.write_bytes(content)  # as the one that is waited for does
    other.join(30)
    assert found == [before] and not decoded


def test_folders_are_known_by_where_they_are(folder, decoded, monkeypatch):
    before = check(folder)
    decoded.clear()
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    for same in (folder.parent / "link", type(folder)("images")):
        assert check(same) == before and not decoded


def test_files_of_the_folder_one_is_in_are_told_apart(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    paths = ["bat/1.bmp", "cat/1.bmp"]  # BMP, so that both have as many bytes
    for seed, path in enumerate(paths):
        (folder.parent / path).parent.mkdir()
        write(folder.parent / path, seed)
    first, again = (fingerprints_of(paths, Path(".")) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first[0] != first[1]
