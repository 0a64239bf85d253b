"""What a request may ask of a model, checked before the session sees it; shared by gRPC and
REST.
"""

import io

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from deit_tf.config import MAX_ASPECT
from deit_tf.exporting.saved_model import LoadedModel

MAX_PIXELS = (
    32_000_000  # of all encoded pictures of a request: they are decoded to 12 bytes a pixel
)
MAX_BATCH = 256
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "WEBP",
)  # not GIF, whose later frames may be larger than its header says


class InvalidRequestError(ValueError):
    """The request cannot be answered, through a fault of the client's."""


def predict(
    model: LoadedModel, signature: str, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run a signature of one input.

    Args:
        model: The model that serves.
        signature: Its name; `serving_default` where empty.
        inputs: The one input, by its name.
    Returns:
        The outputs by name.
    Raises:
        InvalidRequestError: If the signature, an input's name, dtype, rank or size, or a picture is
            wrong.
    """
    signature = signature or "serving_default"
    if signature not in model.signatures:
        raise InvalidRequestError(
            f"There is no signature {signature!r}; there are {', '.join(sorted(model.signatures))}."
        )
    wanted = model.signatures[signature].inputs
    if set(inputs) != set(wanted):
        raise InvalidRequestError(
            f"{signature} takes {', '.join(wanted)}. Received: {', '.join(inputs) or 'nothing'}"
        )
    ((name, info),) = wanted.items()
    batch = _checked(
        name, inputs[name], tf.as_dtype(info.dtype), [dim.size for dim in info.tensor_shape.dim]
    )
    try:
        return model.run(signature, batch)
    except tf.errors.InvalidArgumentError as error:
        raise InvalidRequestError(f"{name}: {error.message.splitlines()[0]}") from error


def _checked(name: str, batch: np.ndarray, dtype: tf.DType, shape: list[int]) -> np.ndarray:
    """The batch, if it has the dtype and shape of the signature; -1 is any size."""
    is_text = batch.dtype.kind in "OSU"
    if is_text != (dtype == tf.string) or not (is_text or batch.dtype == dtype.as_numpy_dtype):
        raise InvalidRequestError(
            f"{name} is {dtype.name}. Received: {'string' if is_text else batch.dtype.name}"
        )
    if batch.ndim != len(shape) or any(
        size not in (-1, n) for size, n in zip(shape, batch.shape, strict=True)
    ):
        raise InvalidRequestError(
            f"{name} has shape {shape}, where -1 is any size. Received: {list(batch.shape)}"
        )
    if not 0 < len(batch) <= MAX_BATCH:
        raise InvalidRequestError(f"A batch has 1 to {MAX_BATCH} images. Received: {len(batch)}")
    if is_text:
        pixels = sum(_pixels(f"{name}[{index}]", encoded) for index, encoded in enumerate(batch))
        if pixels > MAX_PIXELS:
            raise InvalidRequestError(
                f"{name} has {pixels:,} pixels in all; at most {MAX_PIXELS:,} are allowed."
            )
    return batch


def _pixels(name: str, encoded: bytes) -> int:
    """Pixels of a picture, by its header alone; refused where it is none, or would fill the
    memory.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            width, height = picture.size
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        told = f"{name} is no picture that can be read ({len(encoded)} bytes)"
        raise InvalidRequestError(f"{told}; allowed are {', '.join(FORMATS)}.") from error
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidRequestError(
            f"{name} has {width} x {height} pixels; allowed are {MAX_PIXELS:,}, and sides of 1 "
            f"to {MAX_ASPECT}."
        )
    return width * height
