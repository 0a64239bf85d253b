"""A Keras model as a .tflite file for phones, run by LiteRT and compared with Keras before it gets
its name.

The core, `convert` and `verify_tflite`, takes a SavedModel or a file and knows nothing of DeiT.
Formats: https://ai.google.dev/edge/litert/conversion/tensorflow/convert_tf and its page on
post-training quantization.
"""

import functools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.accelerators import measure_devices
from deit_tf.exporting.activations import SOFTMAX, check_activation
from deit_tf.exporting.app_check import check_file, write_check_numbers
from deit_tf.exporting.compare import EXACT, HALF, ExportError, Limits, agreement, deviation
from deit_tf.exporting.flatbuffer import dequantize_pixels, op_counts
from deit_tf.exporting.litert import LiteModel, latencies, load_tflite
from deit_tf.exporting.outputs import (
    LOGITS,
    OUTPUTS,
    all_outputs,
    expected_outputs,
    verify_outputs,
)
from deit_tf.exporting.quantize import quantize_int8, smooth
from deit_tf.exporting.reference import comparison_images, float32_twin, keras_logits
from deit_tf.exporting.sidecar import (
    GRAPH_FILE,
    INPUTS,
    SUFFIX,
    Sidecar,
    check_class_names_beside,
    tflite_description,
    write_sidecar,
)
from deit_tf.exporting.staging import staging
from deit_tf.files import CLASS_NAMES_FILE, check_class_names, write_class_names
from deit_tf.models.older import keep_axes

__all__ = ["VARIANTS", "LiteModel", "export_tflite", "latencies", "load_tflite"]


@dataclass(frozen=True)
class Variant:
    """How a .tflite file stores its weights.

    Args:
        bytes_per_weight: Size of the common weight in the file.
        limits: What it may lose by that.
    """

    bytes_per_weight: int
    limits: Limits


# A DeiT-Ti, trained, has been seen to differ (before any division) by at most 1.4e-6, 1.1e-3 and
# 0.075 with logits of deviation 1.6; the limits leave room for other weights, and none for a broken
# graph.
VARIANTS = {
    "float32": Variant(4, EXACT),
    "float16": Variant(2, HALF),
    "dynamic_int8": Variant(
        1,
        Limits(max_difference=1e-1, relative_rms=1e-1, top1_agreement=0.97, clear_agreement=0.995),
    ),
    "int8": Variant(
        1,
        Limits(max_difference=2e-1, relative_rms=1e-1, top1_agreement=0.97, clear_agreement=0.995),
    ),
}
# Built-in ops all the same, but with weights that the file does not hold: such a file runs and
# returns NaN.
STATEFUL_OPS = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}


