"""Files of torch, `.pth` and `.bin`: read where torch is installed, and nothing in them is run."""

import argparse
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deit_tf.weights.tensors import Tensors

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
# A key that may precede the model's own, and the key under which a training checkpoint keeps the
# model.
_PARALLEL, _NESTED = "module.", "model"


def read_torch(path: Path) -> Tensors:
    """The tensors of a file of torch; nothing in the file is run.

    Raises:
        ImportError: If torch is not installed.
        ValueError: If the file is damaged, or holds no state dict.
    """
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
            "'model.safetensors')"
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
