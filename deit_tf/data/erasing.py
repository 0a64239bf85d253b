"""Random erasing: rectangles of a normalized image replaced by noise or by a color.

Source: timm/data/random_erasing.py.
"""

from typing import Literal

import tensorflow as tf

from deit_tf.data.crop import DrawnBox, draw_box

EraseMode = Literal["const", "rand", "pixel"]

ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)


def draw_erasing(
    height: tf.Tensor | int,
    width: tf.Tensor | int,
    seed: tf.Tensor,
    probability: float,
    most: int = 1,
) -> list[DrawnBox]:
    """Draw the rectangles to erase.

    Args:
        height: Height of the image in pixels.
        width: Its width.
        seed: Two whole numbers.
        probability: Share of the images that lose any.
        most: Most rectangles of an image; from 1 up each number is as likely, and they share the
            area among them.
    Returns:
        As many as `most`; `found` says of each whether it is there.
    """
    seeds = tf.random.split(seed, 2)
    height, width = tf.convert_to_tensor(height, tf.int32), tf.convert_to_tensor(width, tf.int32)
    chosen = tf.random.stateless_uniform([], seeds[0]) < probability

    # how many, and the area of each
    count, area = 1, ERASED_AREA
    if most > 1:
        share = tf.random.stateless_uniform([], tf.random.fold_in(seeds[0], 1))
        count = 1 + tf.cast(share * most, tf.int32)
        area = tuple(part / tf.cast(count, tf.float32) for part in ERASED_AREA)

    boxes = []
    for place in range(most):
        own = _own(seeds[1], place)
        box = draw_box(height, width, (height - 1, width - 1), own, area, ERASED_RATIO)
        boxes.append(box._replace(found=box.found & chosen & (place < count)))
    return boxes


def random_erasing(
    image: tf.Tensor, seed: tf.Tensor, probability: float, mode: EraseMode = "pixel", most: int = 1
) -> tf.Tensor:
    """Replace rectangles of an image with `probability`.

    What takes their place is drawn only where they are.

    Args:
        image: float32 [H, W, channels], normalized.
        seed: Two whole numbers.
        probability: Share of the images that lose 2 % to 33 % of their area.
        mode: `pixel`, normal noise of each pixel and channel; `rand`, one normal color; `const`,
            the mean color, 0.
        most: Most rectangles of an image, as of `draw_erasing`.
    Returns:
        float32 [H, W, channels].
    """
    seeds = tf.random.split(seed, 2)
    sides = tf.unstack(tf.shape(image)[:2])
    for place, box in enumerate(draw_erasing(*sides, seeds[0], probability, most)):
        image = _erase(image, box, _own(seeds[1], place), mode)
    return image


def _erase(image: tf.Tensor, box: DrawnBox, seed: tf.Tensor, mode: EraseMode) -> tf.Tensor:
    found, top, left, height, width = box
    bottom, right, channels = top + height, left + width, image.shape[-1]

    def erased() -> tf.Tensor:
        if mode == "pixel":
            patch = tf.random.stateless_normal([height, width, channels], seed)
        else:
            is_drawn = mode == "rand"
            color = tf.random.stateless_normal([channels], seed) if is_drawn else tf.zeros(channels)
            patch = tf.broadcast_to(color, [height, width, channels])

        middle = tf.concat([image[top:bottom, :left], patch, image[top:bottom, right:]], axis=1)
        whole = tf.concat([image[:top], middle, image[bottom:]], axis=0)
        return tf.ensure_shape(whole, image.shape)

    return tf.cond(found, erased, lambda: image)


def _own(seed: tf.Tensor, place: int) -> tf.Tensor:
    """The seed of a rectangle; the first has that of an image with a single one."""
    return tf.random.fold_in(seed, place) if place else seed
