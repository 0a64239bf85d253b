"""Files are there whole or not at all; class names come back as they were written."""

import pytest

from deit_tf.files import (
    check_class_names,
    read_class_names,
    read_json,
    remove_partial,
    replacing,
    sha256,
    write_class_names,
    write_json,
    write_text,
)


def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path):
    file = tmp_path / "figures.json"
    write_json({"loss": 1.5}, file)

    with pytest.raises(KeyboardInterrupt), replacing(file) as temporary:
        temporary.write_text("half of")
        raise KeyboardInterrupt

    assert read_json(file) == {"loss": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    for name in (".student.partial.keras", ".student.partial.4711.keras", ".hidden", "a.partial.b"):
        (tmp_path / name).write_text("")

    remove_partial(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.partial.b"]


@pytest.mark.parametrize(
    "names", [("cat", "dog"), ("Zürich", "日本", "a\tb"), ("one",), (" padded ", "[/x]")]
)
def test_class_names_come_back(tmp_path, names):
    write_class_names(names, tmp_path / "labels.txt")
    assert read_class_names(tmp_path / "labels.txt") == names


@pytest.mark.parametrize(
    "name", ["a\nb", "a\u2028b", "a\u2029b", "a\x85b", "a\x0bb", "a\rb", "", "a\udcff", 7]
)
def test_a_name_that_would_shift_the_others_is_refused(name):
    with pytest.raises(ValueError, match="text of one line"):
        check_class_names(["cat", name], 2)


def test_another_number_of_names_is_refused():
    with pytest.raises(ValueError, match="as many as the 3 classes.*Received: 2"):
        check_class_names(["cat", "dog"], 3)


def test_names_edited_on_windows_are_the_same(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"cat\r\ndog\r\n")
    assert read_class_names(tmp_path / "labels.txt") == ("cat", "dog")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[]", "JSON object. Received: list"),
        (b"{", "no JSON file"),
        (b"\xff{}", "no JSON file"),
        (b"[" * 100_000, "no JSON file"),
        (b"{}", "lacks seed"),
    ],
)
def test_json_that_is_not_what_it_should_be_is_named(tmp_path, content, message):
    (tmp_path / "facts.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"facts\.json.*{message}"):
        read_json(tmp_path / "facts.json", keys=["seed"])


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    write_text("abc", tmp_path / "x")
    assert sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")  # FIPS 180-2, example of "abc"
