"""What a batch must be: labels as distributions, images of the network's shape.

Both are checked in graphs too. Labels that are none would train in silence: a class number beyond
the last becomes a row of zeros, whose loss is 0.
"""

import keras
import tensorflow as tf

from deit_tf.models.parts import is_deit

# Beyond any normalized pixel, and below the brightest of almost any batch of 0..255.
LARGEST_NORMALIZED = 8.0
ROW_TOLERANCE = 1e-2  # by which a row of bfloat16 labels may miss the sum of 1


def distributions(labels: tf.Tensor, classes: int, weight: tf.Tensor | None = None) -> tf.Tensor:
    """Labels as float32 [B, C], checked.

    Args:
        labels: Whole numbers 0..C-1, [B] or [B, 1]; or probabilities, float [B, C].
        classes: Classes C.
        weight: [B]; labels of weight 0 fill up a batch, and may be anything.
    Raises:
        ValueError: For labels of another type or shape.
        tf.errors.InvalidArgumentError: When run, for numbers beyond the classes, or rows that do
            not sum to 1, such as those of several classes at once.
    """
    if labels is None:
        raise ValueError("`y` must be the labels of the images. Received: none.")
    labels = tf.convert_to_tensor(labels)
    counts = tf.ones([]) if weight is None else tf.cast(weight, tf.float32)
    filling = tf.reshape(counts, [-1]) == 0  # [B] or [1]
    sentence = (
        f"Labels are whole numbers 0..{classes - 1} [B], or probabilities float [B, {classes}] "
        "whose rows sum to 1; for several classes per image this loss is the wrong one."
    )
    if _is_rows(labels, classes):
        rows = tf.cast(labels, tf.float32)
        off = tf.abs(tf.reduce_sum(rows, axis=-1) - 1)
        wrong = (off > ROW_TOLERANCE) | (tf.reduce_min(rows, axis=-1) < 0)
    elif _is_numbers(labels):
        numbers = tf.reshape(labels, [-1])
        rows = tf.one_hot(numbers, classes)
        wrong = (numbers < 0) | (numbers >= classes)
    else:
        raise ValueError(f"{sentence} Received: {labels.dtype.name} {tuple(labels.shape)}")

    return _asserted(rows, ~wrong | filling, [sentence, "Received:", labels])


def multi_labels(labels: tf.Tensor, classes: int, weight: tf.Tensor | None = None) -> tf.Tensor:
    """Labels of images that may have several, as float32 [B, C], checked.

    Args:
        labels: Float [B, C], each 0..1: 1 where a class is there.
        classes: Classes C.
        weight: As of `distributions`.
    Raises:
        ValueError: For labels of another type or shape.
        tf.errors.InvalidArgumentError: When run, for values beyond 0..1.
    """
    sentence = f"Labels of several classes are float [B, {classes}], 1 where one is there, else 0."
    if labels is None:
        raise ValueError(f"{sentence} Received: none.")
    labels = tf.convert_to_tensor(labels)
    if not _is_rows(labels, classes):
        raise ValueError(f"{sentence} Received: {labels.dtype.name} {tuple(labels.shape)}")

    rows = tf.cast(labels, tf.float32)
    counts = tf.ones([]) if weight is None else tf.cast(weight, tf.float32)
    fits = tf.reduce_all((rows >= 0) & (rows <= 1 + ROW_TOLERANCE), axis=-1)
    return _asserted(rows, fits | (tf.reshape(counts, [-1]) == 0), [sentence, "Received:", labels])


def _asserted(rows: tf.Tensor, fits: tf.Tensor, message: list) -> tf.Tensor:
    """`rows`, once all of them fit."""
    good = tf.debugging.Assert(tf.reduce_all(fits), message)
    if good is None:  # eager: it has raised already where they are wrong
        return rows

    with tf.control_dependencies([good]):
        return tf.identity(rows)


