"""config.json of Hugging Face and timm: what lies beside weights, in and out.

The files may come from anyone: every entry is checked for its type and range, and the file named.
Formats: transformers, configuration_deit.py; timm/models/_hub.py.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from deit_tf.config import CHANNELS, MAX_SIDE, check_epsilon
from deit_tf.files import check_class_names, read_json
from deit_tf.weights.names import is_huggingface

log = logging.getLogger(__name__)

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
TIMM_EPS = 1e-6  # of the original and timm, whose files do not tell it
# timm's names, of DeiT and of DeiT III.
PUBLISHED = (
    r"deit_(tiny|small|base){}_patch16_(224|384)",
    r"deit3_((small|base|large)_patch16_(224|384)|medium_patch16_224|huge_patch14_224)",
)
HUGGING_FACE_EPS = 1e-12  # of its DeiTConfig by default


@dataclass(frozen=True)
class Facts:
    """What lies beside the weights.

    Args:
        source: Where they came from.
        layer_norm_eps: Of the source: Hugging Face's config tells it, timm and the original have
            1e-6.
        image_size: Height and width in pixels; None where nothing tells.
        num_heads: Attention heads; None where nothing tells.
        architecture: timm's name of the model; None where nothing tells.
        labels: Class names by class; None where nothing tells, or only placeholders stand there.
        preprocessor: What `ImageProcessor.from_preprocessor_config` takes; None where there is
            none.
    """

    source: str
    layer_norm_eps: float | None = None
    image_size: tuple[int, int] | None = None
    num_heads: int | None = None
    architecture: str | None = None
    labels: tuple[str, ...] | None = None
    preprocessor: dict[str, Any] | None = field(default=None, repr=False)


def facts_beside(path: Path, keys: Iterable[str]) -> Facts:
    """What config.json and preprocessor_config.json beside a file tell.

    Args:
        path: The file of weights.
        keys: Names of its tensors.
    Raises:
        ValueError: If one of them is no such file, or an entry is of a wrong type or out of range.
    """
    config = _read(path.with_name(CONFIG))
    preprocessor = _read(path.with_name(PREPROCESSOR))
    eps = HUGGING_FACE_EPS if is_huggingface(keys) else TIMM_EPS
    if config is None:
        return Facts(str(path), layer_norm_eps=eps, preprocessor=preprocessor)
    try:
        return _facts(str(path), {"layer_norm_eps": eps, **config}, preprocessor)
    except ValueError as error:
        raise ValueError(f"{path.with_name(CONFIG)}: {error}") from error


def _facts(source: str, config: Mapping[str, Any], preprocessor: dict[str, Any] | None) -> Facts:
    pretrained = _object(config, "pretrained_cfg")
    arguments = _object(config, "model_args")
    eps = config["layer_norm_eps"]
    check_epsilon(eps)

    heads = config.get("num_attention_heads") or arguments.get("num_heads")
    if heads is not None and not is_count(heads):
        raise _wrong("num_attention_heads", "a whole number above 0", heads)
    architecture = config.get("architecture")
    if not isinstance(architecture, str | None):
        raise _wrong("architecture", "a name", architecture)
    return Facts(
        source=source,
        layer_norm_eps=float(eps),
        image_size=_image_size(config, pretrained),
        num_heads=heads,
        architecture=architecture,
        labels=_class_names(config),
        preprocessor=preprocessor or pretrained or None,
    )


def _image_size(config: Mapping[str, Any], pretrained: Mapping[str, Any]) -> tuple | None:
    """Height and width; None where nothing tells them."""
    size = config.get("image_size")
    if not size and (shape := pretrained.get("input_size")):
        size = shape[1:] if isinstance(shape, list) else shape
    if not size:
        return None
    pair = tuple(size) if isinstance(size, list) else (size, size)
    if len(pair) != 2 or not all(is_count(side) and side <= MAX_SIDE for side in pair):
        allowed = f"the image size, one or two whole numbers from 1 to {MAX_SIDE}"
        raise _wrong("image_size", allowed, size)
    return pair


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Those of Hugging Face's `id2label` or timm's `label_names`; placeholders are none."""
    if "label_names" in config:
        names, descriptions = config["label_names"], _object(config, "label_descriptions")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _wrong("label_names", "a list of names", names)
        found = tuple(str(descriptions.get(name, name)) for name in names)
    else:
        names = _object(config, "id2label")
        if not names or set(names) != {str(i) for i in range(len(names))}:
            return None
        found = tuple(str(names[str(i)]) for i in range(len(names)))
    if all(re.fullmatch(r"LABEL_\d+", name) for name in found):
        return None
    check_class_names(found, len(found))

    return found


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _object(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry that is an object; an empty one where it is missing or null."""
    entry = config.get(name)
    if entry is None:
        return {}
    if not isinstance(entry, Mapping):
        raise _wrong(name, "an object", entry)
    return entry


def is_count(value: Any) -> bool:
    """Whether an entry of a file is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _wrong(name: str, allowed: str, received: Any) -> ValueError:
    return ValueError(f"`{name}` is {allowed}. Received: {str(received)[:100]}")


def first_block(model: keras.Model) -> dict[str, Any]:
    """The config of the first block of a DeiT; of another model nothing."""
    layers = {layer.name: layer for layer in model.layers}
    return layers["blocks.0"].get_config() if "blocks.0" in layers else {}


def _huggingface_config(model, state, labels, preprocessing) -> dict[str, Any]:
    """config.json of the class of transformers that has the tokens and heads of the model."""
    distilled = "deit.embeddings.distillation_token" in state
    with_teacher = "WithTeacher" if "distillation_classifier.weight" in state else ""
    architecture = f"DeiTForImageClassification{with_teacher}"
    block = first_block(model)
    height, width = model.input_shape[1:3]
    (patch,) = (
        array.shape
        for key, array in state.items()
        if key.endswith("patch_embeddings.projection.weight")
    )
    names = labels or [f"LABEL_{i}" for i in range(model.output_shape[-1])]

    return {
        "architectures": [architecture if distilled else "ViTForImageClassification"],
        "model_type": "deit" if distilled else "vit",
        "hidden_size": patch[0],
        "num_hidden_layers": sum(key.endswith("layernorm_before.weight") for key in state),
        "num_attention_heads": block["num_heads"],
        "intermediate_size": int(patch[0] * block["mlp_ratio"]),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": block["layer_norm_eps"],
        "image_size": height if height == width else [height, width],
        "patch_size": patch[-1],
        "num_channels": patch[1],
        "qkv_bias": True,
        "encoder_stride": patch[-1],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "torch_dtype": "float32",
    }


def _timm_config(model, state, labels, preprocessing) -> dict[str, Any]:
    """config.json of timm's hub folders; `model_args` make the named architecture this very
    model.
    """
    block = first_block(model)
    classes, channels = model.output_shape[-1], model.input_shape[-1]
    features = state["head.weight" if block else "head.fc.weight"].shape[1]
    config = {"architecture": model.name, "num_classes": classes, "num_features": features}
    if block:
        distilled = "_distilled" if "dist_token" in state else ""
        is_deit3 = model.get_layer("tokens").no_embed_class or block["init_values"] is not None
        base = "deit3_base" if is_deit3 else f"deit_base{distilled}"
        if not re.fullmatch(PUBLISHED[is_deit3].format(distilled), model.name):
            config["architecture"] = f"{base}_patch16_224"
        config["model_args"] = {
            "img_size": list(model.input_shape[1:3]),
            "patch_size": state["patch_embed.proj.weight"].shape[-1],
            "embed_dim": state["pos_embed"].shape[-1],
            "depth": sum(key.endswith("norm1.weight") for key in state),
            "num_heads": block["num_heads"],
            "mlp_ratio": block["mlp_ratio"],
        }
        if is_deit3:
            config["model_args"] |= {
                "init_values": block["init_values"],
                "no_embed_class": model.get_layer("tokens").no_embed_class,
            }
        if channels != CHANNELS:
            config["model_args"]["in_chans"] = channels
        if block["layer_norm_eps"] != TIMM_EPS:
            log.warning(
                "timm builds its norms with an epsilon of 1e-6; this model has %g.",
                block["layer_norm_eps"],
            )
    if labels is not None:
        config["label_names"] = list(labels)
    heads = ["head", "head_dist"] if "head_dist.weight" in state else "head" if block else "head.fc"
    first = "patch_embed.proj" if block else "stem.conv"
    # timm adapts the weights of a first layer that is named here, as if they were for RGB.
    first = first if channels == CHANNELS else None

    return {
        **config,
        "pretrained_cfg": {
            **preprocessing,
            "num_classes": classes,
            "first_conv": first,
            "classifier": heads,
        },
    }


CONFIGS = {"huggingface": _huggingface_config, "timm": _timm_config}
