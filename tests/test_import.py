"""`import deit_tf` is enough for a model and for its files, and brings nothing that others need."""

import subprocess
import sys

import deit_tf

CODE = """
import sys
import deit_tf
import keras
deit_tf.create_model("deit_test")
heavy = {"ai_edge_litert", "litert_quantizer", "tensorflow_serving", "keras_cv", "jinja2"}
block = keras.saving.get_registered_object("deit_tf>Block")
print(sorted(heavy & set(sys.modules)), block.__name__)

import deit_tf.evaluation.check, deit_tf.evaluation.findings, deit_tf.evaluation.predict
forms = {"ai_edge_litert", "litert_quantizer", "tensorflow_serving", "grpc"}
print(sorted(forms & set(sys.modules)), "tensorflow" in sys.modules)
"""


def test_a_model_needs_no_exporter_and_no_augmentation_nor_a_prediction_a_form_of_export():
    """A .keras file is predicted with by neither LiteRT nor the protocol of a server."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "[] Block\n[] True\n"


def test_every_public_name_is_there():
    assert all(hasattr(deit_tf, name) for name in deit_tf.__all__)
    assert set(deit_tf.__all__) <= set(dir(deit_tf))


def test_older_public_modules_are_importable():
    from deit_tf.optim import AdamW

    from deit_tf import config, data

    assert AdamW is deit_tf.optim.AdamW and config.TrainConfig and data.open_sources
