"""Weights from files and into files: every kind that is read, every fault that is refused, and what
it costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import deit_tf
from deit_tf.models.resnet import create_resnet
from deit_tf.weights.files import read_weights, write_weights
from deit_tf.weights.names import describe, resize_pos_embed, to_reference
from deit_tf.zoo import restore_model

GOLDEN = Path(__file__).parents[1] / "golden"
# Two float32 implementations of two blocks of width 48: rounding gives about 1e-6.
TOLERANCE = 1e-5
TIMM_PREPROCESSING = {
    "input_size": [3, 32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 0.9,
}


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    state = {
        key.removeprefix("weight/"): a for key, a in arrays.items() if key.startswith("weight/")
    }
    return arrays, state


def images(arrays):
    return arrays["image_nchw"].transpose(0, 2, 3, 1)


def deviation(value, reference):
    return np.abs(np.asarray(value) - reference).max() / max(1.0, np.abs(reference).max())


def assert_same_weights(a, b):
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=x.path)


@pytest.fixture
def folder(tmp_path):
    """A folder as Hugging Face has them."""
    arrays, state = golden("hf_deit_with_teacher")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["DeiTForImageClassificationWithTeacher"],
        "layer_norm_eps": 1e-12,
        "image_size": 32,
        "num_attention_heads": 3,
        "id2label": {str(i): f"kind {i}" for i in range(10)},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 36, "crop_size": 32}))
    return tmp_path


def test_a_folder_of_hugging_face(folder, caplog):
    arrays, _ = golden("hf_deit_with_teacher")
    with caplog.at_level("INFO"):
        model = deit_tf.create_model("deit_test", weights=folder)
    assert deviation(model(images(arrays)), arrays["logits"]) < TOLERANCE
    assert model.get_layer("norm").epsilon == model.get_layer("blocks.1").norm2.epsilon == 1e-12
    assert "epsilon 1e-12" in caplog.text and "heads" not in caplog.text
    _, facts = read_weights(folder)
    assert facts.labels == tuple(f"kind {i}" for i in range(10))
    assert (facts.image_size, facts.num_heads, facts.preprocessor["size"]) == ((32, 32), 3, 36)


@pytest.mark.parametrize("dtype, digits", [(np.float16, 11), (ml_dtypes.bfloat16, 8)])
def test_half_precision_is_read_as_float32(tmp_path, dtype, digits):
    arrays, state = golden("timm_deit_distilled")
    save_file(
        {key: array.astype(dtype) for key, array in state.items()}, tmp_path / "half.safetensors"
    )
    tensors, facts = read_weights(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    # Half a unit in the last of `digits` binary places.
    np.testing.assert_allclose(tensors["norm.weight"], state["norm.weight"], rtol=2.0**-digits)
    assert facts.layer_norm_eps == 1e-6
    model = deit_tf.create_model("deit_test", weights=tmp_path / "half.safetensors")
    assert model.get_layer("norm").epsilon == 1e-6 and model.output_shape == (None, 10)


def test_other_classes_other_size_and_own_epsilon(folder, caplog):
    _, state = golden("hf_deit_with_teacher")
    with caplog.at_level("INFO"):
        model = deit_tf.create_model(
            "deit_test", weights=folder, num_classes=7, image_size=(32, 64), layer_norm_eps=1e-5
        )
    assert "other heads (10 classes)" in caplog.text and "the heads are new" in caplog.text
    assert "32 x 32: its position embedding was resized" in caplog.text
    assert "epsilon 1e-05" in caplog.text and model.get_layer("norm").epsilon == 1e-5
    theirs = state["deit.embeddings.position_embeddings"]
    ours = to_reference(model)["pos_embed"]
    np.testing.assert_array_equal(ours[:, :2], theirs[:, :2])
    np.testing.assert_array_equal(ours[:, 2:], resize_pos_embed(theirs[:, 2:], (4, 4), (4, 8)))


def test_the_grid_of_a_wide_checkpoint_is_told_by_its_config(tmp_path):
    wide = deit_tf.create_model("deit_test", num_classes=3, image_size=(32, 64))
    out = write_weights(wide, tmp_path / "wide", layout="huggingface", preprocessing={})
    model = deit_tf.create_model("deit_test", image_size=(64, 32), weights=out)
    theirs, ours = (to_reference(m)["pos_embed"][:, 2:] for m in (wide, model))
    np.testing.assert_array_equal(ours, resize_pos_embed(theirs, (4, 8), (8, 4)))


@pytest.mark.parametrize("distilled", [True, False])
@pytest.mark.parametrize("layout", ["timm", "huggingface"])
def test_out_and_in_again_is_exact(tmp_path, layout, distilled):
    model = deit_tf.create_model(
        "deit_test", num_classes=4, distilled=distilled, layer_norm_eps=1e-6
    )
    labels = ["ant", "bee", "cat", "dog"]
    out = write_weights(
        model, tmp_path / "out", layout=layout, labels=labels, preprocessing=TIMM_PREPROCESSING
    )
    again = deit_tf.create_model("deit_test", distilled=distilled, weights=out)
    assert_same_weights(model, again)
    tensors, facts = read_weights(out)
    assert (
        facts.labels == tuple(labels)
        and facts.layer_norm_eps == 1e-6
        and facts.image_size == (32, 32)
    )
    assert describe(tensors) == {
        "num_classes": 4,
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 3,
        "embed_dim": 48,
        "depth": 2,
        "mlp_ratio": 4.0,
        "distilled": distilled,
        "init_values": None,
        "no_embed_class": False,
    }
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    second = write_weights(
        again, tmp_path / "second", layout=layout, labels=labels, preprocessing=TIMM_PREPROCESSING
    )
    assert (out / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_hugging_face_config_names_the_class_and_the_numbers(tmp_path):
    plain = deit_tf.create_model(
        "deit_test", num_classes=4, distilled=False, image_size=(32, 48), layer_norm_eps=1e-12
    )
    out = write_weights(plain, tmp_path / "out", layout="huggingface", preprocessing={"size": 1})
    config = json.loads((out / "config.json").read_text())
    assert (
        config["architectures"] == ["ViTForImageClassification"] and config["model_type"] == "vit"
    )
    assert config["image_size"] == [32, 48] and config["layer_norm_eps"] == 1e-12
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (
        48,
        192,
        2,
    )
    assert json.loads((out / "preprocessor_config.json").read_text()) == {"size": 1}


def test_timm_config_of_a_published_model_names_it(tmp_path):
    model = deit_tf.create_model("deit_tiny_patch16_224", num_classes=4, depth=1)
    out = write_weights(model, tmp_path / "out", layout="timm", preprocessing=TIMM_PREPROCESSING)
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == "deit_tiny_patch16_224" and config["num_features"] == 192
    assert config["model_args"]["depth"] == 1 and config["pretrained_cfg"]["classifier"] == "head"


@pytest.mark.parametrize("distilled", [False, True])
def test_timm_config_goes_by_the_tokens_not_by_the_name(tmp_path, distilled):
    name = f"deit_tiny_{'' if distilled else 'distilled_'}patch16_224"
    model = deit_tf.create_model(name, num_classes=4, depth=1, distilled=distilled)
    out = write_weights(model, tmp_path / "out", layout="timm", preprocessing=TIMM_PREPROCESSING)
    architecture = json.loads((out / "config.json").read_text())["architecture"]
    assert ("distilled" in architecture) == distilled


def test_what_is_there_is_not_overwritten_and_faults_leave_nothing(tmp_path):
    model = deit_tf.create_model("deit_test", num_classes=4)
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="taken exists"):
        write_weights(model, tmp_path / "taken", preprocessing={})
    with pytest.raises(ValueError, match="`labels` must name the 4 classes"):
        write_weights(model, tmp_path / "new", labels=["one"], preprocessing={})
    with pytest.raises(TypeError):
        write_weights(
            model, tmp_path / "new", layout="huggingface", preprocessing={"size": object()}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_keras_files_and_runs_give_their_trunk(tmp_path):
    source = deit_tf.create_model("deit_test", num_classes=5, layer_norm_eps=1e-7)
    source.save(tmp_path / "student.keras")
    for place in (tmp_path, tmp_path / "student.keras"):
        same = deit_tf.create_model("deit_test", weights=place)
        assert_same_weights(source, same)
        assert same.get_layer("norm").epsilon == 1e-7
    other = deit_tf.create_model("deit_test", num_classes=2, weights=tmp_path)
    np.testing.assert_array_equal(
        to_reference(other)["norm.weight"], to_reference(source)["norm.weight"]
    )
    assert other.output_shape == (None, 2)


def test_a_masked_model_gives_its_trunk(tmp_path):
    _, state = golden("hf_deit_masked")
    save_file(state, tmp_path / "model.safetensors")
    model = deit_tf.create_model("deit_test", num_classes=3, weights=tmp_path)
    np.testing.assert_array_equal(
        to_reference(model)["cls_token"], state["deit.embeddings.cls_token"]
    )


def test_heads_on_request(folder):
    _, state = golden("hf_deit_with_teacher")
    fresh = deit_tf.create_model("deit_test", weights=folder, heads="new")
    assert np.abs(to_reference(fresh)["head.weight"] - state["cls_classifier.weight"]).max() > 0.1
    with pytest.raises(ValueError, match="misshapen: head.weight"):
        deit_tf.create_model("deit_test", weights=folder, num_classes=3, heads="keep")


def test_a_model_without_one_of_the_heads_gives_its_trunk(tmp_path, caplog):
    distilled = deit_tf.create_model("deit_test", num_classes=4)
    one_head = keras.Model(distilled.input, deit_tf.heads(distilled).output["cls"], name="cls")
    one_head.save(tmp_path / "cls.keras")  # as `distill.train_heads` cls trains it
    with caplog.at_level("INFO"):
        model = deit_tf.create_model("deit_test", num_classes=4, weights=tmp_path / "cls.keras")
    assert "its trunk alone is taken" in caplog.text
    ours, theirs = to_reference(model), to_reference(one_head)
    np.testing.assert_array_equal(ours["blocks.1.norm1.bias"], theirs["blocks.1.norm1.bias"])
    assert np.abs(ours["head.weight"] - theirs["head.weight"]).max() > 0.01
    # Where no other classes are asked for, it is the very model.
    assert_same_weights(one_head, deit_tf.create_model("deit_test", weights=tmp_path / "cls.keras"))


def test_a_masked_model_brings_its_decoder_along(tmp_path, caplog):
    options = {"image_size": 16, "depth": 1}
    first = deit_tf.create_masked_model("deit_test", **options)
    first.get_layer("mask_patches").mask_token.assign_add(
        keras.ops.ones_like(first.get_layer("mask_patches").mask_token)
    )
    first.save(tmp_path / "masked.keras")
    with caplog.at_level("INFO"):
        again = deit_tf.create_masked_model(
            "deit_test", weights=tmp_path / "masked.keras", **options
        )
    assert_same_weights(first, again)
    assert "heads" not in caplog.text

    with caplog.at_level("INFO"):
        fresh = deit_tf.create_masked_model(
            "deit_test", weights=tmp_path / "masked.keras", heads="new", **options
        )
    assert "its trunk alone is taken" in caplog.text
    decoders = [to_reference(model)["decoder.0.weight"] for model in (first, fresh)]
    assert np.abs(decoders[0] - decoders[1]).max() > 0.01
    with pytest.raises(ValueError, match="`num_classes` is for classifiers.*num_classes=3"):
        deit_tf.create_masked_model("deit_test", num_classes=3)


def test_weights_are_read_once(tmp_path, monkeypatch):
    from deit_tf import zoo

    model, folder = regnety_folder(tmp_path / "timm", 3)
    read, reads = zoo.read_weights, []
    monkeypatch.setattr(zoo, "read_weights", lambda source: reads.append(source) or read(source))
    restored, _ = restore_model(folder)
    assert_same_weights(model, restored)
    assert reads == [folder]


def test_only_classifiers_are_written(tmp_path):
    masked = deit_tf.create_masked_model("deit_test")
    with pytest.raises(ValueError, match="must be a classifier"):
        write_weights(masked, tmp_path / "out", layout="huggingface", preprocessing={})
    with pytest.raises(
        ValueError, match="must be a classifier, a DeiT or RegNetY. Received: resnet8"
    ):
        write_weights(
            create_resnet("resnet8"), tmp_path / "out", preprocessing={}
        )  # its head is named as a DeiT's
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["timm", "huggingface", "student.keras"])
def test_another_number_of_attention_heads_is_refused(tmp_path, form):
    model, out = deit_tf.create_model("deit_test", num_classes=4, num_heads=6), tmp_path / form
    if form == "student.keras":
        model.save(out)
    else:
        write_weights(model, out, layout=form, preprocessing=TIMM_PREPROCESSING)
    with pytest.raises(
        ValueError, match="`num_heads` must be 6, .* Received: num_heads=3 for 'deit_test'"
    ):
        deit_tf.create_model("deit_test", weights=out)
    assert_same_weights(model, deit_tf.create_model("deit_test", num_heads=6, weights=out))


def test_attention_heads_are_guessed_of_published_shapes_alone(tmp_path):
    file = tmp_path / "model.safetensors"
    tiny = deit_tf.create_model("deit_tiny_patch16_224", num_classes=4, image_size=32)
    save_file(to_reference(tiny), file)
    restored, _ = restore_model(file)
    assert restored.get_layer("blocks.0").num_heads == 3 and restored.input_shape == (
        None,
        32,
        32,
        3,
    )
    shallow = deit_tf.create_model("deit_tiny_patch16_224", num_classes=4, image_size=32, depth=1)
    save_file(to_reference(shallow), file)
    with pytest.raises(
        ValueError, match="number of attention heads is unknown. Pass the name of the model"
    ):
        restore_model(file)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 6}')
    assert restore_model(file)[0].get_layer("blocks.0").num_heads == 6


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def text(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 22888\n" * 5)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, text, empty])
def test_a_damaged_safetensors_file(folder, damage):
    damage(folder / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file") as error:
        deit_tf.create_model("deit_test", weights=folder)
    assert "\n" not in str(error.value)


def test_faults_of_the_tensors_are_one_error(tmp_path):
    _, state = golden("timm_deit_distilled")
    del state["blocks.1.norm2.bias"]
    state["surplus.weight"] = np.zeros(3, np.float32)
    state["norm.weight"] = np.zeros(47, np.float32)
    state["norm.bias"] = np.full(48, np.inf, np.float32)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        deit_tf.create_model("deit_test", weights=tmp_path)
    for fault in (
        "missing: blocks.1",
        "extra: surplus",
        "misshapen: norm.weight (47,)",
        "not finite: norm.bias",
    ):
        assert fault in str(error.value)


@pytest.mark.parametrize(
    "content, message", [("{", "is no JSON file"), ("[1]", "must hold a JSON object")]
)
def test_a_damaged_config(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_weights(folder)


def test_a_config_with_an_image_size_that_is_none(folder):
    (folder / "config.json").write_text('{"image_size": [32, 32, 3]}')
    with pytest.raises(ValueError, match="one or two whole numbers"):
        read_weights(folder)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no weights: none of model.safetensors"):
        read_weights(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"h5")
    with pytest.raises(ValueError, match=r"Weights end in .safetensors, .keras, .pth"):
        read_weights(tmp_path / "weights.h5")


def test_the_hub_out_of_reach_says_how_to_place_a_file_by_hand(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="https://huggingface.co/facebook/nobody/tree/main"
    ) as error:
        deit_tf.create_model("deit_test", weights="hf://facebook/nobody")
    assert "put them into one folder" in str(error.value) and "\n" not in str(error.value)


def test_the_hub_is_asked_for_safetensors_first(folder, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns[-1]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    read_weights("hf://facebook/deit@abc")
    assert asked == [("facebook/deit", "abc", "model.safetensors")]
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        read_weights("hf://facebook/deit")
    assert asked[1:] == [
        ("facebook/deit", None, "model.safetensors"),
        ("facebook/deit", None, "model.safetensors.index.json"),
        ("facebook/deit", None, "pytorch_model.bin"),
        ("facebook/deit", None, "metadata.json"),  # of a preset of keras-hub
    ]


PEAK = """
import resource, sys
import deit_tf
from deit_tf.weights.files import load_weights, read_weights
model = deit_tf.create_model("deit_small_distilled_patch16_224")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_weights(model, *read_weights(sys.argv[1]))
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_loading_costs_at_most_the_checkpoint_beside_the_model(tmp_path):
    model = deit_tf.create_model("deit_small_distilled_patch16_224")
    out = write_weights(model, tmp_path / "out", layout="huggingface", preprocessing={})
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(out)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    assert int(done.stdout.split()[-1]) <= (out / "model.safetensors").stat().st_size


