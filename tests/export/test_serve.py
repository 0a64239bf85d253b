"""The command serves until it is told to end, with TensorFlow's faster kernels."""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
import serve
import yaml
from toy_models import save_classifier

EXPORT = Path(serve.__file__).parent


@pytest.fixture
def command(monkeypatch):
    """Run the command; once it serves, `act` gets the address of REST, then it is told to end."""

    def run(*arguments, act=None):
        handlers, rest_ports, begin = {}, [], serve.serve_rest

        def begin_and_note(models, port):
            server, bound = begin(models, port)
            rest_ports.append(bound)
            return server, bound

        def ask_and_end():
            try:
                act(f"http://127.0.0.1:{rest_ports[0]}")
            finally:
                handlers[signal.SIGTERM]()

        def note(number, handler):  # in place of a signal, which would end the tests as well
            handlers[number] = handler
            if number == signal.SIGTERM:
                threading.Thread(target=ask_and_end).start()

        monkeypatch.setattr(serve, "serve_rest", begin_and_note)
        monkeypatch.setattr(signal, "signal", note)
        monkeypatch.setattr("sys.argv", ["serve.py", *map(str, arguments)])
        serve.main()
        assert set(handlers) == {signal.SIGINT, signal.SIGTERM}

    return run


def test_the_command(command, tmp_path, capsys):
    save_classifier(tmp_path / "student" / "1", "cat")
    states = []

    def ask(address):
        told = requests.get(f"{address}/v1/models/student", timeout=20).json()
        states.extend(entry["state"] for entry in told["model_version_status"])

    command(tmp_path, "--grpc_port", 0, "--rest_port", 0, act=ask)
    assert states == ["AVAILABLE"]
    # examples/export_and_ask_server.py and benchmarks/serve_load.py look for this line.
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"gRPC on 127[.\d]+:\d+, REST on http://127[.\d]+:\d+/v1/models", line)


def test_a_folder_that_is_not_there(command, tmp_path):
    with pytest.raises(SystemExit, match="Not serving: There is no folder .*nothing"):
        command(tmp_path / "nothing")


def test_onednn_is_on_before_tensorflow_is_loaded_unless_the_user_says_otherwise(tmp_path):
    """A stand-in for the module that loads TensorFlow prints the setting it finds."""
    (tmp_path / "grpc_api.py").write_text(
        "import os, sys\nprint(os.environ['TF_ENABLE_ONEDNN_OPTS'], 'tensorflow' in sys.modules)\n"
        "sys.exit()\n"
    )
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(EXPORT)!r}]; import serve"
    for given, found in ({}, "1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0"):
        printed = subprocess.run(
            [sys.executable, "-c", code], env=given, capture_output=True, text=True
        ).stdout
        assert printed.split() == [found, "False"]


def test_the_stock_server_gets_the_same_setting():
    compose = yaml.safe_load((EXPORT / "tf_serving" / "compose.yaml").read_text())
    assert "TF_ENABLE_ONEDNN_OPTS=1" in compose["services"]["serving"]["environment"]
    assert "ENV TF_ENABLE_ONEDNN_OPTS=1\n" in (EXPORT / "tf_serving" / "Dockerfile").read_text()
