"""The command: what it takes, how it says no, how it stops, and what it leaves unimported."""

import contextlib
import inspect
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields, is_dataclass
from typing import get_args

import pytest
import yaml

import deit_tf
from deit_tf import cli
from deit_tf.cli import COMMANDS, main, parsers
from deit_tf.cli.commands import Command
from deit_tf.cli.help import RUN_GROUP, STUDENT_SETTINGS, TEACHER_SETTINGS
from deit_tf.config import TrainConfig
from deit_tf.evaluation.evaluate import evaluate
from deit_tf.models.variants import VARIANTS, count_parameters
from deit_tf.native_log import LEVEL, quiet_native_log, reports_error
from deit_tf.training.interruption import StopRequest
from deit_tf.weights.files import FolderLayout

OF_SETTINGS = ("train", "train-teacher", "label", "plan", "find-lr", "preview")


def in_own_process(code, *arguments, **options):
    """Run Python code in a process that takes itself for the command."""
    code = f"import sys; sys.argv[0] = 'deit-tf'; {code}"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def refused(capsys, *arguments):
    """The one line on stderr that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.endswith("\n") and line.count("\n") == 1, line
    return line


def setting_names(config=TrainConfig, prefix=""):
    """Every setting, as `optim.lr`."""
    for field in fields(config):
        if is_dataclass(field.type):
            yield from setting_names(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_help_and_refusals_import_neither_tensorflow_nor_keras():
    code = """
from contextlib import suppress
from deit_tf.cli import main
for given in (["--help"], ["--version"], ["nothing"], ["train", "--help"], ["predict", "--help"],
              ["train", "--optim.wd", "1"], ["evaluate"], ["models"]):
    with suppress(SystemExit):
        main(given)
