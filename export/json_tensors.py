"""The JSON of TensorFlow Serving's predict requests and answers: rows, columns, base64.

https://www.tensorflow.org/tfx/serving/api_rest, "Predict API", "JSON mapping" and "Encoding binary
values".

Differs: signatures of one input alone, and no NaN or infinity, for which JSON has no word.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from guard import Input, InvalidAnswerError, InvalidRequestError, check_names, shortened

# What Python makes of JSON values, by numpy's kind of the dtype that takes them.
JSON_TYPES = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}
JSON_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "a whole number",
    float: "a decimal number",
    str: "a string",
    dict: "an object",
}
BINARY_SUFFIX = "_bytes"  # of an output's name: its values are bytes, not text


def input_value(body: Mapping[str, Any], wanted: Input) -> Any:
    """The value of the one input in a request's body, whichever of the four forms it has.

    Raises:
        InvalidRequestError: If it has none of them, or names another input.
    """
    if ("instances" in body) == ("inputs" in body):
        raise InvalidRequestError("The body has either `instances` or `inputs`.")
    if "instances" in body:
        return _rows(body["instances"], wanted)

    inputs = body["inputs"]
    if not _names_inputs(inputs):
        return inputs
    check_names(inputs, wanted)
    return inputs[wanted.name]


def to_array(value: Any, wanted: Input) -> np.ndarray:
    """A JSON value as an array of the input's dtype.

    Raises:
        InvalidRequestError: If values are of another type, or lists of several lengths.
    """
    try:
        if wanted.dtype == tf.string:
            return _strings(value)
        return _numbers(value, np.dtype(wanted.dtype.as_numpy_dtype))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidRequestError(
            f"{wanted.name} is {wanted.dtype.name}, in lists of one shape: {error}"
        ) from error


def answer(outputs: Mapping[str, np.ndarray], by_rows: bool) -> dict[str, Any]:
    """The body of an answer; where there is one output, its name is left out.

    Args:
        outputs: The outputs by name.
        by_rows: Whether the request had `instances`, not `inputs`.
    Raises:
        InvalidRequestError: If rows are asked for, and the outputs have no rows.
        InvalidAnswerError: If a string is no text and its name does not say so.
    """
    columns = {name: _plain(name, output) for name, output in outputs.items()}
    only = next(iter(columns.values())) if len(columns) == 1 else None

    if not by_rows:
        return {"outputs": columns if only is None else only}

    _check_rows(outputs)
    if only is not None:
        return {"predictions": only}
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}


def _rows(instances: Any, wanted: Input) -> list:
    if not isinstance(instances, list) or not instances:
        raise InvalidRequestError("`instances` is a list of at least one.")

    named = [row for row in instances if _names_inputs(row)]
    if not named:
        return instances
    if len(named) < len(instances):
        raise InvalidRequestError("Either every instance names its inputs, or none does.")
    for row in named:
        check_names(row, wanted)
    return [row[wanted.name] for row in named]


def _names_inputs(value: Any) -> bool:
    return isinstance(value, dict) and not _is_binary(value)


def _is_binary(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def _numbers(value: Any, dtype: np.dtype) -> np.ndarray:
    """Numbers and booleans; NumPy itself would take text, null and each for the other."""
    if dtype.kind not in JSON_TYPES:
        raise TypeError(f"JSON has no {dtype.name}")
    if wrong := _leaf_types(value) - JSON_TYPES[dtype.kind]:
        raise TypeError(f"received {', '.join(sorted(JSON_NAMES[kind] for kind in wrong))}")
    with np.errstate(over="ignore"):  # a number beyond float32 is infinite, and refused as that
        return np.array(value, dtype)


def _leaf_types(value: Any) -> set[type]:
    if not isinstance(value, list):
        return {type(value)}
    types = set(map(type, value))
    if list not in types:
        return types
    return (types - {list}).union(*(_leaf_types(item) for item in value if type(item) is list))


def _strings(value: Any) -> np.ndarray:
    strings = np.array(_decoded(value), dtype=object)
    # Of lists of several lengths NumPy makes an array of lists.
    if not all(isinstance(item, bytes) for item in strings.flat):
        raise ValueError("lists have several lengths")
    return strings


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, str):
        return value.encode()
    if not _is_binary(value):
        raise TypeError(f"received {shortened(value)}")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error


def _check_rows(outputs: Mapping[str, np.ndarray]) -> None:
    sizes = {name: np.shape(output)[:1] for name, output in outputs.items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise InvalidRequestError(
            f"The outputs have no rows to give ({shortened(sizes)}). Ask with `inputs`."
        )


def _plain(name: str, output: np.ndarray) -> Any:
    """An output as `json` writes it."""
    if output.dtype.kind != "O":
        return output.tolist()
    write = _binary if name.endswith(BINARY_SUFFIX) else bytes.decode
    try:
        return np.asarray(np.frompyfunc(write, 1, 1)(output), object).tolist()
    except UnicodeDecodeError as error:
        raise InvalidAnswerError(
            f"{name!r} holds bytes that are no UTF-8 text. The name of an output of bytes ends in "
            f"{BINARY_SUFFIX!r}."
        ) from error


def _binary(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}
