"""Every file in configs/ is a run that can start; recipes fill what a config leaves open."""

import re
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from deit_tf.config import (
    RECIPES,
    AugmentConfig,
    DistillConfig,
    OptimConfig,
    StudentConfig,
    TrainConfig,
    check_config,
    check_target_threshold,
)
from deit_tf.distillation.kinds import KINDS, NONE
from deit_tf.models import VARIANTS
from deit_tf.models.variants import find_variant
from deit_tf.runs import read_config, write_config
from deit_tf.training.optim import scaled_lr
from deit_tf.training.replicas import check_batch

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_file(path, tmp_path):
    config = read_config(path)
    assert config.model.name in VARIANTS
    assert config.epochs > config.optim.warmup_epochs
    assert config.optim.min_lr <= scaled_lr(config.optim, config.data.batch_size)
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("# ") and "deit-tf train" in head or "make demo" in head, (
        "the head comment gives the command"
    )
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def restated(given, default, prefix=""):
    """Settings of a config file that are the default anyway."""
    for key, value in given.items():
        before = getattr(default, key)
        if is_dataclass(before):
            yield from restated(value, before, f"{prefix}{key}.")
        elif value == (list(before) if isinstance(before, tuple) else before):
            yield f"{prefix}{key}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_says_only_what_differs(path):
    # what is trained on what stands in each, to be seen
    found = {*restated(yaml.safe_load(path.read_text()), TrainConfig())}
    assert found <= {"model.name", "data.source"}


def devices_and_parts(path, config):
    """Devices and micro-batches of the commands in the head comment of a config."""
    head = path.read_text().split("\n\n")[0]
    yield 1, config.micro_batches
    for parts in re.findall(r"on eight GPUs add --micro_batches (\d+)", head):
        yield 8, int(parts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_device_never_works_off_more_than_64_images_at_a_time(path):
    # DeiT-B takes 8 GB for 64 images of 224 pixels in bfloat16, by docs/scale.md
    config = read_config(path)
    commands = list(devices_and_parts(path, config))
    assert config.data.batch_size <= 64 or len(commands) == 2, "a command for one GPU and for eight"
    for devices, parts in commands:
        check_batch(config.data.batch_size, devices, parts)
        assert config.data.batch_size // (devices * parts) <= 64


def test_papers_rows_are_there():
    names = {path.stem for path in CONFIGS}
    for size in ("tiny", "small", "base"):
        assert {f"deit_{size}", f"deit_{size}_distilled"} <= names
    for size in ("small", "base", "large"):
        assert {f"deit3_{size}", f"deit3_{size}_384"} <= names


@pytest.mark.parametrize("size, lr, side", [("small", 4e-3, 224), ("base", 3e-3, 192)])
def test_the_recipe_of_deit3(size, lr, side):
    # facebookresearch/deit, README_revenge.md
    config = read_config(Path(__file__).parent.parent / "configs" / f"deit3_{size}.yaml")
    augment = config.augment.resolve()
    assert scaled_lr(config.optim, config.data.batch_size) == lr
    assert find_variant(config.model.name).uniform_drop_path
    assert (config.model.image_size or 224, config.model.init_values) == (side, 1e-4)
    assert (config.loss, augment.label_smoothing) == ("binary_cross_entropy", 0)
    assert (augment.auto_augment, augment.repeats, augment.mixup) == ("3-augment", 3, 0.8)


def test_the_kinds_of_distillation_can_be_set():
    assert set(get_args(get_type_hints(DistillConfig)["kind"])) == {*KINDS, NONE}


def test_recipes_say_everything():
    for recipe, values in RECIPES.items():
        assert set(values) == {f.name for f in fields(AugmentConfig)} - {"recipe"}, recipe


def test_a_config_overrides_its_recipe():
    resolved = AugmentConfig("light", scale=(0.3, 1.0), mixup=0.0).resolve()
    assert resolved.scale == (0.3, 1.0)
    assert resolved.label_smoothing == RECIPES["light"]["label_smoothing"]
    assert resolved.resolve() == resolved


@pytest.mark.parametrize(
    "value, message",
    [
        ({"mixup": -1.0}, "`augment.mixup` lies in 0..inf. Received: -1.0"),
        ({"hflip": 1.5}, "`augment.hflip` lies in 0..1"),
        ({"repeats": 0}, "`augment.repeats` lies in 1..inf"),
        (
            {"scale": (0.5, 2.0)},
            "`augment.scale` is the smallest and the largest, above 0 and up to 1",
        ),
        ({"ratio": (2.0, 1.0)}, "`augment.ratio` is the smallest and the largest"),
        ({"random_erasing": float("nan")}, "`augment.random_erasing`"),
    ],
)
def test_values_out_of_range_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig("light", **value).resolve()


@pytest.mark.parametrize(
    "config, message",
    [
        (TrainConfig(optim=OptimConfig(lr=float("nan"))), "`optim.lr` lies in 0..inf.*nan"),
        (TrainConfig(optim=OptimConfig(min_lr=-1e-5)), "`optim.min_lr`"),
        (TrainConfig(optim=OptimConfig(weight_decay=float("inf"))), "`optim.weight_decay`.*inf"),
        (TrainConfig(optim=OptimConfig(beta_2=1.5)), "`optim.beta_2` lies in 0..1"),
        (TrainConfig(seed=-1), "`seed` is from 0 to 4294967295. Received: -1"),
        (TrainConfig(seed=2**32), "`seed` is from 0"),
        (TrainConfig(epochs=0), "`epochs` must be positive"),
    ],
)
def test_a_run_out_of_range_is_refused_before_anything_is_opened(config, message):
    with pytest.raises(ValueError, match=message):
        check_config(config)


BINARY = {"loss": "binary_cross_entropy"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "every target would become 1.*label_smoothing=0.1, bce_target_thresh=0.0"),
        ({"bce_target_thresh": 1.0}, r"`bce_target_thresh` lies in \[0, 1\)"),
        ({"task": "masked"}, "`task` masked has none"),
    ],
)
def test_a_binary_loss_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check_config(TrainConfig(**BINARY, **settings))


