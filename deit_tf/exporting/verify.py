"""Whether a SavedModel says what Keras says: each signature, in a C++ session, on the same
pictures.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from deit_tf.config import CHANNELS
from deit_tf.data.npy import encode_npy
from deit_tf.data.pillow import MOST_LEVELS, crop_by_pillow
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.activations import ACTIVATIONS, SOFTMAX
from deit_tf.exporting.compare import EXACT, ExportError, deviation
from deit_tf.exporting.reference import in_batches, keras_logits
from deit_tf.exporting.session import LoadedModel, load_saved_model
from deit_tf.exporting.signatures import (
    BYTES,
    HEADS,
    IMAGES,
    ROLLOUT,
    rollout_model,
)
from deit_tf.files import CLASS_NAMES_FILE
from deit_tf.models.deit import heads
from deit_tf.models.parts import has_two_heads

# What a checkpoint holds beside the weights; measured at about 90 bytes a variable.
INDEX_BYTES, INDEX_BYTES_PER_VARIABLE = 4096, 256


def verify_saved_model(
    path: str | Path,
    model: keras.Model,
    images: np.ndarray,
    processor: ImageProcessor | None = None,
    tolerance: float = EXACT.max_difference,
    signatures: Sequence[str] = (),
    activation: str = SOFTMAX,
) -> dict:
    """Load a SavedModel in a C++ session, compare every signature with Keras and replay the warm-up
    records.

    Args:
        path: Folder of a version.
        model: The model it was made from, computing in float32.
        images: float32 [n, H, W, 3], normalized.
        processor: How bytes become images; None leaves the signature of bytes out.
        tolerance: Difference allowed, over max(1, largest |Keras's logit|).
        signatures: What there must be beside `images`, `heads` of a distilled model, and that of
            bytes.
        activation: What makes the probabilities.
    Returns:
        `weights_bytes` on disk, `images_compared` (n), `warmup_records` and, by signature, what
        `deviation` in deit_tf.exporting.compare measures; of two heads, that of the worse; of the
        rollout, times its number of patches. The bytes are 2n PNG and JPEG files made from
        `images`; for them `levels_from_pillow` as well, the largest difference of a pixel, prepared
        for the network, from what Pillow makes of the file.
    Raises:
        ExportError: If weights are missing or written twice, the session does not load or run, an
            output is missing, one differs, pixels differ from Pillow's, or there are no warm-up
            records.
    """
    images = np.asarray(images, np.float32)
    report = {"weights_bytes": _check_weights(Path(path), model), "images_compared": len(images)}
    loaded = load_saved_model(path)

    try:
        report[IMAGES] = _verify_images(loaded, model, images, tolerance, activation)
        if has_two_heads(model):
            report[HEADS] = _verify_heads(loaded, model, images, tolerance)
        if ROLLOUT in signatures:
            report[ROLLOUT] = _verify_rollout(loaded, model, images, tolerance)
        if processor is not None:
            report[BYTES] = _verify_bytes(loaded, model, images, processor, tolerance, activation)
        report["warmup_records"] = loaded.warm_up()
    except (tf.errors.OpError, KeyError, ValueError) as error:
        raise ExportError(
            f"{path} fails in a C++ session: {type(error).__name__}: {error}"
        ) from error

    if not report["warmup_records"]:
        raise ExportError(
            f"{path} has no warm-up records: its first requests would wait for the graph"
        )
    return report


def encoded_pictures(images: np.ndarray, processor: ImageProcessor) -> list[bytes]:
    """Normalized images [n, H, W, channels] as n PNG files, and as n JPEG files cut to another
    shape, so as to be resized; neither gray nor RGB as 2n `.npy` files.
    """
    pixels = processor.to_pixels(images)
    cut = pixels[:, :, : max(1, 2 * pixels.shape[2] // 3)]
    if processor.num_channels not in (1, CHANNELS):
        return [encode_npy(picture) for picture in (*pixels, *cut)]
    whole = [tf.io.encode_png(picture).numpy() for picture in pixels]
    return whole + [tf.io.encode_jpeg(picture, quality=95).numpy() for picture in cut]


def _check_weights(path: Path, model: keras.Model) -> int:
    """Bytes of the weights on disk, refused where they are not those of the model, once."""
    found = sum(file.stat().st_size for file in path.glob("variables/variables.data-*"))
    expected = sum(v.value.dtype.size * v.value.shape.num_elements() for v in model.variables)
    slack = 0.05 * expected + INDEX_BYTES + INDEX_BYTES_PER_VARIABLE * len(model.variables)
    if abs(found - expected) > slack:
        why = "some are missing" if found < expected else "each may be there twice"
        raise ExportError(f"{path} holds {found} bytes of weights, the model {expected}: {why}")
    return found


def _verify_images(
    loaded: LoadedModel,
    model: keras.Model,
    images: np.ndarray,
    tolerance: float,
    activation: str,
) -> dict[str, float]:
    expected = keras_logits(model, images)  # [n, C]
    outputs = _run_in_batches(loaded, IMAGES, images)
    _check_top_k(IMAGES, outputs, expected, loaded.class_names, tolerance, activation)

    # A batch of one as well: a batch size that tracing froze shows only with a second size.
    alone = loaded.run(IMAGES, images[:1])["logits"]
    _compare(f"{IMAGES}, a batch of one", alone, expected[:1], tolerance)
    return _compare(IMAGES, outputs["logits"], expected, tolerance)


def _verify_heads(
    loaded: LoadedModel, model: keras.Model, images: np.ndarray, tolerance: float
) -> dict[str, float]:
    both = heads(model)
    outputs = _run_in_batches(loaded, HEADS, images)
    expected = in_batches(lambda part: both(part, training=False), images)
    measured = [
        _compare(f"{HEADS}, {key}", outputs[key], expected[key], tolerance)
        for key in ("cls", "dist")
    ]
    return max(measured, key=lambda one: one["max_difference"])


def _verify_rollout(
    loaded: LoadedModel, model: keras.Model, images: np.ndarray, tolerance: float
) -> dict[str, float]:
    maps = rollout_model(model)
    found = _run_in_batches(loaded, ROLLOUT, images)["rollout"]
    expected = in_batches(maps, images)  # [n, H/P, W/P]

    # Shares sum to 1: times their number, they are of order 1 as logits are.
    patches = expected[0].size
    found, expected = (patches * np.reshape(maps, (len(images), -1)) for maps in (found, expected))
    return _compare(ROLLOUT, found, expected, tolerance)


def _verify_bytes(
    loaded: LoadedModel,
    model: keras.Model,
    images: np.ndarray,
    processor: ImageProcessor,
    tolerance: float,
    activation: str,
) -> dict[str, float]:
    encoded = encoded_pictures(images, processor)
    cropped = np.stack([processor.crop(processor.decode(picture)) for picture in encoded])
    levels = _check_pixels(cropped, encoded, processor)

    expected = keras_logits(model, processor.normalize(cropped))  # [2n, C]
    outputs = _run_in_batches(loaded, BYTES, encoded)
    _check_top_k(BYTES, outputs, expected, loaded.class_names, tolerance, activation)
    return _compare(BYTES, outputs["logits"], expected, tolerance) | levels


def _check_pixels(
    cropped: np.ndarray, encoded: Sequence[bytes], processor: ImageProcessor
) -> dict[str, int]:
    """The largest difference from Pillow's pixels, which has none of neither gray nor RGB."""
    if processor.num_channels not in (1, CHANNELS):
        return {}
    by_pillow = np.stack([crop_by_pillow(picture, processor) for picture in encoded])
    levels = int(np.abs(np.int16(cropped) - by_pillow).max())  # of uint8 [2n, H, W, channels]
    if levels > MOST_LEVELS:
        raise ExportError(
            f"pixels differ from Pillow's by {levels} gray levels, {MOST_LEVELS} are allowed"
        )
    return {"levels_from_pillow": levels}


def _run_in_batches(loaded: LoadedModel, signature: str, batch: Sequence) -> dict[str, np.ndarray]:
    """The outputs of a signature, by name, of a batch of any size in bounded memory."""
    return in_batches(lambda part: loaded.run(signature, part), batch)


def _compare(
    what: str, logits: np.ndarray, expected: np.ndarray, tolerance: float
) -> dict[str, float]:
    measured = deviation(logits, expected)
    if not measured["max_difference"] <= tolerance:  # a NaN fails as well
        raise ExportError(
            f"signature {what}: logits differ from Keras by {measured['max_difference']:.3g}, "
            f"{tolerance:g} is allowed"
        )
    return measured


def _check_top_k(
    what: str,
    outputs: dict,
    expected: np.ndarray,
    class_names: Sequence[str],
    tolerance: float,
    activation: str,
) -> None:
    """Compare probabilities, top-k and class names with what the logits of Keras make of them."""
    probabilities = np.asarray(ACTIVATIONS[activation](expected))  # [n, C]
    classes = outputs["top_k_classes"]  # [n, k]
    best = -np.sort(-probabilities, axis=-1)[:, : classes.shape[-1]]
    names = [[class_names[c].encode() for c in row] for row in classes] if class_names else None

    # By probability, not by class: two classes that are equal to the last bit may change places.
    differences = {
        "probabilities": outputs["probabilities"] - probabilities,
        "top_k_probabilities": outputs["top_k_probabilities"] - best,
        "top_k_classes": np.take_along_axis(probabilities, classes, -1) - best,
    }
    wrong = [key for key, one in differences.items() if not np.abs(one).max() <= tolerance]
    if outputs["top_k_labels"].tolist() != names:
        wrong.append("top_k_labels")
    if wrong:
        raise ExportError(
            f"signature {what}: {', '.join(wrong)} do not follow from the logits and "
            f"{CLASS_NAMES_FILE}"
        )
