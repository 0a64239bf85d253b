"""Each pixel operation by keras-cv's own layer and by the one here: its cost, and its exactness.

CPU milliseconds per image of 224 x 224 within tf.data, the two taking turns; and gray levels off
Pillow, on average and at most, on a photograph whose upper third is white.

    python benchmarks/keras_cv_kernels.py --rounds 5 --images 512
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import keras_cv
import numpy as np
import tensorflow as tf
from input_pipeline import FILES, WORKERS, Run, crops, measure, reader
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from rich.console import Console
from rich.table import Table

from deit_tf.data.pixel_ops import OPERATIONS, apply_operation, have_global_generator

L, RANGE, FILL = keras_cv.layers, (0, 255), (124, 116, 104)
CONSTANT = {"fill_mode": "constant"}

# The argument here, at a magnitude of 9; keras-cv's layer, and its transformations to the same end.
KERAS_CV: dict[str, tuple[Any, Callable, Callable]] = {
    "auto_contrast": (None, lambda: L.AutoContrast(RANGE), lambda _: None),
    "equalize": (None, lambda: L.Equalization(RANGE), lambda _: None),
    "invert": (None, lambda: L.Solarization(RANGE), lambda _: _solarized(0.0, 0.0)),
    "rotate": (27.0, lambda: L.RandomRotation(0.1, **CONSTANT), lambda _: _turned(27.0)),
    "posterize": (1, lambda: L.Posterization(RANGE, 1), lambda _: None),
    "solarize": (26, lambda: L.Solarization(RANGE), lambda _: _solarized(26.0, 0.0)),
    "solarize_add": (99, lambda: L.Solarization(RANGE), lambda _: _solarized(128.0, 99.0)),
    "color": (1.81, lambda: L.RandomColorDegeneration(0.1), lambda _: -0.81),
    "contrast": (1.81, lambda: L.RandomContrast(RANGE, 0.1), lambda _: 1.81),
    "brightness": (1.81, lambda: L.RandomBrightness(0.1), lambda _: 0.81 * 255),
    "sharpness": (1.81, lambda: L.RandomSharpness(0.1, RANGE), lambda _: -0.81),
    "shear_x": (0.27, lambda: L.RandomShear(0.1, **CONSTANT), lambda _: _sheared(0.27, None)),
    "shear_y": (0.27, lambda: L.RandomShear(0.1, **CONSTANT), lambda _: _sheared(None, 0.27)),
    "translate_x": (
        0.405,
        lambda: L.RandomTranslation(0.1, 0.1, **CONSTANT),
        lambda _: _moved(-0.405, 0.0),
    ),
    "translate_y": (
        0.405,
        lambda: L.RandomTranslation(0.1, 0.1, **CONSTANT),
        lambda _: _moved(0.0, -0.405),
    ),
    "grayscale": (None, lambda: L.Grayscale(3), lambda _: None),
    "blur": (
        1.0,
        lambda: L.RandomGaussianBlur(13, (1.0, 1.0)),
        lambda layer: layer.get_random_transformation(),
    ),
}


def _solarized(threshold: float, addition: float) -> dict[str, float]:
    return {"thresholds": threshold, "additions": addition}


def _turned(degrees: float) -> dict[str, tf.Tensor]:
    return {"angles": tf.constant([math.radians(degrees)])}


def _sheared(x: float | None, y: float | None) -> dict[str, tf.Tensor | None]:
    slopes = {"shear_x": x, "shear_y": y}
    return {name: slope and tf.constant([[slope]]) for name, slope in slopes.items()}


def _moved(right: float, down: float) -> dict[str, tf.Tensor]:
    return {
        "width_translations": tf.constant([[right]]),
        "height_translations": tf.constant([[down]]),
    }


def _affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    def transform(image: Image.Image) -> Image.Image:
        how = Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
        return image.transform(image.size, *how, fillcolor=FILL)

    return transform


def _brighter_shadows(image: Image.Image) -> Image.Image:
    return image.point([level + 99 if level < 128 else level for level in range(256)] * 3)


# The same by Pillow.
PILLOW: dict[str, Callable[[Image.Image], Image.Image]] = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "rotate": lambda image: image.rotate(27.0, Image.Resampling.BICUBIC, fillcolor=FILL),
    "posterize": lambda image: ImageOps.posterize(image, 1),
    "solarize": lambda image: ImageOps.solarize(image, 26),
    "solarize_add": _brighter_shadows,
    "color": lambda image: ImageEnhance.Color(image).enhance(1.81),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.81),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.81),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.81),
    "shear_x": _affine(1, 0.27, 0, 0, 1, 0),
    "shear_y": _affine(1, 0, 0, 0.27, 1, 0),
    "translate_x": lambda image: _affine(1, 0, 0.405 * image.width, 0, 1, 0)(image),
    "translate_y": lambda image: _affine(1, 0, 0, 0, 1, 0.405 * image.height)(image),
    "grayscale": lambda image: image.convert("L").convert("RGB"),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(1.0)),
}


@functools.cache
def _layer(name: str) -> keras_cv.layers.BaseImageAugmentationLayer:
    with tf.init_scope():
        have_global_generator()
        return KERAS_CV[name][1]()


def by_keras_cv(name: str, image: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 3] to float32 gray levels, by keras-cv's layer as it stands."""
    layer, filled = _layer(name), OPERATIONS[name].fills
    transformations = KERAS_CV[name][2](layer)
    middle = tf.constant(FILL if filled else (0, 0, 0), tf.float32)  # it fills with one number

    values = tf.cast(image, tf.float32) - middle
    if hasattr(layer, "augment_images"):
        values = layer.augment_images(values[None], transformations)[0]
    else:
        values = layer.augment_image(values, transformation=transformations)
    return values + middle


