"""The development server under load: good and bad requests from several clients, versions that come
under way.

Every good request must get what Keras says, every bad one its own error. Half of the clients speak
gRPC, half REST. The server is a process of its own; its memory is read from /proc (Linux). Exit
status 1 where anything is amiss.

    python benchmarks/serve_load.py                      # 1,000 requests, 8 clients, DeiT-Ti at 224
    python benchmarks/serve_load.py --swap               # versions, good and broken, appear
"""

import argparse
import base64
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc
import keras
import numpy as np
import requests
import tensorflow as tf
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_images
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import deit_tf
from deit_tf.data import ImageProcessor

SERVER = Path(__file__).parents[1] / "export" / "serve.py"
NAME, CLASSES, PICTURES = "student", 10, 24
TOLERANCE = 1e-4  # of a logit; one graph in two processes, in batches of other sizes
BAD_EVERY = 20  # one request in twenty
START_SECONDS, SWAP_SECONDS = 120, 300


@dataclass(frozen=True)
class Request:
    """One question to the server.

    Args:
        kind: What it is called in the figures.
        signature: Its signature.
        inputs: The one input by name: a list of encoded pictures, or an array.
        pictures: Their numbers, where the request is good.
        error: What the refusal says, where it is bad.
    """

    kind: str
    signature: str
    inputs: dict
    pictures: tuple[int, ...] = ()
    error: str = ""


@dataclass
class Outcome:
    """What became of the requests."""

    kinds: Counter = field(default_factory=Counter)
    versions: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class RefusedError(RuntimeError):
    """The server answered with an error."""


def pictures() -> list[bytes]:
    """Windows of scikit-learn's two photographs, as JPEG and PNG files of several shapes."""
    photos, random, files = load_sample_images().images, np.random.default_rng(0), []
    for index in range(PICTURES):
        height, width = random.integers(120, 400, 2)
        photo = photos[index % 2]
        top, left = (
            random.integers(0, photo.shape[0] - height),
            random.integers(0, photo.shape[1] - width),
        )
        file = io.BytesIO()
        Image.fromarray(photo[top : top + height, left : left + width]).save(
            file, ("JPEG", "PNG")[index % 3 == 0]
        )
        files.append(file.getvalue())

    return files


