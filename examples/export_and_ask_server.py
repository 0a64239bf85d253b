"""Export a model, serve it, and ask the server about pictures.

    python examples/export_and_ask_server.py runs/demo/distilled cat.jpg dog.jpg --out served

The server is export/serve.py, which is for development and speaks TensorFlow Serving's API, so that the client's part
is the same with the real one; export/README.md says how that is started on the same folder.
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory or a .keras file")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--out", default="served", help="folder of the server's models")
    given = parser.parse_args()

    run = load_run(given.run)
    version = deit_tf.export_saved_model(
        run.model, given.out, processor=run.processor, labels=run.labels, name=run.name, images=run.samples
    )
    print(f"Exported and compared with Keras: {version}")

    command = [sys.executable, EXPORT / "serve.py", given.out, "--grpc_port", "0", "--rest_port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(found[1] for line in server.stdout if (found := re.match(r"gRPC on ([\w.]+:\d+)", line)))
            ask = [sys.executable, EXPORT / "client.py", *given.pictures, "--model", run.name, "--server", address]
            print(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
