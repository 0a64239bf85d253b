"""A file or folder of weights, on disk or on the hub: safetensors, torch's .pth, .keras, in and
out.

Tensors are read one at a time, so that loading costs no second copy of a model. Layouts of the
folders: huggingface/transformers (config.json, model.safetensors) and timm/models/_hub.py (the same
two names).
"""

import argparse
import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deit_tf.files import CLASS_NAMES_FILE, read_class_names
from deit_tf.weights.names import Layout, State, describe, load_reference, to_reference

log = logging.getLogger(__name__)

HUB = "hf://"
CONFIG, PREPROCESSOR, SAFETENSORS = "config.json", "preprocessor_config.json", "model.safetensors"
TORCH_FILES = ("pytorch_model.bin", "model.pth", "checkpoint.pth")
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
TIMM_EPS = 1e-6  # of the original and timm, whose files do not tell it
HEAD_WIDTH = 64  # of every published DeiT
# A key that may precede the model's own, and the key under which a training checkpoint keeps the
# model.
_PARALLEL, _NESTED = "module.", "model"


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


class Tensors(Mapping[str, np.ndarray]):
    """Arrays that are read when they are asked for, and not kept.

    Args:
        readers: What reads each, by key.
    """

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]):
        self._readers = dict(readers)

    def __getitem__(self, key: str) -> np.ndarray:
        """The array, a float of less than 32 bits as float32."""
        array = self._readers[key]()
        return (
            array.astype(np.float32)
            if array.dtype.itemsize < 4 and array.dtype.kind in "fV"
            else array
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_weights(source: str | Path) -> tuple[Tensors, Facts]:
    """Open weights, to be read tensor by tensor.

    Args:
        source: A `.safetensors` file; a `.pth`, `.pt` or `.bin` file of torch; a folder of Hugging
            Face or timm with config.json; a `.keras` file or run directory; or
            `hf://ORGANIZATION/NAME`, with `@REVISION` if need be, for a repository of the Hugging
            Face hub, which is downloaded once.
    Returns:
        What `load_reference` takes, and what the files beside it tell.
    Raises:
        FileNotFoundError: If there is no such file, or the hub cannot be reached; it says how to
            place the file by hand.
        ValueError: If a file is damaged, or not what its name says.
        ImportError: For a file of torch where torch is not installed.
    """
    if str(source).startswith(HUB):
        return read_weights(_download(str(source).removeprefix(HUB)))
    path = Path(source).expanduser()
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"There are no weights at {path}: no such file or folder.")
    if path.suffix == ".keras":
        return _read_keras(path)
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        tensors = _read_torch(path)
    else:
        allowed = ", ".join((".safetensors", ".keras", *TORCH_SUFFIXES))
        raise ValueError(f"Weights end in {allowed}. Received: {path}")
    return tensors, _facts(path, tensors)