def test_regnety_round_trip(tmp_path):
    from deit_tf.zoo import create_regnety

    model = create_regnety("regnety_002", num_classes=4, image_size=64)
    noise = np.random.default_rng(0)
    for weight in model.weights:  # running statistics as well
        weight.assign(noise.uniform(0.5, 1.5, weight.shape))
    out = write_weights(
        model, tmp_path / "out", labels=list("abcd"), preprocessing=TIMM_PREPROCESSING
    )
    assert json.loads((out / "config.json").read_text())["architecture"] == "regnety_002"
    with pytest.raises(ValueError, match="has no name for stem.conv"):
        write_weights(model, tmp_path / "other", layout="huggingface", preprocessing={})
    again = create_regnety("regnety_002", image_size=64, weights=out)
    assert_same_weights(model, again)
    assert isinstance(again, keras.Model) and again.output_shape == (None, 4)


def regnety_folder(folder, classes):
    from deit_tf.zoo import create_regnety

    model = create_regnety("regnety_002", num_classes=classes, image_size=32)
    preprocessing = TIMM_PREPROCESSING
    return model, write_weights(
        model, folder, preprocessing=preprocessing, labels=[f"kind {i}" for i in range(classes)]
    )


def test_teachers_from_weights(tmp_path):
    from deit_tf.distillation.teacher_sources import load_teacher

    model, folder = regnety_folder(tmp_path / "timm", 3)
    teacher = load_teacher(str(folder), ("kind 2", "kind 0"))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    expected = np.asarray(model(images))[:, [2, 0]]
    # In the teacher's own normalization nothing is converted; two graphs of one float32 network.
    np.testing.assert_allclose(
        teacher.logits(images, deit_tf.ImageProcessor(mean=(0.5,) * 3, std=(0.5,) * 3)),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(
        ValueError, match="Teacher .* does not know these classes of the data: kind 9"
    ):
        load_teacher(str(folder), ("kind 9",))
    (folder / "config.json").unlink()
    alone = load_teacher(f"regnety_002:{folder / 'model.safetensors'}", ("a", "b", "c"))
    assert alone.class_order is None and alone.model.output_shape == (None, 3)
    with pytest.raises(ValueError, match="do not tell a classifier"):
        load_teacher(str(folder), ("a", "b", "c"))


def test_a_teacher_starts_from_weights(tmp_path):
    from deit_tf.config import TeacherConfig
    from deit_tf.distillation.teacher_sources import build_teacher

    model, folder = regnety_folder(tmp_path / "timm", 3)
    tuned = build_teacher(
        TeacherConfig("regnety_002", weights=str(folder)), 5, deit_tf.ImageProcessor(32)
    )
    assert tuned.output_shape == (None, 5)
    np.testing.assert_array_equal(
        to_reference(tuned)["stem.conv.weight"], to_reference(model)["stem.conv.weight"]
    )
    with pytest.raises(ValueError, match="must be null for resnet8"):
        build_teacher(TeacherConfig("resnet8", weights=str(folder)), 5, deit_tf.ImageProcessor(32))


def test_without_keras_hub_its_teachers_say_what_to_do(monkeypatch):
    from deit_tf.distillation.teacher_sources import load_teacher

    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match="pip install keras-hub"):
        load_teacher("keras-hub:resnet_50_imagenet", ("a",))