def by_this_package(name: str, image: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 3] to the same."""
    return apply_operation(name, image, KERAS_CV[name][0], FILL)


WAYS = {"keras-cv": by_keras_cv, "here": by_this_package}


def difference(name: str, way: str, picture: np.ndarray) -> np.ndarray:
    """Gray levels off Pillow, [H, W, 3]."""
    expected = np.asarray(PILLOW[name](Image.fromarray(picture))).astype(float)
    return np.abs(WAYS[way](name, tf.constant(picture)).numpy() - expected)


def white_above(picture: np.ndarray) -> np.ndarray:
    """The picture with its upper third white."""
    picture = picture.copy()
    picture[: len(picture) // 3] = 255
    return picture


def contenders() -> Iterator[tuple[str, Run]]:
    """Each operation both ways."""
    images = tf.constant(crops())

    def dataset(apply: Callable) -> tf.data.Dataset:
        indices = tf.data.Dataset.range(1 << 40)
        return indices.map(lambda i: apply(tf.gather(images, i % FILES)), WORKERS).batch(64)

    for name in KERAS_CV:
        for way, apply in WAYS.items():
            yield f"{name}/{way}", reader(dataset(functools.partial(apply, name)))


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each; the best is shown")
    parser.add_argument("--images", type=int, default=512, help="images per turn")
    args = parser.parse_args()

    costs = measure({name: (run, 1) for name, run in contenders()}, args.rounds, args.images)
    picture = white_above(crops()[0])
    table = Table("operation", "argument", title="keras-cv's own layer -> the one here")

    for column in ("CPU ms", "off by, mean", "at most"):
        table.add_column(column, justify="right")
    for name, (argument, *_) in KERAS_CV.items():
        milliseconds = [costs[f"{name}/{way}"]["cpu_ms_best"] for way in WAYS]
        off = [difference(name, way, picture) for way in WAYS]
        table.add_row(
            name,
            "" if argument is None else str(argument),
            " -> ".join(f"{value:.2f}" for value in milliseconds),
            " -> ".join(f"{levels.mean():.2f}" for levels in off),
            " -> ".join(f"{levels.max():.0f}" for levels in off),
        )

    Console().print(table)


if __name__ == "__main__":
    main()
