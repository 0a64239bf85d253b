"""PredictionService and ModelService of TensorFlow Serving, on tensorflow-serving-api's own
stubs.
"""

import math
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from guard import InvalidRequestError, predict
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from versions import Models, NotFoundError

MAX_MESSAGE = 64 * 2**20  # bytes; gRPC's own limit of 4 MB is six float images
MAX_VALUES = MAX_MESSAGE // 4  # of a tensor: a message may name a shape and leave out the values
WORKERS, WAITING = 8, 16  # requests that are answered at a time; that may wait beside them


def serve_grpc(models: Models, port: int) -> tuple[grpc.Server, int]:
    """Start a server on the loopback address; returns it with its port (0 chooses one)."""
    server = grpc.server(
        futures.ThreadPoolExecutor(WORKERS),
        maximum_concurrent_rpcs=WORKERS + WAITING,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(models), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata."""

    def __init__(self, models: Models):
        self.models = models

    def Predict(self, request, context):  # the name is the stub's
        """Run a signature; the fault of a client is INVALID_ARGUMENT or NOT_FOUND."""
        version, model = _find(self.models, request.model_spec, context)
        try:
            inputs = {name: _array(name, tensor) for name, tensor in request.inputs.items()}
            outputs = predict(model, request.model_spec.signature_name, inputs)
        except (InvalidRequestError, TypeError, ValueError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if unknown := [name for name in request.output_filter if name not in outputs]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"There is no output {unknown[0]!r}.")
        response = predict_pb2.PredictResponse()
        _describe(response.model_spec, request.model_spec, version)
        for name in request.output_filter or outputs:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return response

    def GetModelMetadata(self, request, context):  # the name is the stub's
        """The signatures."""
        version, model = _find(self.models, request.model_spec, context)
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
        try:
            return status(
                self.models, request.model_spec.name, request.model_spec.version.value or None
            )
        except NotFoundError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, error.args[0])


def status(
    models: Models, name: str, version: int | None = None
) -> get_model_status_pb2.GetModelStatusResponse:
    """The state of each version of a model, the newest first.

    Raises:
        NotFoundError: If there is no such model or version.
    """
    states = models.states(name)
    if version is not None and version not in states:
        raise NotFoundError(f"There is no version {version} of {name!r}.")
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


def _array(name: str, tensor) -> np.ndarray:
    """A TensorProto as an array. Where it holds fewer values than its shape asks for, the last one
    is repeated.
    """
    sides = [dim.size for dim in tensor.tensor_shape.dim]
    if min(sides, default=0) < 0 or math.prod(sides) > MAX_VALUES:
        raise InvalidRequestError(
            f"{name} has shape {sides}; at most {MAX_VALUES:,} values are allowed."
        )
    return tf.make_ndarray(tensor)


def _find(models: Models, spec, context):
    if spec.version_label:
        reason = (
            "Version labels are for TensorFlow Serving; this server knows `version`, and the "
            "newest."
        )
        context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, f"{reason} Received: {spec.version_label!r}"
        )
    try:
        return models.serving(spec.name, spec.version.value or None)
    except NotFoundError as error:
        context.abort(grpc.StatusCode.NOT_FOUND, error.args[0])


def _describe(answered, asked, version: int) -> None:
    answered.name, answered.signature_name = asked.name, asked.signature_name or "serving_default"
    answered.version.value = version
