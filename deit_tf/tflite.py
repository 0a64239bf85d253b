"""A Keras model as a .tflite file for phones, run by LiteRT and compared with Keras before it gets its name.

The core, `convert` and `verify_tflite`, takes a SavedModel or a file and knows nothing of DeiT. Formats:
https://ai.google.dev/edge/litert/conversion/tensorflow/convert_tf and its page on post-training quantization.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import BuiltinOperator, Model

SUFFIX = ".tflite"
NOISE_IMAGES = 4


class ExportError(RuntimeError):
    """An artefact was written and found wanting; it does not bear its final name."""


@dataclass(frozen=True)
class Variant:
    """How a .tflite file stores its weights, and what it may lose by that.

    Args:
        bytes_per_weight: Size of the common weight in the file.
        max_difference: Largest |logit - Keras's logit| allowed, over max(1, largest |Keras's logit|).
        relative_rms: Root mean square of the difference allowed, over that of Keras's logits; it holds
            small logits to account, where the other limit is loose.
    """

    bytes_per_weight: int
    max_difference: float
    relative_rms: float


# A DeiT-Ti, trained, has been seen to differ (before any division) by at most 1.4e-6, 1.1e-3 and 0.075
# with logits of deviation 1.6; the limits leave room for other weights, and none for a broken graph.
VARIANTS = {
    "float32": Variant(bytes_per_weight=4, max_difference=1e-4, relative_rms=1e-4),
    "float16": Variant(bytes_per_weight=2, max_difference=1e-2, relative_rms=1e-2),
    "dynamic_int8": Variant(bytes_per_weight=1, max_difference=1e-1, relative_rms=1e-1),
}
# Built-in ops all the same, but with weights that the file does not hold: such a file runs and returns NaN.
STATEFUL_OPS = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}


def export_tflite(
    model: keras.Model, file: str | Path, *, variant: str = "float32", images: np.ndarray | None = None
) -> dict:
    """Write `model` as a .tflite file with the signature `images` [1, H, W, 3] -> `logits` [1, C], and check it.

    Until it has passed, the file is called `<file>.rejected`; a file that fails keeps that name, and what
    bore the final name before stays as it was.

    Args:
        model: From float32 [B, H, W, 3] images to [B, C] logits.
        file: Where to write; ends in `.tflite`.
        variant: `float32`, `float16` (weights stored in half precision) or `dynamic_int8` (weights in
            int8, activations quantised as they come).
        images: float32 [n, H, W, 3], normalised as for the model, to compare on; held-out ones. Noise if None.
    Returns:
        What `verify_tflite` measured, with `file`, `variant` and `compared_on` ("images" or "noise").
    Raises:
        ValueError: For another suffix, an unknown variant, or a model or images of another shape.
        ExportError: If the file fails its verification.
    Differs: a model of mixed precision is exported, and compared, computing in float32.
    """
    file = Path(file)
    if file.suffix != SUFFIX:
        raise ValueError(f"`file` must end in {SUFFIX}. Received: {file}")
    check_variant(variant)
    samples = comparison_images(model, images)
    model = float32_twin(model)
    with tempfile.TemporaryDirectory() as directory:
        _save_fixed_batch(model, directory)
        content = convert(directory, variant)
    file.parent.mkdir(parents=True, exist_ok=True)
    rejected = file.with_name(file.name + ".rejected")
    rejected.write_bytes(content)
    logits = np.asarray(model(samples, training=False))  # [n, C]
    report = verify_tflite(rejected, samples, logits, weights=model.count_params(), variant=variant)
    os.replace(rejected, file)
    compared_on = "noise" if images is None else "images"
    return {"file": str(file), "variant": variant, "compared_on": compared_on, **report}


def check_variant(variant: str) -> None:
    """Refuse a variant that is not in `VARIANTS`, by ValueError."""
    if variant not in VARIANTS:
        raise ValueError(f"`variant` is one of {', '.join(VARIANTS)}. Received: {variant!r}")


def convert(saved_model: str | Path, variant: str = "float32") -> bytes:
    """Convert the only signature of a SavedModel with a fixed batch, to built-in ops alone.

    A dynamic batch converts as well, but to twice the ops, which break the graph into many delegate partitions.

    Raises:
        ExportError: If the graph has an op with no built-in counterpart.
    """
    # Not from_concrete_functions(..., model): it leaves the weights behind without an error, and the file returns NaN.
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
        raise ExportError(f"{saved_model} does not convert to built-in TFLite ops: {reason}") from error


def verify_tflite(
    file: str | Path, images: np.ndarray, logits: np.ndarray, *, weights: int, variant: str = "float32"
) -> dict:
    """Run a .tflite file and compare it with logits known to be right.

    Args:
        file: The file, with one signature from one image [1, H, W, 3] to logits [1, C].
        images: float32 [n, H, W, 3].
        logits: float [n, C], what `images` should give.
        weights: Number of weights that the file must hold.
        variant: Whose limits hold, a key of `VARIANTS`.
    Returns:
        `bytes`, `ops` (count by name), `images` (their number), `max_difference`, `mean_difference`,
        `relative_rms` (see `deviation`) and `top1_agreement`, a share of the images.
    Raises:
        ExportError: If an op is custom or stateful, weights are missing, or a difference is above its limit.
    """
    check_variant(variant)
    limits, content = VARIANTS[variant], Path(file).read_bytes()
    ops = op_counts(content)
    if bad := sorted(op for op in ops if op in STATEFUL_OPS or op.startswith("CUSTOM")):
        raise ExportError(f"{file} holds {', '.join(bad)}; only built-in ops without state run everywhere")
    if len(content) < 0.9 * weights * limits.bytes_per_weight:
        raise ExportError(f"{file} has {len(content)} bytes, too few for {weights} weights in {variant}")
    measured = deviation(load_tflite(file)(images), logits)
    for name in ("max_difference", "relative_rms"):
        if not measured[name] <= getattr(limits, name):  # a NaN fails as well
            raise ExportError(
                f"{file} differs from Keras: {name} {measured[name]:.3g} on {len(images)} images, "
                f"{getattr(limits, name):g} is allowed for {variant}"
            )
    return {"bytes": len(content), "ops": ops, "images": len(images), **measured}


def op_counts(content: bytes) -> dict[str, int]:
    """Count the ops of a .tflite file by name; a custom op is named `CUSTOM <its name>`."""
    names = {code: name for name, code in vars(BuiltinOperator).items() if isinstance(code, int)}
    model = Model.GetRootAs(content, 0)

    def name(index: int) -> str:
        entry = model.OperatorCodes(index)
        # Codes above 127 stand in the second field alone, files of old converters have only the first.
        op = names[max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode())]
        return f"CUSTOM {entry.CustomCode().decode()}" if op == "CUSTOM" else op

    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    codes = [graph.Operators(i).OpcodeIndex() for graph in graphs for i in range(graph.OperatorsLength())]
    return dict(Counter(map(name, codes)).most_common())


class LiteModel:
    """A .tflite file as a callable, from float32 [B, H, W, 3] images to float32 [B, C] logits.

    Args:
        file: A file with one signature from one image [1, H, W, 3] to logits [1, C].
        num_threads: Threads per image; by default LiteRT chooses.
    Raises:
        ValueError: If the file is no .tflite file, or has another signature.
    """

    def __init__(self, file: str | Path, num_threads: int | None = None):
        self._interpreter = Interpreter(model_path=str(file), num_threads=num_threads)
        signatures: Mapping[str, dict] = self._interpreter.get_signature_list()
        shapes = [(list(s["inputs"]), list(s["outputs"])) for s in signatures.values()]
        if len(shapes) != 1 or any(len(names) != 1 for names in shapes[0]):
            raise ValueError(f"`file` needs one signature, of one input and one output. Received: {file} with {shapes}")
        (self._input,), (self._output,) = shapes[0]
        self._run = self._interpreter.get_signature_runner()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images in pixels."""
        height, width = self._run.get_input_details()[self._input]["shape"][1:3]
        return int(height), int(width)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits, float32 [B, C], of normalised images [B, H, W, 3]."""
        images = np.asarray(images, np.float32)
        return np.concatenate([self._run(**{self._input: image[None]})[self._output] for image in images])


def load_tflite(file: str | Path) -> LiteModel:
    """Load a .tflite file as a callable from images [B, H, W, 3] to logits [B, C]; it runs them one at a time."""
    return LiteModel(file)


def deviation(logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How far `logits` [n, C] are from `reference` [n, C].

    Returns:
        `max_difference` and `mean_difference`, absolute, over max(1, largest |reference|); `relative_rms`,
        the difference's root mean square over the reference's; `top1_agreement`, a share of the rows.
    Raises:
        ExportError: If the shapes differ.
    """
    logits, reference = np.asarray(logits, np.float64), np.asarray(reference, np.float64)
    if logits.shape != reference.shape:
        raise ExportError(f"the artefact returns logits of shape {logits.shape}, Keras {reference.shape}")
    difference = np.abs(logits - reference)
    scale = max(1.0, np.abs(reference).max())
    rms = np.sqrt(np.square(reference).mean())
    return {
        "max_difference": float(difference.max() / scale),
        "mean_difference": float(difference.mean() / scale),
        "relative_rms": float(np.sqrt(np.square(difference).mean()) / max(rms, np.finfo(np.float32).tiny)),
        "top1_agreement": float((logits.argmax(-1) == reference.argmax(-1)).mean()),
    }


