"""The development server answers the real stubs and REST, refuses what is bad and goes on; the
client asks it."""

import base64
import importlib
import io
import shutil
import threading
from argparse import Namespace
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import keras
import numpy as np
import pytest
import requests
import tensorflow as tf
import versions
from client import ServerError, classify, read_picture
from grpc_api import WAITING, WORKERS, serve_grpc
from PIL import Image
from rest_api import serve_rest
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from versions import Models

import deit_tf
from deit_tf.data import ImageProcessor
from deit_tf.exporting.warmup import WARMUP_FILE

LABELS = [f"class {i}" for i in range(10)]
PROCESSOR = ImageProcessor(32)


def picture(seed=0, size=(40, 50), form="JPEG"):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def model(seed):
    keras.utils.set_random_seed(seed)
    made = deit_tf.create_model("deit_test", num_classes=10)
    for weight in made.weights:  # fresh logits are too small to tell two models apart
        weight.assign(weight * 3)
    return made


def export(network, folder, version):
    return deit_tf.export_saved_model(
        network, folder, processor=PROCESSOR, labels=LABELS, version=version, name="student"
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    first = model(1)
    export(first, folder, 1)
    models = Models(folder)
    models.refresh()
    grpc_server, grpc_port = serve_grpc(models, 0)
    rest_server, rest_port = serve_rest(models, 0)
    yield first, folder, models, f"localhost:{grpc_port}", f"localhost:{rest_port}"
    grpc_server.stop(None)
    rest_server.shutdown()


def expected(network, pictures):
    images = tf.stack([PROCESSOR(encoded) for encoded in pictures])
    return np.array(tf.nn.softmax(network(images)))


def stub(address):
    return prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))


def request(inputs, signature="", name="student", version=None, outputs=()):
    made = predict_pb2.PredictRequest()
    made.model_spec.name, made.model_spec.signature_name = name, signature
    if version:
        made.model_spec.version.value = version
    for key, value in inputs.items():
        made.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    made.output_filter.extend(outputs)
    return made


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_the_client_gets_what_keras_says(served, protocol):
    network, _, _, grpc_address, rest_address = served
    pictures = [picture(i, form=form) for i, form in enumerate(("JPEG", "PNG", "JPEG"))]
    server = {"grpc": grpc_address, "rest": rest_address}[protocol]
    answers = classify(pictures, "student", protocol=protocol, server=server)
    for answer, probabilities in zip(answers, expected(network, pictures), strict=True):
        order = np.argsort(-probabilities)[:5]
        assert [name for name, _ in answer] == [LABELS[i] for i in order]
        # one model in Keras and in a session
        np.testing.assert_allclose([p for _, p in answer], probabilities[order], atol=1e-5)


def test_float_images_and_both_heads(served):
    network, _, _, address, _ = served
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    response = stub(address).Predict(request({"images": images}, "heads", version=1))
    assert response.model_spec.version.value == 1 and set(response.outputs) == {"cls", "dist"}
    both = deit_tf.heads(network)(images)
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["dist"]), both["dist"], atol=1e-5)
    filtered = stub(address).Predict(request({"images": images}, "images", outputs=["logits"]))
    assert set(filtered.outputs) == {"logits"}


def line(form="PNG", size=(2000, 1)):
    file = io.BytesIO()
    Image.new("L", size).save(file, form)
    return file.getvalue()


def shape_without_values():
    """100 bytes that ask for an array of 43 GB."""
    made = request({"images": FLOATS}, "images")
    made.inputs["images"].CopyFrom(tf.make_tensor_proto(np.float32(0)))
    made.inputs["images"].tensor_shape.CopyFrom(tf.TensorShape((1, 60000, 60000, 3)).as_proto())
    return made


def labeled(label):
    made = request({"images": FLOATS}, "images")
    made.model_spec.version_label = label
    return made


