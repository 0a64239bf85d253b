"""Run a SavedModel with the TensorFlow of another interpreter, 2.15 or later, without deit_tf.

`deit-tf export check --python INTERPRETER` feeds it this file:

    INTERPRETER - served/student/1 pictures.npz logits.npz < deit_tf/evaluation/other_tensorflow.py
"""

import sys

import numpy as np
import tensorflow as tf

BATCH = 8


def main(path, pictures, out):
    """Write the logits of both signatures, from the Python loader and from a C++ session."""
    given = np.load(pictures)  # bytes as uint8 and their lengths: without pickle
    ends = np.cumsum(given["lengths"])
    encoded = [given["bytes"][end - n : end].tobytes() for end, n in zip(ends, given["lengths"])]  # noqa: B905 (3.9)
    inputs = {"images": given["images"], "serving_default": np.array(encoded, object)}
    signatures = tf.saved_model.load(path).signatures
    logits = {}

    for name, batch in inputs.items():
        parts = [batch[i : i + BATCH] for i in range(0, len(batch), BATCH)]
        logits[name + ", Python"] = np.concatenate(
            [first(signatures[name], part) for part in parts]
        )

    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], path)
        for name, batch in inputs.items():
            definition = loaded.signature_def[name]
            (fed,) = definition.inputs.values()
            parts = [batch[i : i + BATCH] for i in range(0, len(batch), BATCH)]
            fetched = definition.outputs["logits"].name
            logits[name + ", session"] = np.concatenate(
                [session.run(fetched, {fed.name: part}) for part in parts]
            )

    np.savez(out, version=np.array(tf.__version__), **logits)


def first(signature, part):
    """Logits of one batch."""
    (name,) = signature.structured_input_signature[1]
    return signature(**{name: tf.constant(part)})["logits"].numpy()


if __name__ == "__main__":
    main(*sys.argv[1:])
