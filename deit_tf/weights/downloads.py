"""Downloads, of the Hugging Face hub and by other libraries: where they fail, what was wanted, from
where, and what to do without a connection, in one sentence.
"""

import http.client
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from deit_tf.weights import keras_hub
from deit_tf.weights.configs import CONFIG, PREPROCESSOR

# As keras/src/utils/file_utils.py, get_file, says it.
_FAILED = re.compile(r"URL fetch failure on (\S+): (.*)", re.DOTALL)
_CORRUPTED = "Incomplete or corrupted file detected"
# What is fetched of a repository of the hub: the first kind of weights that is there, by the file
# that shows it.
KINDS = {
    "model.safetensors": ["model.safetensors"],
    "model.safetensors.index.json": ["model-*.safetensors", "model.safetensors.index.json"],
    "pytorch_model.bin": ["pytorch_model.bin"],
    keras_hub.BACKBONE_WEIGHTS: list(keras_hub.FILES),
}
_BROKEN_OFF = (ConnectionError, TimeoutError, http.client.HTTPException)


@contextmanager
def explained_download(wanted: str, without: str) -> Iterator[None]:
    """Explain a download by Keras that fails within; other errors stay as they are.

    Args:
        wanted: What it is for, to begin a sentence with.
        without: A sentence on the settings that need no download.
    Raises:
        FileNotFoundError: If a download fails.
    """
    try:
        yield
    except Exception as error:  # Keras raises no narrower one
        if found := _FAILED.fullmatch(str(error)):
            url, reason = found.groups()
            raise FileNotFoundError(
                f"{wanted} cannot be downloaded from {url} ({reason}). By hand: fetch that file on "
                f"a machine with a connection and place it as {_keras_file(url)}. {without}"
            ) from error
        if isinstance(error, _BROKEN_OFF) or _CORRUPTED in str(error):
            raise FileNotFoundError(
                f"{wanted} did not arrive whole ({type(error).__name__}: {error}). Run the same "
                f"command again. {without}"
            ) from error
        raise


def _keras_file(url: str) -> Path:
    """Where Keras looks for a file before it downloads it."""
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return home / "models" / PurePosixPath(url).name


def fetch_repository(repository: str) -> Path:
    """Fetch a repository of the hub into huggingface_hub's cache; a broken download is resumed.

    Args:
        repository: ORGANIZATION/NAME, with @REVISION if need be.
    Returns:
        Its folder, with one kind of weights.
    Raises:
        FileNotFoundError: If it is neither there nor to be had.
    """
    from huggingface_hub import (
        errors,
        snapshot_download,
    )  # slow to import, and needed for the hub alone

    name, _, revision = repository.partition("@")
    fetch = partial(snapshot_download, name, revision=revision or None)
    try:
        for weights, patterns in KINDS.items():
            folder = Path(fetch(allow_patterns=[CONFIG, PREPROCESSOR, *patterns]))
            if (folder / weights).exists():
                break
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"hf://{repository} is neither in the cache nor to be had from the hub "
            f"({type(error).__name__}: {reason}). By hand: fetch model.safetensors, {CONFIG} and "
            f"{PREPROCESSOR} from https://huggingface.co/{name}/tree/main on a machine with a "
            "connection, put them into one folder, and pass that folder instead."
        ) from error

    return folder


def fetch_preset(handle: str) -> Path:
    """Fetch a preset of keras-hub from Kaggle into kagglehub's cache.

    Args:
        handle: As keras-hub has it, such as
            keras/deit/keras/deit_tiny_distilled_patch16_224_imagenet.
    Returns:
        Its folder.
    Raises:
        ImportError: If keras-hub is not installed, whose library for Kaggle fetches it.
        FileNotFoundError: If it is neither there nor to be had.
    """
    try:
        import kagglehub
    except ImportError as error:
        raise ImportError(
            f"kaggle://{handle} needs keras-hub, which is not installed: `pip install keras-hub`. "
            "Or download the preset as a folder and pass that."
        ) from error

    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:  # of Kaggle's library, requests, or a handle that is none
        reason = " ".join(str(error).split())[:300]
        raise FileNotFoundError(
            f"kaggle://{handle} is neither in the cache nor to be had from Kaggle "
            f"({type(error).__name__}: {reason}). A name is kaggle://keras/deit/keras/PRESET. By "
            "hand: download the preset on a machine with a connection, and pass its folder."
        ) from error


REMOTE = {"hf://": fetch_repository, "kaggle://": fetch_preset}
