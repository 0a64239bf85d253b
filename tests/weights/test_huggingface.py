"""What else lies on the hub of Hugging Face: one head beside a distillation token, a bare trunk,
weights in several files."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_weight_files import TOLERANCE, assert_same_weights, deviation, golden, images

import deit_tf
from deit_tf.distillation.fingerprint import teacher_files
from deit_tf.models import class_head
from deit_tf.runs import load_run
from deit_tf.weights.files import read_weights, write_weights
from deit_tf.weights.names import to_reference
from deit_tf.zoo import restore_model

CONFIG = {"num_attention_heads": 3, "image_size": 32, "layer_norm_eps": 1e-12}
INDEX = "model.safetensors.index.json"


def write_folder(folder, state):
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def one_head(state):
    """As DeiTForImageClassification has them: the trunk of its sister, and `classifier`."""
    kept = {key: a for key, a in state.items() if not key.startswith("distillation_classifier")}
    return {key.replace("cls_classifier", "classifier"): array for key, array in kept.items()}


def bare(state):
    """As DeiTModel has them, with a pooler."""
    pooler = {"pooler.dense.weight": np.ones((48, 48), "f"), "pooler.dense.bias": np.ones(48, "f")}
    trunk = {key.removeprefix("deit."): a for key, a in state.items() if key.startswith("deit.")}
    return trunk | pooler


@pytest.fixture
def student():
    """What `distill.train_heads` cls makes."""
    return class_head(deit_tf.create_model("deit_test", num_classes=4, layer_norm_eps=1e-6))


def test_one_head_beside_a_distillation_token(tmp_path):
    arrays, state = golden("hf_deit_with_teacher")
    folder = write_folder(tmp_path / "theirs", one_head(state))
    by_name = deit_tf.create_model("deit_test", weights=folder)
    told, _ = restore_model(folder)
    for model in (by_name, told, load_run(folder).model):
        assert deviation(model(images(arrays)), arrays["cls_logits"]) < TOLERANCE
        assert set(deit_tf.heads(model).output) == {"cls"}
    assert by_name.count_params() == told.count_params()


def test_other_classes_take_its_trunk_alone_with_two_heads(tmp_path, caplog):
    _, state = golden("hf_deit_with_teacher")
    folder = write_folder(tmp_path / "theirs", one_head(state))
    with caplog.at_level("INFO"):
        model = deit_tf.create_model("deit_test", weights=folder, num_classes=3)
    assert "its trunk alone is taken" in caplog.text
    assert set(deit_tf.heads(model).output) == {"cls", "dist"}


def test_a_bare_trunk_with_its_pooler(tmp_path, caplog):
    arrays, state = golden("hf_deit_with_teacher")
    folder = write_folder(tmp_path / "theirs", bare(state))
    with caplog.at_level("INFO"):
        model = deit_tf.create_model("deit_test", weights=folder, num_classes=3)
    assert "has a pooler, which classifies nothing: it is passed over" in caplog.text
    assert model.get_layer("norm").epsilon == 1e-12
    states = deit_tf.features(model)(images(arrays))["hidden_states"]  # [B, depth + 1, N, D]
    assert deviation(np.moveaxis(states, 1, 0), arrays["hidden_states"]) < TOLERANCE
    with pytest.raises(ValueError, match="do not tell a classifier. They have no head"):
        restore_model(folder)


def test_a_bare_trunk_without_its_config_has_their_epsilon(tmp_path):
    _, state = golden("hf_deit_with_teacher")
    (write_folder(tmp_path / "theirs", bare(state)) / "config.json").unlink()
    assert read_weights(tmp_path / "theirs")[1].layer_norm_eps == 1e-12


@pytest.mark.parametrize("source", ["", INDEX])
def test_weights_in_several_files(tmp_path, source):
    arrays, state = golden("hf_deit_with_teacher")
    folder = write_shards(tmp_path / "theirs", state)
    model = deit_tf.create_model("deit_test", weights=folder / source)
    assert deviation(model(images(arrays)), arrays["logits"]) < TOLERANCE
    assert model.get_layer("norm").epsilon == 1e-12


def write_shards(folder, state):
    write_folder(folder, state)
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    placed = {key: names[i % 3] for i, key in enumerate(state)}
    for name in names:
        save_file({key: state[key] for key in placed if placed[key] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return folder


def missing(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def truncated(folder):
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def replaced(folder):
    save_file({"other": np.ones(1, "f")}, folder / "model-00002-of-00003.safetensors")


def emptied(folder):
    (folder / INDEX).write_text('{"weight_map": {}}')


def led_out(folder):
    (folder / INDEX).write_text('{"weight_map": {"norm.bias": "../other/model.safetensors"}}')


@pytest.mark.parametrize(("fault", "kind", "message"), [
    (missing, FileNotFoundError, "tells of 3 files, and 1 are not beside it: model-00002"),
    (truncated, ValueError, "model-00002-of-00003.safetensors is no whole safetensors file"),
    (replaced, ValueError, "model-00002-of-00003.safetensors has no tensor"),
    (emptied, ValueError, "is no index: `weight_map` is an object"),
    (led_out, ValueError, "the name of a file beside it"),
])  # fmt: skip
def test_faults_of_several_files_name_the_file(tmp_path, fault, kind, message):
    folder = write_shards(tmp_path / "theirs", golden("hf_deit_with_teacher")[1])
    fault(folder)
    with pytest.raises(kind, match=message):
        deit_tf.create_model("deit_test", weights=folder)


def test_a_teacher_in_several_files_is_known_by_all_of_them(tmp_path):
    state = golden("hf_deit_with_teacher")[1]
    folder = write_shards(tmp_path / "theirs", state)
    before = teacher_files(str(folder))
    assert before == teacher_files(str(folder))
    state["cls_classifier.bias"] += 1
    assert teacher_files(str(write_shards(folder, state))) != before


def test_a_student_of_the_class_head_goes_out_and_in_exactly(tmp_path, student):
    labels = ["ant", "bee", "cat", "dog"]
    out = write_weights(
        student, tmp_path / "out", layout="huggingface", labels=labels, preprocessing={}
    )
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["DeiTForImageClassification"]
    assert config["model_type"] == "deit"
    tensors, facts = read_weights(out)
    assert {"classifier.weight", "classifier.bias"} <= set(tensors)
    assert not [key for key in tensors if "cls_" in key and "token" not in key]
    assert facts.labels == tuple(labels)

    again, _ = restore_model(out)
    assert_same_weights(student, again)
    x = np.ones((1, 32, 32, 3), "f")
    np.testing.assert_array_equal(again(x), student(x))


def test_a_student_of_the_class_head_is_refused_for_timm(tmp_path, student):
    """Its loader would draw the second head at random."""
    with pytest.raises(ValueError, match="no distillation head.*DeiTForImageClassification"):
        write_weights(student, tmp_path / "out", layout="timm", preprocessing={})
    assert not (tmp_path / "out").exists()
    assert "head_dist.weight" not in to_reference(student)
