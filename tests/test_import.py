"""`import deit_tf` is enough for a model and for its files, and brings nothing that others need."""

import subprocess
import sys
from pathlib import Path

import pytest

import deit_tf

FILE = Path(__file__).parent / "golden" / "older_student.keras"
CODE = """
import sys
import keras
try:
    keras.models.load_model(sys.argv[1])
except TypeError as error:
    print("Could not locate class 'PatchEmbed'" in str(error))

import deit_tf
deit_tf.create_model("deit_test")
heavy = {"ai_edge_litert", "litert_quantizer", "tensorflow_serving", "keras_cv", "jinja2"}
block = keras.saving.get_registered_object("deit_tf>Block")
print(sorted(heavy & set(sys.modules)), block.__name__)
print(deit_tf.load_model(sys.argv[1]).name, keras.models.load_model(sys.argv[1]).name)

import deit_tf.evaluation.check, deit_tf.evaluation.findings, deit_tf.evaluation.predict
forms = {"ai_edge_litert", "litert_quantizer", "tensorflow_serving", "grpc"}
forms |= {"onnx", "onnxruntime", "tf2onnx"}
print(sorted(forms & set(sys.modules)), "tensorflow" in sys.modules)
"""


@pytest.fixture(scope="module")
def printed():
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(FILE)], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_model_needs_no_exporter_and_no_augmentation_nor_a_prediction_a_form_of_export(printed):
    """A .keras file is predicted with by neither LiteRT nor the protocol of a server."""
    assert (printed[1], printed[3]) == ("[] Block", "[] True")


def test_a_file_loads_after_the_import(printed):
    """What Keras says without it stands in the docs, where a search finds it."""
    assert (printed[0], printed[2]) == ("True", "deit_test deit_test")
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    assert "`Could not locate class 'PatchEmbed'`" in page


def test_every_public_name_is_there():
    assert all(hasattr(deit_tf, name) for name in deit_tf.__all__)
    assert set(deit_tf.__all__) <= set(dir(deit_tf))


def test_older_public_modules_are_importable():
    from deit_tf.optim import AdamW

    from deit_tf import config, data

    assert AdamW is deit_tf.optim.AdamW and config.TrainConfig and data.open_sources
