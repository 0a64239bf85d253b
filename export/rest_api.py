"""The predict, status and metadata routes of TensorFlow Serving's REST API, on Werkzeug.

https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import binascii
import json
import threading
from contextlib import contextmanager
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from grpc_api import MAX_MESSAGE, WAITING, WORKERS, signature_map, status
from guard import InvalidRequestError, predict
from versions import Models, NotFoundError
from werkzeug.exceptions import HTTPException, ServiceUnavailable
from werkzeug.routing import Map, Rule
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Request, Response

ROUTES = Map([
    Rule("/v1/models/<name>", endpoint="status", methods=["GET"]),
    Rule("/v1/models/<name>/versions/<int:version>", endpoint="status", methods=["GET"]),
    Rule("/v1/models/<name>/metadata", endpoint="metadata", methods=["GET"]),
    Rule("/v1/models/<name>/versions/<int:version>/metadata", endpoint="metadata", methods=["GET"]),
    Rule("/v1/models/<name>:predict", endpoint="predict", methods=["POST"]),
    Rule("/v1/models/<name>/versions/<int:version>:predict", endpoint="predict", methods=["POST"]),
])  # fmt: skip


def serve_rest(models: Models, port: int) -> tuple[BaseWSGIServer, int]:
    """Start a server on the loopback address; returns it with its port (0 chooses one)."""
    server = make_server("127.0.0.1", port, Api(models), threaded=True)
    threading.Thread(target=server.serve_forever, name="rest", daemon=True).start()
    return server, server.server_port


class Api:
    """A WSGI application."""

    def __init__(self, models: Models):
        self.models = models
        self._room, self._turn = (
            threading.BoundedSemaphore(WORKERS + WAITING),
            threading.BoundedSemaphore(WORKERS),
        )

    def __call__(self, environ, start_response):
        """Answer one request."""
        request = Request(environ)
        request.max_content_length = 2 * MAX_MESSAGE  # base64 and JSON take more room than gRPC
        try:
            endpoint, arguments = ROUTES.bind_to_environ(environ).match()
            with self._admitted():
                answer, code = getattr(self, f"_{endpoint}")(request, **arguments), 200
        except HTTPException as error:
            answer, code = {"error": error.description}, error.code
        except NotFoundError as error:
            answer, code = {"error": error.args[0]}, 404
        except InvalidRequestError as error:
            answer, code = {"error": str(error)}, 400
        return Response(json.dumps(answer), code, mimetype="application/json")(
            environ, start_response
        )

    @contextmanager
    def _admitted(self):
        """Wait for a turn; where too many wait already, 503."""
        if not self._room.acquire(blocking=False):
            raise ServiceUnavailable("Too many requests at a time. Try again.")
        try:
            with self._turn:
                yield
        finally:
            self._room.release()

    def _status(self, request: Request, name: str, version: int | None = None) -> dict:
        options = dict(preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        return MessageToDict(status(self.models, name, version), **options)

    def _metadata(self, request: Request, name: str, version: int | None = None) -> dict:
        number, model = self.models.serving(name, version)
        signatures = MessageToDict(signature_map(model), preserving_proto_field_name=True)
        spec = {"name": name, "signature_name": "", "version": str(number)}
        return {"model_spec": spec, "metadata": {"signature_def": signatures}}

    def _predict(self, request: Request, name: str, version: int | None = None) -> dict:
        _, model = self.models.serving(name, version)
        body = _body(request)
        rows = "instances" in body
        signature = body.get("signature_name") or "serving_default"
        if not isinstance(signature, str):
            raise InvalidRequestError(f"`signature_name` is text. Received: {signature!r}")
        names = list(model.signatures[signature].inputs) if signature in model.signatures else []
        inputs = _columns(body["instances"], names) if rows else _named(body["inputs"], names)
        outputs = predict(
            model, signature, {key: _array(key, value) for key, value in inputs.items()}
        )
        columns = {key: _plain(value) for key, value in outputs.items()}
        if not rows:
            return {"outputs": columns}
        if len(columns) == 1:  # then TensorFlow Serving leaves the name out
            return {"predictions": next(iter(columns.values()))}
        return {
            "predictions": [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
        }


def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(request.get_data())
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The body is no JSON: {error}") from error
    if not isinstance(body, dict) or ("instances" in body) == ("inputs" in body):
        raise InvalidRequestError("The body is an object with either `instances` or `inputs`.")
    return body


def _columns(instances: Any, names: list[str]) -> dict[str, list]:
    """Rows to one list per input; where there is one input, rows may leave its name out."""
    if not isinstance(instances, list) or not instances:
        raise InvalidRequestError("`instances` is a list of at least one.")
    named = [isinstance(row, dict) and set(row) != {"b64"} for row in instances]
    if all(named):
        keys = set(instances[0])
        if any(set(row) != keys for row in instances):
            raise InvalidRequestError("Every instance has the same inputs.")
        return {key: [row[key] for row in instances] for key in keys}
    if any(named):
        raise InvalidRequestError("Either every instance names its inputs, or none does.")
    return {names[0] if names else "": instances}


def _named(inputs: Any, names: list[str]) -> dict[str, Any]:
    named = isinstance(inputs, dict) and set(inputs) != {"b64"}
    return inputs if named else {names[0] if names else "": inputs}


def _array(name: str, value: Any) -> np.ndarray:
    """A JSON value as an array; `{"b64": ...}` is bytes."""
    try:
        decoded = _decode(value)
        items = decoded if isinstance(decoded, list) else [decoded]
        text = any(isinstance(item, bytes) for item in items)
        if text and not all(isinstance(item, bytes) for item in items):
            raise TypeError("some are strings, some are not")
        return np.array(decoded, dtype=object if text else np.float32)
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error) as error:
        raise InvalidRequestError(
            f"{name} is neither numbers of one shape nor base64 strings: {error}"
        ) from error


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    if isinstance(value, str):
        return value.encode()
    return [_decode(item) for item in value] if isinstance(value, list) else value


def _plain(output: np.ndarray) -> list:
    """An output as JSON holds it; bytes as text."""
    if output.dtype.kind == "O":
        return [[item.decode() for item in row] for row in output]
    return output.tolist()
