"""The development server answers TensorFlow Serving's real stubs about a DeiT, refuses what is bad
and goes on; versions come under load."""

import io
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import keras
import numpy as np
import pytest
import requests
import tensorflow as tf
from client import classify
from grpc_api import serve_grpc
from PIL import Image
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from toy_models import base64_of, batch_of, picture, save_classifier, save_model, serving

import deit_tf
from deit_tf.data import ImageProcessor

LABELS = [f"class {i}" for i in range(10)]
PROCESSOR = ImageProcessor(32)
FLOATS = np.zeros((1, 32, 32, 3), "float32")


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    made = deit_tf.create_model("deit_test", num_classes=10)
    for weight in made.weights:  # fresh logits are too small to tell two classes apart
        weight.assign(weight * 3)
    return made


@pytest.fixture(scope="module")
def served(network, tmp_path_factory):
    """The models, and the addresses of gRPC and REST: a DeiT, and a toy that gives NaN."""
    folder = tmp_path_factory.mktemp("served")
    deit_tf.export_saved_model(
        network, folder, processor=PROCESSOR, labels=LABELS, name="student", batch_sizes=(1,)
    )
    logarithm = (lambda x: {"y": tf.math.log(x), "n": tf.size(x)}, batch_of(tf.float32))
    save_model(folder / "toy" / "1", serving_default=logarithm)
    with serving(folder) as served:
        yield served


@pytest.fixture
def stub(served):
    with grpc.insecure_channel(served[1]) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(inputs, signature="", name="student", version=None, outputs=()):
    made = predict_pb2.PredictRequest(output_filter=outputs)
    made.model_spec.name, made.model_spec.signature_name = name, signature
    if version is not None:
        made.model_spec.version.value = version
    for key, value in inputs.items():
        made.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return made


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_the_client_gets_what_keras_says(network, served, protocol):
    pictures = [picture(i, form=form) for i, form in enumerate(("JPEG", "PNG", "JPEG"))]
    server = dict(zip(("grpc", "rest"), served[1:], strict=True))[protocol]
    answers = classify(pictures, "student", protocol=protocol, server=server)

    images = tf.stack([PROCESSOR(encoded) for encoded in pictures])
    expected = np.array(tf.nn.softmax(network(images)))
    for answer, probabilities in zip(answers, expected, strict=True):
        order = np.argsort(-probabilities)[:5]
        assert [name for name, _ in answer] == [LABELS[i] for i in order]
        # one model in Keras and in a session
        np.testing.assert_allclose([p for _, p in answer], probabilities[order], atol=1e-5)


def test_float_images_and_both_heads(network, stub):
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    response = stub.Predict(request({"images": images}, "heads", version=1))
    assert response.model_spec.version.value == 1 and set(response.outputs) == {"cls", "dist"}
    both = deit_tf.heads(network)(images)
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["dist"]), both["dist"], atol=1e-5)

    filtered = stub.Predict(request({"images": images}, "images", outputs=["logits"]))
    assert set(filtered.outputs) == {"logits"}


def image_file(mode="L", size=(40, 40), form="PNG", **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **options)
    return file.getvalue()


def with_palette():
    """TensorFlow takes its indices 0 to 3 for gray levels, without a word."""
    file = io.BytesIO()
    colors = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    Image.fromarray(colors).quantize(4).save(file, "BMP")
    return file.getvalue()


def transparent():
    file = io.BytesIO()
    Image.new("RGBA", (40, 40), (255, 0, 0, 128)).save(file, "WEBP")
    return file.getvalue()


def moving():
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


