"""Files of torch, `.pth` and `.bin`: read where torch is installed, and nothing in them is run.

Formats of training runs: facebookresearch/deit main.py (`model`, `model_ema`, `args`) and timm
utils/checkpoint_saver.py (`state_dict`, `state_dict_ema`, `args`, in `.pth.tar`).
"""

import logging
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deit_tf.weights.tensors import Tensors

log = logging.getLogger(__name__)

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".pth.tar")
# Under which keys a training checkpoint keeps the model, and its moving average.
_MODEL, _AVERAGE = ("model", "state_dict"), ("model_ema", "state_dict_ema")
# What torch puts around a model: for several devices, when it is compiled, and to average it.
_WRAPPERS = re.compile(r"^module\.|(?<![^.])_orig_mod\.")
_COUNTER = "n_averaged"


class _Inert:
    """Stands for an object that a checkpoint holds beside its tensors; nothing of it is kept."""

    def __init__(self, *given, **named):
        """Whatever the object was made of."""

    def __setstate__(self, state: Any):
        """Whatever was in it."""


# Objects that the arguments and figures of a training run consist of. None of them is made: torch
# puts the stand-in in their place.
_BESIDE = (
    "argparse.Namespace",
    *(f"pathlib.{kind}Path" for kind in ("Posix", "Windows", "PurePosix", "PureWindows", "")),
    *(f"pathlib._local.{kind}Path" for kind in ("Posix", "Windows", "")),
    *(f"numpy.{core}.multiarray.{made}" for core in ("core", "_core") for made in (
        "scalar", "_reconstruct"
    )),
    "numpy.ndarray",
    "numpy.dtype",
)  # fmt: skip


def read_torch(path: Path, average: bool = False) -> Tensors:
    """The tensors of a file of torch; nothing in the file is run.

    Args:
        path: What `torch.save` wrote: a state dict, or a training run's checkpoint with one.
        average: Whether to take the moving average that a training run keeps beside its model.
    Raises:
        ImportError: If torch is not installed.
        ValueError: If the file is damaged, holds other objects than a training run's, or no state
            dict.
    """
    state = _state_dict(path, average)
    keys = [key for key in state if key != _COUNTER]
    if zipfile.is_zipfile(path):
        # mapped into memory, where every page that was read would stay: opened anew for each tensor
        state = None

    def read(key: str) -> np.ndarray:
        tensor = (state or _state_dict(path, average))[key]
        return (
            (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy(force=True).copy()
        )

    return Tensors({_unwrapped(key): partial(read, key) for key in keys})


def _unwrapped(key: str) -> str:
    """A key without the names of what was around the model, in whichever order."""
    while (shorter := _WRAPPERS.sub("", key)) != key:
        key = shorter
    return key


def _state_dict(path: Path, average: bool) -> Mapping[str, Any]:
    """The model of a file, or its moving average."""
    content = _content(path)
    found = content if isinstance(content, Mapping) else {}
    models, averages = (
        [found[key] for key in keys if isinstance(found.get(key), Mapping)]
        for keys in (_MODEL, _AVERAGE)
    )
    if average and not averages:
        raise ValueError(
            f"{path} holds no moving average: neither {' nor '.join(_AVERAGE)} is in it. Leave "
            "out #ema."
        )
    if averages and not average:
        log.info("%s holds a moving average as well: %s#ema takes it.", path, path)
    state = averages[0] if average else models[0] if models else content

    import torch

    if not isinstance(state, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise ValueError(
            f"{path} holds no state dict: neither tensors by key, nor those under the key "
            f"{' or '.join(_MODEL)}. Received: {', '.join(map(str, found)) or type(content)}"
        )
    return state


def _content(path: Path) -> Any:
    """What a file holds, by torch's reader of tensors and plain values."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is a file of torch, which is not installed: `pip install torch` (CPU "
            "suffices), or convert it where it is: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True)['model'], "
            "'model.safetensors')"
        ) from error

    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in _BESIDE]):
            # Only the zip format of torch 1.6 and later can be mapped into memory.
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    # an UnpicklingError, whose module is never imported here, or what a damaged file gives
    except Exception as error:
        raise ValueError(f"{path} {_reason(str(error))}") from error


def _reason(error: str) -> str:
    """Why a file is not read, as torch's error tells it, and what to do."""
    if held := re.search(r"GLOBAL ([\w.]+)|(?:function|but got) <\w+ '?([\w.]+)", error):
        return (
            f"is refused: it holds {held[1] or held[2]} beside its tensors, and making that could "
            "run code of whoever made the file. Where it comes from, save the tensors alone: "
            "torch.save({'model': model.state_dict()}, 'weights.pth')."
        )
    if "TorchScript" in error:
        return (
            "is refused: it is a TorchScript program, not weights. Where it comes from, save its "
            "tensors: torch.save({'model': model.state_dict()}, 'weights.pth')."
        )
    what = error.strip().partition("\n")[0] or "it ends too soon"
    return f"is damaged, or nothing that torch.save wrote: {what}. Fetch it again."
