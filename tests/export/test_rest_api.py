"""TensorFlow Serving's REST API, clause by clause: https://www.tensorflow.org/tfx/serving/api_rest

The headings are those of that page; where the server differs on purpose, the test says so."""

import gzip
import json
import math

import numpy as np
import pytest
import requests
import tensorflow as tf
from toy_models import base64_of, batch_of, picture, save_model, serving


def half_plus_three(x):
    return {"y": x / 2 + 3}


SIGNATURES = {
    "serving_default": (half_plus_three, batch_of(tf.float32)),
    "two": (lambda x: {"half": x / 2, "double": x * 2}, batch_of(tf.float32)),
    "matrix": (lambda x: {"y": x}, tf.TensorSpec([None, 1, 2], tf.float32, "x")),
    "sum": (lambda x: {"y": tf.reduce_sum(x)}, batch_of(tf.float32)),
    "sum_and_all": (lambda x: {"sum": tf.reduce_sum(x), "all": x}, batch_of(tf.float32)),
    "logarithm": (lambda x: {"y": tf.math.log(x)}, batch_of(tf.float32)),
    "names": (
        lambda x: {"text": tf.as_string(x), "raw_bytes": tf.fill(tf.shape(x), b"\xff\x00")},
        batch_of(tf.int32),
    ),
    "no_text": (lambda x: {"text": tf.fill(tf.shape(x), b"\xff")}, batch_of(tf.int32)),
    "nested_text": (lambda x: {"text": tf.as_string(x)[:, None, None]}, batch_of(tf.int32)),
    "encoded": (lambda x: {"x_bytes": x, "n": tf.strings.length(x)}, batch_of(tf.string)),
    "two_inputs": (lambda a, b: {"y": a + b}, batch_of(tf.float32, "a"), batch_of(tf.float32, "b")),
    "scalar": (lambda x: {"y": x}, tf.TensorSpec([], tf.float32, "x")),
    "half": (lambda x: {"y": x}, batch_of(tf.float16)),
    **{
        dtype.name: (lambda x: {"y": tf.identity(x)}, batch_of(dtype))
        for dtype in (tf.bool, tf.int8, tf.uint8, tf.int16, tf.int32, tf.uint32, tf.int64)
        + (tf.uint64, tf.float64)
    },
}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    save_model(folder / "toy" / "123", **SIGNATURES)
    with serving(folder) as (_, _, rest):
        yield f"http://{rest}/v1/models"


def strictly(text):
    """JSON as its standard has it, without NaN and Infinity."""

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def ask(address):
    """Post a body to a model; gives the status and what was answered."""

    def post(body, path="/toy:predict", **options):
        data = json.dumps(body) if isinstance(body, (dict, list)) else body
        answer = requests.post(address + path, data=data, timeout=20, **options)
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status_code, strictly(answer.text)

    return post


@pytest.fixture
def get(address):
    def get(path):
        answer = requests.get(address + path, timeout=20)
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status_code, strictly(answer.text)

    return get


def refused(answer, *parts, code=400):
    status, body = answer
    assert status == code and set(body) == {"error"}, answer
    assert all(part in body["error"] for part in parts), body["error"]


# RESTful API: "In case of error, all APIs will return a JSON object in the response body with
# `error` as key and the error message as the value".


def test_every_error_is_a_json_object(ask, get, address, monkeypatch):
    refused(get("/nobody"), "nobody", code=404)
    refused(get("/toy/versions/x"), code=404)
    refused(get("/toy//versions"), code=404)
    refused(get("/toy/versions/" + "1" * 5000), code=404)
    refused(ask({}, "/toy"), code=405)
    refused(ask({"instances": [1.0]}, "/nobody:predict"), "nobody", code=404)

    def fail(*_):
        raise RuntimeError("a fault of the server's")

    monkeypatch.setattr("rest_api.predict", fail)
    refused(ask({"instances": [1.0]}), "a fault of the server's", code=500)


# Model status API