def bad_requests(size: int, good: bytes) -> list[Request]:
    """One of each kind that a server must refuse, with a part of what it says."""
    large = io.BytesIO()
    Image.new("L", (8000, 5000)).save(large, "PNG")
    image = np.zeros((1, size, size, 3), np.float32)
    return [
        Request(
            "empty",
            "serving_default",
            {"image_bytes": [b""]},
            error="no picture that can be read (0 bytes)",
        ),
        Request(
            "truncated",
            "serving_default",
            {"image_bytes": [good[: len(good) // 2]]},
            error="image_bytes: ",
        ),
        Request(
            "text",
            "serving_default",
            {"image_bytes": [b"hello"]},
            error="no picture that can be read (5 bytes)",
        ),
        Request(
            "40 megapixels",
            "serving_default",
            {"image_bytes": [large.getvalue()]},
            error="8000 x 5000 pixels",
        ),
        Request("wrong dtype", "images", {"images": [b"pixels"]}, error="images is float32"),
        Request("wrong rank", "images", {"images": image[0]}, error="images has shape"),
        Request(
            "unknown signature",
            "pictures",
            {"images": image[:, :2, :2]},
            error="no signature 'pictures'",
        ),
    ]


def plan(files: list[bytes], images: np.ndarray):
    """Endless requests: pictures in batches of 1 to 4, now and then float images, one in twenty
    bad.
    """
    random = np.random.default_rng(1)
    bad = itertools.cycle(bad_requests(images.shape[1], files[1]))
    for index in itertools.count():
        chosen = tuple(int(i) for i in random.integers(0, len(files), random.integers(1, 5)))
        if index % BAD_EVERY == BAD_EVERY // 2:
            yield next(bad)
        elif index % 10 == 3:
            yield Request("float images", "images", {"images": images[list(chosen)]}, chosen)
        else:
            yield Request(
                "pictures", "serving_default", {"image_bytes": [files[i] for i in chosen]}, chosen
            )


def grpc_client(address: str):
    """From a request to its logits and the version that gave them."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))

    def ask(request: Request) -> tuple[np.ndarray, int | None]:
        asked = predict_pb2.PredictRequest(output_filter=["logits"])
        asked.model_spec.name, asked.model_spec.signature_name = NAME, request.signature
        for name, batch in request.inputs.items():
            asked.inputs[name].CopyFrom(tf.make_tensor_proto(batch))
        try:
            answer = stub.Predict(asked, timeout=60)
        except grpc.RpcError as error:
            raise RefusedError(f"{error.code().name}: {error.details()}") from error
        return tf.make_ndarray(answer.outputs["logits"]), answer.model_spec.version.value

    return ask


def rest_client(address: str):
    """The same over REST, which does not tell the version."""
    session = requests.Session()

    def ask(request: Request) -> tuple[np.ndarray, int | None]:
        inputs = {name: _json(batch) for name, batch in request.inputs.items()}
        body = {"signature_name": request.signature, "inputs": inputs}
        answer = session.post(f"http://{address}/v1/models/{NAME}:predict", json=body, timeout=60)
        if not answer.ok:
            code = "INVALID_ARGUMENT" if answer.status_code == 400 else answer.status_code
            raise RefusedError(f"{code}: {answer.json()['error']}")
        return np.array(answer.json()["outputs"]["logits"]), None

    return ask


def _json(batch):
    encoded = isinstance(batch, list)
    return (
        [{"b64": base64.b64encode(item).decode()} for item in batch] if encoded else batch.tolist()
    )


class Load:
    """Clients that work through a plan.

    Args:
        expected: Logits [PICTURES, C] by version.
        current: The versions that may answer; whoever adds one changes it.
    """

    def __init__(self, files: list[bytes], images: np.ndarray, expected: dict[int, np.ndarray]):
        self.expected, self.current = expected, {1}
        self.outcome, self.answered = Outcome(), 0
        self._plan, self._lock = plan(files, images), threading.Lock()

    def client(self, ask, count: int, hold: threading.Event) -> None:
        """Ask until `count` requests are answered by all clients together and `hold` is set."""
        while self.answered < count or not hold.is_set():
            with self._lock:
                request, allowed = next(self._plan), frozenset(self.current)
            started = time.perf_counter()
            try:
                fault = self._fault(request, *ask(request), allowed)
            except RefusedError as error:
                told = str(error)
                right = (
                    request.error and request.error in told and told.startswith("INVALID_ARGUMENT")
                )
                fault = "" if right else f"{request.kind}: {told[:300]}"
            except requests.RequestException as error:
                fault = f"{request.kind}: lost: {error}"
            with self._lock:
                self.answered += 1
                self.outcome.kinds[request.kind] += 1
                if not request.error:
                    self.outcome.seconds.append(time.perf_counter() - started)
                if fault:
                    self.outcome.faults.append(fault)

    def _fault(
        self, request: Request, logits: np.ndarray, version: int | None, allowed: frozenset[int]
    ) -> str:
        """What is wrong with an answer; nothing if it is what Keras says."""
        if request.error:
            return f"{request.kind}: answered instead of refused"
        with self._lock:
            # A version that came while the request was under way may have answered it.
            may = (
                allowed | self.current if version is None else {version} & (allowed | self.current)
            )
            self.outcome.versions[version or "not told"] += 1

        rows = list(request.pictures)
        right = any(np.abs(logits - self.expected[v][rows]).max() <= TOLERANCE for v in may)
        return (
            ""
            if right
            else f"{request.kind}: version {version} (of {sorted(may)}) says other than Keras"
        )


class Memory:
    """Resident memory of a process, sampled in a thread; megabytes."""

    def __init__(self, pid: int):
        self.samples, self._ended = [], threading.Event()
        self._file = Path(f"/proc/{pid}/status")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set() and self._file.exists():
            found = re.search(r"VmRSS:\s+(\d+) kB", self._file.read_text())
            if found:
                self.samples.append(int(found.group(1)) / 1024)
            self._ended.wait(0.2)

    def over_time(self) -> list[int]:
        """Five samples at equal distances, from the first to the last, and the largest."""
        self._ended.set()
        self._thread.join()
        picked = np.linspace(0, len(self.samples) - 1, 5).round().astype(int)
        return [round(self.samples[i]) for i in picked] + [round(max(self.samples))]


def swap(
    load: Load, count: int, staged: Path, models: Path, rest: str, done: threading.Event
) -> dict[int, str]:
    """Add a good version after a third of the requests and two broken ones after two thirds;
    returns their states.
    """
    try:
        _wait(lambda: load.answered >= count // 3)
        load.current.add(2)
        _appear(staged, models / "2")
        _wait(lambda: states(rest).get(2) == "AVAILABLE")
        _wait(lambda: load.answered >= 2 * count // 3)
        load.current.discard(1)  # requests that start from here on are answered by version 2
        _appear(staged, models / "3", lambda path: (path / "saved_model.pb").write_bytes(b"broken"))
        _appear(staged, models / "4", _cut_weights)
        _wait(lambda: {states(rest).get(v) for v in (3, 4)} == {"END"})
        after = load.answered
        _wait(lambda: load.answered >= after + count // 10)
        return states(rest)
    finally:
        done.set()


def _appear(staged: Path, target: Path, spoil=lambda path: None) -> None:
    """Copy a version under a hidden name, spoil it and rename it: it is there from one moment to
    the next.
    """
    hidden = target.with_name(f".{target.name}")
    shutil.copytree(staged, hidden)
    spoil(hidden)
    hidden.rename(target)


def _cut_weights(path: Path) -> None:
    (file,) = path.glob("variables/variables.data-*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _wait(condition) -> None:
    deadline = time.monotonic() + SWAP_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("The server did not get there in time.")
        time.sleep(0.1)


def states(rest: str) -> dict[int, str]:
    """State by version, as the server tells it."""
    told = requests.get(f"http://{rest}/v1/models/{NAME}", timeout=20).json()[
        "model_version_status"
    ]
    return {int(entry["version"]): entry["state"] for entry in told}


def start_server(folder: Path) -> tuple[subprocess.Popen, str, str]:
    """The server, and its addresses for gRPC and REST."""
    command = [sys.executable, str(SERVER), str(folder), "--grpc_port", "0", "--rest_port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    killer = threading.Timer(START_SECONDS, server.kill)
    killer.start()
    for line in server.stdout:
        if found := re.match(r"gRPC on (\S+), REST on http://([^/]+)/", line):
            killer.cancel()
            return server, *found.groups()
    raise RuntimeError("The server did not start; run export/serve.py by hand to see why.")


def make_model(name: str, seed: int) -> keras.Model:
    """Random weights, with logits large enough to tell two models apart."""
    keras.utils.set_random_seed(seed)
    model = deit_tf.create_model(name, num_classes=CLASSES)
    for layer in model.layers:
        if layer.name.startswith("head"):
            layer.kernel.assign(layer.kernel * 20)
    return model


def run(args: argparse.Namespace) -> dict:
    """Export, serve, ask; returns the figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, files = Path(temporary, "served"), pictures()
        processor, expected = None, {}
        for version in (1, 2) if args.swap else (1,):
            model = make_model(args.model, version)
            processor = ImageProcessor(model.input_shape[1:3])
            images = processor.batch(files)
            expected[version] = np.asarray(model(images, training=False))
            out = folder if version == 1 else Path(temporary, "staged")
            # Versions are told apart by what they say, so that one is enough to warm up.
            deit_tf.export_saved_model(
                model,
                out,
                processor=processor,
                name=NAME,
                version=version,
                images=images[:4],
                batch_sizes=(1, 4),
            )
        return measure(args, folder, Path(temporary, "staged", NAME, "2"), files, images, expected)


def measure(
    args, folder: Path, staged: Path, files: list[bytes], images: np.ndarray, expected: dict
) -> dict:
    """Start the server, put the load on it and stop it."""
    server, grpc_address, rest_address = start_server(folder)
    try:
        load, done = Load(files, images, expected), threading.Event()
        memory, started = Memory(server.pid), time.perf_counter()
        with ThreadPoolExecutor(args.clients + 1) as pool:
            if args.swap:
                swapping = pool.submit(
                    swap, load, args.requests, staged, folder / NAME, rest_address, done
                )
            else:
                done.set()
            clients = [
                (grpc_client(grpc_address), rest_client(rest_address))[i % 2]
                for i in range(args.clients)
            ]
            running = [pool.submit(load.client, ask, args.requests, done) for ask in clients]
            for client in running:
                client.result()
        seconds = time.perf_counter() - started
        alive = server.poll() is None and states(rest_address) != {}
        figures = summary(load.outcome, seconds) | {"alive": alive, "rss_mb": memory.over_time()}
        return figures | ({"states": swapping.result()} if args.swap else {})
    finally:
        server.terminate()
        server.wait(30)


def summary(outcome: Outcome, seconds: float) -> dict:
    """The figures of the requests."""
    waited = np.percentile(outcome.seconds, [50, 95, 99]) * 1000
    return {
        "requests": sum(outcome.kinds.values()),
        "by_kind": dict(outcome.kinds),
        "answered_by_version": {str(key): count for key, count in outcome.versions.items()},
        "faults": outcome.faults,
        "per_second": round(sum(outcome.kinds.values()) / seconds, 1),
        "good_ms_p50_p95_p99": [round(float(ms), 1) for ms in waited],
    }


def main() -> None:
    """Print the figures; exit status 1 where a request fared badly."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="deit_tiny_distilled_patch16_224")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--swap", action="store_true", help="add a version, then broken ones, under load"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    figures = run(args)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
    Console(width=120).print_json(data=figures)
    wanted = {1: "END", 2: "AVAILABLE", 3: "END", 4: "END"}
    good = figures["alive"] and not figures["faults"] and figures.get("states", wanted) == wanted
    sys.exit(not good)


if __name__ == "__main__":
    main()
