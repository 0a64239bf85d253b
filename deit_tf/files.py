"""Files that are written whole or not at all, their checksums, and class names as text.

Everything is UTF-8, and a line ends with a newline alone, wherever Python would split further.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

CACHE_VARIABLE = "DEIT_TF_CACHE"  # the environment variable that puts the cache folder elsewhere
CLASS_NAMES_FILE = "labels.txt"  # beside every model that knows its classes
_PARTIAL = ".{stem}.partial.{process}{suffix}"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path of the same ending beside `file`, renamed to it where the block succeeds.

    The disk holds the whole content before the name points to it.

    Raises:
        OSError: If the disk is full or fails; what bore the name before stays as it was.
    """
    name = _PARTIAL.format(stem=file.stem, process=os.getpid(), suffix=file.suffix)
    temporary = file.with_name(name)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, file)
        _sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, name: str, doing: str, remedy: str) -> Iterator[None]:
    """Keep for this process what others would write into a folder as well.

    Args:
        folder: Made where missing; removed again where it is empty at the end.
        name: Of the file that is locked, and is there meanwhile.
        doing: What another process does to the folder, for the message.
        remedy: A sentence on what to do about it.
    Raises:
        BlockingIOError: If another process holds the lock; it is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, holder = folder / name, folder / f"{name}.json"
    lock = filelock.FileLock(file)

    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise BlockingIOError(
            f"Another process {doing} {folder}: {_named(holder)}. {remedy}"
        ) from error

    try:
        write_json({"process": os.getpid(), "host": platform.node()}, holder)
        yield
    finally:
        holder.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # something was written
            folder.rmdir()


def cache_folder(kind: str) -> Path:
    """Where what can be had again is kept, in the user's cache folder; it need not be there yet."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser() / kind
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "deit_tf" / kind


def remove_partial(folder: Path, stem: str = "*") -> None:
    """Remove what `replacing` leaves in a folder where its process is killed.

    Args:
        folder: The folder; no other process writes the same files.
        stem: The name of the file without its ending; by default of any.
    """
    for torn in folder.glob(f".{stem}.partial.*"):
        torn.unlink(missing_ok=True)


def write_text(text: str, file: Path) -> None:
    """Write a text file, whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(content: bytes, file: Path) -> None:
    """Write a file, whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def write_json(content: Any, file: Path) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", file)


def read_json(file: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        file: The file.
        keys: What the object must have.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON object, or a key is missing; the file is named.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of the encoding as well
        raise ValueError(f"{file} is no JSON file, or damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object. Received: {type(content).__name__}")
    if missing := [key for key in keys if key not in content]:
        raise ValueError(f"{file} lacks {', '.join(missing)}: it is damaged, or not what it seems.")
    return content


def csv_cell(text: str) -> str:
    """Text from elsewhere for a cell of a CSV file, which a spreadsheet then runs as no formula."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_class_names(names: Sequence[str], classes: int) -> None:
    """Check that there is a name for each class, text of one line that a file can hold.

    Raises:
        ValueError: If there is not.
    """
    if len(names) != classes:
        raise ValueError(
            f"Class names must be as many as the {classes} classes of the model, in order. "
            f"Received: {len(names)}"
        )
    for name in names:
        if not isinstance(name, str) or name.splitlines() != [name] or not _is_unicode(name):
            raise ValueError(
                "A class name is text of one line, and not empty; rename what it comes from, such "
                f"as the folder of the class. Received: {name!r}"
            )


def write_class_names(names: Sequence[str], file: Path) -> None:
    """Write class names in class order, one per line.

    Raises:
        ValueError: If one is not text of one line.
    """
    check_class_names(names, len(names))
    write_text("".join(f"{name}\n" for name in names), file)


def read_class_names(file: Path) -> tuple[str, ...]:
    """Class names in class order, as `write_class_names` wrote them.

    Raises:
        ValueError: If the file is no UTF-8 text; it is named.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must hold class names in UTF-8, one per line: {error}") from error
    return tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))


def _named(holder: Path) -> str:
    """Which process holds a lock, as far as it can be told."""
    try:
        held = read_json(holder, keys=("process", "host"))
    except (OSError, ValueError):
        return "one that has just begun"
    return f"process {held['process']} on {held['host']}"


def _is_unicode(name: str) -> bool:
    """Whether `name` has no surrogates, by which Python stands for bytes that are not UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _sync(path: Path) -> None:
    """Have the disk hold what was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
