"""Probabilities by a sigmoid: in the signatures, in the JSON file, and refused where unknown."""

import json
import shutil
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

import deit_tf
from deit_tf.exporting.sidecar import Sidecar, read_sidecar, write_sidecar
from deit_tf.exporting.signatures import IMAGES, make_signatures
from deit_tf.files import read_json, write_json

PAGE = Path(deit_tf.__file__).parent / "exporting" / "web_page"
PROGRAM = """
import { mostProbable } from "FILE";
const found = ["sigmoid", "softmax", undefined].map((by) => mostProbable([0, 2], 2, by));
console.log(JSON.stringify(found));
"""


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_signature_makes_probabilities(activation):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    signatures = make_signatures(
        model, deit_tf.ImageProcessor(8), list("abc"), 2, activation=activation
    )
    outputs = signatures[IMAGES](images)
    expected = getattr(keras.ops, activation)(model(images))
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)
    best = -np.sort(-np.array(expected), axis=-1)[:, :2]
    np.testing.assert_allclose(outputs["top_k_probabilities"], best, atol=1e-6)


def test_a_sidecar_of_before_means_a_softmax(tmp_path):
    file, artifact = tmp_path / "m.json", tmp_path / "m.tflite"
    artifact.write_bytes(b"model")
    write_sidecar(file, artifact, Sidecar(activation="sigmoid"))
    assert read_sidecar(file, artifact).activation == "sigmoid"

    content = read_json(file)
    del content["activation"]
    write_json(content, file)
    assert read_sidecar(file, artifact).activation == "softmax"

    write_json(content | {"activation": "tanh"}, file)
    with pytest.raises(ValueError, match="`activation` in .* must be softmax or sigmoid"):
        read_sidecar(file, artifact)


def test_an_unknown_activation_is_refused(tmp_path):
    model = deit_tf.create_model("deit_test", num_classes=3, depth=1)
    with pytest.raises(ValueError, match="`activation` is one of softmax, sigmoid. Received: 'x"):
        deit_tf.export_tflite(model, tmp_path / "m.tflite", activation="x")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on the PATH")
def test_the_page_reads_it():
    program = PROGRAM.replace("FILE", (PAGE / "probabilities.js").as_uri())
    command = ["node", "--input-type=module", "-e", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [[each["probability"] for each in best] for best in json.loads(done.stdout)]
    two = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(found, [[two, 0.5], [two, 1 - two], [two, 1 - two]])
