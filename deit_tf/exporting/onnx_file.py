"""A Keras classifier as an ONNX file, run by ONNX Runtime and compared with Keras before it gets
its name.

The graph is that of the SavedModel's signature `images`, converted by tf2onnx
(https://github.com/onnx/tensorflow-onnx).
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.activations import SOFTMAX, check_activation
from deit_tf.exporting.compare import EXACT, ExportError, agreement, deviation
from deit_tf.exporting.onnx_session import INSTALL, OnnxModel
from deit_tf.exporting.outputs import LOGITS, verify_outputs
from deit_tf.exporting.reference import comparison_images, float32_twin, in_batches
from deit_tf.exporting.sidecar import (
    ONNX_SUFFIX,
    Sidecar,
    check_class_names_beside,
    onnx_description,
    write_sidecar,
)
from deit_tf.exporting.staging import staging
from deit_tf.files import CLASS_NAMES_FILE, check_class_names, write_class_names
from deit_tf.models.deit import heads
from deit_tf.models.parts import has_two_heads

OPSET = 17  # of ONNX 1.12 (2022), which runtimes, browsers and TensorRT of today all read
LARGEST = 2**31 - 2**20  # bytes of a file, which is one protocol buffer


def export_onnx(
    model: keras.Model,
    file: str | Path,
    *,
    processor: ImageProcessor | None = None,
    labels: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    activation: str = SOFTMAX,
) -> dict:
    """Write `model` as an ONNX file from `images` [B, H, W, 3], a batch of any size, to `logits`
    [B, C], and check it.

    Of a model with two heads it gives `cls` and `dist` [B, C] as well. A file gets its name after
    it has passed; what bore the name before stays as it was otherwise. Beside it come
    `<file>.json`, which tells how to feed it (deit_tf.exporting.sidecar), and `labels.txt`.

    Args:
        model: From float32 [B, H, W, 3] images to [B, C] logits.
        file: Where to write; ends in `.onnx`.
        processor: How the model wants its images, for the JSON file.
        labels: C class names in class order.
        images: float32 [n, H, W, 3], normalized as for the model, to compare on; held-out ones.
            Noise if None.
        activation: What makes probabilities, for the JSON file: `softmax`, or `sigmoid` of a model
            of images with any number of labels.
    Returns:
        What `verify_onnx` measured, with `file`, `opset` and `compared_on` ("images" or "noise").
    Raises:
        ImportError: Where tf2onnx, onnx or onnxruntime is not installed.
        ValueError: For another suffix, or a model, images or labels that do not fit.
        ExportError: If the graph does not convert, or the file fails its verification; nothing is
            left behind.
    Differs: a model of mixed precision is exported, and compared, computing in float32.
    """
    file = Path(file)
    if file.suffix != ONNX_SUFFIX:
        raise ValueError(f"`file` must end in {ONNX_SUFFIX}. Received: {file}")
    check_installed()
    samples = comparison_images(model, images)
    check_activation(activation)
    _check_size(model)
    if labels is not None:
        check_class_names(labels, model.output_shape[-1])
        check_class_names_beside(file, labels)

    model = float32_twin(model)
    content = converted(model)
    with staging(file.parent) as folder:
        staged = folder / file.name
        staged.write_bytes(content)
        report = verify_onnx(staged, model, samples, name=str(file))
        report |= {"opset": OPSET, "compared_on": "noise" if images is None else "images"}

        class_names = None if labels is None else tuple(labels)
        known = Sidecar(processor, class_names, verified=report, activation=activation)
        write_sidecar(*onnx_description(staged), known)
        _publish(staged, file, class_names)

    return {"file": str(file), **report}


def check_installed() -> None:
    """Check that what an export needs is installed.

    Raises:
        ImportError: If it is not; it says how to install it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"An ONNX file is written by tf2onnx and onnx and checked by onnxruntime: {INSTALL} "
            f"({error})"
        ) from error


