"""The forms of export as one table: each is recognized, describes itself, and is asked alike; a new
one is one entry."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_samples import CLASS_NAMES, HAS_ONNX, MUTATIONS, PROCESSOR, damaged

import deit_tf
from deit_tf.exporting import formats
from deit_tf.exporting.compare import EXACT, ExportError
from deit_tf.exporting.formats import FORMATS, Export, Format, find_export, find_exports
from deit_tf.exporting.litert import load_tflite
from deit_tf.exporting.sidecar import Sidecar

needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="pip install 'deit_tf[onnx]'")
OF_ONNX = pytest.param("onnx/small.onnx", marks=needs_onnx)


@pytest.fixture(params=["served/small/1", "phone/small.tflite", OF_ONNX])
def export(request, small_exports):
    return find_export(small_exports / request.param)


def test_every_form_is_tested(small_exports):
    found = [export.format.name for export in find_exports(small_exports)]
    here = [form.name for form in FORMATS if HAS_ONNX or form.name != ".onnx file"]
    assert found == here


def test_an_export_knows_what_it_was_told(export):
    known = export.sidecar()
    assert known.class_names == CLASS_NAMES
    assert known.agrees_with(PROCESSOR) and known.processor.interpolation == "bilinear"
    assert export.mismatch(PROCESSOR) == ""
    assert "other images" in export.mismatch(deit_tf.ImageProcessor(16))
    assert export.limits() == EXACT
    assert export.size > 4 * 10_000  # weights


def test_an_export_answers_by_every_entry_as_keras_does(export, small_model, small_images):
    loaded, expected = export.load(), np.asarray(small_model(small_images))
    assert (loaded.image_size, loaded.num_classes) == ((16, 16), len(CLASS_NAMES))
    np.testing.assert_allclose(loaded(small_images), expected, atol=1e-4)  # of the verification
    np.testing.assert_allclose(loaded.logits(small_images)["mean"], expected, atol=1e-4)
    for entry, takes in export.format.entries.items():
        if takes == "images":
            np.testing.assert_allclose(loaded.ask(entry, small_images), expected, atol=1e-4)


def test_a_tflite_file_without_its_json_says_that_damage_is_not_seen(
    small_exports, tmp_path, caplog
):
    shutil.copy(small_exports / "phone" / "small.tflite", tmp_path / "alone.tflite")
    find_export(tmp_path / "alone.tflite").load()
    assert "alone.tflite has no alone.json" in caplog.text
    assert "damage to its weights would not be seen" in caplog.text
    caplog.clear()
    find_export(small_exports / "phone" / "small.tflite").load()
    assert not caplog.text


def test_pixels_are_those_of_whoever_normalized_them(small_exports, small_model, small_images):
    """With the mean and deviation of another, a file that takes pixels would get other pixels."""
    file = load_tflite(small_exports / "phone" / "small.tflite")
    other = deit_tf.ImageProcessor(16, mean=(0.1, 0.1, 0.1), std=(0.5, 0.5, 0.5))
    normalized = other.normalize(PROCESSOR.to_pixels(small_images)).numpy()
    expected = np.asarray(small_model(small_images))
    np.testing.assert_allclose(file(normalized, other), expected, atol=1e-4)
    assert np.abs(file(normalized) - expected).max() > 0.01


def test_a_folder_of_versions_is_its_highest_that_is_whole(small_exports, tmp_path):
    served = tmp_path / "small"
    for version in ("2", "9", "10"):
        shutil.copytree(small_exports / "served" / "small" / "1", served / version)
    (served / "11").mkdir()  # being copied
    (served / "12").symlink_to(tmp_path / "nowhere")
    (served / "notes").mkdir()
    assert find_export(served).path == served / "10"
    assert find_export(served / "9").path == served / "9"
    assert find_export(served / "9" / "saved_model.pb").path == served / "9"
    assert len(find_exports(tmp_path)) == 3


@pytest.mark.parametrize("name", ["nothing", "served", "served/small/1/assets", "phone/no.tflite"])
def test_what_is_no_export(small_exports, name):
    assert find_export(small_exports / name) is None


def test_an_export_under_way_is_none_yet(small_exports, tmp_path):
    shutil.copytree(small_exports / "served" / "small" / "1", tmp_path / ".export-x" / "version")
    assert find_exports(tmp_path) == []


def test_the_limits_of_a_file_without_its_json_are_not_known(small_exports, tmp_path):
    shutil.copy(small_exports / "phone" / "small.tflite", tmp_path)
    assert find_export(tmp_path / "small.tflite").limits() is None


class Answers:
    """A form that knows its answers by heart."""

    image_size, num_classes = (16, 16), 4

    def __call__(self, images, processor=None):
        return np.tile(np.float32([1, 2, 3, 4]), (len(images), 1))

    def logits(self, images, processor=None):
        return {"mean": self(images)}

    def ask(self, entry, batch, processor=None):
        return self(batch)


def test_a_new_form_is_one_entry(tmp_path, monkeypatch):
    """The way of CONTRIBUTING.md: predict, report and check go through the table."""
    from deit_tf.evaluation.predict import open_model

    new = Format(
        name=".heart file",
        pattern="*.heart",
        locate=lambda path: path if path.suffix == ".heart" and path.is_file() else None,
        described=lambda file: (file.with_suffix(".json"), file),
        load=lambda _: Answers(),
        entries={"": "images"},
        limits=lambda _: EXACT,
    )
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, new))
    file = tmp_path / "m.heart"
    file.write_bytes(b"")
    assert find_exports(tmp_path) == [Export(new, file)]
    opened = open_model(str(file))
    assert opened.predict(np.zeros((2, 16, 16, 3), np.float32))["mean"].argmax(-1).tolist() == [
        3,
        3,
    ]
    assert opened.assumed and opened.labels is None


def test_any_damage_to_an_export_is_seen_by_its_checksum(export):
    _, file = export.format.described(export.path)
    whole, random = file.read_bytes(), np.random.default_rng(0)
    try:
        for _ in range(MUTATIONS):
            file.write_bytes(damaged(whole, random))
            with pytest.raises(ValueError, match=f"{file.name}, or one of them is damaged"):
                export.sidecar()
    finally:
        file.write_bytes(whole)
    assert export.sidecar() is not None


def test_a_damaged_tflite_file_is_refused_before_litert_sees_it(small_exports, tmp_path):
    for name in ("small.tflite", "small.json"):
        shutil.copy(small_exports / "phone" / name, tmp_path)
    file = tmp_path / "small.tflite"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # a weight: LiteRT would run it
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"small\.json belongs to another small\.tflite, or one of"
    ):
        load_tflite(file)


# In a process of its own: nothing but LiteRT's own check stands between it and the damage.
ALONE = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.litert import load_tflite
from export_samples import MUTATIONS, damaged

file, random = Path(sys.argv[1]), np.random.default_rng(1)
whole, refused = file.read_bytes(), 0
for _ in range(MUTATIONS):
    file.write_bytes(damaged(whole, random))
    try:
        load_tflite(file)(np.zeros((1, 16, 16, 3), np.uint8))
    except (ValueError, ExportError) as error:
        assert str(file) in str(error), error
        refused += 1
print(refused)
"""


