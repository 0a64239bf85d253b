"""What a request may ask of a model, checked before the session sees it, and what may be answered.

Shared by gRPC and REST.
"""

import io
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from deit_tf.config import MAX_ASPECT
from deit_tf.exporting.saved_model import LoadedModel

MAX_BATCH = 256
MAX_PIXELS = 32_000_000  # of all pictures of a request: decoded, each pixel takes 12 bytes
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # not GIF: later frames may be larger than its header says

# What Pillow reads and TensorFlow does not, or not as it is meant: by format and mode.
UNREADABLE = {
    ("BMP", "P"): "a BMP file with a palette, whose indices TensorFlow takes for gray levels",
    ("BMP", "1"): "a BMP file of one bit a pixel, which TensorFlow does not decode",
    ("WEBP", "RGBA"): "a WebP file with transparency, which TensorFlow does not decode",
}

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100


class InvalidRequestError(ValueError):
    """The request cannot be answered, through a fault of the client's."""


class InvalidAnswerError(RuntimeError):
    """The model gave an answer that must not be sent."""


@dataclass(frozen=True)
class Input:
    """The one input of a signature.

    Args:
        signature: Name of the signature.
        name: Name of the input.
        dtype: Its dtype.
        shape: Its shape, the batch first; -1 is any size.
    """

    signature: str
    name: str
    dtype: tf.DType
    shape: tuple[int, ...]


def signature_input(model: LoadedModel, signature: str) -> Input:
    """The input of a signature; of `serving_default` where the name is empty.

    Raises:
        InvalidRequestError: If there is no such signature, or it takes anything but one batch.
    """
    signature = signature or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
    if signature not in model.signatures:
        names = ", ".join(sorted(name for name in model.signatures if not name.startswith("__")))
        raise InvalidRequestError(
            f"There is no signature {shortened(signature)}; there are {names}."
        )

    inputs = model.signatures[signature].inputs
    if len(inputs) != 1:
        raise InvalidRequestError(
            f"{signature} takes {len(inputs)} inputs ({', '.join(sorted(inputs))}). This server "
            "runs signatures of one, as export_saved_model writes them."
        )

    ((name, info),) = inputs.items()
    shape = tuple(dim.size for dim in info.tensor_shape.dim)
    if not shape:
        raise InvalidRequestError(f"{signature} takes {name} without a batch dimension.")
    return Input(signature, name, tf.as_dtype(info.dtype), shape)


def check_names(given: Iterable[str], wanted: Input) -> None:
    """Refuse inputs of other names than that of the signature.

    Raises:
        InvalidRequestError: If there are others, or none.
    """
    given = sorted(given)
    if given != [wanted.name]:
        received = shortened(", ".join(given)) if given else "nothing"
        raise InvalidRequestError(f"{wanted.signature} takes {wanted.name}. Received: {received}")


def predict(model: LoadedModel, wanted: Input, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Run a signature.

    Args:
        model: The model that serves.
        wanted: What `signature_input` says of the signature.
        batch: The input.
    Returns:
        The outputs by name, all of them finite.
    Raises:
        InvalidRequestError: If the batch has another dtype, rank or size, holds NaN or infinity, or
            a picture that is none, too large, or not decoded.
        InvalidAnswerError: If an output is not finite.
    """
    # By what can be told without running it: one bad picture fails the whole batch in the graph.
    _check_batch(wanted, batch)
    if wanted.dtype == tf.string:
        _check_pictures(wanted.name, batch)
    elif wanted.dtype.is_floating:
        _check_finite(wanted.name, batch)

    try:
        outputs = model.run(wanted.signature, batch)
    except tf.errors.InvalidArgumentError as error:
        raise InvalidRequestError(f"{wanted.name}: {error.message.splitlines()[0]}") from error

    _check_answer(wanted.signature, outputs)
    return outputs


def shortened(value: object) -> str:
    """`repr(value)` for an error text, cut: a client may send a name of megabytes."""
    return _REPR.repr(value)


def _check_batch(wanted: Input, batch: np.ndarray) -> None:
    is_text = batch.dtype.kind in "OSU"
    if is_text != (wanted.dtype == tf.string) or not (is_text or batch.dtype == wanted.dtype):
        received = "string" if is_text else batch.dtype.name
        raise InvalidRequestError(f"{wanted.name} is {wanted.dtype.name}. Received: {received}")

    fits = len(batch.shape) == len(wanted.shape) and all(
        size in (-1, n) for size, n in zip(wanted.shape, batch.shape, strict=True)
    )
    if not fits:
        raise InvalidRequestError(
            f"{wanted.name} has shape {list(wanted.shape)}, where -1 is any size. Received: "
            f"{list(batch.shape)}"
        )

    if not 0 < len(batch) <= MAX_BATCH:
        raise InvalidRequestError(f"A batch has 1 to {MAX_BATCH} images. Received: {len(batch)}")


def _check_finite(name: str, batch: np.ndarray) -> None:
    finite = np.isfinite(batch).reshape(len(batch), -1).all(axis=1)  # [B]
    if not finite.all():
        first = f"{name}[{np.argmin(finite)}]"
        raise InvalidRequestError(
            f"{first} holds NaN, infinity or a number beyond {batch.dtype.name}."
        )


def _check_answer(signature: str, outputs: Mapping[str, np.ndarray]) -> None:
    for name, output in outputs.items():
        if output.dtype.kind != "O" and not np.isfinite(output).all():
            raise InvalidAnswerError(
                f"{name!r} of {signature!r} holds NaN or infinity: the model is broken, or the "
                "input far out of its range."
            )


def _check_pictures(name: str, batch: np.ndarray) -> None:
    pixels = sum(_pixels(f"{name}[{index}]", encoded) for index, encoded in enumerate(batch.flat))
    if pixels > MAX_PIXELS:
        raise InvalidRequestError(
            f"{name} has {pixels:,} pixels in all; at most {MAX_PIXELS:,} are allowed."
        )


def _pixels(name: str, encoded: bytes) -> int:
    """Pixels of a picture, by its header alone: decoded, it might fill the memory."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            width, height = picture.size
            kind, moves = (picture.format, picture.mode), getattr(picture, "is_animated", False)
    except (
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise InvalidRequestError(
            f"{name} is no picture that can be read ({len(encoded)} bytes); allowed are "
            f"{', '.join(FORMATS)}."
        ) from error

    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidRequestError(
            f"{name} has {width} x {height} pixels; allowed are {MAX_PIXELS:,}, and sides of 1 "
            f"to {MAX_ASPECT}."
        )
    if kind in UNREADABLE:
        raise InvalidRequestError(f"{name} is {UNREADABLE[kind]}. Send it as PNG.")
    if kind[0] == "WEBP" and moves:
        raise InvalidRequestError(f"{name} is a WebP file that moves. Send one frame of it.")

    return width * height
