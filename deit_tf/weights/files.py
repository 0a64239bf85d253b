"""A file or folder of weights, on disk or on a hub: safetensors, torch's .pth, keras-hub's presets,
.keras, in and out.

Tensors are read one at a time, so that loading costs no second copy of a model. Layouts of the
folders: huggingface/transformers (config.json, model.safetensors) and timm/models/_hub.py (the same
two names).
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from safetensors.numpy import save_file

from deit_tf.files import CLASS_NAMES_FILE, read_class_names
from deit_tf.weights import keras_hub
from deit_tf.weights.configs import CONFIG, CONFIGS, PREPROCESSOR, Facts, facts_beside, first_block
from deit_tf.weights.downloads import REMOTE
from deit_tf.weights.names import (
    Layout,
    State,
    describe,
    has_pooler,
    input_size,
    load_reference,
    same_heads,
    to_reference,
)
from deit_tf.weights.tensors import INDEX_SUFFIX, Tensors, read_safetensors, read_shards
from deit_tf.weights.torch_files import TORCH_SUFFIXES, read_torch

log = logging.getLogger(__name__)

FolderLayout = Literal["timm", "huggingface", "keras-hub"]
SAFETENSORS = "model.safetensors"
INDEX = f"model{INDEX_SUFFIX}"  # of several files
TORCH_FILES = ("pytorch_model.bin", "model.pth", "checkpoint.pth", "model_best.pth.tar")
AVERAGE = "#ema"  # after a file: the moving average in it


def read_weights(source: str | Path) -> tuple[Tensors, Facts]:
    """Open weights, to be read tensor by tensor.

    Args:
        source: A `.safetensors` file, or the `.index.json` of several; a `.pth`, `.pt` or `.bin`
            file of torch; a folder of Hugging Face or timm with config.json; a `.keras` file or run
            directory; or `hf://ORGANIZATION/NAME`, with `@REVISION` if need be, for a repository of
            the Hugging Face hub, which is downloaded once; a folder of a preset of keras-hub, or
            `kaggle://keras/deit/keras/PRESET`, where keras-hub is installed. After a file of torch
            `#ema` takes the moving average that a training run keeps in it.
    Returns:
        What `load_reference` takes, and what the files beside it tell.
    Raises:
        FileNotFoundError: If there is no such file, or the hub cannot be reached; it says how to
            place the file by hand.
        ValueError: If a file is damaged, or not what its name says.
        ImportError: For a file of torch or a name of Kaggle, where torch or keras-hub is not
            installed.
    """
    if remote := remote_prefix(source):
        return read_weights(REMOTE[remote](str(source).removeprefix(remote)))
    path, average = split_choice(source)
    if (path / keras_hub.BACKBONE_WEIGHTS).is_file():
        return keras_hub.read_preset(path)
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"There are no weights at {path}: no such file or folder.")
    if path.suffix == ".keras" and not average:
        return _read_keras(path)
    tensors = _tensors(path, average)

    return tensors, facts_beside(path, tensors)


def _tensors(path: Path, average: bool) -> Tensors:
    """The tensors of another library's file, by the end of its name."""
    if path.name.endswith(TORCH_SUFFIXES):
        return read_torch(path, average)
    if average:
        raise ValueError(f"`{AVERAGE}` is for files of torch, and {path} is none. Leave it out.")
    if path.name.endswith(INDEX_SUFFIX):
        return read_shards(path)
    if path.suffix != ".safetensors":
        allowed = ", ".join((".safetensors", ".keras", *TORCH_SUFFIXES))
        raise ValueError(f"Weights end in {allowed}. Received: {path}")
    return read_safetensors(path)


def remote_prefix(source: str | Path) -> str | None:
    """The prefix of a hub that `source` lies on; None of a file or folder."""
    return next((prefix for prefix in REMOTE if str(source).startswith(prefix)), None)


def split_choice(source: str | Path) -> tuple[Path, bool]:
    """A path, and whether `#ema` stands after it; a file of that very name goes first."""
    path = Path(source).expanduser()
    if path.name.endswith(AVERAGE) and not path.exists():
        return path.with_name(path.name.removesuffix(AVERAGE)), True
    return path, False


