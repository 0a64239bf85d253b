"""Tensors that are read one at a time: a safetensors file, or several by their index."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from safetensors import SafetensorError, safe_open

from deit_tf.files import read_json

INDEX_SUFFIX = ".safetensors.index.json"


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


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a file.

    Raises:
        ValueError: If it is no whole safetensors file.
    """
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


def read_shards(index: Path) -> Tensors:
    """The tensors of several safetensors files, by the index that lies beside them.

    Args:
        index: A file as `model.safetensors.index.json` of transformers, `weight_map` in it: the
            file of each tensor.
    Raises:
        FileNotFoundError: If a file of the index is not there.
        ValueError: If the index is none, or a file is damaged or has not what the index says.
    """
    placed = _weight_map(index)
    shards = {file.name: read_safetensors(file) for file in shard_files(index)}
    if absent := [key for key, name in placed.items() if key not in shards[name]]:
        raise ValueError(
            f"{index} does not belong to the files beside it: {placed[absent[0]]} has no tensor "
            f"{absent[0]!r}. Fetch all of them again, from one revision."
        )
    return Tensors({key: partial(shards[name].__getitem__, key) for key, name in placed.items()})


def shard_files(index: Path) -> list[Path]:
    """The files that an index tells of, by name.

    Raises:
        FileNotFoundError: If one is not there.
        ValueError: If the index is none.
    """
    files = [index.with_name(name) for name in sorted(set(_weight_map(index).values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{index} tells of {len(files)} files, and {len(missing)} are not beside it: "
            f"{', '.join(missing[:5])}. Fetch them too."
        )
    return files


def _weight_map(index: Path) -> dict[str, str]:
    """The name of the file of each tensor."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(map(_is_file_name, placed.values())):
        raise ValueError(
            f"{index} is no index: `weight_map` is an object, for each tensor the name of a file "
            f"beside it. Received: {json.dumps(placed)[:100]}"
        )
    return placed


def _is_file_name(value: object) -> bool:
    """Whether it is the name of a safetensors file in the same folder."""
    return (
        isinstance(value, str) and PurePath(value).name == value and value.endswith(".safetensors")
    )