def test_a_teacher_of_keras_hub_sees_what_its_preset_asks_for(monkeypatch):
    from types import SimpleNamespace as Stub

    from deit_tf.distillation.teacher_sources import load_teacher

    image = keras.Input((None, None, 3))
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    converter = Stub(scale=[0.01, 0.02, 0.03], offset=(-1.0, 0.0, 1.0), image_size=(8, 8))
    network.preprocessor, network.output_dense = (
        Stub(image_converter=converter),
        Stub(activation=keras.activations.linear),
    )
    presets = Stub(models=Stub(ImageClassifier=Stub(from_preset=lambda preset: network)))
    monkeypatch.setitem(sys.modules, "keras_hub", presets)
    teacher = load_teacher("keras-hub:any", ("a", "b", "c"))
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 8, 8, 3)).astype("float32")
    logits = teacher.logits(pixels / 255, deit_tf.ImageProcessor(mean=(0.0,) * 3, std=(1.0,) * 3))
    expected = (pixels * np.float32(converter.scale) + np.float32(converter.offset)).mean((1, 2))
    np.testing.assert_allclose(logits, expected, rtol=1e-4)  # float32 means of 64 pixels
    converter.scale = None
    network.preprocessor.image_converter = None
    with pytest.raises(ValueError, match="has no image converter"):
        load_teacher("keras-hub:any", ("a", "b", "c"))