def export_tflite(
    model: keras.Model,
    file: str | Path,
    *,
    variant: str = "float32",
    images: np.ndarray | None = None,
    input_type: str = "float32",
    processor: ImageProcessor | None = None,
    labels: Sequence[str] | None = None,
    calibration: np.ndarray | None = None,
    outputs: str = "logits",
    activation: str = SOFTMAX,
) -> dict:
    """Write `model` as a .tflite file with the signature `images` [1, H, W, 3] -> `logits` [1, C],
    and check it.

    Until it has passed, the file lies in a hidden folder; one that fails is left as
    `<file>.rejected`, and what bore the final name before stays as it was. Beside it come
    `<name>.json`, which tells an app how to feed it (deit_tf.exporting.sidecar), `labels.txt`, and,
    where `processor` is known, `<name>.check.json`, numbers that an app must find too
    (deit_tf.exporting.app_check).

    Args:
        model: From float32 [B, H, W, 3] images to [B, C] logits.
        file: Where to write; ends in `.tflite`.
        variant: `float32`, `float16` (weights stored in half precision), `dynamic_int8` (weights in
            int8, activations quantized as they come) or `int8` (both, by ranges calibrated
            beforehand; see deit_tf.exporting.quantize).
        images: float32 [n, H, W, 3], normalized as for the model, to compare on; held-out ones.
            Noise if None.
        input_type: `float32`, normalized images, or `uint8`, pixels, with the normalization of
            `processor` inside.
        processor: How the model wants its images, for `uint8` and for the JSON file.
        labels: C class names in class order.
        calibration: For `int8`: float32 [n, H, W, 3], normalized, training images; some hundreds.
        outputs: `logits`, or `all`: both heads and the attention rollout as well, as `all_outputs`
            in deit_tf.exporting.outputs names them.
        activation: What an app makes probabilities with, for the JSON file: `softmax`, or `sigmoid`
            of a model of images with any number of labels.
    Returns:
        What `verify_tflite` measured, with `file`, `variant`, `input_type` and `compared_on`
        ("images" or "noise"); of all outputs, `outputs` as `verify_outputs` measured them.
    Raises:
        ValueError: For another suffix, an unknown variant or input, or a model, images or labels
            that do not fit.
        ExportError: If the file fails its verification.
    Differs: a model of mixed precision is exported, and compared, computing in float32.
    """
    file = Path(file)
    if file.suffix != SUFFIX:
        raise ValueError(f"`file` must end in {SUFFIX}. Received: {file}")
    check_variant(variant)
    samples = comparison_images(model, images)
    _check_input(input_type, processor, model)
    _check_outputs(outputs)
    check_activation(activation)
    if labels is not None:
        check_class_names(labels, model.output_shape[-1])
        check_class_names_beside(file, labels)
    if variant == "int8":
        calibration = _checked_calibration(model, calibration)

    model = float32_twin(model)
    seen = samples
    if input_type == "uint8":
        samples = processor.to_pixels(samples)
        seen = processor.normalize(samples)
    content = converted(model, variant, input_type, processor, calibration, outputs)
    expected = keras_logits(model, seen) if outputs == LOGITS else expected_outputs(model, seen)

    with staging(file.parent) as folder:
        staged, rejected = folder / file.name, file.with_name(f"{file.name}.rejected")
        staged.write_bytes(content)
        try:
            report = verify_tflite(
                staged,
                samples,
                expected,
                weights=model.count_params(),
                variant=variant,
                name=str(rejected),
            )
        except ExportError:
            os.replace(staged, rejected)
            raise

        report |= {
            "variant": variant,
            "input_type": input_type,
            "compared_on": "noise" if images is None else "images",
        }

        class_names = None if labels is None else tuple(labels)
        _describe(staged, Sidecar(processor, class_names, input_type, report, activation), variant)
        _publish(staged, file, class_names)

    rejected.unlink(missing_ok=True)  # of an earlier export
    return {"file": str(file), **report}


def _describe(file: Path, sidecar: Sidecar, variant: str) -> None:
    """Write what lies beside a file: what it knows of itself, and numbers to check an app by."""
    write_sidecar(*tflite_description(file), sidecar, batch="1")
    if sidecar.processor is not None:
        write_check_numbers(file, sidecar.processor, VARIANTS[variant].limits)


def _publish(staged: Path, file: Path, class_names: Sequence[str] | None) -> None:
    """Give a verified file its name, then what lies beside it."""
    beside = [tflite_description(file)[0], check_file(file)]
    for each in beside:
        each.unlink(missing_ok=True)  # rather none than that of another file
    os.replace(staged, file)

    for each in beside:
        with suppress(FileNotFoundError):  # the numbers of a file without a processor
            os.replace(staged.with_name(each.name), each)
    if class_names is not None:
        write_class_names(class_names, file.with_name(CLASS_NAMES_FILE))


def check_variant(variant: str) -> None:
    """Refuse a variant that is not in `VARIANTS`, by ValueError."""
    if variant not in VARIANTS:
        raise ValueError(f"`variant` is one of {', '.join(VARIANTS)}. Received: {variant!r}")