def test_status_of_all_versions_or_of_one(get):
    entry = {
        "version": "123",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    assert get("/toy") == get("/toy/versions/123") == (200, {"model_version_status": [entry]})
    refused(get("/toy/versions/7"), "no version 7", code=404)
    refused(get(""), "NAME", "toy")


# Model metadata API


def test_metadata_is_that_of_the_newest_version_unless_one_is_named(get):
    status, body = get("/toy/metadata")
    assert get("/toy/versions/123/metadata") == (status, body) and status == 200
    assert body["model_spec"] == {"name": "toy", "signature_name": "", "version": "123"}
    signature = body["metadata"]["signature_def"]["signature_def"]["matrix"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    shape = signature["inputs"]["x"]["tensor_shape"]
    assert [dim["size"] for dim in shape["dim"]] == ["-1", "1", "2"]
    assert shape["unknown_rank"] is False  # TensorFlow Serving prints fields of no presence too
    refused(get("/toy/versions/7/metadata"), "Version 7", code=404)


# "/versions/${VERSION}|/labels/${LABEL}"


def test_labels_are_refused_with_a_sentence(ask, get):
    """Differs: this server serves one version of a model."""
    refused(get("/toy/labels/stable"), "'stable'")
    refused(get("/toy/labels/stable/metadata"), "'stable'")
    refused(ask({"instances": [1.0]}, "/toy/labels/stable:predict"), "'stable'")


# Classify and Regress API


def test_classify_and_regress_are_refused_with_a_sentence(ask):
    """Differs: so does TensorFlow Serving, of signatures that are for predict."""
    for path in ("/toy:classify", "/toy/versions/123:regress"):
        refused(ask({"examples": [{"x": 1.0}]}, path), "tf.Example")
    refused(ask({"examples": []}, "/nobody:classify"), "nobody", code=404)


# Predict API, URL and request format


def test_the_example_of_the_page(ask):
    assert ask({"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [3.5, 4.0, 5.5]})


def test_predict_asks_the_newest_version_or_one_by_number(ask):
    body = {"instances": [1.0]}
    assert ask(body, "/toy/versions/123:predict") == ask(body, "/toy:predict")
    refused(ask(body, "/toy/versions/7:predict"), "Version 7", code=404)
    refused(ask(body, "/toy/versions/0:predict"), "Version 0", code=404)


def test_the_default_signature_serves_where_none_is_named(ask):
    body = {"inputs": [1.0]}
    for named in ({}, {"signature_name": ""}, {"signature_name": "serving_default"}):
        assert ask(named | body) == (200, {"outputs": [3.5]})
    refused(ask({"signature_name": "nothing"} | body), "no signature 'nothing'")
    for name in (None, 0, False, [], {}):
        refused(ask({"signature_name": name} | body), "`signature_name` is text")


def test_the_body_is_an_object_with_instances_or_inputs_but_not_both(ask):
    refused(ask({}), "either `instances` or `inputs`")
    refused(ask({"instances": [1.0], "inputs": [1.0]}), "either `instances` or `inputs`")
    refused(ask([1.0]), "is a JSON object")
    refused(ask('"instances"'), "is a JSON object")
    for text in ("", "{", '{"instances": ' + "[" * 100_000, b"\xff\xfe{"):
        refused(ask(text), "no JSON")


# Specifying input tensors in row format


def test_rows_of_the_one_input_need_no_name(ask):
    matrices = [[[1.0, 2.0]], [[3.0, 4.0]]]
    by_value = {"signature_name": "matrix", "instances": matrices}
    by_name = {"signature_name": "matrix", "instances": [{"x": matrix} for matrix in matrices]}
    assert ask(by_value) == ask(by_name) == (200, {"predictions": matrices})


def test_rows_are_a_list_of_one_at_least_and_all_alike(ask):
    for instances in ([], {}, 1.0, "foo", None):
        refused(ask({"instances": instances}), "list of at least one")
    refused(ask({"instances": [{"x": 1.0}, 2.0]}), "Either every instance names its inputs")
    refused(ask({"instances": [{"x": 1.0}, {"z": 2.0}]}), "takes x. Received: 'z'")
    refused(ask({"instances": [{}]}), "takes x. Received: nothing")
    refused(ask({"instances": [[1.0, 2.0], [3.0]]}), "lists of one shape")
    refused(ask({"instances": [[1.0], 2.0]}), "lists of one shape")


def test_several_inputs_are_refused_with_a_sentence(ask):
    """Differs: the exports have signatures of one input."""
    named = [{"a": 1.0, "b": 2.0}]
    refused(ask({"signature_name": "two_inputs", "instances": named}), "takes 2 inputs (a, b)")
    refused(ask({"signature_name": "scalar", "inputs": 1.0}), "without a batch dimension")


# Specifying input tensors in column format


def test_columns_are_a_tensor_or_an_object_of_tensors(ask):
    assert ask({"inputs": [1.0, 5.0]}) == ask({"inputs": {"x": [1.0, 5.0]}})
    refused(ask({"inputs": {"z": [1.0]}}), "takes x. Received: 'z'")
    refused(ask({"inputs": {"x": [1.0], "z": [1.0]}}), "takes x")
    refused(ask({"inputs": {}}), "takes x. Received: nothing")
    refused(ask({"inputs": 1.0}), "has shape [-1]")
    refused(ask({"inputs": []}), "1 to 256")


# Response format: "If the output of the model contains only one named tensor, we omit the name",
# in either format.


def test_one_output_has_no_name(ask):
    body = {"signature_name": "matrix"}
    assert ask(body | {"instances": [[[1.0, 2.0]]]}) == (200, {"predictions": [[[1.0, 2.0]]]})
    assert ask(body | {"inputs": [[[1.0, 2.0]]]}) == (200, {"outputs": [[[1.0, 2.0]]]})
    assert ask({"signature_name": "sum", "inputs": [1.0, 2.0]}) == (200, {"outputs": 3.0})


def test_several_outputs_are_objects(ask):
    rows = [{"half": 0.5, "double": 2.0}, {"half": 1.0, "double": 4.0}]
    columns = {"half": [0.5, 1.0], "double": [2.0, 4.0]}
    body = {"signature_name": "two"}
    assert ask(body | {"instances": [1.0, 2.0]}) == (200, {"predictions": rows})
    assert ask(body | {"inputs": [1.0, 2.0]}) == (200, {"outputs": columns})


def test_outputs_without_rows_are_not_given_as_rows(ask):
    """As TensorFlow Serving: "has no shape information", "has inconsistent batch size"."""
    for signature in ("sum", "sum_and_all"):
        refused(ask({"signature_name": signature, "instances": [1.0]}), "no rows")
    answer = ask({"signature_name": "sum_and_all", "inputs": [1.0, 2.0]})
    assert answer == (200, {"outputs": {"sum": 3.0, "all": [1.0, 2.0]}})


# Output of binary values: "Named tensors that have `_bytes` as a suffix in their name are
# considered to have binary values".


def test_outputs_named_bytes_are_base64_and_others_text(ask):
    body = {"signature_name": "names", "instances": [5]}
    assert ask(body) == (200, {"predictions": [{"text": "5", "raw_bytes": {"b64": "/wA="}}]})
    nested = {"signature_name": "nested_text", "instances": [5, 6]}
    assert ask(nested) == (200, {"predictions": [[["5"]], [["6"]]]})
    refused(ask({"signature_name": "no_text", "instances": [5]}), "no UTF-8 text", code=500)


# JSON mapping

INTEGERS = ("int8", "uint8", "int16", "int32", "uint32", "int64", "uint64")
RANGES = {name: np.iinfo(name) for name in INTEGERS}


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_whole_numbers_in_range(ask, dtype):
    lowest, highest = int(RANGES[dtype].min), int(RANGES[dtype].max)
    body = {"signature_name": dtype}
    answer = ask(body | {"instances": [lowest, 10, highest]})
    assert answer == (200, {"predictions": [lowest, 10, highest]})
    for number in (lowest - 1, highest + 1, 1.5, 1.0, True, "1", None):
        refused(ask(body | {"instances": [number]}), f"x is {dtype}")


def test_booleans_are_true_and_false(ask):
    body = {"signature_name": "bool"}
    assert ask(body | {"instances": [True, False]}) == (200, {"predictions": [True, False]})
    for value in (1, 0.0, "true", None):
        refused(ask(body | {"instances": [value]}), "x is bool")


@pytest.mark.parametrize("signature", ["serving_default", "float64"])
def test_floats_are_numbers_and_nothing_else(ask, signature):
    body = {"signature_name": signature}
    status, answered = ask(body | {"instances": [1, -10.0, 0, 1e-3]})
    assert status == 200 and len(answered["predictions"]) == 4
    wrong = {"a string": "1", "null": None, "a boolean": True, "an object": {"b64": "MQ=="}}
    for received, value in wrong.items():
        for values in ([value], [2.0, value], [[2.0], [value]]):
            refused(ask(body | {"inputs": values}), "x is float", f"received {received}")


def test_strings_are_text_or_base64(ask):
    encoded = picture()
    body = {"signature_name": "encoded"}
    status, answered = ask(body | {"instances": [base64_of(encoded)]})
    assert status == 200
    assert answered["predictions"] == [{"x_bytes": base64_of(encoded), "n": len(encoded)}]
    refused(ask(body | {"instances": ["text"]}), "no picture")
    refused(ask(body | {"instances": [[base64_of(encoded)], []]}), "several lengths")
    for value in (1, None, True, {"b64": 5}, {"b64": "!!"}, {"b64": "\ud800"}):
        refused(ask(body | {"inputs": [value]}), "x")


def test_other_types_are_unsupported(ask):
    refused(ask({"signature_name": "half", "instances": ["1"]}), "x is float16")


# Floating point precision: "the value will be silently converted ... to 1435774336"


def test_numbers_are_rounded_to_the_dtype_of_the_input(ask):
    body = {"signature_name": "two", "instances": [1435774380]}
    assert ask(body)[1]["predictions"][0]["double"] == 2 * 1435774336.0


# JSON conformance


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e400", "1e39"])
def test_requests_that_are_not_finite_are_refused(ask, token):
    """Differs: TensorFlow Serving runs them, and answers NaN with status 200."""
    body = '{"instances": [1.0, ' + token + "]}"
    refused(ask(body), "x[1] holds NaN, infinity or a number beyond float32")


def test_answers_that_are_not_finite_are_errors(ask):
    """Differs: TensorFlow Serving writes them as NaN and Infinity, which are no JSON."""
    body = {"signature_name": "logarithm"}
    assert ask(body | {"instances": [1.0]}) == (200, {"predictions": [0.0]})
    for number in (0.0, -1.0):
        assert not math.isfinite(float(tf.math.log(number)))
        for form in ("instances", "inputs"):
            refused(ask(body | {form: [number]}), "'y' of 'logarithm'", code=500)


# Not on the page, but in the server: net_http/server/internal/evhttp_request.cc


def test_bodies_may_be_compressed(ask):
    body = json.dumps({"instances": [1.0]}).encode()

    def packed(data, encoding="gzip"):
        return ask(data, headers={"Content-Encoding": encoding})

    whole = gzip.compress(body)
    assert packed(whole) == packed(whole, "GZIP") == (200, {"predictions": [3.5]})
    assert packed(gzip.compress(body[:5]) + gzip.compress(body[5:])) == packed(whole)
    for damaged in (body, whole[:-5], whole[:12] + b"\0" * 9 + whole[21:], b""):
        refused(packed(damaged), "no gzip" if damaged else "no JSON")
    refused(packed(body, "br"), "'br'", code=415)


def test_a_body_that_unpacks_to_gigabytes_is_refused(ask, monkeypatch):
    monkeypatch.setattr("rest_api.MAX_BODY", 10_000)
    bomb = gzip.compress(b" " * 1_000_000)
    assert len(bomb) < 10_000
    refused(ask(bomb, headers={"Content-Encoding": "gzip"}), "10,000 bytes", code=413)
    refused(ask(b" " * 10_001), code=413)


def test_bodies_may_come_in_chunks(ask):
    body = json.dumps({"instances": [1.0]}).encode()
    chunks = (body[i : i + 4] for i in range(0, len(body), 4))  # no length, so one by one
    assert ask(chunks) == (200, {"predictions": [3.5]})