def check_images(images: tf.Tensor, network: keras.Model) -> None:
    """Check the images of a batch against what `network` takes.

    Raises:
        ValueError: If they are no tensor, or of another shape.
    """
    wanted = tuple(network.input_shape[1:])
    named = "x".join("any" if side is None else str(side) for side in wanted)
    if isinstance(images, dict | list | tuple):
        kind = type(images).__name__
        found = f"a dict of {', '.join(map(str, images))}" if kind == "dict" else f"a {kind}"
        raise ValueError(
            f"`x` must be images, one float [B, {named}], and labels come as `y`. Map a "
            "data set of dicts to pairs: `dataset.map(lambda row: (row['image'], row['label']))`. "
            f"Received: {found}"
        )

    images = tf.convert_to_tensor(images)
    if images.dtype.is_integer and is_deit(network):
        raise ValueError(
            f"`x` must be normalized images, float [B, {named}]: bring pixels 0..255 to mean 0 "
            "and deviation 1 (`deit_tf.ImageProcessor().normalize`). Received: "
            f"{images.dtype.name} {tuple(images.shape)}"
        )
    if images.shape.rank is None:
        raise ValueError(
            f"`x` must be images of a shape that is known before it runs, float [B, {named}]. Set "
            "it in the data set: `tf.ensure_shape`, or the signature of a generator."
        )

    shape = tuple(images.shape)
    if remedy := _remedy(shape, wanted):
        raise ValueError(
            f"`x` must be images of the model's shape, float [B, {named}]. {remedy} Received: "
            f"{shape}"
        )


def _remedy(shape: tuple, wanted: tuple) -> str:
    """What to do about a batch of images of another shape; empty where it fits."""
    if len(shape) != len(wanted) + 1:
        return "Give each image its channels as last axis (`images[..., None]`), and all a batch."

    fits = [
        want is None or have in (None, want) for want, have in zip(wanted, shape[1:], strict=True)
    ]
    if not fits[-1]:
        gray = (
            "Repeat the channel (`tf.image.grayscale_to_rgb`), or make"
            if shape[-1] == 1
            else "Make"
        )
        return f"{gray} the model for them (`create_model(..., num_channels={shape[-1]})`)."
    if not all(fits):
        size = shape[1:3]
        return (
            f"Resize them (`tf.image.resize(images, {wanted[:2]})`, or deit_tf.ImageProcessor), or "
            f"make the model for their size (`create_model(..., image_size={size})`)."
        )
    return ""


def checked_pixels(images: tf.Tensor, name: str) -> tf.Tensor:
    """The images of a batch for a network that normalizes them itself, checked to be pixels 0..255.

    Raises:
        tf.errors.InvalidArgumentError: When run, for images that are normalized already: some below
            0, and none beyond what a deviation of 1 gives.
    """
    # Erased pixels are noise around 0, so that some below 0 alone would say nothing.
    normalized = (tf.reduce_min(images) < 0) & (tf.reduce_max(images) < LARGEST_NORMALIZED)
    sentence = (
        f"Images for {name!r} are pixels 0..255, as it normalizes them itself, and these are "
        "normalized already. Feed it pixels (`deit_tf.ImageProcessor(mean=(0, 0, 0), std=(1 / 255, "
        ") * 3)`), or make it without its preprocessing (`include_preprocessing=False`)."
    )
    values = ["From", tf.reduce_min(images), "to", tf.reduce_max(images)]
    return _asserted(images, ~normalized, [sentence, "Received:", *values])


def _is_rows(labels: tf.Tensor, classes: int) -> bool:
    return labels.shape.rank == 2 and labels.shape[-1] == classes and labels.dtype.is_floating


def _is_numbers(labels: tf.Tensor) -> bool:
    column = labels.shape.rank == 2 and labels.shape[-1] == 1
    return labels.dtype.is_integer and (labels.shape.rank == 1 or column)
