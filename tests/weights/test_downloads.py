"""Downloads that fail: one sentence says what was wanted, from where, and what to do without."""

import sys
import urllib.error
from types import SimpleNamespace as Stub

import keras
import pytest
import requests
from keras.src.utils import file_utils

from deit_tf.config import DataConfig, TeacherConfig
from deit_tf.data import ImageProcessor
from deit_tf.data.sources import tensorflow_datasets
from deit_tf.distillation.teacher_sources import build_teacher, load_teacher
from deit_tf.weights.downloads import explained_download

URL = "https://weights.invalid/net_notop.h5"
FAILURES = {
    "no name": urllib.error.URLError("Name or service not known"),
    "refused": urllib.error.HTTPError(URL, 403, "Forbidden", None, None),
}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """keras.applications.ResNet50 is its download alone, which fails."""

    def download(*_, **__):
        keras.utils.get_file("net_notop.h5", URL, cache_subdir="models")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.applications, "ResNet50", download)

    def fail_with(error):
        def urlretrieve(*_):
            raise error

        monkeypatch.setattr(file_utils, "urlretrieve", urlretrieve)

    return fail_with


def teach():
    load_teacher("keras:ResNet50", ("a", "b"))


def train_a_teacher():
    build_teacher(TeacherConfig("keras:ResNet50", weights="imagenet"), 3, ImageProcessor(32))


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(
    "start, wanted, without",
    [
        (teach, "Teacher 'keras:ResNet50'", "`deit-tf train-teacher`"),
        (train_a_teacher, "`teacher.weights` imagenet of keras:ResNet50", "`teacher.weights` null"),
    ],
)
def test_weights_of_keras_applications(offline, tmp_path, start, wanted, without, failure):
    offline(FAILURES[failure])
    with pytest.raises(FileNotFoundError) as refused:
        start()
    text = str(refused.value)
    assert text.startswith(f"{wanted} cannot be downloaded from {URL} (")
    assert f"place it as {tmp_path}" in text and "net_notop.h5. " in text
    assert without in text and text.endswith("no download.") and "\n" not in text


@pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionResetError("reset")])
def test_a_download_that_breaks_off(offline, error):
    offline(error)
    with pytest.raises(FileNotFoundError, match="did not arrive whole .* Run the same command"):
        teach()


def test_other_errors_stay():
    with pytest.raises(ZeroDivisionError), explained_download("It", "Nothing needs one."):
        1 / 0  # noqa: B018


def test_a_preset_of_keras_hub(monkeypatch):
    def from_preset(preset):
        raise ValueError("kaggle\nsays no")

    models = Stub(ImageClassifier=Stub(from_preset=from_preset))
    monkeypatch.setitem(sys.modules, "keras_hub", Stub(models=models))
    with pytest.raises(FileNotFoundError, match="ValueError: kaggle says no.*keras-hub:FOLDER"):
        load_teacher("keras-hub:net", ("a", "b"))


def test_a_data_set_of_tensorflow(monkeypatch, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    def download_and_prepare():
        raise requests.ConnectionError("Failed to resolve\n'storage'")

    info = Stub(features={"image": None, "label": tfds.features.ClassLabel(names=["a", "b"])})
    builder = Stub(info=info, data_dir=str(tmp_path), download_and_prepare=download_and_prepare)
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    with pytest.raises(FileNotFoundError) as refused:
        tensorflow_datasets(DataConfig("tfds:mnist"))
    text = str(refused.value)
    assert text.startswith("tfds:mnist cannot be downloaded (ConnectionError: Failed to resolve '")
    assert f"place what it makes as {tmp_path}" in text and "need no download" in text
