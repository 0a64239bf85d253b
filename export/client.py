"""Ask a server, TensorFlow Serving or export/serve.py, what is in pictures; gRPC or REST.

python export/client.py cat.jpg --model student                         # gRPC, localhost:8500
python export/client.py cat.jpg --model student --protocol rest --server localhost:8501
"""

import argparse
import base64
import io
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import requests
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

MAX_BYTES, MAX_PIXELS, MAX_ASPECT = 20_000_000, 32_000_000, 100
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
# What TensorFlow decodes otherwise than Pillow, or not at all, by format and mode: sent as PNG.
AS_PNG = {("BMP", "P"), ("BMP", "1"), ("WEBP", "RGBA")}
UPRIGHT, TURNED = 1, range(2, 9)  # EXIF orientations: as stored, and the seven others

PORTS = {"grpc": 8500, "rest": 8501}
FIRST_PAUSE = 0.2  # seconds before the second try; each further pause is twice as long
BUSY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
BUSY_HTTP = (408, 429, 503)
LABELS, PROBABILITIES = "top_k_labels", "top_k_probabilities"

# Per picture: class names and probabilities, the most probable first.
Answer = list[list[tuple[str, float]]]


class ServerError(RuntimeError):
    """The server refused, could not be reached in time, or gave no good answer."""


def read_picture(path: str | Path, *, exif: bool = True) -> bytes:
    """Read a picture that the server can read: one that it cannot fails the whole batch there.

    The bytes are those of the file, unless the picture has to be turned, or TensorFlow would
    decode it wrongly (a BMP file with a palette) or not at all (a WebP file with transparency).
    Then they are a PNG file of the same pixels, which is larger than a JPEG.

    Args:
        path: A JPEG, PNG, BMP or WebP file.
        exif: Whether to turn a picture as its EXIF orientation says, as viewers do.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is too large, moves, or cannot be decoded.
    """
    path = Path(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are sent.")

    encoded = path.read_bytes()
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            _check_picture(path, picture)
            picture.load()
            turned = _turned(path, picture) if exif else None
            if turned is None and (picture.format, picture.mode) not in AS_PNG:
                return encoded
            return _as_png(turned or picture)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} is no picture that can be decoded ({', '.join(FORMATS)}): {error}"
        ) from error


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
        pictures: Encoded pictures, as `read_picture` gives them.
        model: Name of the model on the server.
        server: `host:port`; by default this machine, at the protocol's usual port.
        protocol: `grpc` or `rest`.
        timeout: Deadline of each try, in seconds.
        retries: Further tries where the server is too busy or does not answer in time, with growing
            pauses.
    Returns:
        Per picture, class names with their probabilities, the most probable first.
    Raises:
        ServerError: If the server refuses, does not answer in time at the last try, or answers
            with anything but class names and finite probabilities.
    """
    ask = {"grpc": _ask_grpc, "rest": _ask_rest}[protocol]
    server = server or f"localhost:{PORTS[protocol]}"
    return _with_retries(lambda: ask(pictures, model, server, timeout), retries)


class _BusyError(ServerError):
    """Worth another try."""


def _check_picture(path: Path, picture: Image.Image) -> None:
    """Refuse, by its header, what the server would refuse."""
    width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"{path} has {width} x {height} pixels; sent are {MAX_PIXELS:,}, and sides of 1 to "
            f"{MAX_ASPECT}."
        )
    if picture.format == "WEBP" and picture.is_animated:
        raise ValueError(f"{path} is a WebP file that moves. Save one frame of it as a file.")


def _turned(path: Path, picture: Image.Image) -> Image.Image | None:
    """The picture as it is to be seen; None where that is how it is stored."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # cameras and editors write what they like there; viewers pass over it too
        return None

    if orientation not in TURNED:
        return None

    try:
        return ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow writes the other tags anew, whatever is in them
        raise ValueError(
            f"{path} cannot be turned as its EXIF data says: {error}. `exif=False` (--no-exif) "
            "sends it as it is stored."
        ) from error


def _as_png(picture: Image.Image) -> bytes:
    if picture.mode not in ("L", "I;16"):
        picture = picture.convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # half the time of the usual 6, a sixth larger
    return file.getvalue()


def _with_retries(ask: Callable[[], Answer], retries: int) -> Answer:
    for attempt in range(retries):
        try:
            return ask()
        except _BusyError:
            # Apart from one another, so that clients do not all return at once.
            time.sleep(FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))
    return ask()


def _ask_grpc(pictures: Sequence[bytes], model: str, server: str, timeout: float) -> Answer:
    request = predict_pb2.PredictRequest(output_filter=[LABELS, PROBABILITIES])
    request.model_spec.name = model
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(list(pictures), tf.string))

    with grpc.insecure_channel(server) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            outputs = stub.Predict(request, timeout=timeout).outputs
        except grpc.RpcError as error:
            kind = _BusyError if error.code() in BUSY else ServerError
            raise kind(f"{server}: {error.code().name}: {error.details()}") from error

    labels, probabilities = (tf.make_ndarray(outputs[name]) for name in (LABELS, PROBABILITIES))
    names = [[label.decode() for label in row] for row in labels]
    return _checked(server, pictures, names, probabilities.tolist())


def _ask_rest(pictures: Sequence[bytes], model: str, server: str, timeout: float) -> Answer:
    encoded = [{"b64": base64.b64encode(picture).decode()} for picture in pictures]
    body = {"instances": [{"image_bytes": picture} for picture in encoded]}
    try:
        response = requests.post(
            f"http://{server}/v1/models/{model}:predict", json=body, timeout=timeout
        )
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _BusyError(f"{server}: {type(error).__name__}: {error}") from error

    if not response.ok:
        kind = _BusyError if response.status_code in BUSY_HTTP else ServerError
        raise kind(f"{server}: {response.status_code}: {response.text[:500]}")

    try:
        rows = response.json()["predictions"]
        labels, probabilities = ([row[name] for row in rows] for name in (LABELS, PROBABILITIES))
        return _checked(server, pictures, labels, probabilities)
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"{server}: the answer has no {LABELS} and {PROBABILITIES}: {response.text[:200]}"
        ) from error


def _checked(
    server: str, pictures: Sequence[bytes], labels: Sequence, probabilities: Sequence
) -> Answer:
    if len(labels) != len(pictures):
        raise ServerError(f"{server}: {len(labels)} answers for {len(pictures)} pictures.")
    answer = [
        list(zip(names, numbers, strict=True))
        for names, numbers in zip(labels, probabilities, strict=True)
    ]
    # TensorFlow Serving hands on whatever a model gives, and Python reads NaN in JSON.
    if not all(math.isfinite(number) for row in answer for _, number in row):
        raise ServerError(f"{server}: the model gives probabilities that are not finite.")
    return answer


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
    parser.add_argument(
        "--exif",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="turn pictures as their EXIF orientation says",
    )
    args = parser.parse_args()

    try:
        pictures = [read_picture(path, exif=args.exif) for path in args.pictures]
        answers = classify(
            pictures,
            args.model,
            server=args.server,
            protocol=args.protocol,
            timeout=args.timeout,
            retries=args.retries,
        )
    except (OSError, ValueError, ServerError) as error:
        sys.exit(f"Not classified: {error}")

    for path, classes in zip(args.pictures, answers, strict=True):
        print(path, *(f"  {probability:6.1%}  {name}" for name, probability in classes), sep="\n")


if __name__ == "__main__":
    main()
