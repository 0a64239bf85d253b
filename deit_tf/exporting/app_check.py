"""The numbers of one picture, by which an app's own code is checked: `<name>.check.json` beside a
.tflite file.

The picture is a formula, so that no file has to travel; its values change slowly, so that one
bicubic resizing gives nearly what another gives.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from deit_tf.config import CHANNELS
from deit_tf.data.pillow import MOST_LEVELS
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.compare import HALF, Limits
from deit_tf.exporting.litert import load_tflite
from deit_tf.exporting.sidecar import INPUTS
from deit_tf.files import sha256, write_json

SUFFIX = ".check.json"
FORMULA = "pixel[y, x, c] = min(t, 511 - t), t = (3 y + 5 x + 85 c) mod 512"
FIRST = 12  # values and logits that are written out


def check_file(file: Path) -> Path:
    """Where the numbers of a .tflite file stand."""
    return file.with_suffix(SUFFIX)


def check_picture(height: int, width: int, channels: int = CHANNELS) -> np.ndarray:
    """The picture of `FORMULA`, uint8 [height, width, channels]."""
    y, x, c = np.indices((height, width, channels))
    t = (3 * y + 5 * x + 85 * c) % 512
    return np.minimum(t, 511 - t).astype(np.uint8)


def check_numbers(file: Path, processor: ImageProcessor, limits: Limits) -> dict[str, Any]:
    """What an app must find with a .tflite file.

    Args:
        file: The file; its JSON file need not be there yet.
        processor: How its images are made.
        limits: What the file may differ by from Keras.
    Returns:
        The content of `<name>.check.json`:
        `picture`, the formula;
        `input`, the picture of the file's own size, which no resizing touches: the checksum of its
        pixels, and the first values that the file is fed;
        `output`, what the file then gives on a CPU, and how far another device may be from that;
        `preparation`, a larger picture that is to be resized and cropped, and pixels of the result.
    """
    model = load_tflite(file)
    pixels = check_picture(*processor.size, processor.num_channels)
    fed = pixels if model.input_type == "uint8" else processor.normalize(pixels).numpy()
    logits = model(fed[None], processor)[0]  # [C]
    scale = max(1.0, float(np.abs(logits).max()))

    return {
        "file": file.name,
        "sha256": sha256(file),
        "picture": FORMULA,
        "input": {
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
            "values": INPUTS[model.input_type],
            "first": fed.ravel()[:FIRST].tolist(),
        },
        "output": {
            "first_logits": logits[:FIRST].tolist(),
            "class": int(logits.argmax()),
            "largest_difference": {
                "cpu": limits.max_difference * scale,
                "gpu": limits.or_looser(HALF).max_difference * scale,
            },
        },
        "preparation": _preparation(processor),
    }


def write_check_numbers(file: Path, processor: ImageProcessor, limits: Limits) -> None:
    """Write what `check_numbers` gives beside a .tflite file."""
    write_json(check_numbers(file, processor, limits), check_file(file))


def _preparation(processor: ImageProcessor) -> dict[str, Any]:
    height, width = (side * 3 // 2 for side in processor.size)
    picture = check_picture(height, width, processor.num_channels)
    cropped = processor.normalize(processor.crop(tf.constant(picture)))
    pixels = processor.to_pixels(cropped[None])[0]  # [H, W, channels]

    rows, columns = ((0, side // 2, side - 1) for side in pixels.shape[:2])
    places = [(row, column) for row in rows for column in columns]
    return {
        "from_height": height,
        "from_width": width,
        "pixels": [{"y": y, "x": x, "rgb": pixels[y, x].tolist()} for y, x in places],
        "largest_difference": MOST_LEVELS,
    }