def test_damage_to_a_tflite_file_alone_is_an_error_or_harmless(small_exports, tmp_path):
    """Without its JSON file there is no checksum; a weight may be another, but nothing crashes."""
    file = shutil.copy(small_exports / "phone" / "small.tflite", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, file, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > MUTATIONS // 3


def test_what_does_not_begin_as_a_tflite_file_is_refused(tmp_path):
    for content in (b"", b"short", b"no flatbuffer at all"):
        (tmp_path / "m.tflite").write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.tflite is no \.tflite file"):
            load_tflite(tmp_path / "m.tflite")


def test_a_damaged_graph_without_its_json_is_one_error(small_exports, tmp_path, small_images):
    """The C++ session refuses it, or runs it: no traceback of TensorFlow's."""
    version = shutil.copytree(small_exports / "served" / "small" / "1", tmp_path / "1")
    (version / "assets.extra" / "model.json").unlink()
    graph, random = version / "saved_model.pb", np.random.default_rng(0)
    whole, refused = graph.read_bytes(), 0
    for _ in range(12):  # a third of a second each
        graph.write_bytes(damaged(whole, random))
        try:
            find_export(version).load()(small_images)
        except ExportError as error:
            assert str(version) in str(error)
            refused += 1
    assert refused > 3 and find_export(version).sidecar() is None
    assert Sidecar().agrees_with(PROCESSOR)