def convert(saved_model: str | Path, variant: str = "float32") -> bytes:
    """Convert the only signature of a SavedModel with a fixed batch, to built-in ops alone.

    A dynamic batch converts as well, but to twice the ops, which break the graph into many delegate
    partitions.

    Raises:
        ExportError: If the graph has an op with no built-in counterpart.
    """
    # Not from_concrete_functions(..., model): it leaves the weights behind without an error, and
    # the file returns NaN.
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if variant != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if variant == "float16":
        converter.target_spec.supported_types = [tf.float16]

    try:
        return converter.convert()
    except Exception as error:  # ConverterError lives in a private module
        reason = str(error).partition("\n")[0]  # the rest is the graph as text
        raise ExportError(
            f"{saved_model} does not convert to built-in TFLite ops: {reason}"
        ) from error


def verify_tflite(
    file: str | Path,
    images: np.ndarray,
    expected: np.ndarray | Mapping[str, np.ndarray],
    *,
    weights: int,
    variant: str = "float32",
    name: str | None = None,
) -> dict:
    """Run a .tflite file and compare it with logits known to be right.

    Args:
        file: The file, with one signature from one image [1, H, W, 3] to logits [1, C].
        images: [n, H, W, 3], of the type that the file takes.
        expected: float [n, C], the logits that `images` should give; or `logits` and other outputs,
            by name.
        weights: Number of weights that the file must hold.
        variant: Whose limits hold, a key of `VARIANTS`.
        name: What errors call the file; itself by default.
    Returns:
        `bytes`, `ops` (count by name), `images` (their number), what `deviation` in
        deit_tf.exporting.compare measures, and `agreement`, as it counts it, by the Interpreter on
        the CPU; `devices`, as `measure_devices` in deit_tf.exporting.accelerators has them, by
        CompiledModel on CPU and GPU; and, where others than logits were expected, `outputs` by
        name.
    Raises:
        ExportError: If an op is custom or stateful, weights are missing, the file does not run, a
            difference is above its limit, or the classes agree too rarely.
    """
    check_variant(variant)
    file, name = Path(file), name or str(file)
    content = file.read_bytes()
    ops = op_counts(content)
    if bad := sorted(op for op in ops if op in STATEFUL_OPS or op.startswith("CUSTOM")):
        raise ExportError(
            f"{name} holds {', '.join(bad)}; only built-in ops without state run everywhere"
        )
    if len(content) < 0.9 * weights * VARIANTS[variant].bytes_per_weight:
        raise ExportError(
            f"{name} has {len(content)} bytes, too few for {weights} weights in {variant}"
        )

    try:
        loaded = load_tflite(file)
        found = loaded.outputs(images)
    except (ExportError, ValueError) as error:
        raise ExportError(f"{name} does not run: {error}") from error

    limits = VARIANTS[variant].limits
    others = expected if isinstance(expected, Mapping) else {LOGITS: expected}
    logits = np.asarray(others[LOGITS])
    named = found[loaded.logits_name]
    measured, agreed = deviation(named, logits), agreement(named, logits)
    if excess := limits.exceeded(measured, agreed):
        raise ExportError(
            f"{name} differs from Keras: {excess} for {variant}, on {len(images)} images"
        )

    report = {
        "bytes": len(content),
        "ops": ops,
        "images": len(images),
        **measured,
        "agreement": agreed,
        "devices": measure_devices(file, images, logits, limits),
    }
    if len(others) > 1:
        report["outputs"] = verify_outputs(name, found, others, limits)
    return report


def _check_input(input_type: str, processor: ImageProcessor | None, model: keras.Model) -> None:
    if input_type not in INPUTS:
        raise ValueError(f"`input_type` is one of {', '.join(INPUTS)}. Received: {input_type!r}")
    if input_type == "uint8" and processor is None:
        raise ValueError(
            "`processor` must tell the mean and std of pixels for input uint8. Received: None"
        )
    if processor is None:
        return
    made = (*processor.size, processor.num_channels)
    if model.input_shape[1:] != made:
        raise ValueError(
            f"`processor` must make images of {model.input_shape[1:]}. Received: "
            f"image_size={processor.image_size}, {processor.num_channels} channels"
        )


