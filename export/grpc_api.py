"""PredictionService and ModelService of TensorFlow Serving, on tensorflow-serving-api's stubs."""

import logging
import math
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from guard import (
    Input,
    InvalidRequestError,
    check_names,
    predict,
    shortened,
    signature_input,
)
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from turns import READ_SECONDS, BusyError, turn
from versions import Models, NotFoundError

from deit_tf.config import MAX_MESSAGE

log = logging.getLogger(__name__)

MAX_VALUES = MAX_MESSAGE // 4  # of a tensor: a message may name a shape and leave out the values
CALLS = 256  # that may be open at a time, each in a thread of its own

# Any other error is the server's own: INTERNAL.
CODES = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotImplementedError: grpc.StatusCode.UNIMPLEMENTED,
}


def serve_grpc(models: Models, port: int) -> tuple[grpc.Server, int]:
    """Start a server on the loopback address; returns it with its port (0 chooses one).

    Raises:
        RuntimeError: If the port is taken.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(CALLS),
        interceptors=[Reception()],
        maximum_concurrent_rpcs=CALLS,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.so_reuseport", 0),  # else two servers share a port, and each gets some requests
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(models), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()

    return server, bound


class Reception(grpc.ServerInterceptor):
    """Receives every request under a deadline, and turns every error into its code.

    gRPC itself waits for the one message of a call without end, in a thread of the pool. As a
    stream of one message, which is the same on the wire, it is received here.
    """

    def intercept_service(self, continuation, call):
        """The handler of a method, wrapped."""
        handler = continuation(call)
        if handler is None:  # there is no such method
            return None

        def answer(messages, context):
            request = _receive(messages, context)
            try:
                return handler.unary_unary(request, context)
            except Exception as error:
                _abort(error, context)

        return grpc.stream_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata."""

    def __init__(self, models: Models):
        self.models = models

    def Predict(self, request, context):  # the name is the stub's
        """Run a signature."""
        version, model = self.models.serving(*_name_and_version(request.model_spec))
        with turn():
            wanted = signature_input(model, request.model_spec.signature_name)
            check_names(request.inputs, wanted)
            outputs = predict(model, wanted, _to_array(request.inputs[wanted.name], wanted))

        # The client may ask for some of the outputs.
        names = request.output_filter or outputs
        if unknown := [name for name in names if name not in outputs]:
            raise InvalidRequestError(f"There is no output {shortened(unknown[0])}.")

        response = predict_pb2.PredictResponse()
        _describe(response.model_spec, request.model_spec, version)
        for name in names:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return response

    def GetModelMetadata(self, request, context):  # the name is the stub's
        """The signatures."""
        version, model = self.models.serving(*_name_and_version(request.model_spec))
        if list(request.metadata_field) != ["signature_def"]:
            raise InvalidRequestError("`metadata_field` takes one field, 'signature_def'.")

        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _describe(response.model_spec, request.model_spec, version)
        response.metadata["signature_def"].Pack(signature_map(model))
        return response


class Status(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def __init__(self, models: Models):
        self.models = models

    def GetModelStatus(self, request, context):  # the name is the stub's
        """The state of each version, or of the one asked for."""
        return status(self.models, *_name_and_version(request.model_spec))


def status(
    models: Models, name: str, version: int | None = None
) -> get_model_status_pb2.GetModelStatusResponse:
    """The state of each version of a model, the newest first.

    Raises:
        NotFoundError: If there is no such model or version.
    """
    states = models.states(name)
    if version is not None and version not in states:
        raise NotFoundError(f"There is no version {version} of {shortened(name)}.")

    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state in states.items():
        if version in (None, number):
            entry = response.model_version_status.add(version=number, state=state.state)
            entry.status.error_code = 2 if state.error else 0  # UNKNOWN, OK
            entry.status.error_message = state.error
    return response


def signature_map(model) -> get_model_metadata_pb2.SignatureDefMap:
    """The signatures of a model, as TensorFlow Serving describes them."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in model.signatures.items():
        signatures.signature_def[name].CopyFrom(definition)
    return signatures


def _receive(messages: Iterator, context: grpc.ServicerContext):
    """The message of a call; a client that does not send it in time is cut off."""
    deadline = threading.Timer(READ_SECONDS, context.cancel)
    deadline.daemon = True
    deadline.start()
    try:
        message = next(messages, None)
    finally:
        deadline.cancel()

    if message is None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The call holds no message.")
    return message


def _abort(error: Exception, context: grpc.ServicerContext) -> None:
    code = CODES.get(type(error), grpc.StatusCode.INTERNAL)
    if code == grpc.StatusCode.INTERNAL:
        log.error("A request failed.", exc_info=error)
    context.abort(code, str(error) or type(error).__name__)


def _to_array(tensor, wanted: Input) -> np.ndarray:
    """A TensorProto as an array. Where it holds fewer values than its shape asks for, the last one
    is repeated.
    """
    if tensor.dtype != wanted.dtype.as_datatype_enum:
        known = tensor.dtype in types_pb2.DataType.values()
        received = types_pb2.DataType.Name(tensor.dtype) if known else tensor.dtype
        raise InvalidRequestError(f"{wanted.name} is {wanted.dtype.name}. Received: {received}")

    # NumPy would make the array, of whatever size.
    sides = [dim.size for dim in tensor.tensor_shape.dim]
    if min(sides, default=0) < 0 or math.prod(sides) > MAX_VALUES:
        raise InvalidRequestError(
            f"{wanted.name} has shape {shortened(sides)}; allowed are {MAX_VALUES:,} values."
        )

    try:
        return tf.make_ndarray(tensor)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{wanted.name} has values of another shape: {error}") from error


def _name_and_version(spec) -> tuple[str, int | None]:
    if spec.version_label:
        raise InvalidRequestError(
            "Version labels are for TensorFlow Serving; this server knows `version`, and the "
            f"newest. Received: {shortened(spec.version_label)}"
        )
    return spec.name, spec.version.value if spec.HasField("version") else None


def _describe(answered, asked, version: int) -> None:
    answered.name = asked.name
    answered.signature_name = asked.signature_name or "serving_default"
    answered.version.value = version
