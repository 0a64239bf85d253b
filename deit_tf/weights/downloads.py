"""Downloads that other libraries make: where they fail, what was wanted, from where, and what to do
without a connection, in one sentence.
"""

import http.client
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

# As keras/src/utils/file_utils.py, get_file, says it.
_FAILED = re.compile(r"URL fetch failure on (\S+): (.*)", re.DOTALL)
_CORRUPTED = "Incomplete or corrupted file detected"
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