def load_weights(
    model: keras.Model, state: State, facts: Facts, heads: Literal["keep", "new"] | None = None
) -> None:
    """Put weights that were read into a model, and log what is done to them.

    Args:
        model: What build_deit or build_regnet made.
        state: The tensors, as `read_weights` gives them.
        facts: What it tells about them; a position embedding of another image size is resized.
        heads: As of `load_reference`; by default those of another class count stay as the model has
            them.
    Raises:
        ValueError: If the weights do not fit; the model is unchanged.
    """
    described = describe(state)
    classes, wanted = described.get("num_classes"), model.output_shape[-1]
    patch, size = described.get("patch_size"), facts.image_size
    grid = (size[0] // patch, size[1] // patch) if patch and size else None
    heads = heads or ("keep" if classes == wanted else "new")
    load_reference(model, state, heads=heads, grid=grid)
    if heads == "new":
        log.info(
            "%s has %s classes, the model %d: its heads are new.",
            facts.source,
            classes or "no",
            wanted,
        )
    side = described.get("image_size")
    if patch and (size or (side, side)) != model.input_shape[1:3]:
        theirs = size or (side, side)
        log.info(
            "%s is for images of %d x %d: its position embedding was resized.",
            facts.source,
            *theirs,
        )
    if block := _first_block(model):
        log.info("%s: layer norms with epsilon %g.", facts.source, block["layer_norm_eps"])


def write_weights(
    model: keras.Model,
    folder: str | Path,
    *,
    layout: Layout = "timm",
    labels: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any],
) -> Path:
    """Write model.safetensors and config.json (Hugging Face: preprocessor_config.json as well), all
    or nothing.

    transformers and timm load the folder; so does `read_weights`, bit for bit.

    Args:
        model: What build_deit made; a RegNetY in timm's layout as well.
        folder: The folder to make.
        layout: Whose names and config: `timm` or `huggingface`.
        labels: Class names by class.
        preprocessing: What `ImageProcessor.to_preprocessor_config(layout)` gives.
    Returns:
        The folder.
    Raises:
        FileExistsError: If `folder` exists.
        ValueError: If the model is no DeiT or RegNetY, the layout has no name for a weight, or the
            labels are not as many as the classes.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists and is left as it is. Choose another folder.")
    state = to_reference(model, layout)
    deit = _first_block(model) and any(
        key.endswith(("head.weight", "classifier.weight")) for key in state
    )
    if not deit and "head.fc.weight" not in state:  # that of a RegNetY
        raise ValueError(f"`model` must be a classifier, a DeiT or RegNetY. Received: {model.name}")
    if labels is not None and len(labels) != model.output_shape[-1]:
        raise ValueError(
            f"`labels` must name the {model.output_shape[-1]} classes. Received: {len(labels)}"
        )
    files = {CONFIG: _CONFIGS[layout](model, state, labels, preprocessing)}
    if layout == "huggingface":
        files[PREPROCESSOR] = preprocessing
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial_folder = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staged = partial_folder / folder.name
        staged.mkdir()
        for name, content in files.items():
            (staged / name).write_text(json.dumps(content, indent=2) + "\n")
        save_file(
            state, staged / SAFETENSORS, metadata={"format": "pt"}
        )  # transformers asks for this mark
        os.chmod(
            staged / SAFETENSORS, (staged / CONFIG).stat().st_mode
        )  # save_file makes it for its owner alone
        os.rename(staged, folder)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return folder


def _download(repository: str) -> Path:
    """The folder of a repository of the hub, in huggingface_hub's cache; a broken download is
    resumed.
    """
    from huggingface_hub import (
        errors,
        snapshot_download,
    )  # slow to import, and needed for the hub alone

    name, _, revision = repository.partition("@")
    fetch = partial(snapshot_download, name, revision=revision or None)
    try:
        folder = Path(fetch(allow_patterns=[CONFIG, PREPROCESSOR, SAFETENSORS]))
        if not (folder / SAFETENSORS).exists():
            folder = Path(fetch(allow_patterns=[CONFIG, PREPROCESSOR, TORCH_FILES[0]]))
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{HUB}{repository} is neither in the cache nor to be had from the hub "
            f"({type(error).__name__}: {reason}). By hand: fetch {SAFETENSORS}, {CONFIG} and "
            f"{PREPROCESSOR} from https://huggingface.co/{name}/tree/main on a machine with a "
            "connection, put them into one folder, and pass that folder instead."
        ) from error
    return folder


def _file_in(folder: Path) -> Path:
    """The file of weights in a folder."""
    names = (SAFETENSORS, *TORCH_FILES)
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    file = file or _keras_file_in(folder)
    if file is None:
        raise FileNotFoundError(f"{folder} holds no weights: none of {', '.join(names)}, no .keras")
    return file


def _keras_file_in(folder: Path) -> Path | None:
    """The `.keras` file of a folder, and not another version of it, as student_best is of student.

    Raises:
        ValueError: If there are several.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.keras"))}
    models = [stem for stem in files if stem.rpartition("_")[0] not in files]
    if len(models) > 1:
        raise ValueError(f"{folder} holds several models; name one: {', '.join(models)} (.keras)")
    return files[models[0]] if models else None


def _read_safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, "np") as file:
            keys = list(file.keys())
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file: {error}. Fetch it again, or check what it is."
        ) from error

    def read(key: str) -> np.ndarray:
        # Opened anew each time: an open file is mapped into memory, and every page that was read
        # stays there.
        with safe_open(path, "np") as file:
            return file.get_tensor(key)

    return Tensors({key: partial(read, key) for key in keys})


def _read_torch(path: Path) -> Tensors:
    state = _torch_state(path)
    keys = list(state)
    if zipfile.is_zipfile(path):
        # mapped into memory, where every page that was read would stay: opened anew for each tensor
        state = None

    def read(key: str) -> np.ndarray:
        tensor = (state or _torch_state(path))[key]
        return (
            (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy(force=True).copy()
        )

    return Tensors({key.removeprefix(_PARALLEL): partial(read, key) for key in keys})


def _torch_state(path: Path) -> Mapping[str, Any]:
    """A state dict that torch saved; nothing in the file is run."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is a file of torch, which is not installed: `pip install torch` (CPU "
            "suffices), or convert it where it is: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True)['model'], "
            f"'{SAFETENSORS}')"
        ) from error
    try:
        # The original's training checkpoints hold its arguments beside the model.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Only the zip format of torch 1.6 and later can be mapped into memory.
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    # an UnpicklingError, whose module is never imported here, or what a damaged file gives
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path} is refused: it is damaged, or holds more than tensors "
            f"({type(error).__name__}: {reason}). Loading more could run code of whoever made "
            "it."
        ) from error
    nested = content.get(_NESTED) if isinstance(content, Mapping) else None
    content = nested if isinstance(nested, Mapping) else content
    if not isinstance(content, Mapping) or not all(
        isinstance(v, torch.Tensor) for v in content.values()
    ):
        raise ValueError(
            f"{path} holds no state dict: neither tensors by key, nor those under the key "
            f"{_NESTED!r}."
        )
    return content


def _read_keras(path: Path) -> tuple[Tensors, Facts]:
    """The weights of a model here, by timm's names."""
    model = load_keras(path)
    labels = path.with_name(CLASS_NAMES_FILE)
    block = _first_block(model)
    facts = Facts(
        source=str(path),
        layer_norm_eps=block.get("layer_norm_eps"),
        image_size=next(
            tensor.shape[1:3] for tensor in model.inputs if len(tensor.shape) == 4
        ),  # one input is a mask
        num_heads=block.get("num_heads"),
        architecture=model.name,
        labels=read_class_names(labels) if labels.is_file() else None,
    )
    return Tensors(
        {key: partial(np.asarray, array) for key, array in to_reference(model).items()}
    ), facts


def load_keras(file: Path) -> keras.Model:
    """Load a `.keras` file, uncompiled, running no code of whoever made it.

    Raises:
        ValueError: If it is damaged, or holds what this package and Keras do not know.
    """
    try:
        return keras.saving.load_model(file, compile=False)
    except Exception as error:  # a damaged file makes Keras's reader fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{file} is damaged, or no model that Keras can load: {type(error).__name__}: {reason}"
        ) from error


