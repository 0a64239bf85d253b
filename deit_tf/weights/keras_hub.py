"""Presets of keras-hub: folders of JSON and HDF5 files, in and out, without keras-hub.

Its DeiT has a distillation token and the class head alone. Format:
keras_hub/src/utils/preset_utils.py; names of the layers: keras_hub/src/models/deit/deit_layers.py.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from deit_tf.config import check_epsilon
from deit_tf.files import CLASS_NAMES_FILE, read_class_names, read_json, write_class_names
from deit_tf.weights.configs import CONFIG, Facts, first_block, is_count
from deit_tf.weights.tensors import Tensors

BACKBONE_WEIGHTS, TASK_WEIGHTS = "model.weights.h5", "task.weights.h5"
TASK, CONVERTER = "task.json", "image_converter.json"
FILES = (BACKBONE_WEIGHTS, TASK_WEIGHTS, TASK, CONVERTER, "metadata.json")

_EMBEDDINGS, _ENCODER = "layers/dei_t_embeddings", "layers/dei_t_encoder"
# timm's name: theirs; # is a block. A kernel of theirs has the axes of Keras, that of attention one
# for the heads.
_TOKENS = {
    "cls_token": f"{_EMBEDDINGS}/vars/0",
    "dist_token": f"{_EMBEDDINGS}/vars/1",
    "pos_embed": f"{_EMBEDDINGS}/vars/2",
}
_LAYERS = {
    "patch_embed.proj": f"{_EMBEDDINGS}/patch_embedding",
    "norm": f"{_ENCODER}/layer_norm",
}
_BLOCK = {
    "norm1": "layer_norm_1",
    "attn.q": "mha/query_dense",
    "attn.k": "mha/key_dense",
    "attn.v": "mha/value_dense",
    "attn.proj": "mha/output_dense",
    "norm2": "layer_norm_2",
    "mlp.fc1": "mlp/dense",
    "mlp.fc2": "output_layer/dense",
}
_HEAD = {"head": "layers/dense"}


def read_preset(folder: Path) -> tuple[Tensors, Facts]:
    """Open a preset of keras-hub's DeiT, to be read tensor by tensor.

    Args:
        folder: What `save_to_preset` of a DeiTBackbone or DeiTImageClassifier wrote.
    Returns:
        The tensors by timm's names in torch's layout, and what the files beside them tell.
    Raises:
        ValueError: If it is another model's preset, or a file is damaged.
    """
    config = _config(folder / CONFIG)
    names = _backbone_names(config["num_layers"])
    readers = {name: partial(_read, folder / BACKBONE_WEIGHTS, *at) for name, at in names.items()}
    if _has_class_head(folder):
        readers |= {
            name: partial(_read, folder / TASK_WEIGHTS, *at)
            for name, at in _weight_and_bias(_HEAD).items()
        }

    labels, converter = folder / CLASS_NAMES_FILE, folder / CONVERTER
    facts = Facts(
        source=str(folder),
        layer_norm_eps=float(config["layer_norm_epsilon"]),
        image_size=tuple(config["image_shape"][:2]),
        num_heads=config["num_heads"],
        labels=read_class_names(labels) if labels.is_file() else None,
        preprocessor=read_json(converter, ["config"])["config"] if converter.is_file() else None,
    )
    return Tensors(readers), facts


def write_preset(
    model: keras.Model,
    state: Mapping[str, np.ndarray],
    folder: Path,
    labels: tuple[str, ...] | None,
    preprocessing: Mapping[str, Any],
) -> None:
    """Write the preset of a DeiTImageClassifier.

    Args:
        model: A DeiT with a distillation token.
        state: Its weights, as `to_reference` gives them.
        folder: An empty folder.
        labels: Class names; keras-hub has no place for them, so they lie in a file of our own.
        preprocessing: What `ImageProcessor.to_preprocessor_config("keras-hub")` gives.
    """
    heads = first_block(model)["num_heads"]
    depth = sum(key.endswith("norm1.weight") for key in state)
    split = dict(state)
    for i in range(depth):
        for leaf in ("weight", "bias"):
            thirds = np.split(split.pop(f"blocks.{i}.attn.qkv.{leaf}"), 3)
            named = zip("qkv", thirds, strict=True)
            split |= {f"blocks.{i}.attn.{part}.{leaf}": third for part, third in named}

    _write(folder / BACKBONE_WEIGHTS, split, _backbone_names(depth), heads)
    _write(folder / TASK_WEIGHTS, split, _weight_and_bias(_HEAD), heads)
    for name, content in _json_files(model, state, preprocessing).items():
        (folder / name).write_text(json.dumps(content, indent=4) + "\n")
    if labels is not None:
        write_class_names(labels, folder / CLASS_NAMES_FILE)


def _backbone_names(depth: int) -> dict[str, tuple[str, str]]:
    """The kind of each weight and its place in the file, by timm's name."""
    blocks = {
        f"blocks.{i}.{ours}": f"{_ENCODER}/encoder_layers/dei_t_encoder_block{suffix}/{theirs}"
        for i, suffix in enumerate(["", *(f"_{i}" for i in range(1, depth))])
        for ours, theirs in _BLOCK.items()
    }
    tokens = {name: ("token", place) for name, place in _TOKENS.items()}
    return tokens | _weight_and_bias(_LAYERS | blocks)


