"""config.json of others: what it says is taken, what makes no sense is named, and nothing else."""

import copy
import json

import pytest

from deit_tf.data import ImageProcessor
from deit_tf.weights.configs import CONFIG, PREPROCESSOR, facts_beside

HUGGING_FACE = {
    "architectures": ["DeiTForImageClassificationWithTeacher"],
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "num_attention_heads": 3,
    "id2label": {"0": "cat", "1": "dog"},
}
TIMM = {
    "architecture": "deit_tiny_patch16_224",
    "label_names": ["n01", "n02"],
    "label_descriptions": {"n01": "cat"},
    "model_args": {"num_heads": 3},
    "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3},
}
PREPROCESSOR_CONFIG = {
    "size": {"height": 256, "width": 256},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
NESTED: list = []
for _ in range(900):
    NESTED = [NESTED]
FOREIGN = [
    None, True, 0, -1, 65536, 10**30, 0.5, float("nan"), float("inf"), "", "x", "[/x]", "a\nb",
    [], [None], [1, 2, 3, 4], [0.5, float("nan"), 0.5], ["a"] * 3, {}, {"0": None}, {"x": []},
    NESTED,
]  # fmt: skip


def mutations(config):
    """Every entry, at any depth, replaced by everything foreign, and left out."""
    for key in config:
        yield {k: v for k, v in config.items() if k != key}
        yield from ({**config, key: foreign} for foreign in FOREIGN)
        if isinstance(config[key], dict):
            yield from ({**config, key: inner} for inner in mutations(config[key]))


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))
    return folder / "model.safetensors"


@pytest.mark.parametrize("config, count", [(HUGGING_FACE, 161), (TIMM, 230)])
def test_a_mutated_config_is_taken_or_named(tmp_path, config, count):
    taken, refused = 0, 0
    for mutated in mutations(copy.deepcopy(config)):
        file = write(tmp_path, CONFIG, mutated)
        try:
            facts = facts_beside(file, ["deit.x"])
            taken += 1
            assert facts.image_size is None or all(0 < side <= 4096 for side in facts.image_size)
        except ValueError as error:
            refused += 1
            assert CONFIG in str(error) and len(str(error)) < 600
    assert taken + refused == count and refused > count / 4


@pytest.mark.parametrize("config, count", [(PREPROCESSOR_CONFIG, 253), (TIMM, 230)])
def test_a_mutated_preprocessor_is_taken_or_named(tmp_path, config, count):
    taken, refused = 0, 0
    for mutated in mutations(copy.deepcopy(config)):
        write(tmp_path, PREPROCESSOR, mutated)
        try:
            processor = ImageProcessor.from_preprocessor_config(tmp_path)
            taken += 1
            assert max(processor.size) <= 4096
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path / PREPROCESSOR)) and len(str(error)) < 600
    assert taken + refused == count and refused


def test_what_they_say(tmp_path):
    facts = facts_beside(write(tmp_path, CONFIG, HUGGING_FACE), ["deit.x"])
    assert (facts.layer_norm_eps, facts.image_size, facts.num_heads) == (1e-12, (224, 224), 3)
    assert facts.labels == ("cat", "dog")
    facts = facts_beside(write(tmp_path, CONFIG, TIMM), ["x"])
    assert facts.labels == ("cat", "n02") and facts.architecture == "deit_tiny_patch16_224"
    assert (facts.image_size, facts.num_heads, facts.layer_norm_eps) == ((224, 224), 3, 1e-6)


@pytest.mark.parametrize("eps", [float("nan"), -1e-6, 0, 1, "1e-6"])
def test_an_epsilon_that_is_none_is_refused(tmp_path, eps):
    file = write(tmp_path, CONFIG, HUGGING_FACE | {"layer_norm_eps": eps})
    with pytest.raises(ValueError, match="`layer_norm_eps` is a number above 0 and below 1"):
        facts_beside(file, [])


def test_without_an_epsilon_it_is_the_librarys(tmp_path):
    file = write(tmp_path, CONFIG, {"num_attention_heads": 3})
    assert facts_beside(file, ["deit.x"]).layer_norm_eps == 1e-12
    assert facts_beside(file, ["x"]).layer_norm_eps == 1e-6
