"""Every variant against timm and transformers themselves, with random weights; and our folders
loaded there.

They run in an interpreter of their own: that of DEIT_TF_REFERENCE_PYTHON, else this one. Without
    them: skipped.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import deit_tf
from deit_tf.models import class_head
from deit_tf.weights.files import write_weights
from deit_tf.zoo import create_regnety, restore_model

PYTHON = os.environ.get("DEIT_TF_REFERENCE_PYTHON", sys.executable)
SCRIPT = Path(__file__).parent / "reference_models.py"
PUBLISHED = [
    name
    for name in deit_tf.list_models()
    if name.startswith("deit_") and name[-3:] in ("224", "384")
]
DEIT3 = ["deit3_small_patch16_224", "deit3_base_patch16_224", "deit3_base_patch16_384"]
# Float32 sums of up to 3072 terms in another order, over twelve blocks; logits are of size 1.
TOLERANCE = 1e-5
PROCESSOR = deit_tf.ImageProcessor

pytestmark = pytest.mark.reference


@cache
def available() -> bool:
    code = (
        "import sys, importlib.util as i; sys.exit(not all(map(i.find_spec, ('torch', 'timm', "
        "'transformers'))))"
    )
    return subprocess.run([PYTHON, "-c", code]).returncode == 0


@pytest.fixture(autouse=True)
def reference():
    if not available():
        pytest.skip(f"{PYTHON} has no torch, timm and transformers")


def run(*arguments):
    done = subprocess.run(
        [PYTHON, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def difference(model, folder):
    with np.load(folder / "reference.npz") as file:
        reference = file["logits"]
        return np.abs(np.asarray(model(file["image"])) - reference).max() / max(
            1.0, np.abs(reference).max()
        )


@pytest.mark.parametrize("library, eps", [("timm", 1e-6), ("huggingface", 1e-12)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_variant(tmp_path, name, library, eps):
    run("make", library, name, tmp_path)
    model = deit_tf.create_model(name, weights=tmp_path)
    assert model.get_layer("norm").epsilon == eps
    assert difference(model, tmp_path) < TOLERANCE
    told, _ = restore_model(tmp_path)
    assert told.name == name
    (tmp_path / "model.safetensors").unlink()  # up to 350 MB each


@pytest.mark.parametrize("name", DEIT3)
def test_deit3(tmp_path, name):
    run("make", "timm", name, tmp_path)
    model = deit_tf.create_model(name, weights=tmp_path)
    assert difference(model, tmp_path) < TOLERANCE
    told, _ = restore_model(tmp_path)
    assert told.name == name
    (tmp_path / "model.safetensors").unlink()  # up to 350 MB each


def test_one_head_beside_a_distillation_token_in_several_files(tmp_path):
    run("make", "transformers", "DeiTForImageClassification", tmp_path)
    assert len([*tmp_path.glob("model-*.safetensors")]) > 1
    model, _ = restore_model(tmp_path)
    assert difference(model, tmp_path) < TOLERANCE


def test_a_bare_trunk(tmp_path):
    run("make", "transformers", "DeiTModel", tmp_path)
    model = deit_tf.create_model("deit_tiny_distilled_patch16_224", image_size=64, weights=tmp_path)
    features = deit_tf.features(model)
    trunk = keras.Model(features.input, features.output["tokens"])
    assert difference(trunk, tmp_path) < TOLERANCE


@pytest.mark.parametrize("name", ["regnety_002", "regnety_160"])
def test_regnety(tmp_path, name):
    run("make", "timm", name, tmp_path)
    model = create_regnety(name, weights=tmp_path)
    # Convolutions sum in another order, over up to 27 blocks without a norm after the sum.
    assert difference(model, tmp_path) < 1e-4
    (tmp_path / "model.safetensors").unlink()


@pytest.mark.parametrize("kind", ["two heads", "class head", "plain"])
@pytest.mark.parametrize(
    "size, protocol", [(32, "deit"), (32, "huggingface"), ((32, 48), "deit"), (384, "huggingface")]
)
def test_transformers_loads_what_was_converted(tmp_path, kind, size, protocol):
    distilled = kind != "plain"
    model = deit_tf.create_model(
        "deit_test", num_classes=4, image_size=size, distilled=distilled, layer_norm_eps=1e-6
    )
    if kind == "class head":
        model = class_head(model)
    processor = PROCESSOR(size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).with_protocol(protocol)
    out, labels = tmp_path / "out", ["ant", "bee", "cat", "dog"]
    write_weights(
        model,
        out,
        layout="huggingface",
        labels=labels,
        preprocessing=processor.to_preprocessor_config(),
    )
    photo = load_sample_images().images[0]
    Image.fromarray(photo).save(out / "photo.png")
    run("load", "huggingface", out)
    seen = json.loads((out / "seen.json").read_text())
    assert seen == {"keys": [[], []], "labels": dict(zip("0123", labels, strict=True))}
    assert difference(model, out) < TOLERANCE
    # One gray level, in units of the smallest deviation.
    assert (
        np.abs(np.load(out / "pixels.npy") - processor.batch([photo])[0]).max() <= 1.01 / 255 / 0.2
    )


@pytest.mark.parametrize("name, options", [
    ("deit_test", dict(image_size=(32, 48))), ("deit_test", dict(distilled=False)),
    ("deit_tiny_distilled_patch16_224", dict(depth=2)),
])  # fmt: skip
def test_timm_loads_what_was_converted(tmp_path, name, options):
    model = deit_tf.create_model(name, num_classes=4, **options)
    processor = PROCESSOR(model.input_shape[1:3], mean=(0.4, 0.5, 0.6)).with_protocol("timm")
    out = write_weights(
        model,
        tmp_path / "out",
        layout="timm",
        preprocessing=processor.to_preprocessor_config("timm"),
    )
    run("load", "timm", out)
    assert difference(model, out) < TOLERANCE
    seen = json.loads((out / "seen.json").read_text())
    assert seen == {
        "input_size": [3, *model.input_shape[1:3]],
        "crop_pct": 0.9,
        "mean": [0.4, 0.5, 0.6],
    }


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("library", ["timm", "huggingface"])
def test_they_load_models_of_other_channels(tmp_path, library, channels):
    model = deit_tf.create_model("deit_test", num_classes=4, num_channels=channels)
    processor = PROCESSOR(32, 0.9, (0.4,) * channels, (0.3,) * channels)
    preprocessing = processor.to_preprocessor_config(library)
    out = write_weights(model, tmp_path / "out", layout=library, preprocessing=preprocessing)
    run("load", library, out)
    assert difference(model, out) < TOLERANCE
