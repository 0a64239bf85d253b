"""Static int8 for .tflite files: weights and activations of every matrix product in int8, by
calibrated ranges.

Outliers of LayerNorm move into the next kernel first (SmoothQuant, Xiao et al. 2023, equation 4);
litert-quantizer
rewrites the file. What was tried, with figures: docs/export-measurements.md.
"""

import contextlib
import io
from collections.abc import Callable, Collection, Sequence

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import Model

from deit_tf.models.features import features
from deit_tf.models.parts import HEADS, blocks, is_deit

# The ops that hold the weights, and nearly all of the arithmetic. Softmax, LayerNorm, GELU and the
# two products of attention stay in float: in int8 they cost five points of agreement, and time as
# well, for want of fast kernels.
OPS = ("FULLY_CONNECTED", "CONV_2D")
SIGNATURE = "serving_default"
SMALLEST, LARGEST = 1e-3, 1e3  # of a smoothing factor
BATCH = 32


def smooth(model: keras.Model, images: np.ndarray, alpha: float = 0.5) -> keras.Model:
    """Divide the channels of each LayerNorm by factors that its next kernel takes up; the output
    stays the same.

    A channel that is much larger than the others would take the whole range of eight bits for
    itself.

    Args:
        model: A DeiT; any other model comes back as it is.
        images: float32 [n, H, W, 3], normalized; the largest activations on them are taken.
        alpha: How much of the difficulty moves from activations (0: none) to weights (1: all).
    Returns:
        A copy.
    Raises:
        ValueError: If `alpha` lies outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` lies in [0, 1]. Received: {alpha}")
    if not is_deit(model):
        return model

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for (norm, kernels), largest in zip(_norms(copy), _largest_outputs(copy, images), strict=True):
        weights = np.max([np.abs(kernel.numpy()).max(axis=1) for kernel in kernels], axis=0)  # [D]
        floor = np.finfo(np.float32).tiny
        factors = np.maximum(largest, floor) ** alpha / np.maximum(weights, floor) ** (1 - alpha)
        factors = np.clip(factors, SMALLEST, LARGEST).astype(np.float32)

        # What the norm gives is divided, and what its kernels read is multiplied.
        norm.gamma.assign(norm.gamma / factors)
        norm.beta.assign(norm.beta / factors)
        for kernel in kernels:
            kernel.assign(kernel * factors[:, None])

    return copy


def extremes(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value."""
    return float(values.min()), float(values.max())


def quantize_int8(
    content: bytes, images: np.ndarray, *, ops: Sequence[str] = OPS, measure: Callable = extremes
) -> bytes:
    """Make ops of a float32 .tflite file int8, weights per channel, activations per tensor.

    Args:
        content: A file with one signature, of one image [1, H, W, 3].
        images: [n, H, W, 3] of the type that the file takes: what activations are calibrated on.
        ops: Names of the ops.
        measure: From the values of an activation on one image to its range; the widest of all
            images holds.
    Differs: litert-quantizer itself calibrates by a moving average of the ranges, which clips most
        images.
    """
    from litert_quantizer import quantizer  # slow to import, and needed for this variant alone

    made = quantizer.Quantizer(bytearray(content))
    for op in ops:
        made.add_static_config(".*", op, activation_num_bits=8, weight_num_bits=8)

    silent = io.StringIO()
    with contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):  # progress bars
        name = next(
            iter(Interpreter(model_content=content).get_signature_list()[SIGNATURE]["inputs"])
        )

        # One image names the tensors; their ranges are then those of all images.
        calibrated = made.calibrate({SIGNATURE: [{name: images[:1]}]}, num_threads=1)
        ranges = activation_ranges(
            content, images, calibrated.keys() - _constants(content), measure
        )
        for tensor, (low, high) in ranges.items():
            calibrated[tensor] |= {"min": np.full_like(calibrated[tensor]["min"], low)}
            calibrated[tensor] |= {"max": np.full_like(calibrated[tensor]["max"], high)}
        return bytes(made.quantize(calibrated, enable_progress_report=False).quantized_model)


def activation_ranges(
    content: bytes, images: np.ndarray, names: Collection[str], measure: Callable = extremes
) -> dict[str, tuple[float, float]]:
    """Widest range, over all images, of tensors of a .tflite file.

    Args:
        content: The file.
        images: [n, H, W, 3] of the type that it takes.
        names: The tensors.
        measure: From the values on one image to their range.
    """
    interpreter = Interpreter(model_content=content, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    (fed,) = interpreter.get_input_details()
    indices = {
        d["index"]: d["name"] for d in interpreter.get_tensor_details() if d["name"] in names
    }

    ranges = {name: (np.inf, -np.inf) for name in indices.values()}
    for image in images:
        interpreter.set_tensor(fed["index"], image[None])
        interpreter.invoke()
        for index, name in indices.items():
            (low, high), seen = measure(interpreter.get_tensor(index)), ranges[name]
            ranges[name] = min(seen[0], low), max(seen[1], high)

    return ranges


def _norms(model: keras.Model) -> list[tuple[keras.Layer, list]]:
    """Each LayerNorm of a DeiT, from input to output, and the kernels [D, U] that read it."""
    pairs = []
    for block in blocks(model):
        pairs += [(block.norm1, [block.attn.qkv.kernel]), (block.norm2, [block.mlp.fc1.kernel])]
    heads = [layer.kernel for layer in model.layers if layer.name in HEADS]
    return [*pairs, (model.get_layer("norm"), heads)]


def _largest_outputs(model: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    """Largest magnitude per channel, [D], of the output of each norm of `_norms`, over all
    images.
    """
    inside = features(model)
    hidden = keras.Model(inside.input, inside.output["hidden_states"])
    seen = [
        _largest_of_batch(model, hidden(images[i : i + BATCH]))
        for i in range(0, len(images), BATCH)
    ]
    return [np.max(each, axis=0) for each in zip(*seen, strict=True)]


def _largest_of_batch(model: keras.Model, hidden) -> list[np.ndarray]:
    """The same of hidden states [B, depth + 1, N, D]."""
    outputs = []
    for index, block in enumerate(blocks(model)):
        first = block.norm1(hidden[:, index])
        outputs += [first, block.norm2(block.after_attention(hidden[:, index]))]
    tokens = sum(layer.name in HEADS for layer in model.layers)
    outputs.append(model.get_layer("norm")(hidden[:, -1])[:, :tokens])
    return [np.abs(np.asarray(output)).max(axis=(0, 1)) for output in outputs]


def _constants(content: bytes) -> set[str]:
    """Names of the tensors that the file holds: weights, whose ranges are known per channel."""
    model = Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    tensors = (graph.Tensors(i) for i in range(graph.TensorsLength()))
    return {
        tensor.Name().decode() for tensor in tensors if model.Buffers(tensor.Buffer()).DataLength()
    }