def load_weights(
    model: keras.Model, state: State, facts: Facts, heads: Literal["keep", "new"] | None = None
) -> None:
    """Put weights that were read into a model, and log what is done to them.

    Args:
        model: What build_deit or build_regnet made.
        state: The tensors, as `read_weights` gives them.
        facts: What it tells about them; a position embedding of another image size is resized.
        heads: As of `load_reference`; by default `keep` where the weights have the very heads of
            the model, for as many classes.
    Raises:
        ValueError: If the weights do not fit; the model is unchanged.
    """
    described = describe(state)
    patch, size = described.get("patch_size"), facts.image_size
    grid = (size[0] // patch, size[1] // patch) if patch and size else None
    heads = heads or ("keep" if same_heads(model, state) else "new")
    load_reference(model, state, heads=heads, grid=grid)
    if heads == "new":
        log.info(
            "%s has other heads (%s classes) than %s, or they are not wanted: its trunk alone is "
            "taken, and the heads are new.",
            facts.source,
            described.get("num_classes", "no"),
            model.name,
        )

    theirs = described.get("num_channels")
    ours = next(each.shape[3] for each in model.inputs if len(each.shape) == 4)
    if theirs and theirs != ours:
        log.info(
            "%s is for images of %d channels: its first kernel was adapted to %d.",
            facts.source,
            theirs,
            ours,
        )
    if has_pooler(state):
        log.info("%s has a pooler, which classifies nothing: it is passed over.", facts.source)
    side = described.get("image_size")
    if patch and (size or (side, side)) != input_size(model):
        log.info(
            "%s is for images of %d x %d: its position embedding was resized.",
            facts.source,
            *(size or (side, side)),
        )
    if block := first_block(model):
        log.info("%s: layer norms with epsilon %g.", facts.source, block["layer_norm_eps"])


def _has(state: State, *endings: str) -> bool:
    return any(key.endswith(endings) for key in state)


def write_weights(
    model: keras.Model,
    folder: str | Path,
    *,
    layout: FolderLayout = "timm",
    labels: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any],
) -> Path:
    """Write model.safetensors and config.json (Hugging Face: preprocessor_config.json as well), or
    a preset of keras-hub, all or nothing.

    The library loads the folder; so does `read_weights`, bit for bit.

    Args:
        model: What build_deit made; a RegNetY in timm's layout as well.
        folder: The folder to make.
        layout: Whose names and config: `timm`, `huggingface` or `keras-hub`.
        labels: Class names by class.
        preprocessing: What `ImageProcessor.to_preprocessor_config(layout)` gives.
    Returns:
        The folder.
    Raises:
        FileExistsError: If `folder` exists.
        ValueError: If the model is no DeiT or RegNetY, the layout has no name for it or a weight,
            or the labels are not as many as the classes.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists and is left as it is. Choose another folder.")
    state = to_reference(model, "timm")
    _check_layout(model, state, layout)
    if layout == "huggingface":
        state = to_reference(model, "huggingface")
    if labels is not None and len(labels) != model.output_shape[-1]:
        raise ValueError(
            f"`labels` must name the {model.output_shape[-1]} classes. Received: {len(labels)}"
        )
    write = keras_hub.write_preset if layout == "keras-hub" else partial(_write_folder, layout)

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial_folder = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staged = partial_folder / folder.name
        staged.mkdir()
        write(model, state, staged, labels, preprocessing)
        os.rename(staged, folder)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)

    return folder


def _check_layout(model: keras.Model, state: State, layout: FolderLayout) -> None:
    """Refuse a model that a library has no class for, or would complete by chance."""
    deit = first_block(model) and _has(state, "head.weight")
    if not deit and "head.fc.weight" not in state:  # that of a RegNetY
        raise ValueError(f"`model` must be a classifier, a DeiT or RegNetY. Received: {model.name}")
    if layout == "timm" and "dist_token" in state and "head_dist.weight" not in state:
        raise ValueError(
            "`model` has a distillation token and no distillation head, as `distill.train_heads` "
            "cls makes it, and timm knows no such model: its loader would draw that head at "
            "random. Take `layout` huggingface (DeiTForImageClassification) or keras-hub, which "
            f"do, or train one with both heads. Received: {model.name}"
        )
    if layout != "keras-hub":
        return

    others = [key for key in state if ".ls1." in key]
    if "dist_token" not in state or others:
        raise ValueError(
            "keras-hub's DeiT has a distillation token and no LayerScale: take `layout` timm. "
            f"Received: {model.name}"
        )
    if "head_dist.weight" in state:
        log.warning(
            "keras-hub's DeiT has the class head alone: %s answers there by that head, and here by "
            "the mean of both.",
            model.name,
        )


def _write_folder(
    layout: Layout,
    model: keras.Model,
    state: State,
    folder: Path,
    labels: Sequence[str] | None,
    preprocessing: Mapping[str, Any],
) -> None:
    """The files of a folder of transformers or timm."""
    files = {CONFIG: CONFIGS[layout](model, state, labels, preprocessing)}
    if layout == "huggingface":
        files[PREPROCESSOR] = preprocessing
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")

    file = folder / SAFETENSORS
    save_file(state, file, metadata={"format": "pt"})  # transformers asks for this mark
    os.chmod(file, (folder / CONFIG).stat().st_mode)  # save_file makes it for its owner alone


def _file_in(folder: Path) -> Path:
    """The file of weights in a folder."""
    names = (SAFETENSORS, INDEX, *TORCH_FILES)
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


def keras_file(source: str | Path) -> Path:
    """The `.keras` file that `source` is, or that the folder of a run holds.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a folder holds several models.
    """
    path = Path(source).expanduser()
    file = _keras_file_in(path) if path.is_dir() else path
    if file is None or file.suffix != ".keras" or not file.is_file():
        raise FileNotFoundError(f"{source} is no .keras file, and no run folder with one.")
    return file


def _read_keras(path: Path) -> tuple[Tensors, Facts]:
    """The weights of a model here, by timm's names."""
    model = load_keras(path)
    labels = path.with_name(CLASS_NAMES_FILE)
    block = first_block(model)
    facts = Facts(
        source=str(path),
        layer_norm_eps=block.get("layer_norm_eps"),
        image_size=input_size(model),
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