def _check_outputs(outputs: str) -> None:
    if outputs not in OUTPUTS:
        raise ValueError(f"`outputs` is one of {', '.join(OUTPUTS)}. Received: {outputs!r}")


def _checked_calibration(model: keras.Model, images: np.ndarray | None) -> np.ndarray:
    if images is None:
        raise ValueError(
            "`calibration` must be training images for int8; noise has other ranges. Received: None"
        )
    return comparison_images(model, images)


def converted(
    model: keras.Model,
    variant: str,
    input_type: str,
    processor: ImageProcessor | None,
    calibration: np.ndarray | None,
    outputs: str = LOGITS,
) -> bytes:
    """The content of a .tflite file, unverified.

    Args:
        model: It computes in float32.
        variant: A key of `VARIANTS`.
        input_type: A key of `INPUTS` in deit_tf.exporting.sidecar.
        processor: How the model wants its images, for `uint8`.
        calibration: float32 [n, H, W, 3], normalized, for `int8`.
        outputs: As of `export_tflite`.
    """
    if variant == "int8":
        model = smooth(model, calibration)
        if input_type == "uint8":
            calibration = processor.to_pixels(calibration)

    model = keep_axes(model)
    call = _call(model, input_type, processor, outputs)
    with tempfile.TemporaryDirectory() as directory:
        save_fixed_batch(model, call, np.dtype(input_type), directory)
        content = convert(directory, "float32" if variant == "int8" else variant)
    if variant == "int8":
        content = quantize_int8(content, calibration)
    return dequantize_pixels(content)


def _call(
    model: keras.Model, input_type: str, processor: ImageProcessor | None, outputs: str
) -> Callable:
    """From normalized images, or uint8 pixels, [B, H, W, 3] to logits [B, C] or all outputs."""
    network = functools.partial(model, training=False)
    if outputs != LOGITS:
        network = all_outputs(model)
    if input_type == "uint8":
        return lambda pixels: network(processor.normalize(pixels))
    return network


def save_fixed_batch(model: keras.Model, call: Callable, dtype: np.dtype, directory: str) -> None:
    """Save `images` [1, H, W, 3] -> `logits` [1, C] of `call`, or what it gives by name, as a
    SavedModel.
    """
    module = tf.Module()
    # Not the model: see write_saved_model in deit_tf.exporting.saved_model.
    module.weights = [v.value for v in model.variables]
    spec = tf.TensorSpec((1, *model.input_shape[1:]), dtype, name="images")

    def named(images: tf.Tensor) -> dict[str, tf.Tensor]:
        given = call(images)
        return given if isinstance(given, dict) else {LOGITS: given}

    run = tf.function(named, input_signature=[spec])
    tf.saved_model.save(module, directory, signatures=run)
    _rearrange_gelu(Path(directory, GRAPH_FILE))


def _rearrange_gelu(file: Path) -> None:
    """Write the exact GELU of a SavedModel as the converter knows it: `(x / 2) * (erf + 1)`, not
    `((erf + 1) / 2) * x`.

    The two are equal, and TensorFlow's own graph rewriter fuses the second alone.
    """
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for function in saved.meta_graphs[0].graph_def.library.function:
        nodes = {node.name: node for node in function.node_def}

        def made_by(tensor: str, op: str, nodes=nodes):
            node = nodes.get(tensor.partition(":")[0])
            return node if node is not None and node.op == op else None

        for product in function.node_def:
            half = made_by(product.input[0], "Mul") if product.op == "Mul" else None
            added = made_by(half.input[0], "AddV2") if half else None
            if added and made_by(added.input[0], "Erf"):
                half.input[0], product.input[1] = product.input[1], half.input[0]

    file.write_bytes(saved.SerializeToString())
