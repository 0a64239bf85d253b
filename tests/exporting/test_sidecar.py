"""What an artifact knows of itself comes back as it was written; damage is named, and never passes
for knowledge."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

import deit_tf
from deit_tf.exporting.formats import find_export
from deit_tf.exporting.saved_model import load_saved_model, read_report
from deit_tf.exporting.sidecar import (
    Sidecar,
    add_verified,
    check_class_names_beside,
    read_sidecar,
    tflite_description,
    write_sidecar,
)

NAMES = ("ant", "Bär, é", "[/x]")
PROCESSORS = [
    deit_tf.ImageProcessor(16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.1), crop_ratio=1.0),
    deit_tf.ImageProcessor((16, 24), interpolation="bilinear"),
    deit_tf.ImageProcessor(16, resize_to=(18, 20)),
    deit_tf.ImageProcessor(16, resize_to=31, exif_orientation=False),
]
MUTATIONS = 400


@pytest.fixture
def files(tmp_path):
    """A JSON file and what it describes, both written."""
    described, artifact = tflite_description(tmp_path / "m.tflite")
    artifact.write_bytes(b"weights")
    known = Sidecar(PROCESSORS[0], NAMES, "uint8", {"variant": "int8", "max_difference": 0.1})
    write_sidecar(described, artifact, known, batch="1")
    return described, artifact


@pytest.mark.parametrize("processor", PROCESSORS, ids=str)
def test_a_processor_comes_back_and_makes_the_same_images(tmp_path, processor):
    described, artifact = tmp_path / "model.json", tmp_path / "saved_model.pb"
    artifact.write_bytes(b"graph")
    known = Sidecar(processor, NAMES)
    write_sidecar(described, artifact, known)

    found = read_sidecar(described, artifact)

    assert found.class_names == NAMES and found.verified == {}
    assert known.agrees_with(found.processor) and found.agrees_with(processor)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    np.testing.assert_array_equal(found.processor.batch([picture]), processor.batch([picture]))


def test_a_sidecar_of_before_turns_pictures_upright_as_everything_does(files):
    described, artifact = files
    content = json.loads(described.read_text())
    assert content.pop("exif_orientation") is True
    described.write_text(json.dumps(content))
    assert read_sidecar(described, artifact).processor.exif_orientation


def test_other_images_are_seen():
    known = Sidecar(PROCESSORS[0])
    assert not any(known.agrees_with(other) for other in PROCESSORS[1:])
    assert not known.agrees_with(deit_tf.ImageProcessor(16, crop_ratio=1.0))  # mean and std
    assert not known.agrees_with(replace(PROCESSORS[0], exif_orientation=False))
    assert Sidecar().agrees_with(PROCESSORS[0])  # which does not say


def test_nothing_beside_is_nothing_known(tmp_path):
    assert read_sidecar(tmp_path / "m.json", tmp_path / "m.tflite") is None


def test_the_json_of_another_tool_is_passed_over_by_name(files, caplog):
    described, artifact = files
    described.write_text('{"of": "another tool", "image": 3}')
    assert read_sidecar(described, artifact) is None
    assert f"{described} was not written by an export of deit_tf" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sha256": "0" * 64}, "checksum differs"),
        ({"sha256": None}, "checksum differs"),
        ({"mean": [0.5, 0.4, "0.3"]}, "`mean`"),
        ({"std": [0.5, 0.4, float("nan")]}, "`std`"),
        ({"std": [0.5, 0.4, 0.0]}, "no preprocessing: `std`"),
        ({"image_size": "16"}, "no preprocessing"),
        ({"resize_to": {"side": 4}}, "no preprocessing"),
        ({"interpolation": ["bicubic"]}, "no preprocessing"),
        ({"resize_to": 10**9}, "no preprocessing"),
        ({"exif_orientation": "yes"}, "`exif_orientation`"),
        ({"labels": "ant"}, "must be a list of class names"),
        ({"labels": ["ant", 3]}, "class name"),
        ({"labels": ["ant", "two\u2028lines"]}, "class name"),
        ({"input": []}, "`input`"),
        ({"input": {"type": ["uint8"]}}, "`input`"),
        ({"verified": [1]}, "`verified`"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(files, change, message):
    described, artifact = files
    described.write_text(json.dumps(json.loads(described.read_text()) | change))
    with pytest.raises(ValueError, match=message) as raised:
        read_sidecar(described, artifact)
    assert str(described) in str(raised.value)


@pytest.mark.parametrize("key", ["sha256", "input", "labels", "mean", "resize_to"])
def test_a_key_that_is_missing_is_named(files, key):
    described, artifact = files
    content = json.loads(described.read_text())
    del content[key]
    described.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{described} .*lacks {key}"):
        read_sidecar(described, artifact)


def test_figures_are_added_to_those_that_are_there(files):
    described, artifact = files
    add_verified(described, {"latency": {"best_ms": 2.0}})
    found = read_sidecar(described, artifact)
    assert found.verified["latency"] == {"best_ms": 2.0} and found.verified["variant"] == "int8"
    assert found.class_names == NAMES


def test_class_names_beside_are_read_line_by_line(tmp_path):
    """U+2028 and its like end no line: the third class kept its name, and the export its folder."""
    (tmp_path / "labels.txt").write_text("ant\nzwei\u2028drei\ncat\n", encoding="utf-8")
    with pytest.raises(ValueError, match="differ from those"):
        check_class_names_beside(tmp_path / "m.tflite", ["ant", "zwei", "drei", "cat"])
    check_class_names_beside(tmp_path / "m.tflite", ["ant", "zwei\u2028drei", "cat"])


# What a damaged file may hold in the place of any value.
STRANGE = (
    None,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1e308,
    float("nan"),
    True,
    10**400,
    [[]],
    {"a": []},
    "0" * 64,
)


def mutated(text, random):
    """A JSON text with one thing changed: a byte, a cut, a value of any depth, a key."""
    kind = random.integers(4)
    if kind == 0:
        content = bytearray(text.encode())
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        return bytes(content)
    if kind == 1:
        return text.encode()[: random.integers(len(text))]

    content = json.loads(text)
    places = list(places_in(content))
    holder, key = places[random.integers(len(places))]
    if kind == 2:
        holder[key] = copy.deepcopy(STRANGE[random.integers(len(STRANGE))])
    else:
        del holder[key]
    return json.dumps(content).encode()


def places_in(content):
    """Every (list or dict, index or key) in a JSON value."""
    for key in range(len(content)) if isinstance(content, list) else list(content):
        yield content, key
        if isinstance(content[key], list | dict):
            yield from places_in(content[key])


def count(read, file, whole):
    """How many of `MUTATIONS` are refused, by a ValueError that names the file; no other error."""
    random, refused = np.random.default_rng(0), 0
    for _ in range(MUTATIONS):
        file.write_bytes(mutated(whole, random))
        try:
            read()
        except ValueError as error:
            assert str(file) in str(error)
            refused += 1
    file.write_text(whole, encoding="utf-8")
    read()
    return refused


def test_any_damage_to_the_json_beside_a_tflite_file_is_one_error(files):
    described, artifact = files
    refused = count(
        lambda: read_sidecar(described, artifact), described, described.read_text("utf-8")
    )
    # The rest changes a figure, a word or a name, and no checksum covers these.
    assert refused > MUTATIONS // 2


def test_any_damage_to_the_json_of_a_saved_model_is_one_error(small_exports):
    export = find_export(small_exports / "served" / "small")
    described, _ = export.format.described(export.path)
    assert count(export.sidecar, described, described.read_text("utf-8")) > MUTATIONS // 2


def test_any_damage_to_the_verification_is_one_error(small_exports):
    version = small_exports / "served" / "small" / "1"
    file = version / "assets.extra" / "verification.json"
    assert count(lambda: read_report(version), file, file.read_text("utf-8")) > MUTATIONS // 8


def test_class_names_in_a_saved_model_are_read_line_by_line(small_exports, tmp_path):
    file = small_exports / "served" / "small" / "1" / "assets" / "labels.txt"
    whole = file.read_bytes()
    try:
        file.write_text("ant\nzwei\u2028drei\n\x85\ncat\n", encoding="utf-8")
        assert load_saved_model(file.parents[1]).class_names == (
            "ant",
            "zwei\u2028drei",
            "\x85",
            "cat",
        )
        file.write_bytes(b"ant\n\xff\n")
        with pytest.raises(ValueError, match=f"{file} must hold class names in UTF-8"):
            load_saved_model(file.parents[1])
    finally:
        file.write_bytes(whole)