heavy = {"tensorflow", "keras", "keras_cv", "ai_edge_litert", "numpy"}
print("imported:", *heavy & set(sys.modules))
"""
    done = in_own_process(code)
    assert done.stdout.endswith("imported:\n"), done.stderr
    assert done.stderr.count("\n") == 3  # nothing, --optim.wd, and a path that lacks


def test_the_module_is_the_command_and_tensorflow_is_quiet(tmp_path):
    """One process that imports TensorFlow: what comes on stderr is ours alone."""
    environment = {name: text for name, text in os.environ.items() if name != LEVEL}
    done = subprocess.run(
        [sys.executable, "-m", "deit_tf", "compare", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"deit-tf compare: error: {tmp_path} is no finished run: it has no summary.json.\n"
    )


@pytest.mark.parametrize(
    "started, argv, command",
    [
        (["python", "-m", "deit_tf"], ["-m"], True),
        (["deit-tf"], ["/usr/bin/deit-tf"], True),
        (["python", "-m", "mine"], ["-m"], False),
        (["python", "train.py"], ["train.py"], False),
    ],
)
def test_layers_stay_unregistered_for_the_command_alone(monkeypatch, started, argv, command):
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", argv)
    assert deit_tf._is_command() == command


def test_help_lists_every_command(capsys):
    main(["--help"])
    page = capsys.readouterr().out
    assert all(f"\n  {name} " in page for name in COMMANDS)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2 and capsys.readouterr().out == page


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_without_our_functions(capsys, name):
    main([name, "--help", "all"])
    page = capsys.readouterr().out
    assert "--traceback" in page and "<function" not in page and "<class" not in page


@pytest.mark.parametrize("name", OF_SETTINGS)
def test_help_of_settings_is_two_screens_at_most(monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "80")
    main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 80
    shown = TEACHER_SETTINGS if name == "train-teacher" else STUDENT_SETTINGS
    options = {line.split()[0] for line in lines if line.startswith("  --")}
    assert {f"--{setting}" for setting in shown} <= options and len(shown) == 10


@pytest.mark.parametrize("group", [RUN_GROUP, "model", "teacher", "teacher.optim", "all"])
def test_help_of_a_group_explains_its_settings_and_no_others(capsys, group):
    main(["train", "--help", group])
    page = capsys.readouterr().out
    explained = {line.split()[0][2:] for line in page.splitlines() if line.startswith("  --")}
    for setting in setting_names():
        own = setting.rpartition(".")[0] or RUN_GROUP
        assert (setting in explained) == (group in (own, "all")), setting


def test_an_unknown_group_of_settings_is_named(capsys):
    assert "no group 'modl'. Did you mean model?" in refused(capsys, "train", "--help", "modl")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "deit-tf: error: there is no command 'trian'. Did you mean train"),
        (["xyz"], "there is no command 'xyz'. See `deit-tf --help`."),
        (["--verbos"], "--verbos. Did you mean --verbose"),
        (["train", "--optim.lrr", "1"], "--optim.lrr 1. Did you mean --optim.lr or"),
        (["train", "--lr=1"], "--lr=1. Did you mean --optim.lr or --teacher.optim.lr"),
        (["train", "--epoch", "3"], "--epoch 3. Did you mean --epochs"),
        (["train", "--epochs", "many"], "`epochs` takes int. Received: many"),
        (["train", "--model.depth", "x"], "`model.depth` takes int, null. Received: x"),
        (
            ["train", "--task", "x"],
            "`task` takes one of 'classify', 'multilabel', 'masked'. Received: x",
        ),
        (["plan", "--memory", "16XB"], "argument --memory: such as 16GB. Received: 16XB"),
        (["label", "--epochs", "x:2"], "argument --epochs: such as 0:300 or 300. Received: x:2"),
        (["label", "--shard", "1"], "argument --shard: such as 1/4. Received: 1"),
        (["train", "stray"], "unrecognized arguments: stray"),
        (["train", "--config", "none.yaml"], "File does not exist"),
        (["evaluate", "x", "--protocol", "x"], "`protocol` takes"),
        (["predict", "x"], "images"),
        (["convert", "x", "--out", "y", "--layout", "x"], "`layout` takes"),
    ],
)
def test_what_a_command_does_not_take_is_one_line(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"optim": {"lrr": 1}}, "there is no setting `optim.lrr`. Did you mean optim.lr or"),
        ({"optm": {"lr": 1}}, "there is no setting `optm.lr`. Did you mean optim.lr"),
        ({"optim": 3}, "`optim` is a group of settings. Received: 3"),
        ({"epochs": ["x"] * 900}, "`epochs` takes int. Received: ['x', 'x',"),
        ([1, 2], "Unexpected config"),
    ],
)
def test_what_a_config_file_may_not_say_is_one_line(tmp_path, capsys, content, message):
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    line = refused(capsys, "train", "--config", str(tmp_path / "bad.yaml"))
    assert message in line and len(line) < 200


def test_a_config_file_is_text(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_bytes(b"seed: \xff\n")
    line = refused(capsys, "train", "--config", str(tmp_path / "bad.yaml"))
    assert "a config file is no UTF-8 text" in line


def test_evaluate_takes_what_the_function_takes():
    path, *others = inspect.signature(evaluate).parameters.values()
    assert path.name == "path"
    declared = {name: kind for name, (kind, _) in parsers.EVALUATION.items()}
    assert declared == {each.name: each.annotation for each in others}
    assert set(get_args(parsers.LAYOUTS)) == set(get_args(FolderLayout))


def stand_in(run, name="models", monkeypatch=None):
    """Let a command do something else."""
    monkeypatch.setitem(COMMANDS, name, Command("a test", parsers.new_parser, run, False))


def test_a_command_can_have_commands_below_it(monkeypatch, capsys):
    seen = []
    stand_in(lambda arguments: seen.append(arguments.verbose), "export onnx", monkeypatch)
    monkeypatch.setenv(LEVEL, "2")
    main(["export", "onnx"])
    main(["--verbose", "export", "onnx"])
    assert seen == [False, True]
    main(["export", "--help"])
    assert re.search(r"\n  onnx +a test", capsys.readouterr().out)
    line = refused(capsys, "export", "onx")
    assert line == "deit-tf export: error: there is no command 'onx'. Did you mean onnx?\n"


def fail(error):
    def run(arguments):
        raise error

    return run


class OwnError(Exception):
    """As ExportError: not in the table of types, but of this package."""

    __module__ = "deit_tf.exporting"


@pytest.mark.parametrize(
    "error, line",
    [
        (OwnError("of [/x] and [red]"), "of [/x] and [red]"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (OwnError("a\x1b[2Jb \udcff"), r"a\x1b[2Jb \udcff"),
        (
            AttributeError("'NoneType' object has no attribute 'x'"),
            "AttributeError: 'NoneType' object has no attribute 'x' (--traceback shows where it "
            "arose)",
        ),
        (
            RuntimeError("Graph execution error:\n\n  Detected\n"),
            "RuntimeError: Graph execution error: Detected (--traceback shows where it arose)",
        ),
        (ValueError("of another library"), "ValueError: of another library (--traceback shows"),
    ],
)
def test_every_error_is_one_line(monkeypatch, capsys, error, line):
    stand_in(fail(error), monkeypatch=monkeypatch)
    assert refused(capsys, "models").startswith(f"deit-tf models: error: {line}")
    with pytest.raises(type(error)):
        main(["models", "--traceback"])


def test_a_value_error_of_ours_is_told_without_its_type(monkeypatch, capsys):
    from deit_tf.models.variants import find_variant

    stand_in(lambda arguments: find_variant("deit_tst"), monkeypatch=monkeypatch)
    assert refused(capsys, "models").startswith("deit-tf models: error: Unknown model name=")


def test_a_long_error_keeps_its_start_and_its_end():
    text = cli.error_text(RuntimeError("start " + "x" * 5000 + " end"))
    assert len(text) < 700 and "start" in text and " end (" in text


@pytest.mark.parametrize(
    "signals, status, line",
    [
        ("SIGINT", 130, "deit-tf models: interrupted\n"),
        ("SIGTERM", 143, "deit-tf models: terminated\n"),
        ("SIGINT SIGINT", -signal.SIGINT, ""),
        ("SIGTERM SIGTERM", -signal.SIGTERM, ""),
    ],
)
def test_a_signal_ends_the_work_in_order_and_a_second_at_once(signals, status, line):
    """The work takes until the second signal to end in order."""
    code = """