def _weight_and_bias(layers: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The kind of each weight of layers and its place; the first variable is the kernel."""
    named = {}
    for module, place in layers.items():
        module_kind = module.rpartition(".")[2]
        named[f"{module}.weight"] = (f"{module_kind} kernel", f"{place}/vars/0")
        named[f"{module}.bias"] = (f"{module_kind} bias", f"{place}/vars/1")
    return named


def _read(file: Path, kind: str, place: str) -> np.ndarray:
    """One variable in torch's layout.

    Raises:
        ValueError: If the file is damaged, has no such variable, or refers to another file.
    """
    try:
        with h5py.File(file) as content:
            variable = content[place]
            if variable.file.filename != content.filename or variable.external:
                raise ValueError(f"{file} refers to other files, which are not opened.")
            array = variable[()]
    except (OSError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged, or not of a DeiT of keras-hub: {place}: {error}. Fetch it again."
        ) from error

    if kind in ("q kernel", "k kernel", "v kernel"):  # [D, heads, D / heads]
        array = array.reshape(len(array), -1)
    elif kind == "proj kernel" and array.ndim == 3:  # [heads, D / heads, D]
        array = array.reshape(-1, array.shape[-1])
    elif kind.endswith("bias"):  # of attention [heads, D / heads]
        array = array.ravel()
    if kind.endswith("kernel"):
        array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else range(array.ndim)[::-1])
    return np.ascontiguousarray(array)


def _write(
    file: Path,
    state: Mapping[str, np.ndarray],
    names: Mapping[str, tuple[str, str]],
    heads: int,
) -> None:
    """The opposite of `_read`, for each weight of a file."""
    with h5py.File(file, "w") as content:
        for name, (kind, place) in names.items():
            array = np.asarray(state[name])
            if kind.endswith("kernel"):
                array = array.transpose(
                    (2, 3, 1, 0) if array.ndim == 4 else range(array.ndim)[::-1]
                )
            if kind in ("q kernel", "k kernel", "v kernel"):
                array = array.reshape(len(array), heads, -1)
            elif kind == "proj kernel" and array.ndim == 2:
                array = array.reshape(heads, -1, array.shape[-1])
            elif kind in ("q bias", "k bias", "v bias"):
                array = array.reshape(heads, -1)
            content[place] = array


def _config(file: Path) -> dict[str, Any]:
    """The numbers of a DeiTBackbone.

    Raises:
        ValueError: If it is another model, or one that is not built here.
    """
    content = read_json(file, ["class_name", "config"])
    if content["class_name"] != "DeiTBackbone":
        raise ValueError(
            f"{file} is of {content['class_name']}, and of keras-hub's models DeiTBackbone alone "
            "is one here. As a teacher any classifier of keras-hub goes: keras-hub:FOLDER."
        )
    config = content["config"]
    shape = config.get("image_shape")
    counts = [config.get("num_layers"), config.get("num_heads")]
    if not isinstance(shape, list) or len(shape) != 3 or not all(map(is_count, [*shape, *counts])):
        raise ValueError(
            f"{file}: `image_shape` is three whole numbers, `num_layers` and `num_heads` one. "
            f"Received: {shape}, {counts}"
        )
    check_epsilon(config.get("layer_norm_epsilon"))
    if not config.get("use_mha_bias", True):
        raise ValueError(f"{file} has `use_mha_bias` false, and attention here has biases.")
    return config


def _has_class_head(folder: Path) -> bool:
    """Whether a preset has a head on the class token.

    Raises:
        ValueError: If it has another head.
    """
    if not (folder / TASK).is_file() or not (folder / TASK_WEIGHTS).is_file():
        return False
    config = read_json(folder / TASK, ["config"])["config"]
    if config.get("pooling", "token") != "token":
        raise ValueError(
            f"{folder / TASK} has `pooling` {config['pooling']!r}, and a DeiT here classifies by "
            f"its class token. Move {TASK} away to take the trunk alone."
        )
    return True


def _json_files(
    model: keras.Model, state: Mapping[str, np.ndarray], preprocessing: Mapping[str, Any]
) -> dict[str, Any]:
    """Every JSON file of a preset, by name."""
    block = first_block(model)
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    backbone = _object(
        "models.deit.deit_backbone",
        "DeiTBackbone",
        name="dei_t_backbone",
        image_shape=[*model.input_shape[1:3], channels],
        patch_size=[patch, patch],
        num_layers=sum(key.endswith("norm1.weight") for key in state),
        num_heads=block["num_heads"],
        hidden_dim=width,
        intermediate_dim=int(width * block["mlp_ratio"]),
        dropout_rate=0.0,
        attention_dropout=0.0,
        layer_norm_epsilon=block["layer_norm_eps"],
        use_mha_bias=True,
    )
    converter = _object(
        "models.deit.deit_image_converter", "DeiTImageConverter", **dict(preprocessing)
    )
    preprocessor = _object(
        "models.deit.deit_image_classifier_preprocessor",
        "DeiTImageClassifierPreprocessor",
        image_converter=converter,
        config_file="preprocessor.json",
    )
    task = _object(
        "models.deit.deit_image_classifier",
        "DeiTImageClassifier",
        backbone=backbone,
        preprocessor=preprocessor,
        num_classes=model.output_shape[-1],
        pooling="token",
        activation=None,
        dropout=0.0,
    )
    metadata = {
        "keras_version": keras.__version__,
        "keras_hub_version": "0.32.0",  # whose format this is
        "parameter_count": sum(map(np.size, state.values())),
        "tasks": ["ImageClassifier"],
    }
    return {
        CONFIG: backbone,
        CONVERTER: converter,
        "preprocessor.json": preprocessor,
        TASK: task,
        "metadata.json": metadata,
    }


def _object(module: str, kind: str, **config: Any) -> dict[str, Any]:
    """An object as Keras serializes it."""
    return {
        "module": f"keras_hub.src.{module}",
        "class_name": kind,
        "config": config,
        "registered_name": f"keras_hub>{kind}",
    }
