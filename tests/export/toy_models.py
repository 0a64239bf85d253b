"""SavedModels of a few operations, written in a moment: what a server does with a model does not
depend on the network in it."""

import base64
import io
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from grpc_api import serve_grpc
from PIL import Image
from rest_api import serve_rest
from versions import Models


def save_model(path, **signatures):
    """Write a SavedModel; each signature is a function and the specs of its inputs."""
    functions = {
        name: tf.function(function, input_signature=specs)
        for name, (function, *specs) in signatures.items()
    }
    tf.saved_model.save(tf.Module(), str(path), signatures=functions)


def batch_of(dtype, name="x"):
    return tf.TensorSpec([None], dtype, name)


def save_classifier(path, class_name):
    """A model that finds one class, with probability 1, in any picture."""

    def classify(image_bytes):
        shape = [tf.size(image_bytes), 1]
        return {
            "top_k_labels": tf.fill(shape, class_name),
            "top_k_probabilities": tf.ones(shape),
        }

    save_model(path, serving_default=(classify, batch_of(tf.string, "image_bytes")))


@contextmanager
def serving(folder):
    """In this process: the models, and the addresses of gRPC and REST."""
    models = Models(folder)
    models.refresh()
    grpc_server, grpc_port = serve_grpc(models, 0)
    rest_server, rest_port = serve_rest(models, 0)
    try:
        yield models, f"localhost:{grpc_port}", f"localhost:{rest_port}"
    finally:
        grpc_server.stop(None)
        rest_server.shutdown()


def picture(seed=0, size=(40, 50), form="JPEG"):
    """A file of noise."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def base64_of(encoded):
    return {"b64": base64.b64encode(encoded).decode()}
