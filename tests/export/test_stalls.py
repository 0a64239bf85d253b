"""Clients that do not send what they announced keep nobody else from being answered, and are cut
off after a while."""

import json
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, suppress

import grpc
import pytest
import requests
import tensorflow as tf
import turns
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from toy_models import batch_of, save_model, serving

STALLED = 30  # more than are computed at a time, and than may wait
PATH = "/v1/models/toy:predict"
BODY = json.dumps({"instances": [1.0]}).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    save_model(folder / "toy" / "1", serving_default=(lambda x: {"y": x + 1}, batch_of(tf.float32)))
    return folder


@pytest.fixture
def served(folder, monkeypatch, request):
    """gRPC's and REST's addresses; the time to read is a second, or what the test asks for."""
    seconds = getattr(request, "param", 1.0)
    for module in ("grpc_api", "rest_api"):
        monkeypatch.setattr(f"{module}.READ_SECONDS", seconds)
    with serving(folder) as (_, *addresses):
        yield addresses


def answers_rest(address):
    predicted = requests.post(f"http://{address}{PATH}", data=BODY, timeout=20)
    status = requests.get(f"http://{address}/v1/models/toy", timeout=20)
    return predicted.json() == {"predictions": [2.0]} and status.ok


def answers_grpc(address):
    with grpc.insecure_channel(address) as channel:
        asked = predict_pb2.PredictRequest(inputs={"x": tf.make_tensor_proto([1.0])})
        asked.model_spec.name = "toy"
        predicted = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(
            asked, timeout=20
        )
        described = get_model_status_pb2.GetModelStatusRequest(model_spec=asked.model_spec)
        model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(described, timeout=20)
    return predicted.outputs["y"].float_val == [2.0]


def connect(address, sent):
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(sent)
    return connection


def answer_on(connection):
    with connection.makefile("rb") as file:
        return file.read()  # until the server closes the connection


HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


@pytest.mark.parametrize("served", [60.0], indirect=True)
@pytest.mark.parametrize("sent", [b"", b"POST", HEAD, HEAD + BODY[:5]])
def test_stalling_clients_do_not_stop_rest(served, sent):
    with ExitStack() as stack:
        for _ in range(STALLED):
            stack.enter_context(closing(connect(served[1], sent)))
        assert answers_rest(served[1])


def test_a_stalling_client_is_cut_off_with_408(served):
    with closing(connect(served[1], HEAD + BODY[:5])) as connection:
        answer = answer_on(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive whole" in answer


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off_too(served):
    """The deadline is of the whole request: a time-out of the socket would start anew each time."""
    pause = 0.1
    assert len(BODY) * pause > 1.5  # longer than the second that there is to read
    with closing(connect(served[1], HEAD)) as connection:
        ended = threading.Event()

        def trickle():
            with suppress(OSError):  # the server closed the connection
                while not ended.wait(pause):
                    connection.send(b" ")

        sender = threading.Thread(target=trickle)
        sender.start()
        answer = answer_on(connection)
        ended.set()
        sender.join()
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("served", [60.0], indirect=True)
def test_a_client_that_goes_leaves_the_server_alive(served):
    connect(served[1], HEAD + BODY[:5]).close()
    assert answers_rest(served[1])


def announce(channel, ended):
    """Begin a call as Predict's stub does, and do not send its message."""

    def no_message():
        ended.wait()
        yield from ()

    call = channel.stream_unary(
        "/tensorflow.serving.PredictionService/Predict",
        request_serializer=predict_pb2.PredictRequest.SerializeToString,
        response_deserializer=predict_pb2.PredictResponse.FromString,
    )
    return call.future(no_message())


@pytest.mark.parametrize("served", [60.0], indirect=True)
def test_stalling_clients_do_not_stop_grpc(served):
    ended = threading.Event()
    with grpc.insecure_channel(served[0]) as channel:
        stalled = [announce(channel, ended) for _ in range(STALLED)]
        assert answers_grpc(served[0])
        assert not any(call.done() for call in stalled)
        ended.set()


def test_a_stalling_call_is_cancelled(served):
    ended = threading.Event()
    with grpc.insecure_channel(served[0]) as channel:
        with pytest.raises(grpc.RpcError) as error:
            announce(channel, ended).result(timeout=20)
        ended.set()
    assert error.value.code() == grpc.StatusCode.CANCELLED


def test_a_call_without_a_message_is_refused(served):
    with grpc.insecure_channel(served[0]) as channel:
        call = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as error:
            call(iter(()), timeout=10)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def no_turns():
    """Hold every turn, so that requests wait, until the function is called."""
    with ExitStack() as stack:
        for _ in range(turns.WORKERS):
            stack.enter_context(turns._TURNS)
        yield stack.close


@pytest.mark.parametrize("served", [60.0], indirect=True)
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_more_requests_than_there_is_room_for(served, monkeypatch, no_turns, protocol):
    """One is sent away, the others are answered when it is their turn."""
    monkeypatch.setattr(turns, "_ROOM", threading.BoundedSemaphore(2))
    grpc_address, rest_address = served
    ask, refused, good = {
        "grpc": (lambda: grpc_code(grpc_address), "RESOURCE_EXHAUSTED", "OK"),
        "rest": (lambda: rest_code(rest_address), 503, 200),
    }[protocol]

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask) for _ in range(3)]
        assert next(as_completed(asked)).result() == refused
        assert requests.get(f"http://{rest_address}/v1/models/toy", timeout=20).ok
        no_turns()
        codes = Counter(answer.result(timeout=20) for answer in asked)
    assert codes == {refused: 1, good: 2}


def rest_code(address):
    return requests.post(f"http://{address}{PATH}", data=BODY, timeout=20).status_code


def grpc_code(address):
    try:
        return "OK" if answers_grpc(address) else "wrong"
    except grpc.RpcError as error:
        return error.code().name