import os, signal, time
from deit_tf.cli import COMMANDS, main
from deit_tf.cli.commands import Command
first, *second = [getattr(signal, name) for name in sys.argv[1:]]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
def run(arguments):
    try:
        os.kill(os.getpid(), first)
        time.sleep(60)
    finally:
        for number in second:
            os.kill(os.getpid(), number)
            time.sleep(60)
        print("in order")
COMMANDS["models"] = Command("a test", COMMANDS["models"].parser, run, False)
main(["models"])
"""
    done = in_own_process(code, *signals.split())
    assert (done.returncode, done.stderr) == (status, line)
    assert done.stdout == ("in order\n" if status > 0 else "")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_where_training_has_said_that_it_stopped_nothing_is_added(
    monkeypatch, capsys, number, status
):
    request = StopRequest()
    request.signal = number
    stand_in(lambda arguments: request.raise_as_exit("Stopped at step 3"), monkeypatch=monkeypatch)
    with pytest.raises(SystemExit) as stop:
        main(["models"])
    assert stop.value.code == status and not capsys.readouterr().err


def test_signals_are_the_callers_again_afterwards(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    main(["models"])
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_closed_pipe_ends_the_command_without_a_word():
    """As of `deit-tf models | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "deit_tf", "models"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")  # as rich and Python's documentation have it


def test_models_are_a_line_each_and_never_cut(capsys):
    main(["models"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "model" and max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines] == list(VARIANTS)
    for line, config in zip(lines, VARIANTS.values(), strict=True):
        assert line.split()[-1] == f"{count_parameters(config):,}"


def test_names_with_brackets_are_no_markup(monkeypatch, capsys):
    table = cli.commands._table("[/x]")
    table.add_row("[red]name[/red] :smile:")
    cli.commands.console().print(table)
    cli.commands.console().print("Run: runs/[/x]")
    assert capsys.readouterr().out.split() == [
        "[/x]",
        "[red]name[/red]",
        ":smile:",
        "Run:",
        "runs/[/x]",
    ]


CHATTER = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795821545.064446   16123 cudart_stub.cc:31] Could not find cuda drivers
2026-11-27 12:00:00.123456: W tensorflow/core/x.cc:3] something failed
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
E0000 00:00:1.5 9 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)
"""
ERRORS = """E0000 00:00:1795821545.064446   16123 x.cc:3] out of memory
2026-11-27 12:00:00.123456: F tensorflow/core/x.cc:3] cannot go on
loc("x"): error: 'tf.Erf' op is not supported
"""


def test_errors_are_told_from_chatter():
    assert not [line for line in CHATTER.splitlines() if reports_error(line)]
    assert all(map(reports_error, ERRORS.splitlines()))


@pytest.mark.parametrize(
    "level, error, shown",
    [
        ("2", None, ERRORS),
        ("2", ImportError, CHATTER + ERRORS),
        ("2", KeyboardInterrupt, ERRORS),
        ("0", None, CHATTER + ERRORS),
    ],
)
def test_a_native_log_is_held_but_for_errors(monkeypatch, capfd, level, error, shown):
    monkeypatch.setenv(LEVEL, level)
    with contextlib.suppress(error or ZeroDivisionError), quiet_native_log():
        os.write(2, (CHATTER + ERRORS).encode())
        if error:
            raise error
    assert capfd.readouterr().err == shown
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_pythons_own_messages_pass_while_a_native_log_is_held(monkeypatch, capfd):
    monkeypatch.setenv(LEVEL, "2")
    with open(2, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with quiet_native_log():
            sys.stderr.write("a warning of ours\n")
            os.write(2, CHATTER.encode())
        assert sys.stderr is stream
    assert capfd.readouterr().err == "a warning of ours\n"


def test_a_crash_while_a_native_log_is_held_is_told():
    code = """
import os
from deit_tf.native_log import quiet_native_log
with quiet_native_log():
    os.abort()
"""
    done = in_own_process(code, env={**os.environ, LEVEL: "2"})
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr


def test_exports_take_what_the_package_makes():
    from deit_tf.cli import exports
    from deit_tf.exporting.outputs import OUTPUTS
    from deit_tf.exporting.sidecar import INPUTS
    from deit_tf.exporting.tflite import VARIANTS

    assert set(exports.VARIANTS) == set(VARIANTS)
    assert set(get_args(exports.INPUTS)) == set(INPUTS)
    assert set(get_args(exports.OUTPUTS)) == set(OUTPUTS)
