"""A Keras classifier as a SavedModel for TensorFlow Serving: written, verified, then named.

Layout and signatures as https://www.tensorflow.org/tfx/serving/saved_model_basics asks for them. A
version appears under its name only after it was loaded in a C++ session and compared with Keras.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.activations import SOFTMAX, check_activation
from deit_tf.exporting.compare import EXACT
from deit_tf.exporting.reference import comparison_images, float32_twin
from deit_tf.exporting.session import LoadedModel, load_saved_model
from deit_tf.exporting.sidecar import Sidecar, saved_model_description, write_sidecar
from deit_tf.exporting.signatures import make_signatures
from deit_tf.exporting.single_pictures import LITERT_FILE
from deit_tf.exporting.staging import staging
from deit_tf.exporting.tflite import export_tflite
from deit_tf.exporting.verify import encoded_pictures, verify_saved_model
from deit_tf.exporting.warmup import BATCH_SIZES, write_warmup
from deit_tf.files import (
    CLASS_NAMES_FILE,
    check_class_names,
    read_json,
    write_class_names,
    write_json,
)

__all__ = ["LoadedModel", "export_saved_model", "load_saved_model", "read_report"]

REPORT_FILE = Path("assets.extra", "verification.json")
REPORT_KEYS = ("weights_bytes", "images_compared", "warmup_records", "compared_on", "xla")


def export_saved_model(
    model: keras.Model,
    directory: str | Path,
    *,
    processor: ImageProcessor,
    labels: Sequence[str] | None = None,
    version: int = 1,
    name: str | None = None,
    top_k: int = 5,
    activation: str = SOFTMAX,
    rollout: bool = False,
    xla: bool = False,
    litert: bool = False,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    images: np.ndarray | None = None,
    tolerance: float = EXACT.max_difference,
) -> Path:
    """Write `directory/<name>/<version>/`, ready for TensorFlow Serving, after verifying it.

    The signatures take a batch of any size. `serving_default` maps `image_bytes` (tf.string [B],
    JPEG, PNG, GIF, BMP or WebP files) and `images` maps `images` (float32 [B, H, W, 3], normalized)
    to `logits` and `probabilities` (float32 [B, C]), `top_k_classes` (int32 [B, k]),
    `top_k_probabilities` and `top_k_labels` (string [B, k]); `heads`, of a distilled model, maps
    `images` to `cls` and `dist` logits [B, C]; `rollout`, where asked for, maps `images` to
    `rollout` [B, H/P, W/P], the share of each patch in the decision as `attention_maps` has it. One
    file that does not decode fails its whole batch.

    Args:
        model: From float32 [B, H, W, 3] images to [B, C] logits.
        directory: Model base path of the server; made where missing.
        processor: How the model wants its images.
        labels: C class names in class order; "0" to "C-1" by default.
        version: Number of the version, from 1; a server takes the highest.
        name: Folder of the model; `model.name` by default.
        top_k: How many classes the top-k outputs name, C at most.
        activation: What makes the probabilities: `softmax`, or `sigmoid` of a model of images with
            any number of labels.
        rollout: Whether there is a signature for the attention rollout; of a DeiT alone.
        xla: Whether the network, not the decoding of pictures, is compiled by XLA: on the server,
            anew for each batch size, so that it must fill batches up to `batch_sizes`.
        litert: Whether a float32 .tflite file goes along in `assets.extra`, verified as
            `export_tflite` does it, by which `export/serve.py` answers single pictures; TensorFlow
            Serving does not look at it.
        batch_sizes: Those that the server allows; each signature has a warm-up record of each.
        images: float32 [n, H, W, 3], normalized, to verify on; held-out ones. Noise if None.
        tolerance: Difference from Keras allowed, as `deviation` in deit_tf.exporting.compare has
            it.
    Returns:
        The folder of the version; `read_report` gives what was measured.
    Raises:
        ValueError: If an argument does not fit the model.
        FileExistsError: If the version exists; it is not touched.
        ExportError: If the verification fails; nothing is left behind.
    Differs: a model of mixed precision is exported, and compared, computing in float32.
    """
    samples = comparison_images(model, images)
    class_names = list(map(str, range(model.output_shape[-1]))) if labels is None else list(labels)
    check_class_names(class_names, model.output_shape[-1])
    _check_arguments(model, processor, version, top_k, batch_sizes)
    check_activation(activation)
    name = _checked_name(name or model.name)
    target = Path(directory, name, str(version))
    if target.exists():
        raise FileExistsError(f"{target} exists and is left as it is. Take the next `version`.")

    model = float32_twin(model)
    with staging(Path(directory)) as folder:
        # Inside a folder of its own, as that one is made for its owner alone and the version must
        # be readable by the server.
        staged = folder / "version"
        options = {"activation": activation, "rollout": rollout, "xla": xla}
        signatures = make_signatures(model, processor, class_names, top_k, **options)
        write_saved_model(model, staged, signatures=signatures, labels=class_names)
        inputs = {key: function.input_signature[0] for key, function in signatures.items()}
        write_warmup(staged, name, inputs, encoded_pictures(samples, processor), batch_sizes)
        known = Sidecar(processor, None if labels is None else tuple(labels), activation=activation)
        write_sidecar(*saved_model_description(staged), known)

        report = verify_saved_model(
            staged,
            model,
            samples,
            processor,
            tolerance,
            signatures=list(signatures),
            activation=activation,
        )
        report |= {"compared_on": "noise" if images is None else "images", "xla": xla}
        write_json(report, staged / REPORT_FILE)
        if litert:
            beside = {"processor": processor, "labels": class_names, "activation": activation}
            export_tflite(model, staged / LITERT_FILE, images=images, **beside)

        # Fails where another export was faster: the target is then a folder with files.
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(staged, target)

    return target


def read_report(path: str | Path) -> dict:
    """What `verify_saved_model` measured when `path`, the folder of a version, was exported.

    Raises:
        FileNotFoundError: If there is no report.
        ValueError: If it is damaged.
    """
    return read_json(Path(path, REPORT_FILE), REPORT_KEYS)


def write_saved_model(
    model: keras.Model, path: str | Path, *, signatures: dict, labels: Sequence[str]
) -> None:
    """Write a SavedModel of `model` with these signatures to the folder `path`, unverified."""
    # The variables, and the model hidden in closures. A tracked Keras model saves and loads in
    # Python, but a C++ session does not find its variables
    # (https://github.com/keras-team/keras/issues/20095); Model.export writes each of them twice
    # (https://github.com/keras-team/keras/issues/23553).
    module = tf.Module()
    module.weights = [v.value for v in model.variables]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, CLASS_NAMES_FILE)
        write_class_names(labels, file)
        module.class_names = tf.saved_model.Asset(str(file))
        tf.saved_model.save(module, str(path), signatures=signatures)


def _checked_name(name: str) -> str:
    if name in (".", "..") or Path(name).name != name:
        raise ValueError(f"`name` must be the name of one folder. Received: {name!r}")
    return name


def _check_arguments(
    model: keras.Model,
    processor: ImageProcessor,
    version: int,
    top_k: int,
    batch_sizes: Sequence[int],
) -> None:
    if model.input_shape[1:] != (*processor.size, processor.num_channels):
        raise ValueError(
            f"`processor` must make images of the model's shape {model.input_shape[1:]}. "
            f"Received: image_size={processor.image_size}"
        )
    if not batch_sizes:
        raise ValueError("`batch_sizes` must name one at least, such as (1,). Received none.")

    counts = [("version", version), ("top_k", top_k)]
    counts += [("batch_sizes", size) for size in batch_sizes]
    for argument, number in counts:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"`{argument}` takes a whole number from 1. Received: {number!r}")
