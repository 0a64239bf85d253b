"""TensorFlow Serving's REST API on Werkzeug: predict, status and metadata.

https://www.tensorflow.org/tfx/serving/api_rest

Differs: `classify`, `regress` and version labels are refused, each with a sentence: the exports
have signatures for `predict` alone, and this server serves one version of a model.
"""

import gzip
import io
import json
import logging
import socket
import threading
import zlib
from contextlib import suppress
from typing import Any

from google.protobuf.json_format import MessageToDict
from grpc_api import signature_map, status
from guard import InvalidRequestError, predict, shortened, signature_input
from json_tensors import answer, input_value, to_array
from tensorflow_serving.apis import model_pb2
from turns import READ_SECONDS, BusyError, turn
from versions import Models, NotFoundError
from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    RequestEntityTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from werkzeug.routing import IntegerConverter, Map, Rule, Submount
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from deit_tf.config import MAX_MESSAGE

log = logging.getLogger(__name__)

MAX_BODY = 2 * MAX_MESSAGE  # bytes, unpacked; base64 and JSON take more room than gRPC

# Any other error is the server's own: 500.
CODES = {InvalidRequestError: 400, NotFoundError: 404, BusyError: 503}


class Version(IntegerConverter):
    """A number that fits an int64."""

    regex = r"\d{1,18}"


def _routes(suffix: str, endpoint: str, method: str) -> list[Rule]:
    """A route for the newest version, for one by its number, and for one by its label."""
    which = ("", "/versions/<version:version>", "/labels/<label>")
    rules = [f"/<name>{version}{suffix}" for version in which]
    return [Rule(rule, endpoint=endpoint, methods=[method]) for rule in rules]


ROUTES = Map(
    [
        Rule("/v1/models", endpoint="names", methods=["GET"]),
        Submount(
            "/v1/models",
            [
                *_routes("", "status", "GET"),
                *_routes("/metadata", "metadata", "GET"),
                *_routes(":predict", "predict", "POST"),
                *_routes(":classify", "examples", "POST"),
                *_routes(":regress", "examples", "POST"),
            ],
        ),
    ],
    converters={"version": Version},
    merge_slashes=False,  # else a redirection, which TensorFlow Serving does not know
)


def serve_rest(models: Models, port: int) -> tuple[BaseWSGIServer, int]:
    """Start a server on the loopback address; returns it with its port (0 chooses one)."""
    server = make_server("127.0.0.1", port, Api(models), threaded=True, request_handler=Connection)
    threading.Thread(target=server.serve_forever, name="rest", daemon=True).start()
    return server, server.server_port


class Connection(WSGIRequestHandler):
    """One request, in a thread of its own. What has not arrived in time does not arrive any more.

    A time-out of the socket alone would let a client send a byte now and then, for ever.
    """

    timeout = 6 * READ_SECONDS  # for the answer to be taken

    def setup(self) -> None:
        """Start the clock."""
        super().setup()
        self._deadline = threading.Timer(READ_SECONDS, self._stop_reading)
        self._deadline.daemon = True
        self._deadline.start()

    def finish(self) -> None:
        """Stop the clock."""
        self._deadline.cancel()
        super().finish()

    def _stop_reading(self) -> None:
        with suppress(OSError):  # the connection is gone
            self.connection.shutdown(socket.SHUT_RD)


class Api:
    """A WSGI application."""

    def __init__(self, models: Models):
        self.models = models

    def __call__(self, environ, start_response):
        """Answer one request, with JSON whatever happens."""
        response = self._response(Request(environ))
        return response(environ, start_response)

    def _response(self, request: Request) -> Response:
        try:
            endpoint, arguments = ROUTES.bind_to_environ(request.environ).match()
            if "label" in arguments:
                raise InvalidRequestError(
                    "Version labels are for TensorFlow Serving; this server knows versions, and "
                    f"the newest. Received: {shortened(arguments['label'])}"
                )

            content = getattr(self, f"_{endpoint}")(request, **arguments)
            return _json_response(content, 200)

        except HTTPException as error:
            return _json_response({"error": error.description}, error.code, error.get_headers())

        except Exception as error:
            code = CODES.get(type(error), 500)
            if code == 500:
                log.exception("A request failed.")
            return _json_response({"error": str(error) or type(error).__name__}, code)

    def _names(self, request: Request) -> dict:
        names = ", ".join(self.models.names()) or "none"
        raise InvalidRequestError(f"Name a model: /v1/models/NAME. These serve: {names}")

    def _status(self, request: Request, name: str, version: int | None = None) -> dict:
        return _to_dict(status(self.models, name, version))

    def _metadata(self, request: Request, name: str, version: int | None = None) -> dict:
        number, model = self.models.serving(name, version)
        spec = model_pb2.ModelSpec(name=name, version={"value": number})
        signatures = {"signature_def": _to_dict(signature_map(model))}
        return {"model_spec": _to_dict(spec), "metadata": signatures}

    def _examples(self, request: Request, name: str, version: int | None = None) -> dict:
        self.models.serving(name, version)
        raise InvalidRequestError(
            "`classify` and `regress` take signatures of tf.Example; those of this server are for "
            "`predict`."
        )

    def _predict(self, request: Request, name: str, version: int | None = None) -> dict:
        _, model = self.models.serving(name, version)
        packed = _read(request)

        # Parsed, 128 MB of short numbers are a gigabyte of Python objects: a few at a time.
        with turn():
            body = _parse(_unpack(packed, request.headers.get("Content-Encoding", "")))
            wanted = signature_input(model, _signature_name(body))
            batch = to_array(input_value(body, wanted), wanted)
            outputs = predict(model, wanted, batch)
            return answer(outputs, by_rows="instances" in body)


def _json_response(content: dict, code: int, headers=()) -> Response:
    text = json.dumps(content, allow_nan=False)
    response = Response(text, code, headers)
    response.content_type = "application/json"
    return response


def _to_dict(message) -> dict:
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _read(request: Request) -> bytes:
    """The body as it was sent."""
    request.max_content_length = MAX_BODY
    try:
        return request.get_data(cache=False)
    except ClientDisconnected as error:
        raise RequestTimeout(
            f"The body did not arrive whole within {READ_SECONDS:g} seconds."
        ) from error


def _unpack(body: bytes, encoding: str) -> bytes:
    """The body as it was before the client compressed it."""
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "x-gzip"):
        raise UnsupportedMediaType(
            f"`Content-Encoding` is gzip, or left out. Received: {shortened(encoding)}"
        )

    try:
        # No more than that: a few kilobytes may unpack to gigabytes.
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(body)).read(MAX_BODY + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequestError(f"The body is no gzip: {error}") from error

    if len(unpacked) > MAX_BODY:
        raise RequestEntityTooLarge(f"Unpacked, a body has at most {MAX_BODY:,} bytes.")
    return unpacked


def _parse(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The body is no JSON: {error}") from error

    if not isinstance(parsed, dict):
        raise InvalidRequestError(f"The body is a JSON object. Received: {shortened(parsed)}")
    return parsed


def _signature_name(body: dict[str, Any]) -> str:
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidRequestError(f"`signature_name` is text. Received: {shortened(name)}")
    return name
