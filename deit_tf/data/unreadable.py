"""Which pictures of a source cannot be read, where the error of a data set does not say.

TensorFlow names the operation that failed, and not the file: whoever runs over a source does so
within `naming_unreadable`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from deit_tf.data.checked_files import undecodable
from deit_tf.data.folders import NAMED, readable
from deit_tf.data.sources import Source
from deit_tf.object_store import is_file

# What a file that is gone, shut, cut short or no picture makes TensorFlow raise.
_OF_FILES = (
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnknownError,
    UnicodeDecodeError,  # TensorFlow's own, where such an error holds a name that is no UTF-8
)


@contextmanager
def naming_unreadable(*sources: Source | None) -> Iterator[None]:
    """Name the pictures where one that cannot be read ends what is done within.

    Args:
        *sources: What is read; None where it is not at hand.
    Raises:
        ValueError: In place of TensorFlow's error, if there are such pictures; another error of
            TensorFlow's stays as it is.
    """
    try:
        yield
    except _OF_FILES as error:
        found = [path for source in sources if source for path in unreadable(source)]
        if not found:
            raise
        named = ", ".join(map(readable, found[:NAMED])) + ", ..." * (len(found) > NAMED)
        raise ValueError(
            f"Pictures that cannot be read, as they are gone, cut short or none ({len(found)}): "
            f"{named}. Put them back as they were and run the same command again. What was no "
            "picture from the start is left out, by name, where `data.verify` is true."
        ) from error


def unreadable(source: Source) -> list[str]:
    """The files of a source that are gone; if none is, those that do not decode.

    None of a source without files of its own.
    """
    files = [os.fsdecode(file) for file in source.files]
    return [file for file in files if not is_file(file)] or undecodable(files, source.channels)
