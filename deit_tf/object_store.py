"""Files and folders on an object store, `gs://bucket/images`, by TensorFlow's own file systems.

A path of this machine stays a `pathlib.Path`; what has a scheme is a `StorePath`, with the few
methods that listing a folder takes. A store answers over a network, so that every method says how
often it asks.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# TensorFlow's schemes; `hf://` and `kaggle://` name weights and are no stores.
_URL = re.compile(r"(?!hf:|kaggle:|file:)[a-z][a-z0-9+.-]*://")


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path names something on a store."""
    return bool(_URL.match(os.fsdecode(path)))


def local_or_stored(path: str) -> "Path | StorePath":
    """A path by its text.

    Raises:
        ValueError: If TensorFlow knows no store of that scheme.
    """
    return StorePath.of(path) if is_url(path) else Path(path).expanduser()


@dataclass(frozen=True, order=True)
class StorePath(os.PathLike):
    """A file or folder on a store; paths are in the order of their text.

    Args:
        path: The URL, without a slash at its end.
    """

    path: str

    @classmethod
    def of(cls, url: str) -> "StorePath":
        """A path of a store that TensorFlow knows.

        Raises:
            ValueError: If it knows none of that scheme.
        """
        import tensorflow as tf  # slow to import

        schemes = [scheme for scheme in tf.io.gfile.get_registered_schemes() if scheme]
        if url.partition("://")[0] not in schemes:
            known = ", ".join(f"{scheme}://" for scheme in sorted({*schemes} - {"file"}))
            raise ValueError(f"TensorFlow reads the stores {known}. Received: {url}")
        return cls(url.rstrip("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return PurePosixPath(self.name).stem

    def __truediv__(self, name: str) -> "StorePath":
        return StorePath(f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.path

    def __fspath__(self) -> str:
        return self.path

    def iterdir(self) -> "Iterator[StorePath]":
        """What lies in the folder, by one question."""
        return map(self.__truediv__, sorted(name.rstrip("/") for name in _gfile().listdir(self)))

    def is_dir(self) -> bool:
        """Whether it is a folder, by one question."""
        return _gfile().isdir(self)

    def is_file(self) -> bool:
        """Whether it is a file, by at most two questions."""
        return _gfile().exists(self) and not self.is_dir()


def is_file(path: str) -> bool:
    """Whether there is such a file, here or on a store."""
    return StorePath(path).is_file() if is_url(path) else os.path.isfile(path)


def read_beginning(file: bytes, length: int) -> bytes:
    """The first bytes of a file, here or on a store."""
    if is_url(file):
        with _gfile().GFile(os.fsdecode(file), "rb") as content:
            return content.read(length)
    with open(file, "rb") as content:
        return content.read(length)


def _gfile():
    import tensorflow as tf  # slow to import

    return tf.io.gfile
