"""When a request is computed, shared by gRPC and REST: a few at a time, once they have arrived.

A client that stalls in the middle of its request takes nobody's turn, and is cut off in the end.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

READ_SECONDS = 10.0  # in which a request must have arrived
WORKERS, WAITING = 8, 16  # requests that are computed at a time; that may wait for it

_TURNS = threading.BoundedSemaphore(WORKERS)
_ROOM = threading.BoundedSemaphore(WORKERS + WAITING)


class BusyError(RuntimeError):
    """Too many requests wait already."""


@contextmanager
def turn() -> Iterator[None]:
    """Wait for a turn to compute.

    Raises:
        BusyError: If too many wait already.
    """
    if not _ROOM.acquire(blocking=False):
        raise BusyError("Too many requests at a time. Try again.")
    try:
        with _TURNS:
            yield
    finally:
        _ROOM.release()
