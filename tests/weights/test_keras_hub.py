"""Presets of keras-hub, in and out: against files that it made, and itself by -m reference."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from test_reference import difference
from test_weight_files import GOLDEN, TOLERANCE, assert_same_weights, deviation

import deit_tf
from deit_tf.cli import main
from deit_tf.data import ImageProcessor
from deit_tf.distillation.fingerprint import teacher_files
from deit_tf.models import class_head
from deit_tf.runs import load_run
from deit_tf.weights import downloads
from deit_tf.weights.files import read_weights, write_weights
from deit_tf.zoo import restore_model

PRESET = GOLDEN / "keras_hub_deit"
PREPROCESSING = ImageProcessor(32).to_preprocessor_config("keras-hub")


@pytest.fixture(scope="module")
def expected():
    with np.load(PRESET / "expected.npz") as file:
        return dict(file)


@pytest.fixture
def preset(tmp_path):
    return Path(shutil.copytree(PRESET, tmp_path / "preset"))


def rewrite(file, **changes):
    content = json.loads(file.read_text())
    content["config"] |= changes
    file.write_text(json.dumps(content))


def test_logits_and_tokens_are_keras_hubs(expected):
    told, _ = restore_model(PRESET)
    by_name = deit_tf.create_model("deit_test", image_size=(32, 48), weights=PRESET)
    for model in (told, by_name, load_run(PRESET).model):
        assert deviation(model(expected["image"]), expected["logits"]) < TOLERANCE
    tokens = deit_tf.features(told)(expected["image"])["tokens"]
    assert deviation(tokens, expected["tokens"]) < TOLERANCE
    assert set(deit_tf.heads(told).output) == {"cls"}


def test_other_classes_and_another_size_take_the_trunk(expected):
    model = deit_tf.create_model("deit_test", image_size=64, num_classes=3, weights=PRESET)
    assert set(deit_tf.heads(model).output) == {"cls", "dist"}
    ours, theirs = (deit_tf.to_reference(m) for m in (model, restore_model(PRESET)[0]))
    np.testing.assert_array_equal(ours["blocks.1.norm2.bias"], theirs["blocks.1.norm2.bias"])


def test_a_backbone_alone_is_a_trunk(preset):
    (preset / "task.json").unlink()
    model = deit_tf.create_model("deit_test", weights=preset, image_size=(32, 48))
    assert model.output_shape == (None, 1000)
    with pytest.raises(ValueError, match="They have no head"):
        restore_model(preset)


@pytest.mark.parametrize("labels", [None, ("ant", "bee", "cat", "dog")])
def test_out_and_in_again_is_exact(tmp_path, labels):
    model = class_head(deit_tf.create_model("deit_test", num_classes=4, layer_norm_eps=1e-7))
    processor = ImageProcessor(32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_ratio=1.0)
    preprocessing = processor.to_preprocessor_config("keras-hub")
    out = write_weights(
        model, tmp_path / "out", layout="keras-hub", labels=labels, preprocessing=preprocessing
    )
    run = load_run(out)
    assert_same_weights(model, run.model)
    assert run.model.get_layer("norm").epsilon == 1e-7
    assert run.labels == labels and not run.assumed
    np.testing.assert_allclose(run.processor.mean, processor.mean, rtol=1e-12)  # float64 twice
    np.testing.assert_allclose(run.processor.std, processor.std, rtol=1e-12)
    assert (run.processor.size, run.processor.before_crop) == ((32, 32), 32)


def test_what_is_written_has_the_shapes_and_places_that_keras_hub_has(tmp_path):
    model, _ = restore_model(PRESET)
    out = write_weights(model, tmp_path / "out", layout="keras-hub", preprocessing=PREPROCESSING)
    for name in ("model.weights.h5", "task.weights.h5"):
        ours, theirs = variables(out / name), variables(PRESET / name)
        theirs = {place: a for place, a in theirs.items() if not place.startswith("optimizer")}
        assert ours.keys() == theirs.keys()
        for place, array in theirs.items():
            np.testing.assert_array_equal(ours[place], array, err_msg=place)
    for name in ("config.json", "task.json"):
        ours, theirs = (json.loads((each / name).read_text()) for each in (out, PRESET))
        theirs["config"] = {k: v for k, v in theirs["config"].items() if k in ours["config"]}
        for nested in ("backbone", "preprocessor"):
            ours["config"].pop(nested, None)
            theirs["config"].pop(nested, None)
        assert ours == theirs


def variables(file):
    found = {}

    def add(place, each):
        if isinstance(each, h5py.Dataset):
            found[place] = each[()]

    with h5py.File(file) as content:
        content.visititems(add)
    return found


def test_two_heads_go_out_as_one_and_it_is_said(tmp_path, caplog):
    model = deit_tf.create_model("deit_test", num_classes=4)
    out = write_weights(model, tmp_path / "out", layout="keras-hub", preprocessing=PREPROCESSING)
    assert "has the class head alone" in caplog.text
    again, _ = restore_model(out)
    x = np.ones((1, 32, 32, 3), "f")
    np.testing.assert_array_equal(again(x), deit_tf.heads(model)(x)["cls"])


@pytest.mark.parametrize("options", [{"distilled": False}, {"init_values": 1e-5}])
def test_what_keras_hub_has_no_class_for(tmp_path, options):
    model = deit_tf.create_model("deit_test", num_classes=4, **options)
    with pytest.raises(ValueError, match="a distillation token and no LayerScale: take `layout`"):
        write_weights(model, tmp_path / "out", layout="keras-hub", preprocessing=PREPROCESSING)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_preset(tmp_path):
    main(["convert", str(PRESET), "--layout", "keras-hub", "--out", str(tmp_path / "out")])
    assert_same_weights(restore_model(PRESET)[0], restore_model(tmp_path / "out")[0])


def truncated(preset):
    file = preset / "model.weights.h5"
    file.write_bytes(file.read_bytes()[:-2000])


def text(preset):
    (preset / "model.weights.h5").write_text("version https://git-lfs.github.com/spec/v1\n")


def deeper(preset):
    rewrite(preset / "config.json", num_layers=3)


def of_a_wrong_type(preset):
    rewrite(preset / "config.json", num_layers="2")


def without_biases(preset):
    rewrite(preset / "config.json", use_mha_bias=False)


def pooled(preset):
    rewrite(preset / "task.json", pooling="gap")


def another_model(preset):
    content = json.loads((preset / "config.json").read_text())
    (preset / "config.json").write_text(json.dumps(content | {"class_name": "ViTBackbone"}))


def linked(preset):
    place = "layers/dei_t_embeddings/vars/0"
    shutil.copy(preset / "model.weights.h5", preset / "other.h5")
    with h5py.File(preset / "model.weights.h5", "a") as content:
        del content[place]
        content[place] = h5py.ExternalLink("other.h5", place)


@pytest.mark.parametrize(("fault", "message"), [
    (truncated, "model.weights.h5 is damaged"),
    (text, "model.weights.h5 is damaged"),
    (deeper, "is damaged, or not of a DeiT of keras-hub: .*dei_t_encoder_block_2"),
    (of_a_wrong_type, "config.json: `image_shape` is three whole numbers"),
    (without_biases, "`use_mha_bias` false"),
    (pooled, "`pooling` 'gap', and a DeiT here classifies by its class token"),
    (another_model, "is of ViTBackbone, and of keras-hub's models DeiTBackbone alone"),
    (linked, "refers to other files, which are not opened"),
])  # fmt: skip
def test_faults_name_the_file(preset, fault, message):
    fault(preset)
    with pytest.raises(ValueError, match=message) as error:
        restore_model(preset)
    assert "\n" not in str(error.value)


def test_a_teacher_is_known_by_both_files(preset):
    before = teacher_files(str(preset))
    assert before == teacher_files(str(PRESET))
    with h5py.File(preset / "task.weights.h5", "a") as content:
        content["layers/dense/vars/1"][...] += 1
    assert teacher_files(str(preset)) != before


def test_the_hub_of_hugging_face_has_presets_too(monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append(allow_patterns[-1])
        return str(PRESET)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    _, facts = read_weights("hf://keras/deit_tiny_distilled_patch16_224_imagenet")
    assert facts.image_size == (32, 48)
    assert asked == [patterns[-1] for patterns in downloads.KINDS.values()]


def test_a_name_of_kaggle(monkeypatch):
    from types import SimpleNamespace as Stub

    asked = []
    hub = Stub(model_download=lambda handle: asked.append(handle) or str(PRESET))
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    name = "keras/deit/keras/deit_tiny_distilled_patch16_224_imagenet"
    assert load_run(f"kaggle://{name}").model.output_shape == (None, 10)
    assert asked == [name]

    def fails(handle):
        raise ValueError("no\nnetwork")

    hub.model_download = fails
    with pytest.raises(FileNotFoundError, match="ValueError: no network.*pass its folder"):
        read_weights(f"kaggle://{name}")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ImportError, match="pip install keras-hub"):
        read_weights(f"kaggle://{name}")


def reference(command, folder):
    python = os.environ.get("DEIT_TF_KERAS_HUB_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import keras_hub"], capture_output=True).returncode:
        pytest.skip(f"{python} has no keras-hub")
    script = Path(__file__).parent / "reference_keras_hub.py"
    done = subprocess.run(
        [python, str(script), command, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.reference
def test_a_preset_of_keras_hub_itself(tmp_path):
    reference("make", tmp_path / "preset")
    run = load_run(tmp_path / "preset")
    assert difference(run.model, tmp_path / "preset") < TOLERANCE
    np.testing.assert_allclose(run.processor.std, 1 / (255 * np.array([0.02, 0.01, 0.03])))


@pytest.mark.reference
def test_keras_hub_loads_what_was_converted(tmp_path):
    model = class_head(deit_tf.create_model("deit_test", num_classes=4, image_size=32))
    processor = ImageProcessor(32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), crop_ratio=1.0)
    out = write_weights(
        model,
        tmp_path / "out",
        layout="keras-hub",
        preprocessing=processor.to_preprocessor_config("keras-hub"),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.save(out / "photo.npy", pixels)
    reference("load", out)
    assert difference(model, out) < TOLERANCE
    # Of its very size a picture is not resized; two float32 formulas of one normalization.
    ours = keras.ops.convert_to_numpy(processor.batch([pixels])[0])
    np.testing.assert_allclose(np.load(out / "pixels.npy")[0], ours, atol=1e-5)
