"""docs/names.md: every name of the others has a row, and every name on our side exists."""

import importlib
import inspect
import re
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from deit_tf.cli import COMMANDS
from deit_tf.config import ModelConfig, TrainConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "names.md").read_text()
LINES = [line.strip("|") for line in PAGE.splitlines() if line.startswith("| `")]
ROWS = [tuple(cell.strip() for cell in line.split("|")) for line in LINES]

HUGGING_FACE = (
    "DeiTConfig",
    "DeiTImageProcessor",
    "DeiTFeatureExtractor",
    "DeiTModel",
    "DeiTForMaskedImageModeling",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
)
# facebookresearch/deit main.py, get_args_parser
FLAGS = """
    batch-size epochs bce-loss unscale-lr model input-size drop drop-path model-ema no-model-ema
    model-ema-decay model-ema-force-cpu opt opt-eps opt-betas clip-grad momentum weight-decay sched
    lr lr-noise lr-noise-pct lr-noise-std warmup-lr min-lr decay-epochs warmup-epochs
    cooldown-epochs patience-epochs decay-rate color-jitter aa smoothing train-interpolation
    repeated-aug no-repeated-aug train-mode no-train-mode ThreeAugment src reprob remode recount
    resplit mixup cutmix cutmix-minmax mixup-prob mixup-switch-prob mixup-mode teacher-model
    teacher-path distillation-type distillation-alpha distillation-tau cosub finetune attn-only
    data-path data-set inat-category output_dir device seed resume start_epoch eval eval-crop-ratio
    dist-eval num_workers pin-mem no-pin-mem distributed world_size dist_url
""".split()


def attribute(path):
    """What a dotted name stands for; modules are imported on the way."""
    root, *names = path.split(".")
    found = importlib.import_module(root)
    for i, name in enumerate(names, 1):
        if not hasattr(found, name) and inspect.ismodule(found) and root == "deit_tf":
            with suppress(ModuleNotFoundError):
                importlib.import_module(".".join([root, *names[:i]]))
        found = getattr(found, name)
    return found


def resolve(name):
    """Fail if a name of the middle column does not exist."""
    if name.startswith("--"):
        config = TrainConfig()
        for part in name[2:].split("."):
            assert is_dataclass(config) and part in config.__dataclass_fields__, name
            config = getattr(config, part)
    elif name.startswith("deit-tf "):
        assert name.removeprefix("deit-tf ") in COMMANDS, name
    elif match := re.fullmatch(r"([\w.]+)\((\w+)\)", name):
        parameters = inspect.signature(attribute(match[1])).parameters
        fields = ModelConfig.__dataclass_fields__ if "overrides" in parameters else ()
        assert match[2] in parameters or match[2] in fields, name
    else:
        attribute(name)


@pytest.mark.parametrize("theirs, ours", [row[:2] for row in ROWS])
def test_the_name_exists(theirs, ours):
    names = re.findall(r"`([^`]+)`", ours)
    if ours.startswith("not here: "):
        assert len(ours.split()) > 4, "a reason"
        return
    assert names, f"{theirs} has no name here"
    for name in names:
        resolve(name)


def test_every_name_of_theirs_has_a_row():
    left = {name for theirs, *_ in ROWS for name in re.findall(r"`([^`]+)`", theirs)}
    assert set(HUGGING_FACE) <= left
    assert [flag for flag in FLAGS if f"--{flag}" not in left] == []
    assert {"create_model", "Mixup", "RandomErasing", "RASampler", "create_optimizer"} <= left
    assert all(len(row) == 3 for row in ROWS) and len(ROWS) > 100


@pytest.mark.parametrize(
    "name",
    [
        "--optim.wd",
        "deit-tf nothing",
        "deit_tf.nothing",
        "deit_tf.create_model(nothing)",
        "deit_tf.ModelConfig.width",
    ],
)
def test_a_name_that_does_not_exist_is_found_out(name):
    with pytest.raises((AssertionError, AttributeError)):
        resolve(name)
