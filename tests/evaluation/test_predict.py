"""Prediction of many files: what is taken for an image, what is passed over, what is written."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import deit_tf
from deit_tf.cli import main
from deit_tf.evaluation.predict import find_images, predict_files

GOOD = ("a.png", "sub/[x]/=b.PNG", "sub/c.jpg")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model of three classes, and a folder of three pictures, two broken files and others."""
    folder = tmp_path_factory.mktemp("predict")
    deit_tf.create_model("deit_test", num_classes=3).save(folder / "student.keras")
    pictures = folder / "pictures"
    hidden = (".ipynb_checkpoints/a.png", "sub/.c.jpg")
    for i, name in enumerate((*GOOD, *hidden)):
        file = pictures / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    (pictures / "sub" / "empty.png").touch()
    (pictures / "notes.txt").write_text("no picture either")
    return folder


def test_folders_and_patterns_give_their_images(made):
    folder = f"{made}/pictures"
    names = ("a.png", "broken.jpg", "sub/[x]/=b.PNG", "sub/c.jpg", "sub/empty.png")
    inside = [f"{folder}/{name}" for name in names]
    assert find_images([folder]) == find_images([f"{made}/pict*"]) == inside
    assert find_images([f"{folder}/**/*.jpg"]) == [f"{folder}/broken.jpg", f"{folder}/sub/c.jpg"]
    # A file of that very name is no pattern, and a missing one is told later, beside the others.
    exact = [f"{folder}/sub/[x]/=b.PNG", "none.png"]
    assert find_images(exact) == exact


@pytest.mark.parametrize("given", ["", "/*.png", "/.ipynb_checkpoints"])
def test_a_folder_or_pattern_without_images_is_refused(tmp_path, given):
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No images \(.jpg .* in .*"):
        find_images([f"{tmp_path}{given}"])


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_broken_files_cost_no_answers_whatever_the_batch(made, batch_size):
    files = find_images([f"{made}/pictures"])
    files.insert(1, "none.png")
    answers = [*predict_files(f"{made}/student.keras", files, batch_size=batch_size, top=3)]
    assert [answer["image"] for answer in answers] == files
    good = {answer["image"]: answer["classes"] for answer in answers if "classes" in answer}
    assert set(good) == {f"{made}/pictures/{name}" for name in GOOD}
    bad = {answer["image"]: answer["error"] for answer in answers if "error" in answer}
    assert set(bad) == {*files} - {*good} and all(bad.values())
    for file, classes in good.items():
        (alone,) = predict_files(f"{made}/student.keras", [file], top=3)
        assert [one["class"] for one in classes] == [one["class"] for one in alone["classes"]]
        for one, other in zip(classes, alone["classes"], strict=True):
            # A product of another shape adds up in another order.
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


@pytest.mark.parametrize("setting", ["top", "batch_size"])
def test_counts_are_positive(made, setting):
    with pytest.raises(ValueError, match=f"`{setting}` is a number of .* from 1. Received: 0"):
        predict_files(f"{made}/student.keras", [], **{setting: 0})


def predict(made, *arguments):
    """Exit status of the command."""
    with pytest.raises(SystemExit) as stop:
        main(["predict", f"{made}/student.keras", f"{made}/pictures", *arguments])
    return stop.value.code


def test_broken_files_are_named_at_the_end(made, capsys):
    assert predict(made, "--top", "1", "--json") == 1
    printed = capsys.readouterr()
    answers = json.loads(printed.out)
    assert {answer["image"] for answer in answers} == {f"{made}/pictures/{name}" for name in GOOD}
    *_, head, first, second = printed.err.splitlines()
    assert head == "Passed over 2 of 5 files:"
    assert first.startswith(f"  {made}/pictures/broken.jpg is no image")
    assert second.startswith(f"  {made}/pictures/sub/empty.png is no image")


def test_good_files_alone_end_well(made, capsys):
    main(["predict", f"{made}/student.keras", f"{made}/pictures/a.png", "--top", "2"])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["image", "class", "probability"]
    assert first.startswith(f"{made}/pictures/a.png  ") and second.startswith(" ")


def test_answers_are_written_as_the_ending_says(made, tmp_path, capsys):
    for ending in ("jsonl", "json", "csv"):
        assert predict(made, "--out", str(tmp_path / f"answers.{ending}")) == 1
        assert capsys.readouterr().out == f"Wrote {tmp_path}/answers.{ending}\n"
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert lines == json.loads((tmp_path / "answers.json").read_text()) and len(lines) == 3

    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and [row["rank"] for row in rows[:3]] == ["1", "2", "3"]
    for row, found in zip(rows[:3], lines[0]["classes"], strict=True):
        assert (row["image"], row["class"]) == (lines[0]["image"], str(found["class"]))
        assert float(row["probability"]) == pytest.approx(found["probability"], abs=1e-6)


@pytest.mark.parametrize(
    "out, message", [("x.txt", "`out` ends in .jsonl, .json, .csv"), ("no/x.csv", "no folder")]
)
def test_a_file_that_cannot_be_written_is_refused_first(made, tmp_path, capsys, out, message):
    assert predict(made, "--out", str(tmp_path / out)) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