def comparison_images(model: keras.Model, images: np.ndarray | None) -> np.ndarray:
    """Images to compare an artefact on, float32 [n, H, W, 3]: those given, or noise.

    Raises:
        ValueError: If `model` is no classifier of images of a fixed size, or `images` do not fit it.
    """
    shape, output = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not (isinstance(shape, tuple) and isinstance(output, tuple) and len(shape) == 4 and len(output) == 2):
        raise ValueError(
            "`model` takes images [B, H, W, 3] and returns logits [B, C]; of a Distiller, export `.student`. "
            f"Received: {getattr(model, 'name', model)!r} from {shape} to {output}"
        )
    if None in shape[1:]:
        raise ValueError(f"`model` must have a fixed image size. Received: {model.name!r} with input {shape}")
    if images is None:
        return np.random.default_rng(0).standard_normal((NOISE_IMAGES, *shape[1:]), np.float32)
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1:] != shape[1:] or not len(images):
        raise ValueError(f"`images` must be [n, *{shape[1:]}] with n > 0. Received: {images.shape}")
    return images


def float32_twin(model: keras.Model) -> keras.Model:
    """`model` itself, or a copy that computes in float32 where a layer does not (bfloat16 is no .tflite type)."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model

    def clone(layer):
        dtype = {"dtype": "float32"} if isinstance(layer, keras.Layer) else {}  # `x[:, 0]` is an operation, no layer
        return layer.__class__.from_config({**layer.get_config(), **dtype})

    twin = keras.models.clone_model(model, clone_function=clone, recursive=True)
    twin.set_weights(model.get_weights())
    return twin


def _save_fixed_batch(model: keras.Model, directory: str) -> None:
    """Save `images` [1, H, W, 3] -> `logits` [1, C] of `model` as a SavedModel."""
    module = tf.Module()
    module.weights = [v.value for v in model.variables]  # not the model: see serving.write_saved_model
    images = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="images")
    run = tf.function(lambda images: {"logits": model(images, training=False)}, input_signature=[images])
    tf.saved_model.save(module, directory, signatures=run)
