"""What C++ libraries log to file descriptor 2, past `sys.stderr`: held back, and its errors shown.

TensorFlow logs a page while it is imported, before any level of its own holds, and its converters
log another for every export.
"""

import faulthandler
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress

STDERR = 2
LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # of TensorFlow: 0 logs all, 2 errors alone
# Of TensorFlow's log, such as `E0000 00:00:1 cuda_fft.cc:4]` or `2026-01-31 12:00:00.1: E tsl/...`.
_SEVERITY = re.compile(r"(?:\d{4}-\d\d-\d\d \S+ )?([IWEF])(?:\d{4} | )\S")
_ERROR_WORDS = re.compile(r"\b(error|fatal|failed)\b", re.IGNORECASE)
_FALSE_ALARMS = (
    "UNKNOWN ERROR (303)",  # cuInit on a machine without a GPU's driver
)


@contextmanager
def quiet_native_log() -> Iterator[None]:
    """Hold file descriptor 2 in the block; after it write the errors, or all where it raises.

    Python's own messages, warnings and progress bars go through. Nothing is held where the
    environment sets TF_CPP_MIN_LOG_LEVEL to 0, as `deit-tf --verbose` does.
    """
    if os.environ.get(LEVEL) == "0":
        yield
        return

    sys.stderr.flush()
    with (
        _copy(STDERR) as terminal,
        tempfile.TemporaryFile() as held,
        _python_stderr_on(terminal),
        _crash_report_on(terminal),
    ):
        os.dup2(held.fileno(), STDERR)
        show = reports_error
        try:
            yield
        except Exception:
            show = bool  # every line
            raise
        finally:
            os.dup2(terminal, STDERR)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            os.write(STDERR, "".join(filter(show, lines)).encode())


def reports_error(line: str) -> bool:
    """Whether a line of a native log tells an error, by its severity, or else by its words."""
    if any(text in line for text in _FALSE_ALARMS):
        return False
    severity = _SEVERITY.match(line)
    return severity[1] in "EF" if severity else bool(_ERROR_WORDS.search(line))


@contextmanager
def _copy(descriptor: int) -> Iterator[int]:
    """A second descriptor of the same file."""
    copy = os.dup(descriptor)
    try:
        yield copy
    finally:
        os.close(copy)


@contextmanager
def _python_stderr_on(descriptor: int) -> Iterator[None]:
    """Let `sys.stderr` write to `descriptor`, where it writes to file descriptor 2 by now."""
    number = None
    with suppress(OSError, ValueError, AttributeError):  # of a stream that is no file
        number = sys.stderr.fileno()
    if number != STDERR:
        yield
        return
    with (
        open(descriptor, "w", buffering=1, errors="backslashreplace", closefd=False) as stream,
        redirect_stderr(stream),
    ):
        yield


@contextmanager
def _crash_report_on(descriptor: int) -> Iterator[None]:
    """Say where a crash of native code arose, as what it said itself is lost with the process."""
    if faulthandler.is_enabled():
        yield
        return
    faulthandler.enable(descriptor)
    try:
        yield
    finally:
        faulthandler.disable()
