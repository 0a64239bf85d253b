"""Warm-up records of a SavedModel: requests that a server replays before a version takes traffic.

https://www.tensorflow.org/tfx/serving/saved_model_warmup: a TFRecord file of
tensorflow-serving-api's PredictionLog.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice, product
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
# What export/tf_serving/batching.config allows: the server fills a batch up to one of these.
BATCH_SIZES = (1, 8, 32)


def write_warmup(
    path: str | Path,
    name: str,
    signatures: Mapping[str, tf.TensorSpec],
    pictures: Sequence[bytes],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> None:
    """Write a record per signature and batch size into a SavedModel that is already saved.

    Args:
        path: Folder of a version.
        name: Name of the model on the server.
        signatures: The one input of each: a batch of encoded pictures (string [B]) or of images
            (float32 [B, H, W, 3]).
        pictures: Encoded pictures, repeated to fill a batch. A batch of images is all zeros, of
            which a record holds one: 32 images of 224 pixels would weigh 19 MB, and a network takes
            as long for any of them.
        batch_sizes: The batch sizes that the server allows.
    """
    file = Path(path, WARMUP_FILE)
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for (signature, spec), size in product(signatures.items(), batch_sizes):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            _fill(request.inputs[spec.name], spec, size, pictures)

            predicted = prediction_log_pb2.PredictLog(request=request)
            log = prediction_log_pb2.PredictionLog(predict_log=predicted)
            writer.write(log.SerializeToString())


def read_warmup(path: str | Path) -> Iterator[predict_pb2.PredictRequest]:
    """The requests that the folder of a version brings along; none where it has no such file.

    Raises:
        tf.errors.DataLossError: If the file is cut short.
        ValueError: If a record is no PredictionLog.
    """
    file = Path(path, WARMUP_FILE)
    for record in tf.data.TFRecordDataset(str(file)) if file.exists() else ():
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        except DecodeError as error:
            raise ValueError(f"{file} holds a record that is no PredictionLog.") from error
        yield log.predict_log.request


def replay_warmup(
    path: str | Path, run: Callable[[str, np.ndarray], Mapping[str, np.ndarray]]
) -> int:
    """Answer every request of `read_warmup`, and count them.

    Args:
        path: Folder of a version.
        run: From the name of a signature and its input to its outputs by name.
    Raises:
        ValueError: If an answer has another batch size than its request, or is not finite.
    """
    count = 0
    for request in read_warmup(path):
        (tensor,) = request.inputs.values()
        batch = tf.make_ndarray(tensor)
        signature = request.model_spec.signature_name
        for key, output in run(signature, batch).items():
            finite = output.dtype.kind == "O" or np.isfinite(output).all()
            if len(output) != len(batch) or not finite:
                raise ValueError(
                    f"The warm-up of {signature}, batch {len(batch)}, gives no good {key!r}."
                )
        count += 1

    return count


def _fill(tensor, spec: tf.TensorSpec, size: int, pictures: Sequence[bytes]) -> None:
    """Make a TensorProto a batch of `size`."""
    if spec.dtype == tf.string:
        tensor.CopyFrom(tf.make_tensor_proto(list(islice(cycle(pictures), size)), tf.string))
        return

    # Where a TensorProto holds fewer values than its shape asks for, the last one is repeated.
    tensor.dtype = spec.dtype.as_datatype_enum
    tensor.tensor_shape.CopyFrom(tf.TensorShape((size, *spec.shape[1:])).as_proto())
    tensor.float_val.append(0.0)
