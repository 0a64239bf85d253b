"""Files of torch: the original's and timm's training runs, and what is refused. Where torch is not
installed, those that need it are skipped."""

import argparse
import os
import pathlib
import pickle
import sys
import zipfile

import numpy as np
import pytest
from test_weight_files import TOLERANCE, deviation, empty, golden, images, text

import deit_tf
from deit_tf.distillation.fingerprint import teacher_files
from deit_tf.runs import load_run
from deit_tf.weights.files import read_weights
from deit_tf.weights.torch_files import _reason, _unwrapped


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def state(torch):
    _, state = golden("timm_deit_distilled")
    return {key: torch.tensor(array) for key, array in state.items()}


@pytest.fixture
def average(state):
    """Another model, as a moving average is."""
    return {key: tensor / 2 for key, tensor in state.items()}


def logits(file):
    arrays, _ = golden("timm_deit_distilled")
    return np.asarray(deit_tf.create_model("deit_test", weights=file)(images(arrays)))


def assert_is_the_golden_model(file):
    arrays, _ = golden("timm_deit_distilled")
    assert deviation(logits(file), arrays["logits_eval"]) < TOLERANCE


@pytest.mark.parametrize(
    "key",
    [
        "blocks.0.norm1.bias",
        "module.blocks.0.norm1.bias",
        "_orig_mod.blocks.0.norm1.bias",
        "module._orig_mod.blocks.0.norm1.bias",
        "_orig_mod.module.blocks.0.norm1.bias",
        "blocks.0._orig_mod.norm1.bias",
    ],
)
def test_what_is_around_a_model_is_taken_off(key):
    assert _unwrapped(key) == "blocks.0.norm1.bias"


def test_a_module_of_that_name_within_a_model_stays():
    assert _unwrapped("blocks.0.module.bias") == "blocks.0.module.bias"
    assert _unwrapped("blocks.my_orig_mod.bias") == "blocks.my_orig_mod.bias"


def test_without_torch_a_pth_file_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch.*or convert it"):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_original_pth(tmp_path, torch, state, zipped):
    model = {f"module.{key}": tensor for key, tensor in state.items()}
    content = {"model": model, "args": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_is_the_golden_model(tmp_path / "x.pth")


def test_bfloat16_and_what_holds_no_model(tmp_path, torch, state):
    model = {key: tensor.bfloat16() for key, tensor in state.items()}
    torch.save({"model": model}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth")[0]["norm.bias"].dtype == np.float32
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no state dict.*Received: epoch"):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_the_moving_average_of_a_run_is_taken_on_request(
    tmp_path, torch, state, average, keys, caplog
):
    file = tmp_path / "model_best.pth.tar"  # timm's name
    compiled = {f"_orig_mod.{key}": tensor for key, tensor in state.items()}
    torch.save(dict(zip(keys, (compiled, average), strict=True)) | {"epoch": 3}, file)
    with caplog.at_level("INFO"):
        assert_is_the_golden_model(file)
    assert f"holds a moving average as well: {file}#ema takes it" in caplog.text
    assert_is_the_golden_model(tmp_path)

    torch.save(average, tmp_path / "average.pth")
    chosen = logits(f"{file}#ema")
    np.testing.assert_array_equal(chosen, logits(tmp_path / "average.pth"))
    assert np.abs(chosen - logits(file)).max() > 0.1
    assert teacher_files(f"{file}#ema") != teacher_files(str(file))


def test_the_command_takes_the_moving_average(tmp_path, torch, average):
    published = deit_tf.create_model("deit_tiny_patch16_224", num_classes=2, image_size=32)
    model = {key: torch.tensor(a) for key, a in deit_tf.to_reference(published).items()}
    torch.save({"model": {}, "model_ema": model}, tmp_path / "x.pth")
    run = load_run(f"{tmp_path / 'x.pth'}#ema")
    assert run.name == "deit" and run.model.count_params() == published.count_params()


def test_a_moving_average_that_is_not_there(tmp_path, torch, state):
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="no moving average: neither model_ema nor state_dict_ema"):
        read_weights(f"{tmp_path / 'x.pth'}#ema")


def test_no_other_file_has_a_moving_average(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="`#ema` is for files of torch"):
        read_weights(f"{tmp_path / 'model.safetensors'}#ema")
    with pytest.raises(FileNotFoundError, match="x.pth: no such file"):
        read_weights(f"{tmp_path / 'x.pth'}#ema")


@pytest.mark.parametrize("zipped", [True, False])
def test_paths_and_numpy_numbers_beside_the_tensors_are_passed_over(tmp_path, torch, state, zipped):
    beside = argparse.Namespace(
        output_dir=pathlib.Path("out"),
        data=pathlib.PureWindowsPath("C:/data"),
        lr=np.float32(1e-3),
        best=np.float64(81.8),
        counts=np.arange(3),
        seed=np.int64(0),
    )
    content = {"model": state, "args": beside, "metric": np.float64(0.5), "epoch": 3}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_is_the_golden_model(tmp_path / "x.pth")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def bomb(path, torch):
    torch.save({"model": Bomb()}, path)


def old_bomb(path, torch):
    torch.save({"model": Bomb()}, path, _use_new_zipfile_serialization=False)


def zipped_bomb(path, torch):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Bomb()}, protocol=2))
        archive.writestr("archive/version", "3\n")


def bomb_in_a_stand_in(path, torch):
    torch.save({"model": {}, "args": argparse.Namespace(lr=Bomb())}, path)


def whole_network(path, torch):
    torch.save(torch.nn.Linear(2, 2), path)


@pytest.mark.parametrize(
    ("write", "held"),
    [
        (bomb, "mkdir"),
        (old_bomb, "mkdir"),
        (zipped_bomb, "mkdir"),
        (bomb_in_a_stand_in, "mkdir"),
        (whole_network, "torch.nn.modules.linear.Linear"),
    ],
)
def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch, torch, write, held):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.pth", torch)
    with pytest.raises(ValueError, match=f"is refused: it holds [a-z.]*{held}.*save the tensors"):
        read_weights(tmp_path / "x.pth")
    assert not (tmp_path / "exploded").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def other_pickle(path):
    path.write_bytes(pickle.dumps({"model": Bomb()}))


@pytest.mark.parametrize("damage", [text, empty, cut, other_pickle])
def test_damage_is_said_of_damaged_files(tmp_path, monkeypatch, torch, state, damage):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state}, tmp_path / "x.pth")
    damage(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="is damaged, or nothing that torch.save wrote") as error:
        read_weights(tmp_path / "x.pth")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("Unsupported global: GLOBAL a.B was not an allowed global", "it holds a.B beside"),
        ("Trying to load unsupported GLOBAL os.system whose module", "it holds os.system beside"),
        ("Cannot use ``weights_only=True`` with TorchScript archives", "a TorchScript program"),
        ("PytorchStreamReader failed finding central directory", "is damaged"),
        ("", "is damaged, or nothing that torch.save wrote: it ends too soon"),
    ],
)
def test_the_reason_is_told_from_the_error_of_torch(error, reason):
    assert reason in _reason(error)