FLOATS = np.zeros((1, 32, 32, 3), "float32")
BAD = {
    "values left out": (shape_without_values(), "INVALID_ARGUMENT", "16,777,216 values"),
    "label": (labeled("canary"), "INVALID_ARGUMENT", "'canary'"),
    "line": (request({"image_bytes": [line()]}), "INVALID_ARGUMENT", "sides of 1 to 100"),
    "gif": (
        request({"image_bytes": [line("GIF", (32, 32))]}),
        "INVALID_ARGUMENT",
        "JPEG, PNG, BMP, WEBP",
    ),
    "pixels": (
        request({"image_bytes": [line(size=(4000, 4000))] * 3}),
        "INVALID_ARGUMENT",
        "48,000,000 pixels in all",
    ),
    "empty": (request({"image_bytes": [b""]}), "INVALID_ARGUMENT", "no picture"),
    "truncated": (request({"image_bytes": [picture()[:300]]}), "INVALID_ARGUMENT", "image_bytes"),
    "text": (request({"image_bytes": [b"hello"]}), "INVALID_ARGUMENT", "no picture"),
    "dtype": (
        request({"images": FLOATS.astype("int64")}, "images"),
        "INVALID_ARGUMENT",
        "is float32",
    ),
    "not bytes": (request({"image_bytes": FLOATS}), "INVALID_ARGUMENT", "is string"),
    "rank": (request({"images": FLOATS[0]}, "images"), "INVALID_ARGUMENT", "has shape"),
    "size": (request({"images": FLOATS[:, :31]}, "images"), "INVALID_ARGUMENT", "has shape"),
    "no images": (request({"images": FLOATS[:0]}, "images"), "INVALID_ARGUMENT", "1 to 256"),
    "signature": (
        request({"images": FLOATS}, "pictures"),
        "INVALID_ARGUMENT",
        "no signature 'pictures'",
    ),
    "input name": (request({"image": FLOATS}, "images"), "INVALID_ARGUMENT", "takes images"),
    "output name": (
        request({"images": FLOATS}, "images", outputs=["logit"]),
        "INVALID_ARGUMENT",
        "no output 'logit'",
    ),
    "model": (request({"images": FLOATS}, name="teacher"), "NOT_FOUND", "No model 'teacher'"),
    "version": (request({"images": FLOATS}, version=7), "NOT_FOUND", "Version 7"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_requests_are_refused_and_the_server_lives(served, kind):
    asked, code, message = BAD[kind]
    with pytest.raises(grpc.RpcError) as error:
        stub(served[3]).Predict(asked)
    assert error.value.code().name == code and message in error.value.details()
    assert classify([picture()], "student", server=served[3])


def test_a_picture_of_forty_megapixels_is_refused_by_its_header(served):
    file = io.BytesIO()
    Image.new("L", (8000, 5000)).save(file, "PNG")
    with pytest.raises(ServerError, match="8000 x 5000 pixels"):
        classify([file.getvalue()], "student", server=served[3])


def post(served, body, path="/v1/models/student:predict"):
    return requests.post(f"http://{served[4]}{path}", json=body, timeout=20)


def test_rest_forms(served):
    encoded = {"b64": base64.b64encode(picture()).decode()}
    rows = post(served, {"instances": [encoded]}).json()["predictions"]
    named = post(served, {"instances": [{"image_bytes": encoded}]}).json()["predictions"]
    columns = post(served, {"inputs": [encoded]}).json()["outputs"]
    assert rows == named and columns["top_k_labels"] == [rows[0]["top_k_labels"]]
    floats = post(served, {"signature_name": "images", "instances": FLOATS.tolist()}).json()[
        "predictions"
    ]
    np.testing.assert_allclose(floats[0]["logits"], served[0](FLOATS)[0], atol=1e-5)


@pytest.mark.parametrize(
    "body, code, message",
    [
        ({}, 400, "either `instances` or `inputs`"),
        ({"instances": []}, 400, "at least one"),
        ({"instances": [{"b64": "!!"}]}, 400, "base64"),
        ({"instances": [{"b64": ""}]}, 400, "no picture"),
        ({"instances": [[1, 2], [3]], "signature_name": "images"}, 400, "numbers of one shape"),
        ({"instances": [1.0], "signature_name": "nothing"}, 400, "no signature 'nothing'"),
        ({"instances": [{"image_bytes": 1}, {"images": 2}]}, 400, "same inputs"),
        ({"instances": [{"b64": "aGVsbG8="}, 1.0]}, 400, "some are not"),
        ({"instances": [10**400], "signature_name": "images"}, 400, "numbers of one shape"),
    ],
)
def test_bad_rest_requests(served, body, code, message):
    answer = post(served, body)
    assert answer.status_code == code and message in answer.json()["error"]
    assert post(served, {"instances": [{"b64": base64.b64encode(picture()).decode()}]}).ok


def test_rest_routes_that_are_not_there(served):
    assert post(served, {}, "/v1/models/teacher:predict").status_code == 404
    assert requests.get(f"http://{served[4]}/v2", timeout=20).status_code == 404
    for data in ("{", '{"instances": ' + "[" * 100_000):
        answer = requests.post(
            f"http://{served[4]}/v1/models/student:predict", data=data, timeout=20
        )
        assert answer.status_code == 400 and "no JSON" in answer.json()["error"]


def test_status_and_metadata(served):
    status = requests.get(f"http://{served[4]}/v1/models/student", timeout=20).json()[
        "model_version_status"
    ]
    assert status == [
        {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
    metadata = requests.get(f"http://{served[4]}/v1/models/student/metadata", timeout=20).json()
    assert "serving_default" in metadata["metadata"]["signature_def"]["signature_def"]
    channel = grpc.insecure_channel(served[3])
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "student"
    (entry,) = (
        model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(asked).model_version_status
    )
    assert (entry.version, entry.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    described = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    described.model_spec.name = "student"
    answer = stub(served[3]).GetModelMetadata(described)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert (
        answer.metadata["signature_def"].Unpack(signatures) and "heads" in signatures.signature_def
    )


def test_versions_come_and_go_under_load(served):
    first, folder, models, address, _ = served
    second, encoded = model(2), picture(5)
    first_says, second_says = (
        float(expected(network, [encoded]).max()) for network in (first, second)
    )
    assert abs(first_says - second_says) > 1e-3

    def ask(_):
        (((_, probability), *_),) = classify([encoded], "student", server=address, retries=0)
        return probability

    with ThreadPoolExecutor(4) as pool:
        export(second, folder, 2)
        shutil.copytree(folder / "student" / "2", folder / "student" / "3")
        (folder / "student" / "3" / "saved_model.pb").write_bytes(b"broken")
        exchange = threading.Thread(target=models.refresh)
        exchange.start()
        answers = [pool.submit(ask, i) for i in range(60)]
        exchange.join()
        answers += [pool.submit(ask, i) for i in range(20)]
        given = [answer.result() for answer in answers]
    assert all(min(abs(p - first_says), abs(p - second_says)) < 1e-5 for p in given)
    assert abs(given[-1] - second_says) < 1e-5
    shutil.copytree(folder / "student" / "2", folder / "student" / "4")
    (folder / "student" / "4" / WARMUP_FILE).write_bytes(b"no record of warm-up requests")
    models.refresh()
    states = models.states("student")
    assert {v: state.state for v, state in states.items()} == {
        4: "END",
        3: "END",
        2: "AVAILABLE",
        1: "END",
    }
    assert "corrupted record" in states[4].error
    assert states[3].error and not states[1].error
    for version in ("2", "3", "4"):
        shutil.rmtree(folder / "student" / version)
    models.refresh()
    assert models.serving("student")[0] == 1


def test_a_version_that_failed_is_tried_again_when_its_files_change(tmp_path):
    export(model(3), tmp_path, 1)
    whole = tmp_path / "student" / "1"
    variables = whole.rename(tmp_path / "whole") / "variables"
    shutil.copytree(
        variables.parent, whole, ignore=shutil.ignore_patterns("variables")
    )  # a copy that is under way
    models = Models(tmp_path)
    models.refresh()
    assert models.states("student")[1].state == "END" and models.states("student")[1].error
    shutil.copytree(variables, whole / "variables", dirs_exist_ok=True)
    models.refresh()
    assert models.serving("student")[0] == 1


def test_a_folder_that_cannot_be_read_leaves_the_others(tmp_path, monkeypatch):
    export(model(3), tmp_path, 1)
    (tmp_path / "lost+found").mkdir()
    look = versions._versions

    def refuse(folder):
        if folder.name == "lost+found":
            raise PermissionError(folder)
        return look(folder)

    monkeypatch.setattr(versions, "_versions", refuse)
    models = Models(tmp_path)
    models.refresh()
    assert models.serving("student")[0] == 1


def test_one_output_has_no_name_in_rest(tmp_path):
    network = model(3)
    deit_tf.export_saved_model(
        network, tmp_path, processor=PROCESSOR, name="student", rollout=True, batch_sizes=(1,)
    )
    models = Models(tmp_path)
    models.refresh()
    server, port = serve_rest(models, 0)
    body = {"signature_name": "rollout", "instances": FLOATS.tolist()}
    answer = requests.post(
        f"http://localhost:{port}/v1/models/student:predict", json=body, timeout=20
    ).json()
    server.shutdown()
    assert np.shape(answer["predictions"]) == (1, 4, 4)


def test_more_requests_than_there_is_room_for(served):
    network, _, models, *_ = served
    server, port = serve_rest(models, 0)
    api = server.app
    for _ in range(WORKERS + WAITING):
        assert api._room.acquire(blocking=False)
    answer = requests.get(f"http://localhost:{port}/v1/models/student", timeout=20)
    assert answer.status_code == 503 and "Try again" in answer.json()["error"]
    api._room.release()
    assert requests.get(f"http://localhost:{port}/v1/models/student", timeout=20).ok
    server.shutdown()


@pytest.fixture
def serve_load(monkeypatch):
    """The benchmark, as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("serve_load")


def test_a_server_under_load_while_versions_come(serve_load):
    """The benchmark in small: a server process, one bad request in twenty, a good and two broken
    versions."""
    figures = serve_load.run(Namespace(model="deit_test", requests=140, clients=4, swap=True))
    assert figures["faults"] == [] and figures["alive"] and figures["requests"] >= 140
    assert figures["states"] == {1: "END", 2: "AVAILABLE", 3: "END", 4: "END"}
    assert set(figures["answered_by_version"]) == {"1", "2", "not told"}  # REST does not tell
    assert len(figures["by_kind"]) == 9  # two good ones, seven bad ones


def test_the_load_sees_what_is_wrong(serve_load):
    """A right answer for another picture, a refusal of a good one and an answer to a bad one are
    faults."""
    files, logits = [picture()] * serve_load.PICTURES, np.arange(240.0).reshape(24, 10)
    load = serve_load.Load(files, np.zeros((24, 32, 32, 3), "float32"), {1: logits, 2: logits + 1})
    answers = {
        "right": lambda r: (logits[list(r.pictures)], 1),
        "another picture": lambda r: (logits[list(r.pictures)] + 10, 1),
        "a version that nobody added": lambda r: (logits[list(r.pictures)] + 1, 2),
    }
    faults = {}
    held = threading.Event()
    held.set()
    for name, ask in answers.items():
        load.outcome, load.answered = serve_load.Outcome(), 0
        load.client(ask, 40, held)
        faults[name] = Counter(
            kind for kind, *_ in (fault.split(":") for fault in load.outcome.faults)
        )
    assert (
        sum(faults["right"].values()) == 2 and len(faults["right"]) == 2
    )  # both bad requests were answered
    assert (
        sum(faults["another picture"].values())
        == sum(faults["a version that nobody added"].values())
        == 40
    )

    def refuse(request):
        raise serve_load.RefusedError("INVALID_ARGUMENT: no")

    load.outcome, load.answered = serve_load.Outcome(), 0
    load.client(refuse, 40, held)
    assert (
        len(load.outcome.faults) == 40
    )  # good ones refused, bad ones with another error than theirs


def test_the_client_checks_pictures_and_retries(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.jpg").write_bytes(picture()[:300])
    for name in ("text.jpg", "cut.jpg"):
        with pytest.raises(ValueError, match=f"{name} is no picture"):
            read_picture(tmp_path / name)
    Image.new("L", (8000, 5000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="8000 x 5000"):
        read_picture(tmp_path / "large.png")
    (tmp_path / "line.png").write_bytes(line())
    with pytest.raises(ValueError, match="2000 x 1"):
        read_picture(tmp_path / "line.png")
    (tmp_path / "moving.gif").write_bytes(line("GIF"))
    with pytest.raises(ValueError, match="JPEG, PNG, BMP, WEBP"):
        read_picture(tmp_path / "moving.gif")
    pauses = []
    monkeypatch.setattr("client.time.sleep", pauses.append)
    monkeypatch.setattr("client.random.uniform", lambda low, high: (low + high) / 2)
    for protocol in ("grpc", "rest"):
        with pytest.raises(ServerError):
            classify(
                [picture()],
                "student",
                server="localhost:9",
                protocol=protocol,
                retries=2,
                timeout=2,
            )
    assert pauses == [0.2, 0.4] * 2


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        Models(tmp_path / "nothing")