def _first_block(model: keras.Model) -> dict[str, Any]:
    layers = {layer.name: layer for layer in model.layers}
    return layers["blocks.0"].get_config() if "blocks.0" in layers else {}


def _facts(path: Path, tensors: Tensors) -> Facts:
    """What config.json and preprocessor_config.json beside a file tell, of Hugging Face or of
    timm.
    """
    theirs = any(key.startswith(("deit.", "vit.")) for key in tensors)
    config, preprocessor = _json(path.parent / CONFIG), _json(path.parent / PREPROCESSOR)
    if config is None:
        # Hugging Face's DeiTConfig has 1e-12 by default.
        return Facts(
            str(path), layer_norm_eps=1e-12 if theirs else TIMM_EPS, preprocessor=preprocessor
        )
    pretrained = config.get("pretrained_cfg") or {}
    size = config.get("image_size") or (pretrained.get("input_size") or [0])[1:]
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if pair and not (len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair)):
        raise ValueError(
            f"{path.parent / CONFIG}: the image size is one or two positive numbers. Received: "
            f"{size!r}"
        )
    arguments = config.get("model_args") or {}
    return Facts(
        source=str(path),
        layer_norm_eps=float(config.get("layer_norm_eps", TIMM_EPS)),
        image_size=pair or None,
        num_heads=config.get("num_attention_heads") or arguments.get("num_heads"),
        architecture=config.get("architecture"),
        labels=_labels(config),
        preprocessor=preprocessor or pretrained or None,
    )


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names of Hugging Face's `id2label` or timm's `label_names`; its placeholders are
    none.
    """
    if "label_names" in config:
        descriptions = config.get("label_descriptions") or {}
        return tuple(str(descriptions.get(name, name)) for name in config["label_names"])
    names = config.get("id2label")
    if not names or set(names) != {str(i) for i in range(len(names))}:
        return None
    ordered = tuple(str(names[str(i)]) for i in range(len(names)))
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in ordered) else ordered


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding as well
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object. Received: a {type(content).__name__}")
    return content


def _huggingface_config(model, state, labels, preprocessing) -> dict[str, Any]:
    """config.json of DeiTForImageClassificationWithTeacher, or of ViTForImageClassification for a
    plain model.
    """
    distilled = any("distillation_token" in key for key in state)
    block = _first_block(model)
    height, width = model.input_shape[1:3]
    (patch,) = (
        array.shape
        for key, array in state.items()
        if key.endswith("patch_embeddings.projection.weight")
    )
    names = labels or [f"LABEL_{i}" for i in range(model.output_shape[-1])]
    return {
        "architectures": [
            "DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"
        ],
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
    block = _first_block(model)
    classes = model.output_shape[-1]
    features = state["head.weight" if block else "head.fc.weight"].shape[1]
    config = {"architecture": model.name, "num_classes": classes, "num_features": features}
    if block:
        if not re.fullmatch(r"deit_(tiny|small|base)_(distilled_)?patch16_(224|384)", model.name):
            config["architecture"] = (
                f"deit_base{'_distilled' if 'dist_token' in state else ''}_patch16_224"
            )
        config["model_args"] = {
            "img_size": list(model.input_shape[1:3]),
            "patch_size": state["patch_embed.proj.weight"].shape[-1],
            "embed_dim": state["pos_embed"].shape[-1],
            "depth": sum(key.endswith("norm1.weight") for key in state),
            "num_heads": block["num_heads"],
            "mlp_ratio": block["mlp_ratio"],
        }
        if block["layer_norm_eps"] != TIMM_EPS:
            log.warning(
                "timm builds its norms with an epsilon of 1e-6; this model has %g.",
                block["layer_norm_eps"],
            )
    if labels is not None:
        config["label_names"] = list(labels)
    heads = ["head", "head_dist"] if "head_dist.weight" in state else "head" if block else "head.fc"
    first = "patch_embed.proj" if block else "stem.conv"
    return {
        **config,
        "pretrained_cfg": {
            **preprocessing,
            "num_classes": classes,
            "first_conv": first,
            "classifier": heads,
        },
    }


_CONFIGS = {"huggingface": _huggingface_config, "timm": _timm_config}
