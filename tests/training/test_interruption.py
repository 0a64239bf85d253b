"""The first signal asks, the second one stops."""

import os
import signal

import pytest

from deit_tf.training.interruption import stop_request


@pytest.fixture(autouse=True)
def of_python():
    """What Ctrl-C does in a terminal; a job in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_kept_for_whoever_asks(number):
    with stop_request() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number


def test_a_second_one_stops_at_once():
    with pytest.raises(KeyboardInterrupt), stop_request():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_what_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with stop_request():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_so():
    """As nohup and a shell's background have it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_request() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_each_ends_as_a_shell_expects():
    with stop_request() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            request.raise_as_exit("stopped")
        assert stopped.value.code == 143
