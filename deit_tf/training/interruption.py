"""Ctrl-C and SIGTERM, as a preempted machine sends it: a request to stop after the running step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """What has been asked for; `signal` is None until something is.

    A second signal does at once what the signal did before.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None

    def raise_as_exit(self, message: str) -> None:
        """End as the signal asks, with `message`.

        Raises:
            KeyboardInterrupt: For Ctrl-C.
            SystemExit: For SIGTERM, with the status that a shell expects, 143.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(message)
        stop = SystemExit(128 + signal.SIGTERM)
        stop.add_note(message)
        raise stop


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """While open, the first signal is kept for whoever asks; it works in the main thread alone."""
    request, before = StopRequest(), {}

    def keep(number: int, _) -> None:
        request.signal = signal.Signals(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():
        handlers = {each: signal.getsignal(each) for each in SIGNALS}
        # Not one that is ignored, as by nohup, nor one from outside of Python.
        before = {each: h for each, h in handlers.items() if h not in (None, signal.SIG_IGN)}
        for each in before:
            signal.signal(each, keep)
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