def converted(model: keras.Model) -> bytes:
    """The content of an ONNX file, unverified.

    Args:
        model: It computes in float32.
    Raises:
        ExportError: If the graph has an operation that ONNX has none for.
    """
    import tf2onnx

    network = _outputs_by_name(model)
    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")
    run = tf.function(lambda images: network(images, training=False), input_signature=[spec])

    # It tells of every pass, and by a traceback of each that it leaves out, with the graph whole.
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    try:
        proto, _ = tf2onnx.convert.from_function(run, input_signature=[spec], opset=OPSET)
    except Exception as error:  # of its own, of TensorFlow's and of protobuf
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{model.name} does not convert to ONNX: {reason}") from error

    for tensor in (*proto.graph.input, *proto.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto.SerializeToString()


def verify_onnx(
    file: str | Path, model: keras.Model, images: np.ndarray, name: str | None = None
) -> dict:
    """Run an ONNX file and compare each of its outputs with Keras.

    Args:
        file: The file.
        model: What it was made from, computing in float32.
        images: float32 [n, H, W, 3], normalized.
        name: What errors call the file; itself by default.
    Returns:
        `bytes`, `ops` (count by name), `images` (their number), what `deviation` in
        deit_tf.exporting.compare measures, `agreement`, as it counts it, and of two heads
        `outputs` by name.
    Raises:
        ExportError: If weights are missing, an operation is none of ONNX's own, the file does not
            run, also of one image, or differs by more than `EXACT`.
    """
    import onnx

    file, name = Path(file), name or str(file)
    size, weights = file.stat().st_size, model.count_params()
    if size < 0.9 * 4 * weights:
        raise ExportError(f"{name} has {size} bytes, too few for {weights} weights in float32")
    graph = onnx.load(file).graph
    if foreign := sorted(
        {node.op_type for node in graph.node if node.domain not in ("", "ai.onnx")}
    ):
        raise ExportError(f"{name} holds {', '.join(foreign)}, which are no operations of ONNX")

    network = _outputs_by_name(model)
    expected = in_batches(lambda part: network(part, training=False), images)
    try:
        loaded = OnnxModel(file)
        found = in_batches(loaded.outputs, images)
        # A batch size that tracing froze shows only with a second size.
        alone = loaded(images[:1])
    except ValueError as error:
        raise ExportError(f"{name} does not run: {error}") from error

    measured = deviation(found[LOGITS], expected[LOGITS])
    agreed = agreement(found[LOGITS], expected[LOGITS])
    excess = EXACT.exceeded(measured, agreed)
    excess = excess or EXACT.exceeded_by_difference(deviation(alone, expected[LOGITS][:1]))
    if excess:
        raise ExportError(f"{name} differs from Keras: {excess}, on {len(images)} images")

    report = {
        "bytes": size,
        "ops": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "images": len(images),
        **measured,
        "agreement": agreed,
    }
    if others := verify_outputs(name, found, expected, EXACT):
        report["outputs"] = others
    return report


def _outputs_by_name(model: keras.Model) -> keras.Model:
    """From images to `logits`, and of two heads `cls` and `dist`."""
    (image,), (logits,) = model.inputs, model.outputs
    outputs = {LOGITS: logits}
    if has_two_heads(model):
        outputs |= heads(model).output
    return keras.Model(image, outputs)


def _check_size(model: keras.Model) -> None:
    size = 4 * model.count_params()
    if size > LARGEST:
        raise ValueError(
            f"An ONNX file holds at most {LARGEST / 1e9:.1f} GB, and {model.name} has "
            f"{size / 1e9:.1f} GB of weights. Export it as a SavedModel."
        )


def _publish(staged: Path, file: Path, class_names: Sequence[str] | None) -> None:
    """Give a verified file its name, then what lies beside it."""
    description, _ = onnx_description(file)
    description.unlink(missing_ok=True)  # rather none than that of another file
    os.replace(staged, file)
    os.replace(staged.with_name(description.name), description)
    if class_names is not None:
        write_class_names(class_names, file.with_name(CLASS_NAMES_FILE))
