"""Mixup and CutMix of a batch, and the labels they mix, as timm does (timm/data/mixup.py).

The parameters are drawn first, statelessly; the layers apply them, or `mix_each` those of single
images. keras-cv's own laws differ: a lambda and a random partner per image, and a CutMix lambda
from the box before it is clipped.
"""

import functools
from collections.abc import Sequence

import keras
import keras_cv
import tensorflow as tf

from deit_tf.config import AugmentConfig
from deit_tf.data.seeds import SeededBatch


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


def _beta(seed: tf.Tensor, alpha: float, shape: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Draws from Beta(alpha, alpha), float64 [*shape]."""
    gamma = tf.random.stateless_gamma([*shape, 2], seed, alpha, dtype=tf.float64)
    return gamma[..., 0] / (gamma[..., 0] + gamma[..., 1])


def cutmix_box(lam: tf.Tensor, center: tf.Tensor, size: tuple[int, int] | tf.Tensor) -> tf.Tensor:
    """Box of relative area 1 - lambda around a center, clipped to the image.

    Args:
        lam: float64 [...], 0..1.
        center: int32 [..., 2], row and column.
        size: Height and width of the image.
    Returns:
        int32 [..., 4]: top, left, bottom, right (exclusive).
    """
    size = tf.cast(size, tf.int32)
    root = tf.sqrt(1.0 - tf.cast(lam, tf.float64))
    sides = tf.cast(size, tf.float64) * root[..., tf.newaxis]
    cut = tf.cast(sides, tf.int32)  # rounded down

    low = tf.clip_by_value(center - cut // 2, 0, size)
    high = tf.clip_by_value(center + (cut + 1) // 2, 0, size)
    return tf.concat([low, high], axis=-1)


def minmax_box(
    uniform: tf.Tensor, size: tuple[int, int] | tf.Tensor, minmax: tuple[float, float]
) -> tf.Tensor:
    """Box that lies within the image, of sides drawn apart (timm's `cutmix_minmax`).

    Args:
        uniform: float32 [..., 4] in [0, 1): for height, width, top and left.
        size: Height and width of the image.
        minmax: Smallest and largest share of a side; the largest is not reached.
    Returns:
        int32 [..., 4]: top, left, bottom, right (exclusive).
    """
    size = tf.cast(size, tf.int32)
    low, high = (tf.cast(tf.cast(size, tf.float64) * share, tf.int32) for share in minmax)
    choices = tf.cast(tf.maximum(high - low, 1), tf.float32)
    sides = low + tf.cast(uniform[..., :2] * choices, tf.int32)

    spare = tf.cast(size - sides + 1, tf.float32)
    corner = tf.cast(uniform[..., 2:] * spare, tf.int32)
    return tf.concat([corner, corner + sides], axis=-1)


def draw_mix(
    seed: tf.Tensor,
    size: tuple[int, int] | tf.Tensor,
    config: AugmentConfig,
    shape: Sequence[int | tf.Tensor] = (),
) -> dict[str, tf.Tensor]:
    """Draw what happens to one batch, or to each of several images.

    Args:
        seed: Two whole numbers.
        size: Height and width of the images.
        config: A resolved config.
        shape: How many draws: none for a batch, [N] for N images.
    Returns:
        `lam`, float32 [*shape]: weight of an image's own label, 1 where nothing is mixed; for
        CutMix the share of its pixels that remain. `cutmix`, bool [*shape]. `box`, int32
        [*shape, 4]: top, left, bottom, right of the CutMix box.
    """
    seeds = tf.random.split(seed, 4)
    uniform = tf.random.stateless_uniform([*shape, 4], seeds[0])
    one = tf.ones(shape, tf.float64)

    # which of the two, if any
    mixed = (uniform[..., 0] < config.mix_probability) & bool(config.mixup or config.cutmix)
    switch = config.mix_switch if config.mixup and config.cutmix else float(config.cutmix > 0)
    cutmix = mixed & (uniform[..., 1] < switch)

    # lambda of mixup
    lam_mixup = _beta(seeds[1], config.mixup, shape) if config.mixup else one

    # box of CutMix, and its lambda: what the clipped box leaves
    if config.cutmix_minmax:
        sides = tf.random.stateless_uniform([*shape, 4], seeds[3])
        box = minmax_box(sides, size, config.cutmix_minmax)
    else:
        lam_cutmix = _beta(seeds[2], config.cutmix, shape) if config.cutmix else one
        center = tf.cast(uniform[..., 2:] * tf.cast(size, tf.float32), tf.int32)
        box = cutmix_box(lam_cutmix, center, size)
    sides = box[..., 2:] - box[..., :2]
    area = tf.cast(sides[..., 0] * sides[..., 1], tf.float64)
    lam_box = 1.0 - area / tf.cast(tf.reduce_prod(size), tf.float64)

    lam = tf.where(cutmix, lam_box, tf.where(mixed, lam_mixup, one))
    return {"lam": tf.cast(lam, tf.float32), "cutmix": cutmix, "box": box}


class _Mix(SeededBatch):
    """What both layers are: keras-cv's, at one draw of `draw_mix` for the whole batch.

    `method` names the setting of `AugmentConfig` that `alpha` is.
    """

    method: str

    def __init__(self, alpha: float, seed: int = 0, **kwargs):
        if alpha <= 0:
            raise ValueError(f"`alpha` of a Beta distribution is above 0. Received: {alpha}")
        super().__init__(alpha=alpha, seed=seed, **kwargs)
        self._law = AugmentConfig(recipe="none", **{self.method: alpha}).resolve()

    def _batch_augment(self, inputs):
        seed = self._batch_seed(inputs)
        self._validate_inputs(inputs)
        drawn = draw_mix(seed, tf.shape(inputs["images"])[1:3], self._law)
        images, labels = self.mix_as_drawn(inputs["images"], inputs["labels"], drawn)
        return inputs | {"images": images, "labels": labels}

    def _mix_labels(self, labels, lam):
        """keras-cv's formula; the middle row of an odd batch is its own partner."""
        partners = tf.range(tf.shape(labels)[0] - 1, -1, -1)
        return self._update_labels(labels, tf.cast(lam, labels.dtype), partners)


@keras.saving.register_keras_serializable("deit_tf")
class MixUp(_Mix, keras_cv.layers.MixUp):
    """keras-cv's MixUp under timm's law: one lambda per batch, the reversed batch as the partner.

    Args:
        alpha: Of the Beta distribution; 0.8 is the paper's.
        seed: See `Seeded`.
    """

    method = "mixup"

    def __init__(self, alpha: float = 0.8, seed: int = 0, **kwargs):
        super().__init__(alpha, seed, **kwargs)

    def mix_as_drawn(self, images, labels, drawn):
        """Mix images [B, H, W, 3] and labels [B, C] at a `lam`."""
        lam = tf.cast(drawn["lam"], images.dtype)
        mixed = lam * images + (1.0 - lam) * tf.reverse(images, [0])
        return mixed, self._mix_labels(labels, drawn["lam"])


@keras.saving.register_keras_serializable("deit_tf")
class CutMix(_Mix, keras_cv.layers.CutMix):
    """keras-cv's CutMix under timm's law: one box per batch, and lambda the share that it leaves.

    keras-cv's lambda is that of the box before it is clipped: 0.51 instead of 0.69 on average.

    Args:
        alpha: Of the Beta distribution; 1 is the paper's.
        seed: See `Seeded`.
    """

    method = "cutmix"

    def __init__(self, alpha: float = 1.0, seed: int = 0, **kwargs):
        super().__init__(alpha, seed, **kwargs)

    def mix_as_drawn(self, images, labels, drawn):
        """Mix images [B, H, W, 3] at a `box`, and labels [B, C] at its `lam`."""
        top, left, bottom, right = tf.unstack(drawn["box"])
        patch = tf.reverse(images[:, top:bottom, left:right], [0])
        rows = [images[:, top:bottom, :left], patch, images[:, top:bottom, right:]]
        middle = tf.concat(rows, axis=2)

        mixed = tf.concat([images[:, :top], middle, images[:, bottom:]], axis=1)
        mixed = tf.ensure_shape(mixed, images.shape)
        return mixed, self._mix_labels(labels, drawn["lam"])


@functools.cache
def _layers() -> tuple[MixUp, CutMix]:
    """Made at first use: an import must not start TensorFlow's runtime, as making a layer does."""
    with tf.init_scope():  # the first use is within a data set's graph, which the layers outlive
        return MixUp(dtype="float32"), CutMix(dtype="float32")


def apply_mix(
    images: tf.Tensor, labels: tf.Tensor, drawn: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix float32 [B, H, W, 3] and labels [B, C] with the reversed batch, as `draw_mix` drew."""
    mixup, cutmix = (
        functools.partial(layer.mix_as_drawn, images, labels, drawn) for layer in _layers()
    )
    return tf.cond(drawn["cutmix"], cutmix, mixup)


def mix_each(
    images: tf.Tensor, labels: tf.Tensor, drawn: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix each image [B, H, W, 3], and its label [B, C], with that of the reversed batch by a draw
    of its own, [B] as of `draw_mix`.
    """
    # the pixels inside of each box
    height, width = tf.unstack(tf.shape(images)[1:3])
    top, left, bottom, right = tf.unstack(drawn["box"][:, :, tf.newaxis], axis=1)  # [B, 1] each
    rows = (tf.range(height) >= top) & (tf.range(height) < bottom)  # [B, H]
    columns = (tf.range(width) >= left) & (tf.range(width) < right)  # [B, W]
    inside = rows[:, :, tf.newaxis] & columns[:, tf.newaxis]  # [B, H, W]

    lam = tf.cast(drawn["lam"], images.dtype)[:, tf.newaxis]  # [B, 1]
    kept = tf.where(
        drawn["cutmix"][:, tf.newaxis, tf.newaxis],
        tf.cast(~inside, images.dtype),
        lam[:, tf.newaxis],
    )[..., tf.newaxis]  # [B, H, W, 1]
    mixed = kept * images + (1.0 - kept) * tf.reverse(images, [0])
    return mixed, lam * labels + (1.0 - lam) * tf.reverse(labels, [0])


def _draw_each(
    seed: tf.Tensor, count: tf.Tensor, size: tf.Tensor, config: AugmentConfig
) -> dict[str, tf.Tensor]:
    """Draws for `count` images: one for each, or of `pair` one for an image and its partner."""
    if config.mix_mode == "elem":
        return draw_mix(seed, size, config, [count])
    halves = draw_mix(seed, size, config, [(count + 1) // 2])
    return {
        name: tf.concat([half, tf.reverse(half[: count // 2], [0])], axis=0)
        for name, half in halves.items()
    }


def mix(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, config: AugmentConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix a batch by mixup or CutMix, or leave it, as `config` and the seed decide.

    Args:
        images: float32 [B, H, W, 3], normalized; the partners are those of the reversed batch, so
            that the middle image of an odd B keeps itself.
        labels: float32 [B, C], from `one_hot`.
        seed: Two whole numbers; the result is a pure function of them.
        config: A resolved config.
    Returns:
        Images and labels of the same shapes.
    """
    if not config.mixup and not config.cutmix:
        return images, labels
    shape = tf.shape(images)
    if config.mix_mode != "batch":
        return mix_each(images, labels, _draw_each(seed, shape[0], shape[1:3], config))
    return apply_mix(images, labels, draw_mix(seed, shape[1:3], config))
