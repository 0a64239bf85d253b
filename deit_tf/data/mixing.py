"""Mixup and CutMix of a batch, and the labels they mix, as timm does (timm/data/mixup.py, mode
`batch`).

The parameters are drawn first, statelessly; keras-cv's MixUp and CutMix are then called with them.
Their own laws differ: a lambda per image, a random partner, and a CutMix lambda from the unclipped
    box.
"""

import functools

import keras_cv
import tensorflow as tf

from deit_tf.config import AugmentConfig


def one_hot(labels: tf.Tensor, num_classes: int, smoothing: float = 0.0) -> tf.Tensor:
    """Labels as distributions: 1 - s + s/C for the true class, s/C for the others.

    Args:
        labels: Whole numbers [B], 0..num_classes-1.
        num_classes: Classes C.
        smoothing: Share s of each label spread over all classes.
    Returns:
        float32 [B, C]; rows sum to 1.
    """
    off = smoothing / num_classes
    return tf.one_hot(labels, num_classes, on_value=1.0 - smoothing + off, off_value=off)


def _beta(seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """One draw from Beta(alpha, alpha), float64 []."""
    gamma = tf.random.stateless_gamma([2], seed, alpha, dtype=tf.float64)
    return gamma[0] / (gamma[0] + gamma[1])


def cutmix_box(lam: tf.Tensor, center: tf.Tensor, size: tuple[int, int] | tf.Tensor) -> tf.Tensor:
    """Box of relative area 1 - lambda around a center, clipped to the image.

    Args:
        lam: float64 [], 0..1.
        center: int32 [2], row and column.
        size: Height and width of the image.
    Returns:
        int32 [4]: top, left, bottom, right (exclusive).
    """
    size = tf.cast(size, tf.int32)
    cut = tf.cast(
        tf.cast(size, tf.float64) * tf.sqrt(1.0 - tf.cast(lam, tf.float64)), tf.int32
    )  # rounded down
    low = tf.clip_by_value(center - cut // 2, 0, size)
    high = tf.clip_by_value(center + (cut + 1) // 2, 0, size)
    return tf.concat([low, high], axis=0)


def draw_mix(
    seed: tf.Tensor, size: tuple[int, int] | tf.Tensor, config: AugmentConfig
) -> dict[str, tf.Tensor]:
    """Draw what happens to one batch.

    Args:
        seed: Two whole numbers.
        size: Height and width of the images.
        config: A resolved config.
    Returns:
        `lam`, float32 []: weight of an image's own label, 1 where nothing is mixed; for CutMix the
        share of its pixels that remain. `cutmix`, bool []. `box`, int32 [4]: top, left, bottom,
        right of the CutMix box.
    """
    seeds = tf.random.split(seed, 4)
    uniform = tf.random.stateless_uniform([4], seeds[0])
    mixed = (uniform[0] < config.mix_probability) & bool(config.mixup or config.cutmix)
    switch = config.mix_switch if config.mixup and config.cutmix else float(config.cutmix > 0)
    cutmix = mixed & (uniform[1] < switch)
    one = tf.ones([], tf.float64)
    lam_mixup = _beta(seeds[1], config.mixup) if config.mixup else one
    lam_cutmix = _beta(seeds[2], config.cutmix) if config.cutmix else one
    center = tf.cast(uniform[2:] * tf.cast(size, tf.float32), tf.int32)
    box = cutmix_box(lam_cutmix, center, size)
    pixels = tf.cast(
        tf.stack([(box[2] - box[0]) * (box[3] - box[1]), tf.reduce_prod(size)]), tf.float64
    )
    lam_box = 1.0 - pixels[0] / pixels[1]
    lam = tf.where(cutmix, lam_box, tf.where(mixed, lam_mixup, one))
    return {"lam": tf.cast(lam, tf.float32), "cutmix": cutmix, "box": box}


class MixUp(keras_cv.layers.MixUp):
    """keras-cv's MixUp at a given `lam`, with the reversed batch as the partner."""

    def _batch_augment(self, inputs):
        images, labels, lam = inputs["images"], inputs["labels"], inputs["lam"]
        mixed = lam * images + (1.0 - lam) * tf.reverse(images, [0])
        return {"images": mixed, "labels": self._update_labels(labels, lam, _reversed(labels))}


class CutMix(keras_cv.layers.CutMix):
    """keras-cv's CutMix at a given `lam` and `box`, with the reversed batch as the partner."""

    def _batch_augment(self, inputs):
        images, labels = inputs["images"], inputs["labels"]
        top, left, bottom, right = tf.unstack(inputs["box"])
        patch = tf.reverse(images[:, top:bottom, left:right], [0])
        middle = tf.concat(
            [images[:, top:bottom, :left], patch, images[:, top:bottom, right:]], axis=2
        )
        mixed = tf.ensure_shape(
            tf.concat([images[:, :top], middle, images[:, bottom:]], axis=1), images.shape
        )
        return {
            "images": mixed,
            "labels": self._update_labels(labels, inputs["lam"], _reversed(labels)),
        }


def _reversed(batch: tf.Tensor) -> tf.Tensor:
    """Index of each row's partner: the middle row of an odd batch is its own."""
    return tf.range(tf.shape(batch)[0] - 1, -1, -1)


@functools.cache
def _layers() -> tuple[MixUp, CutMix]:
    """Made at first use: making a layer starts TensorFlow's runtime, which an import must not
    do.
    """
    with tf.init_scope():
        return MixUp(seed=1), CutMix(seed=1)


def apply_mix(
    images: tf.Tensor, labels: tf.Tensor, drawn: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix float32 [B, H, W, 3] and labels [B, C] with the reversed batch, as drawn by
    `draw_mix`.
    """
    mixup, cutmix = _layers()
    inputs = {"images": images, "labels": labels, **drawn}
    branches = [functools.partial(layer._batch_augment, inputs) for layer in (cutmix, mixup)]
    mixed = tf.cond(drawn["cutmix"], *branches)
    return mixed["images"], mixed["labels"]


def mix(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, config: AugmentConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix a batch by mixup or CutMix, or leave it, as `config` and the seed decide.

    Args:
        images: float32 [B, H, W, 3], normalized; B may be odd, then the middle image keeps itself.
        labels: float32 [B, C], from `one_hot`.
        seed: Two whole numbers; the result is a pure function of them.
        config: A resolved config.
    Returns:
        Images and labels of the same shapes.
    """
    if not config.mixup and not config.cutmix:
        return images, labels
    return apply_mix(images, labels, draw_mix(seed, tf.shape(images)[1:3], config))