PICTURES = {
    "empty": (b"", "no picture"),
    "text": (b"hello", "no picture"),
    "cut short": (picture()[:-500], "image_bytes: "),
    "gif": (image_file(form="GIF"), "allowed are JPEG, PNG, BMP, WEBP"),
    "a line": (image_file(size=(2000, 1)), "sides of 1 to 100"),
    "40 megapixels": (image_file(size=(8000, 5000)), "8000 x 5000 pixels"),
    "palette": (with_palette(), "a BMP file with a palette"),
    "one bit": (image_file("1", form="BMP"), "a BMP file of one bit"),
    "transparent": (transparent(), "a WebP file with transparency"),
    "moving": (moving(), "a WebP file that moves"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_that_cannot_be_read_are_refused_by_name(served, stub, kind):
    encoded, message = PICTURES[kind]
    refuses(stub, request({"image_bytes": [picture(), encoded]}), message)
    assert classify([picture()], "student", server=served[1])


def test_the_pixels_of_all_pictures_count(stub):
    files = [image_file(size=(4000, 4000))] * 3
    refuses(stub, request({"image_bytes": files}), "48,000,000 pixels in all")


def refuses(stub, asked, message, code="INVALID_ARGUMENT"):
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(asked, timeout=20)
    details = error.value.details()
    assert (error.value.code().name, message in details) == (code, True), details


def floats(signature="images", **options):
    return request({"images": FLOATS}, signature, **options)


def shape_without_values():
    """100 bytes that ask for an array of 43 GB."""
    made = floats()
    made.inputs["images"].CopyFrom(tf.make_tensor_proto(np.float32(0)))
    made.inputs["images"].tensor_shape.CopyFrom(tf.TensorShape((1, 60000, 60000, 3)).as_proto())
    return made


def more_values_than_the_shape():
    made = floats()
    made.inputs["images"].tensor_content = b"\0" * 5
    return made


def labeled(label):
    made = floats()
    made.model_spec.version_label = label
    return made


REQUESTS = {
    "values left out": (shape_without_values(), "16,777,216 values"),
    "values too many": (more_values_than_the_shape(), "another shape"),
    "label": (labeled("canary"), "'canary'"),
    "dtype": (
        request({"images": FLOATS.astype("int64")}, "images"),
        "Received: DT_INT64",
    ),
    "not bytes": (request({"image_bytes": FLOATS}), "is string. Received: DT_FLOAT"),
    "rank": (request({"images": FLOATS[0]}, "images"), "has shape"),
    "size": (request({"images": FLOATS[:, :31]}, "images"), "has shape"),
    "no images": (request({"images": FLOATS[:0]}, "images"), "1 to 256"),
    "signature": (floats("pictures"), "no signature 'pictures'"),
    "input name": (request({"image": FLOATS}, "images"), "takes images. Received: 'image'"),
    "long name": (request({"i" * 100_000: FLOATS}, "images"), "takes images. Received: 'iii"),
    "no input": (request({}, "images"), "takes images. Received: nothing"),
    "output name": (floats(outputs=["logit"]), "no output 'logit'"),
    "NaN": (request({"images": FLOATS * np.nan}, "images"), "images[0] holds NaN"),
    "infinity": (request({"images": FLOATS + np.inf}, "images"), "images[0] holds NaN, infinity"),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_bad_requests_are_refused(stub, kind):
    refuses(stub, *REQUESTS[kind])


def test_models_and_versions_that_do_not_serve(stub):
    refuses(stub, floats(name="teacher"), "No model 'teacher'", "NOT_FOUND")
    for version in (0, 7):
        refuses(stub, floats(version=version), f"Version {version} of", "NOT_FOUND")


@pytest.mark.parametrize("dtype", [0, *range(2, 32), 101, 107, 120, 121, 200, -1])
def test_every_other_dtype_is_refused(stub, dtype):
    """Some are no types of values, and NumPy has no name for them."""
    asked = floats()
    asked.inputs["images"].dtype = dtype
    known = dtype in types_pb2.DataType.values()
    name = types_pb2.DataType.Name(dtype) if known else str(dtype)
    refuses(stub, asked, f"images is float32. Received: {name}")


def test_an_answer_that_is_not_finite_is_an_error(stub):
    """Whichever output is asked for: the model is broken all the same."""
    assert stub.Predict(request({"x": [1.0]}, name="toy")).outputs["y"].float_val == [0.0]
    for outputs in ((), ["n"]):
        asked = request({"x": [-1.0]}, name="toy", outputs=outputs)
        refuses(stub, asked, "'y' of 'serving_default' holds NaN", "INTERNAL")


def test_methods_that_this_server_does_not_have(stub):
    with pytest.raises(grpc.RpcError) as error:
        stub.Classify(classification_pb2.ClassificationRequest())
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_message_that_is_no_request(served):
    with grpc.insecure_channel(served[1]) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as error:
            call(b"\xff" * 9, timeout=20)
    assert "deserializing" in error.value.details()


def test_rest_gives_the_same_forms(network, served):
    def post(body):
        url = f"http://{served[2]}/v1/models/student:predict"
        return requests.post(url, json=body, timeout=20).json()

    encoded = base64_of(picture())
    rows = post({"instances": [encoded]})["predictions"]
    assert rows == post({"instances": [{"image_bytes": encoded}]})["predictions"]
    columns = post({"inputs": [encoded]})["outputs"]
    assert columns["top_k_labels"] == [rows[0]["top_k_labels"]]

    found = post({"signature_name": "images", "instances": FLOATS.tolist()})["predictions"]
    np.testing.assert_allclose(found[0]["logits"], network(FLOATS)[0], atol=1e-5)


def test_status_and_metadata(served, stub):
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "student"
    with grpc.insecure_channel(served[1]) as channel:
        statuses = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(asked)
    (entry,) = statuses.model_version_status
    assert (entry.version, entry.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)

    described = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    described.model_spec.name = "student"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(described).metadata["signature_def"].Unpack(signatures)
    assert "heads" in signatures.signature_def

    del described.metadata_field[:]  # TensorFlow Serving refuses that too
    with pytest.raises(grpc.RpcError, match="metadata_field"):
        stub.GetModelMetadata(described)


def test_a_port_that_is_taken(served):
    """gRPC would share it, so that each of two servers gets some of the requests."""
    with pytest.raises(RuntimeError):
        serve_grpc(served[0], int(served[1].split(":")[1]))


def test_versions_come_under_load(tmp_path):
    """Every answer is that of a version that serves, and none is lost."""
    save_classifier(tmp_path / "student" / "1", "cat")
    with serving(tmp_path) as (models, address, _), ThreadPoolExecutor(4) as pool:

        def ask(_=None):
            (((name, _),),) = classify([picture()], "student", server=address, retries=0)
            return name

        assert ask() == "cat"
        save_classifier(tmp_path / "student" / "2", "dog")
        shutil.copytree(tmp_path / "student" / "2", tmp_path / "student" / "3")
        (tmp_path / "student" / "3" / "saved_model.pb").write_bytes(b"broken")

        exchange = threading.Thread(target=models.refresh)
        exchange.start()
        answers = Counter(pool.map(ask, range(60)))
        exchange.join()
        assert set(answers) <= {"cat", "dog"} and ask() == "dog"
        states = {version: state.state for version, state in models.states("student").items()}
        assert states == {3: "END", 2: "AVAILABLE", 1: "END"}
