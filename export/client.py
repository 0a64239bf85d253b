"""Ask a server, TensorFlow Serving or export/serve.py, what is in pictures; gRPC or REST.

python export/client.py cat.jpg --model student                         # gRPC, localhost:8500
python export/client.py cat.jpg --model student --protocol rest --server localhost:8501
"""

import argparse
import base64
import io
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import requests
import tensorflow as tf
from PIL import Image, UnidentifiedImageError
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

MAX_BYTES, MAX_PIXELS, MAX_ASPECT = 20_000_000, 32_000_000, 100
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
FIRST_PAUSE = 0.2  # seconds before the second try; each further pause is twice as long
PORTS = {"grpc": 8500, "rest": 8501}
BUSY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
Answer = list[
    list[tuple[str, float]]
]  # per picture: class name and probability, most probable first


class ServerError(RuntimeError):
    """The server refused, or could not be reached in time."""


def read_picture(path: str | Path) -> bytes:
    """Read a picture that the server can read: one that is none fails the whole batch it lands in
    there.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is too large, or cannot be decoded.
    """
    path = Path(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are sent.")
    encoded = path.read_bytes()
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(
                    f"{path} has {width} x {height} pixels; sent are {MAX_PIXELS:,}, and sides "
                    f"of 1 to {MAX_ASPECT}."
                )
            picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} is no picture that can be decoded ({', '.join(FORMATS)}): {error}"
        ) from error
    return encoded


def classify(
    pictures: Sequence[bytes],
    model: str,
    *,
    server: str | None = None,
    protocol: str = "grpc",
    timeout: float = 10.0,
    retries: int = 3,
) -> Answer:
    """Send encoded pictures as one batch.

    Args:
        pictures: Contents of JPEG or PNG files, as `read_picture` gives them.
        model: Name of the model on the server.
        server: `host:port`; by default this machine, at the protocol's usual port.
        protocol: `grpc` or `rest`.
        timeout: Deadline of each try, in seconds.
        retries: Further tries where the server is too busy or does not answer in time, with growing
            pauses.
    Returns:
        Per picture, class names with their probabilities, the most probable first.
    Raises:
        ServerError: If the server refuses, or does not answer in time at the last try.
    """
    ask = {"grpc": _ask_grpc, "rest": _ask_rest}[protocol]
    server = server or f"localhost:{PORTS[protocol]}"
    return _with_retries(lambda: ask(pictures, model, server, timeout), retries)


class _Busy(ServerError):
    """Worth another try."""


def _with_retries(ask: Callable[[], Answer], retries: int) -> Answer:
    for attempt in range(retries):
        try:
            return ask()
        except _Busy:
            # Apart from one another, so that clients do not all return at once.
            time.sleep(FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))
    return ask()


def _ask_grpc(pictures: Sequence[bytes], model: str, server: str, timeout: float) -> Answer:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(list(pictures), tf.string))
    request.output_filter.extend(["top_k_labels", "top_k_probabilities"])
    with grpc.insecure_channel(server) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            outputs = stub.Predict(request, timeout=timeout).outputs
        except grpc.RpcError as error:
            raise (_Busy if error.code() in BUSY else ServerError)(
                f"{server}: {error.code().name}: {error.details()}"
            ) from error
    labels, probabilities = (
        tf.make_ndarray(outputs[name]) for name in ("top_k_labels", "top_k_probabilities")
    )
    return [
        [(n.decode(), float(p)) for n, p in zip(*row, strict=True)]
        for row in zip(labels, probabilities, strict=True)
    ]


def _ask_rest(pictures: Sequence[bytes], model: str, server: str, timeout: float) -> Answer:
    instances = [
        {"image_bytes": {"b64": base64.b64encode(picture).decode()}} for picture in pictures
    ]
    try:
        answer = requests.post(
            f"http://{server}/v1/models/{model}:predict",
            json={"instances": instances},
            timeout=timeout,
        )
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Busy(f"{server}: {type(error).__name__}: {error}") from error
    if not answer.ok:
        busy = answer.status_code in (429, 503)
        raise (_Busy if busy else ServerError)(
            f"{server}: {answer.status_code}: {answer.text[:500]}"
        )
    rows = answer.json()["predictions"]
    return [list(zip(row["top_k_labels"], row["top_k_probabilities"], strict=True)) for row in rows]


def main() -> None:
    """Print the most probable classes of each picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", nargs="+", metavar="PICTURE")
    parser.add_argument("--model", required=True, help="name of the model on the server")
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="default: localhost at the protocol's usual port"
    )
    parser.add_argument("--protocol", choices=PORTS, default="grpc")
    parser.add_argument(
        "--timeout", type=float, default=10.0, help="deadline of each try, in seconds"
    )
    parser.add_argument("--retries", type=int, default=3)
    args = parser.parse_args()
    options = dict(
        server=args.server, protocol=args.protocol, timeout=args.timeout, retries=args.retries
    )
    try:
        answers = classify([read_picture(path) for path in args.pictures], args.model, **options)
    except (OSError, ValueError, ServerError) as error:
        sys.exit(f"Not classified: {error}")
    for path, classes in zip(args.pictures, answers, strict=True):
        print(path, *(f"  {probability:6.1%}  {name}" for name, probability in classes), sep="\n")


if __name__ == "__main__":
    main()
