"""A SavedModel whose single pictures LiteRT answers: as the session does, and only where it can."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from export_samples import CLASS_NAMES, PROCESSOR

from deit_tf.exporting.saved_model import export_saved_model
from deit_tf.exporting.session import LoadedModel
from deit_tf.exporting.signatures import BYTES, IMAGES
from deit_tf.exporting.single_pictures import LITERT_FILE, SinglePictures
from deit_tf.exporting.verify import encoded_pictures


@pytest.fixture(scope="module")
def version(small_model, small_images, tmp_path_factory):
    """The folder of a version that has its `.tflite` file."""
    folder = tmp_path_factory.mktemp("served")
    options = {"processor": PROCESSOR, "labels": CLASS_NAMES, "batch_sizes": (1,)}
    return export_saved_model(small_model, folder, images=small_images, litert=True, **options)


@pytest.fixture(scope="module")
def requests(small_images):
    """A batch for each signature that LiteRT answers."""
    encoded = encoded_pictures(small_images, PROCESSOR)
    return {IMAGES: small_images, BYTES: np.array(encoded, object)}


def by_the_session(monkeypatch):
    """The sizes of the batches that the session gets, as they come."""
    sizes, run = [], LoadedModel.run
    monkeypatch.setattr(
        LoadedModel,
        "run",
        lambda self, *request: sizes.append(len(request[1])) or run(self, *request),
    )
    return sizes


@pytest.mark.parametrize("signature", [IMAGES, BYTES])
def test_one_picture_gets_the_answer_of_the_session(version, requests, signature, monkeypatch):
    one = requests[signature][:1]
    expected, model = LoadedModel(version).run(signature, one), SinglePictures(version)
    asked = by_the_session(monkeypatch)
    found = model.run(signature, one)
    assert not asked
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        if values.dtype == object:  # names of classes
            np.testing.assert_array_equal(found[name], values)
        else:  # sums in another order
            np.testing.assert_allclose(found[name], values, atol=1e-4)


def test_the_session_answers_several_and_while_litert_is_busy(version, requests, monkeypatch):
    model = SinglePictures(version)
    asked = by_the_session(monkeypatch)
    model.run(IMAGES, requests[IMAGES][:2])
    with model._free:
        model.run(IMAGES, requests[IMAGES][:1])
    model.run(IMAGES, requests[IMAGES][:1])
    assert asked == [2, 1]


def test_a_damaged_file_is_named_and_not_used(version, requests, tmp_path, monkeypatch, caplog):
    copy = shutil.copytree(version, tmp_path / "1")
    (copy / LITERT_FILE).write_bytes((version / LITERT_FILE).read_bytes()[:-1])
    model = SinglePictures(copy)
    assert "model.tflite is not used" in caplog.text
    asked = by_the_session(monkeypatch)
    model.run(IMAGES, requests[IMAGES][:1])
    assert asked == [1]


def test_a_file_that_differs_here_is_not_used(version, monkeypatch, caplog):
    monkeypatch.setattr(
        "deit_tf.exporting.single_pictures.deviation", lambda *_: {"max_difference": 1}
    )
    SinglePictures(version)
    assert "is not used: it differs from the session by 1 on this machine" in caplog.text


def test_what_is_no_picture_is_the_same_error(version):
    with pytest.raises(tf.errors.InvalidArgumentError):
        SinglePictures(version).run(BYTES, np.array([b"no picture"], object))
