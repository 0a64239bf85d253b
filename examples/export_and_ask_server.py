"""Export a model, serve it, and ask the server about pictures.

    python examples/export_and_ask_server.py runs/demo/distilled cat.jpg dog.jpg --out served

The server is export/serve.py, which is for development and speaks TensorFlow Serving's API, so that
the client's part is the same with the real one; export/README.md says how that is started on the
same folder.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import deit_tf
from deit_tf.runs import load_run

EXPORT = Path(__file__).parent.parent / "export"


def main() -> None:
    """Export, start a server on a free port, ask, stop it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run directory or a .keras file")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--out", default="served", help="folder of the server's models")
    parser.add_argument("--version", type=int, default=1, help="of the export, a new one each time")
    given = parser.parse_args()

    run = load_run(given.run)
    described = dict(processor=run.processor, labels=run.labels, name=run.name, images=run.samples)
    try:
        folder = deit_tf.export_saved_model(
            run.model, given.out, version=given.version, **described
        )
    except FileExistsError as error:
        sys.exit(f"Not exported: {error}")
    print(f"Exported and compared with Keras: {folder}")

    ports = "--grpc_port 0 --rest_port 0".split()
    command = [sys.executable, EXPORT / "serve.py", given.out, *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            lines = (re.match(r"gRPC on ([\w.]+:\d+)", line) for line in server.stdout)
            address = next(found[1] for found in lines if found)
            whom = ["--model", run.name, "--server", address]
            ask = [sys.executable, EXPORT / "client.py", *given.pictures, *whom]
            client = subprocess.run(ask, stdout=subprocess.PIPE, text=True)
            print(client.stdout)  # what it complains of goes to stderr
        finally:
            server.terminate()
    if client.returncode:
        sys.exit(client.returncode)


if __name__ == "__main__":
    main()
