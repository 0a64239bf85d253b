"""The command `deit-tf`: arguments in, text out; the work is done elsewhere.

`parsers` says what each command takes, `commands` what it does. The parser of a command is built,
and its work imported, when the command runs, so that `--help` waits for neither.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import dropwhile, takewhile

from jsonargparse import Namespace

from deit_tf import native_log
from deit_tf.cli.commands import COMMANDS, Command
from deit_tf.cli.help import show_help
from deit_tf.cli.parsers import group_parser, parse, top_parser
from deit_tf.cli.refusals import nearest, printable, refuse
from deit_tf.cli.stored_runs import with_local_runs

HELP = ("-h", "--help")
PIPE_CLOSED = 1
ERROR = 2
BY_SIGNAL = 128  # plus its number, as shells have it
STOPPED = {BY_SIGNAL + signal.SIGINT: "interrupted", BY_SIGNAL + signal.SIGTERM: "terminated"}
# What our own code raises, with a message for the user. Of other code it may be a bug of ours.
EXPECTED = (ValueError, ImportError, FloatingPointError)
LONGEST = 600  # characters of another library's error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: As on the command line; by default those.
    Raises:
        SystemExit: With 1 if a part of the work failed and the rest is done; with 2 and one line
            on stderr for any other error; with 130 on Ctrl-C, 143 on SIGTERM.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    flags = [*takewhile(lambda text: text.startswith("-"), given)]
    name, rest = _split_name(given[len(flags) :])
    rest = [*flags, *rest]

    if name not in COMMANDS:
        _answer_without_command(name, rest)
        return

    command = COMMANDS[name]
    parser = command.parser(name, command.help)
    if any(text in HELP for text in rest):
        show_help(parser, name, _word_after_help(rest))
        return

    parsed = parse(parser, rest)
    with _signals_raise():
        _run(parser.prog, command, parsed)


def _split_name(given: list[str]) -> tuple[str, list[str]]:
    """The longest name of a command or of a group of commands that `given` begins with, and the
    rest.
    """
    names = {*COMMANDS, *(name.rpartition(" ")[0] for name in COMMANDS)}
    count = next(count for count in (2, 1, 0) if " ".join(given[:count]) in names)
    return " ".join(given[:count]), given[count:]


def _word_after_help(given: list[str]) -> str | None:
    """`model` in `--help model`."""
    after = [*dropwhile(lambda text: text not in HELP, given)][1:2]
    return next((text for text in after if not text.startswith("-")), None)


def _answer_without_command(group: str, rest: list[str]) -> None:
    """`deit-tf` alone, or with the first word of commands of two: help, version, or an error."""
    first = f"{group} " if group else ""
    below = {
        name.removeprefix(first): command.help
        for name, command in COMMANDS.items()
        if name.startswith(first)
    }
    parser = group_parser(group, below) if group else top_parser(below)
    unknown = [text for text in rest if not text.startswith("-")]
    if unknown:
        see = nearest(unknown[0], below) or f" See `{parser.prog} --help`."
        refuse(parser.prog, f"there is no command {unknown[0]!r}.{see}")

    if not any(text in HELP for text in rest):
        parse(parser, rest)  # --version, or an option that there is not
    parser.print_help()
    if not rest:
        raise SystemExit(ERROR)


def _run(program: str, command: Command, parsed: Namespace) -> None:
    """Call a command, and turn whatever it raises into one line and a status."""
    try:
        _start(command, parsed.verbose)
        status = command.run(with_local_runs(parsed))
        sys.stdout.flush()
    except (KeyboardInterrupt, SystemExit) as stop:
        raise SystemExit(_stop_status(program, stop)) from stop
    except BrokenPipeError as error:  # of `deit-tf models | head -1`, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from error
    except Exception as error:
        if parsed.traceback:
            raise
        print(f"{program}: error: {error_text(error)}", file=sys.stderr)
        raise SystemExit(ERROR) from error

    if status:
        raise SystemExit(status)


def _stop_status(program: str, stop: KeyboardInterrupt | SystemExit) -> int:
    """The exit status of work that a signal stopped; says so where the work itself did not."""
    by_ctrl_c = isinstance(stop, KeyboardInterrupt)
    status = BY_SIGNAL + signal.SIGINT if by_ctrl_c else stop.code
    is_said = hasattr(stop, "__notes__") or by_ctrl_c and stop.args
    if status in STOPPED and not is_said:
        print(f"{program}: {STOPPED[status]}", file=sys.stderr)
    return status


def _start(command: Command, verbose: bool) -> None:
    """Set up messages on stderr, and import TensorFlow where it is needed, without its own."""
    os.environ.setdefault(native_log.LEVEL, "2")
    if verbose:
        os.environ[native_log.LEVEL] = "0"

    import rich
    from rich.logging import RichHandler

    # Messages and progress go to stderr, so that --json prints nothing else on stdout; a file
    # gets no progress. File and class names are no markup.
    is_terminal = sys.stderr.isatty()
    rich.reconfigure(stderr=True, markup=False, emoji=False, quiet=not is_terminal)
    if is_terminal:
        handler = RichHandler(show_path=False, show_time=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()  # which wraps no line
        handler.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))

    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for library in ("absl", "tensorflow"):
        logging.getLogger(library).setLevel(logging.INFO if verbose else logging.WARNING)

    if command.needs_tensorflow and "tensorflow" not in sys.modules:
        with native_log.quiet_native_log():
            import tensorflow as tf

            tf.config.list_physical_devices()  # looks for a GPU's driver, and says so


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, and SIGTERM SystemExit(143), for the work to finish in
    order; the second of either ends the process at once.
    """

    def stop(number, frame):
        signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(BY_SIGNAL + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup, or a shell's background
            signal.signal(number, stop)

    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:  # and it was not raised
                signal.signal(number, handler)


def error_text(error: Exception) -> str:
    """What an error says: as it stands if our code raised it for the user, else in one line, with
    its type.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised_in = frames[-1].f_globals.get("__name__", "") if frames else ""
    ours = type(error).__module__.startswith("deit_tf.")
    ours = ours or isinstance(error, EXPECTED) and raised_in.startswith("deit_tf.")
    if ours or isinstance(error, OSError):
        return printable(str(error) or type(error).__name__)

    text = " ".join(str(error).split())
    if len(text) > LONGEST:  # TensorFlow's say what is wrong at their end
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return printable(f"{type(error).__name__}: {text} (--traceback shows where it arose)")