@pytest.mark.parametrize(
    "distill, model, message",
    [
        ({"kind": "hard"}, {}, "`cosub` is for a student without a teacher.*kind='hard'"),
        ({"train_heads": "both"}, {}, "`cosub` is .*train_heads='both'"),
        ({}, {"drop_path_rate": 0.0}, "`distill.cosub` needs `model.drop_path_rate` above 0"),
    ],
)
def test_submodels_that_make_no_sense_are_refused(distill, model, message):
    config = TrainConfig(
        **BINARY,
        bce_target_thresh=None,
        distill=DistillConfig(**{"kind": "none", "cosub": True} | distill),
        model=StudentConfig(**model),
    )
    with pytest.raises(ValueError, match=message):
        check_config(config)


@pytest.mark.parametrize("threshold", [0.2, None])
def test_smoothed_labels_have_a_binary_loss_where_a_threshold_tells_them_apart(threshold):
    check_config(TrainConfig(**BINARY, bce_target_thresh=threshold))
    if threshold is not None:
        check_target_threshold(0.05, 0.1, classes=2)  # half of the smoothing for each
        with pytest.raises(ValueError, match="every target would become 1"):
            check_target_threshold(0.04, 0.1, classes=2)


def test_the_papers_recipe():
    deit = AugmentConfig().resolve()
    assert (deit.auto_augment, deit.random_erasing, deit.mixup, deit.cutmix, deit.repeats) == (
        "rand-m9-mstd0.5-inc1", 0.25, 0.8, 1.0, 3,
    )  # fmt: skip


def test_overrides_are_what_is_set():
    kept = {"drop_path_rate": 0.1, "drop_rate": 0.0, "remat": False}
    assert StudentConfig(depth=3).overrides() == {"depth": 3, **kept}


@pytest.mark.parametrize(
    "content", [{"modle": {"name": "x"}}, {"optim": {"lrr": 1}}, {"epochs": "many"}]
)
def test_unknown_keys_and_wrong_types_are_errors(content, tmp_path):
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(Exception, match="modle|lrr|epochs"):
        read_config(tmp_path / "bad.yaml")


def aliases(levels):
    """Nine times as many values with every line."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join([*lines, f"seed: *a{levels - 1}\n"])


@pytest.mark.parametrize(
    "text, message",
    [
        (aliases(4), "a config holds at most 10000 values, aliases replaced"),
        (aliases(12), "a config holds at most 10000 values, aliases replaced"),
        ("seed: " + "[" * 100_000, "a config nests at most 50 levels deep"),
        ("seed: &a [*a]", r"the alias \*a stands for nothing that ends before it"),
    ],
)
def test_a_small_file_cannot_stand_for_more_than_a_config(tmp_path, text, message):
    """Without a bound the second hangs, and the third ends the process."""
    (tmp_path / "bomb.yaml").write_text(text)
    started = time.perf_counter()
    with pytest.raises(ValueError, match=f"bomb.yaml is no config of deit-tf: .*{message}"):
        read_config(tmp_path / "bomb.yaml")
    assert time.perf_counter() - started < 5  # seconds; 0.2 on an idle machine


def test_a_few_aliases_are_fine(tmp_path):
    (tmp_path / "alias.yaml").write_text("teacher: {optim: &o {lr: 3e-3}}\noptim: *o\n")
    assert read_config(tmp_path / "alias.yaml").optim.lr == 0.003


def test_scientific_notation_is_a_number(tmp_path):
    # Plain YAML reads 1e-3 as a string.
    (tmp_path / "lr.yaml").write_text("optim: {lr: 1e-3}")
    assert read_config(tmp_path / "lr.yaml") == TrainConfig(
        optim=read_config(tmp_path / "lr.yaml").optim
    )
    assert read_config(tmp_path / "lr.yaml").optim.lr == 0.001
