"""`make gpu-check`: its cases on CPU devices, its verdicts, its one line where there is no GPU."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_check
from gpu import rows, steps
from gpu.rows import Case

ROOT = Path(__file__).parents[2]

SETUP = {"model": "deit_test", "image_size": 32, "batch": 4, "steps": 1}
CASES = {case.name: case for case in gpu_check.cases(SETUP, "gpu")}
PAGE = (ROOT / "docs" / "scale.md").read_text().split("## What a GPU does")[1].split("\n## ")[0]


def judged(name, **found):
    return rows.row(CASES[name], found)


def test_every_precision_with_and_without_xla_and_deterministic_kernels():
    assert sum(case.run == "step" for case in CASES.values()) == 3 * 2 * 2
    assert {case.run for case in CASES.values()} == set(gpu_check.CASES)


def test_the_page_says_what_each_row_should_show():
    named = re.findall(r"^\| `([^`]+)`", PAGE, re.M)
    for name in CASES:
        assert any(name.startswith(row) for row in named), name
    for row in named:
        assert any(name.startswith(row) for name in CASES), row


SEEN = {
    "tensorflow": "2.21.0",
    "keras": "3.15.0",
    "built_with_cuda": False,
    "cuda_version": "12.5",
    "cudnn_version": "9",
    "driver": None,
    "gpus": [],
}
STEP = {"first_loss": 7.0, "loss": 6.0, "images_per_second": 9.0, "peak_bytes": 1e9}
MIRRORED = {"devices": 2, "difference": 1e-7, "moved": 1e-2, "images_per_second": [10, 19]}
SCALED = {"skipped": 20, "kept": True, "moved": True, "scale": 1024.0, "loss": 7.0}


@pytest.mark.parametrize(
    "name, good, bad, said",
    [
        ("step, float32", STEP | {"same_bits": True}, {"same_bits": False}, "differ"),
        ("step, float32", STEP | {"same_bits": True}, {"loss": float("nan")}, "does not fall"),
        ("MirroredStrategy", MIRRORED | {"scaling": 0.95}, {"difference": 1e-4}, "may differ by"),
        ("MirroredStrategy", MIRRORED | {"scaling": 0.95}, {"scaling": 0.5}, "Scaling is below"),
        ("MirroredStrategy", MIRRORED | {"scaling": 0.95}, {"moved": 0.0}, "says nothing"),
        (
            "memory, float32",
            {"measured_bytes": 1e9, "planned_bytes": 1e9, "ratio": 1.1},
            {"ratio": 1.3},
            "The plan may miss by 20%",
        ),
        ("loss scaling", SCALED, {"skipped": 0}, "No step overflowed"),
        ("loss scaling", SCALED, {"kept": False}, "A skipped step changed weights"),
        ("loss scaling", SCALED, {"moved": False}, "No step was applied"),
        ("killed run", {"was_killed": True, "same_bits": True}, {"same_bits": False}, "never stop"),
        ("killed run", {"was_killed": True, "same_bits": True}, {"was_killed": False}, "faster"),
        (
            "SavedModel",
            {"difference": 1e-6, "images_per_second": 9.0},
            {"difference": 1e-3},
            "may differ by 0.0001",
        ),
    ],
)
def test_a_row_fails_by_what_it_found(name, good, bad, said):
    assert judged(name, **good)["verdict"] == "ok"
    row = judged(name, **{**good, **bad})
    assert row["verdict"] == "FAILS" and said in row["text"]


def test_rows_without_figures():
    assert judged("SavedModel", failure="It ends with 1: no")["verdict"] == "FAILS"
    refused = judged("step, float32, deterministic", refused="Bincount", error="Determinism ...")
    assert refused["verdict"] == "refused" and refused["text"].startswith("Bincount")
    rows.table([refused])


@pytest.mark.parametrize(
    "message, name",
    [
        (
            "A deterministic GPU implementation of DepthwiseConvBackpropFilter is not currently "
            "available. [Op:DepthwiseConv]",
            "DepthwiseConvBackpropFilter",
        ),
        (
            "A deterministic GPU implementation of fused batch-norm backprop, when training is "
            "disabled, is not currently available.",
            "fused batch-norm backprop, when training is disabled,",
        ),
        ("Determinism is not yet supported in GPU implementation of Bincount.", "Bincount"),
        (
            "GPU MaxPool gradient ops do not yet have a deterministic XLA implementation.\n"
            "[[{{node gradients/pool/MaxPoolGrad}}]]",
            "GPU MaxPool gradient ops",
        ),
        ("Deterministic what? [[{{node gradients/pool/MaxPoolGrad}}]]", "MaxPoolGrad"),
        ("nothing that it names", "unknown"),
    ],
)
def test_the_operation_that_refuses_is_named(message, name):
    assert steps.refused_operation(message) == name


def test_the_loss_is_scaled_on_a_cpu_too():
    scaled = steps.loss_scaling(SETUP)
    assert rows.scaling_fault(scaled) == "" and scaled["scale"] < steps.HIGHEST_SCALE


def test_the_steps_and_their_memory_on_a_cpu():
    found = steps.step(SETUP, "float32", xla=False, deterministic=False)
    assert rows.step_fault(found) == "" and found["images_per_second"] > 0
    assert steps.memory(SETUP, "float32")["planned_bytes"] > 0


def test_a_case_that_ends_its_process_is_a_row():
    broken = Case("SavedModel", "no_such_case", {}, str)
    row = rows.row(broken, gpu_check.run_apart(broken, "cpu"))
    assert row["verdict"] == "FAILS" and "ends with 1: KeyError: 'no_such_case'" in row["text"]


def check(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_a_machine_without_a_gpu_says_so_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "run_apart", lambda case, device: SEEN)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == gpu_check.NO_GPU
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "no GPU here" in said


def test_what_is_seen_is_a_row():
    gpu = {"name": "A100", "compute_capability": "8.0"}
    row = judged("seen", **SEEN | {"gpus": [gpu, gpu], "built_with_cuda": True})
    assert row["text"].endswith("A100 (8.0), A100 (8.0)") and "CUDA 12.5" in row["text"]
    assert judged("seen", **SEEN)["text"].endswith("no GPU")


def test_the_command_on_two_cpu_devices(tmp_path):
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SETUP.items()]
    file = tmp_path / "found.json"
    done = check("--device=cpu", *small, f"--json={file}", "--only", "mirrored", "killed")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row["check"]: row for row in json.loads(file.read_text())}
    assert set(found) == {"seen", "MirroredStrategy", "killed run"}
    assert all(row["verdict"] == "ok" for row in found.values())
    assert found["MirroredStrategy"]["found"]["devices"] == 2
    assert "MirroredStrategy" in done.stdout and "same bits" in done.stdout
