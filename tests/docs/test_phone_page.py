"""The page for app developers names every field of the files that an export writes."""

import json
import re
from pathlib import Path

import keras
import pytest

import deit_tf
from deit_tf.exporting.app_check import FORMULA

PAGE = (Path(__file__).parents[2] / "docs" / "phone.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What lies beside a file, by its ending."""
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    file = tmp_path_factory.mktemp("phone") / "m.tflite"
    deit_tf.export_tflite(model, file, processor=deit_tf.ImageProcessor(8), labels=list("abc"))
    return {end: json.loads(file.with_suffix(end).read_text()) for end in (".json", ".check.json")}


def rows(heading):
    """Fields in the first column of the tables below a heading, and all that a row names."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    named = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in lines]
    return {name: line for names, line in zip(named, lines, strict=True) for name in names}


def test_every_field_of_the_json_file_is_explained(written):
    explained = rows("What the JSON file says")
    assert set(explained) == set(written[".json"])
    assert {"name", "type", "values", "layout"} == set(written[".json"]["input"])
    for device in written[".json"]["verified"]["devices"].values():
        assert {"tried", "whole", "left_out"} <= set(device)


def test_every_field_of_the_numbers_is_explained(written):
    explained, numbers = rows("Is your code right?"), written[".check.json"]
    assert set(explained) == set(numbers)
    for field in ("input", "output", "preparation"):
        for name in numbers[field]:
            assert f"`{name}`" in explained[field], name
    assert numbers["picture"] == FORMULA and f"`{FORMULA}`" in PAGE


def test_snippets_read_what_an_export_writes(written):
    """The names that they take out of the JSON file; they are compiled by nobody here."""
    code = "".join(re.findall(r"```(?:kotlin|swift)\n(.*?)```", PAGE, re.S))
    read = set(re.findall(r"about\.get\w*\(\"(\w+)\"\)", code)) | set(
        re.findall(r"    let (\w+): ", code.split("struct About")[1].split("private let")[0])
    )
    assert {"image_size", "resize_to", "input", "labels", "mean", "std"} == read
    assert read <= set(written[".json"])
