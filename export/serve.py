"""Serve exported models with TensorFlow Serving's gRPC and REST API, for development and tests.

python export/serve.py served    # every served/<model>/<version>/, as to_saved_model.py writes it
"""

import argparse
import ctypes
import logging
import os
import signal
import sys
import threading
from contextlib import suppress

# TensorFlow turns its oneDNN kernels on by itself only where the CPU has AVX512-VNNI or better.
# Elsewhere inference is slower without them. It is read when TensorFlow is loaded.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from grpc_api import serve_grpc
from rest_api import serve_rest
from versions import Models

from deit_tf.exporting.saved_model import LoadedModel
from deit_tf.exporting.single_pictures import SinglePictures

RUNTIMES = {"litert": SinglePictures, "savedmodel": LoadedModel}
M_ARENA_MAX, ARENAS = -8, 2  # of glibc's malloc.h


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", metavar="DIR", help="folder of <model>/<version>/ folders")
    parser.add_argument(
        "--grpc_port", type=int, default=8500, help="0 chooses a free one (default: 8500)"
    )
    parser.add_argument(
        "--rest_port", type=int, default=8501, help="0 chooses a free one (default: 8501)"
    )
    parser.add_argument(
        "--poll_seconds",
        type=float,
        default=1.0,
        help="how often to look for versions (default: 1)",
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="litert",
        help="what answers requests of one picture: LiteRT, of versions that were exported with "
        "--litert, where there is no GPU; or the session, which answers all others (default: "
        "litert)",
    )

    return parser.parse_args()


def share_memory_pools() -> None:
    """Have all threads share two pools of glibc: with one for each, what they free piles up."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def main() -> None:
    """Serve until interrupted."""
    args = parse()
    share_memory_pools()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    print(
        "For development: not TensorFlow Serving, though it speaks its API. It listens on "
        "127.0.0.1 alone.",
        flush=True,
    )

    # Nothing is answered before the first versions are loaded and warmed up.
    try:
        models = Models(args.directory, RUNTIMES[args.runtime])
        models.refresh()
        grpc_server, grpc_port = serve_grpc(models, args.grpc_port)
        rest_server, rest_port = serve_rest(models, args.rest_port)
    except (OSError, RuntimeError) as error:
        sys.exit(f"Not serving: {error}")

    models.poll(args.poll_seconds)
    print(
        f"gRPC on 127.0.0.1:{grpc_port}, REST on http://127.0.0.1:{rest_port}/v1/models", flush=True
    )

    # Until Ctrl-C or `kill`; requests that run are answered.
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    ended.wait()

    models.stop()
    rest_server.shutdown()
    grpc_server.stop(grace=5).wait()


if __name__ == "__main__":
    main()
