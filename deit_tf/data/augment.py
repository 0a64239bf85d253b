"""The random laws of the training recipe, for one image and a stateless seed; the pixels are
pixel_ops'.

RandAugment, random erasing and the random crop follow timm (auto_augment.py, random_erasing.py,
transforms.py), 3-Augment follows facebookresearch/deit augment.py, color jitter follows
torchvision.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import keras_cv
import tensorflow as tf

from deit_tf.config import IMAGENET_MEAN, AugmentConfig, Triple
from deit_tf.data import pixel_ops
from deit_tf.data.decode import CHANNELS, decode_image
from deit_tf.data.preprocess import normalize

Size = tuple[int, int]
Range = tuple[float, float]

RAND_AUGMENT_OPS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
MAX_MAGNITUDE = 10.0
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)
SOLARIZE_THRESHOLD = 128
BLUR_RADIUS = (0.1, 2.0)
_TRIES = 10
# a JPEG decoded at a reduced size keeps four times the target's sides; 2 is off by 2 levels
_DCT_GAP = 4.0


def fill_of(mean: Triple) -> tuple[int, ...]:
    """Gray level per channel that geometry leaves behind: (124, 116, 104) for ImageNet's mean."""
    return tuple(round(255 * channel) for channel in mean)


@dataclass(frozen=True)
class RandAugment:
    """RandAugment as timm defines it.

    Args:
        num_ops: Operations drawn per image, with replacement.
        magnitude: Mean strength, 0..10.
        magnitude_std: Standard deviation of the strength; each operation draws its own, clipped to
            0..10.
        increasing: Whether posterize, solarize, color, contrast, brightness and sharpness grow
            stronger with the magnitude, as the recipe has it.
        probability: Share of the drawn operations that are applied.
    """

    num_ops: int = 2
    magnitude: float = MAX_MAGNITUDE
    magnitude_std: float = 0.0
    increasing: bool = False
    probability: float = 0.5


# key in timm's notation: field, kind, smallest, largest
_POLICY_PARTS = {
    "n": ("num_ops", int, 1, 15),
    "m": ("magnitude", int, 0, 10),
    "mstd": ("magnitude_std", float, 0, 100),
    "inc": ("increasing", int, 0, 1),
    "p": ("probability", float, 0, 1),
}


def parse_rand_augment(policy: str) -> RandAugment:
    """Read timm's notation, such as `rand-m9-mstd0.5-inc1` or `rand-m9-n3-mstd0.5-inc1-p0.5`.

    Differs: timm reads `inc0` as on, takes any `m`, ignores what it does not know, and turns `mstd`
    of 100 into a uniform magnitude. Here `inc0` is off and the rest is refused.

    Raises:
        ValueError: If a part is unknown, twice there or out of range.
    """
    name, *parts = policy.split("-")
    if name != "rand":
        raise ValueError(
            "A RandAugment policy begins with `rand-`, such as `rand-m9-mstd0.5-inc1`. "
            f"Received: {policy!r}"
        )
    given = {}
    for part in parts:
        key, value = _parse_part(part, policy)
        if key in given:
            raise ValueError(
                f"Each part of a RandAugment policy stands once; {part!r} repeats one. "
                f"Received: {policy!r}"
            )
        given[key] = value
    return RandAugment(**given)


def _parse_part(part: str, policy: str) -> tuple[str, float]:
    """Field and value of one part of a policy."""
    match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
    if match is None or match[1] not in _POLICY_PARTS:
        allowed = ", ".join(f"{key}<number>" for key in _POLICY_PARTS)
        raise ValueError(
            f"A part of a RandAugment policy is one of {allowed}; {part!r} is none. Received: "
            f"{policy!r}"
        )
    name, kind, low, high = _POLICY_PARTS[match[1]]
    value = float(match[2])
    if not low <= value <= high or (kind is int and not value.is_integer()):
        what = "a whole number" if kind is int else "a number"
        raise ValueError(
            f"`{match[1]}` takes {what} from {low} to {high}; {part!r} does not. Received: "
            f"{policy!r}"
        )
    return name, bool(value) if name == "increasing" else kind(value)


class DrawnOps(NamedTuple):
    """What RandAugment does to one image, slot by slot; `op` is an index into RAND_AUGMENT_OPS."""

    op: tf.Tensor
    applied: tf.Tensor
    magnitude: tf.Tensor
    sign: tf.Tensor


def draw_ops(seed: tf.Tensor, policy: RandAugment) -> DrawnOps:
    """Draw the operations of one image: each tensor has shape [num_ops]."""
    count = policy.num_ops
    seeds = tf.random.split(seed, 2)
    uniform = tf.random.stateless_uniform([3, count], seeds[0])
    noise = tf.random.stateless_normal([count], seeds[1], stddev=policy.magnitude_std)
    return DrawnOps(
        op=tf.cast(uniform[0] * len(RAND_AUGMENT_OPS), tf.int32),
        applied=uniform[1] < policy.probability,
        magnitude=tf.clip_by_value(policy.magnitude + noise, 0.0, MAX_MAGNITUDE),
        sign=tf.where(uniform[2] < 0.5, -1.0, 1.0),
    )


def operation_arguments(
    magnitude: tf.Tensor, sign: tf.Tensor, increasing: bool
) -> dict[str, tf.Tensor]:
    """Argument of each operation that takes one, at a magnitude of 0..10 and a sign of -1 or 1
    (timm's levels).
    """
    level = magnitude / MAX_MAGNITUDE
    bits = tf.cast(level * 4, tf.int32)
    threshold = tf.cast(level * 256, tf.int32)
    enhance = tf.maximum(0.1, 1 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level
    return {
        "rotate": sign * level * 30,
        "posterize": 4 - bits if increasing else bits,
        "solarize": 256 - threshold if increasing else threshold,
        "solarize_add": tf.cast(level * 110, tf.int32),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), enhance),
        **dict.fromkeys(("shear_x", "shear_y"), sign * level * 0.3),
        **dict.fromkeys(("translate_x", "translate_y"), sign * level * 0.45),
    }


_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def rand_augment(
    image: tf.Tensor,
    seed: tf.Tensor,
    policy: RandAugment,
    fill: tuple[int, ...] = fill_of(IMAGENET_MEAN),
) -> tf.Tensor:
    """Apply RandAugment to one image; only the operations drawn are executed.

    Args:
        image: uint8 [H, W, 3], 0..255.
        seed: Two whole numbers; the result is a pure function of them.
        policy: What to draw.
        fill: Gray level per channel where geometry leaves nothing.
    Returns:
        uint8 [H, W, 3].
    """
    drawn = draw_ops(seed, policy)
    branch = tf.where(drawn.applied, drawn.op + 1, 0)
    for slot in range(policy.num_ops):
        arguments = operation_arguments(drawn.magnitude[slot], drawn.sign[slot], policy.increasing)
        branches = [
            functools.partial(_operation, name, image, arguments, fill) for name in RAND_AUGMENT_OPS
        ]
        image = tf.switch_case(branch[slot], [functools.partial(tf.identity, image), *branches])
    return image


def _operation(
    name: str, image: tf.Tensor, arguments: dict[str, tf.Tensor], fill: tuple[int, ...]
) -> tf.Tensor:
    given = [arguments[name]] if name in arguments else []
    return getattr(pixel_ops, name)(image, *given, *([fill] if name in _GEOMETRIC else []))


class DrawnBox(NamedTuple):
    """A rectangle in pixels, int32 each, and whether one of the tries fitted."""

    found: tf.Tensor
    top: tf.Tensor
    left: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor


def _draw_box(
    height: tf.Tensor,
    width: tf.Tensor,
    limit: tuple[tf.Tensor, tf.Tensor],
    seed: tf.Tensor,
    scale: Range,
    ratio: Range,
) -> DrawnBox:
    """First of ten rectangles, of uniform area and log-uniform aspect, that fits `limit`; uniformly
    placed.
    """
    uniform = tf.random.stateless_uniform([2 * _TRIES + 2], seed)
    area = tf.cast(height * width, tf.float32) * (
        scale[0] + (scale[1] - scale[0]) * uniform[:_TRIES]
    )
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = tf.exp(low + (high - low) * uniform[_TRIES:-2])
    widths = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    heights = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
    fits = (heights > 0) & (heights <= limit[0]) & (widths > 0) & (widths <= limit[1])
    first = tf.argmax(tf.cast(fits, tf.int32))
    box_height, box_width = heights[first], widths[first]
    top = tf.cast(uniform[-2] * tf.cast(height - box_height + 1, tf.float32), tf.int32)
    left = tf.cast(uniform[-1] * tf.cast(width - box_width + 1, tf.float32), tf.int32)
    return DrawnBox(tf.reduce_any(fits), top, left, box_height, box_width)


def random_resized_crop_box(
    height: tf.Tensor | int, width: tf.Tensor | int, seed: tf.Tensor, scale: Range, ratio: Range
) -> tf.Tensor:
    """Draw the window of a random resized crop (timm, RandomResizedCropAndInterpolation).

    Args:
        height: Height of the image in pixels.
        width: Its width.
        seed: Two whole numbers.
        scale: Share of the image's area, smallest and largest.
        ratio: Width / height of the window, smallest and largest.
    Returns:
        int32 [4]: top, left, height, width. Where ten tries do not fit, the largest window in the
        center whose aspect lies within `ratio`.
    """
    height, width = tf.convert_to_tensor(height, tf.int32), tf.convert_to_tensor(width, tf.int32)
    box = _draw_box(height, width, (height, width), seed, scale, ratio)
    # float64, so that a side that divides evenly is not rounded up
    most_high = tf.cast(tf.round(tf.cast(width, tf.float64) / ratio[0]), tf.int32)
    most_wide = tf.cast(tf.round(tf.cast(height, tf.float64) * ratio[1]), tf.int32)
    center_height, center_width = tf.minimum(height, most_high), tf.minimum(width, most_wide)
    center = tf.stack(
        [(height - center_height) // 2, (width - center_width) // 2, center_height, center_width]
    )
    return tf.where(box.found, tf.stack(box[1:]), center)


def _decode_jpeg_window(
    encoded: tf.Tensor, box: tf.Tensor, width: tf.Tensor, size: Size
) -> tf.Tensor:
    """Decode a window of a JPEG, at 1/2, 1/4 or 1/8 of its size where it has far more pixels than
    needed.
    """
    spare = tf.reduce_min(tf.cast(box[2:], tf.float32) / (_DCT_GAP * tf.constant(size, tf.float32)))
    power = (
        tf.cast(spare >= 2, tf.int32)
        + tf.cast(spare >= 4, tf.int32)
        + tf.cast(spare >= 8, tf.int32)
    )

    def decode(ratio: int) -> tf.Tensor:
        top, left = tf.unstack(box[:2] // ratio)
        bottom, right = tf.unstack((box[:2] + box[2:]) // ratio)
        # Two columns more than needed: libjpeg gets the color of a window's last column wrong, by
        # up to 65 levels.
        window = tf.stack([top, left, bottom - top, tf.minimum(right + 2, width // ratio) - left])
        # INTEGER_ACCURATE: libjpeg's own inverse transform, which Pillow uses; see
        # preprocess.decode_image
        image = tf.io.decode_and_crop_jpeg(
            encoded, window, CHANNELS, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )
        return image[:, : right - left]

    return tf.switch_case(power, [functools.partial(decode, ratio) for ratio in (1, 2, 4, 8)])


def decode_and_crop(
    encoded: tf.Tensor, size: Size, seed: tf.Tensor, scale: Range, ratio: Range
) -> tf.Tensor:
    """Decode a random window of an image file and resize it bicubically.

    Of a JPEG only the window is decoded. Other formats (see preprocess.decode_image) are decoded
    whole.

    Differs: a JPEG window of at least eight times `size` is decoded at 1/2, 1/4 or 1/8 of its size,
    which keeps at least four times `size`: mean difference below 1 level.

    Args:
        encoded: tf.string [], the bytes of the file.
        size: Height and width of the result.
        seed: Two whole numbers.
        scale: Share of the image's area, smallest and largest; (1, 1) takes the whole image,
            whatever `ratio`.
        ratio: Width / height of the window, smallest and largest.
    Returns:
        uint8 [*size, 3], 0..255.
    """

    def window(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        if tuple(scale) == (1.0, 1.0):
            return tf.stack([0, 0, height, width])
        return random_resized_crop_box(height, width, seed, scale, ratio)

    def jpeg() -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(encoded)
        return _decode_jpeg_window(encoded, window(shape[0], shape[1]), shape[1], size)

    def other() -> tf.Tensor:
        image = decode_image(encoded)
        shape = tf.shape(image)
        top, left, height, width = tf.unstack(window(shape[0], shape[1]))
        return image[top : top + height, left : left + width]

    return pixel_ops.resize(tf.cond(tf.io.is_jpeg(encoded), jpeg, other), size)


def random_flip(image: tf.Tensor, seed: tf.Tensor, probability: float) -> tf.Tensor:
    """Mirror [H, W, 3] left to right with `probability`."""
    flip = tf.random.stateless_uniform([], seed) < probability
    # Partials: AutoGraph cannot tell two lambdas on one line apart, and warns.
    return tf.cond(
        flip, functools.partial(tf.reverse, image, [1]), functools.partial(tf.identity, image)
    )


def three_augment(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Apply exactly one of grayscale, solarize and blur, each a third of the time (DeiT III,
    section 3.2).

    Args:
        image: uint8 [H, W, 3], 0..255.
        seed: Two whole numbers.
    Returns:
        uint8 [H, W, 3].
    """
    uniform = tf.random.stateless_uniform([2], seed)
    radius = BLUR_RADIUS[0] + (BLUR_RADIUS[1] - BLUR_RADIUS[0]) * uniform[1]
    branches: list[Callable[[], tf.Tensor]] = [
        functools.partial(pixel_ops.grayscale, image),
        functools.partial(pixel_ops.solarize, image, SOLARIZE_THRESHOLD),
        functools.partial(pixel_ops.gaussian_blur, image, radius),
    ]
    return tf.switch_case(tf.cast(uniform[0] * len(branches), tf.int32), branches)


def draw_jitter(seed: tf.Tensor, strength: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Factors of brightness, contrast and saturation, float32 [3], and their order, int32 [3]."""
    uniform = tf.random.stateless_uniform([2, 3], seed)
    low = max(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * uniform[0], tf.argsort(uniform[1])


def color_jitter(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Change brightness, contrast and saturation in random order (torchvision, ColorJitter(s, s,
    s)).

    Args:
        image: uint8 [H, W, 3], 0..255.
        seed: Two whole numbers.
        strength: Each factor is uniform in 1 - strength .. 1 + strength, not below 0.
    Returns:
        uint8 [H, W, 3].
    """
    factors, order = draw_jitter(seed, strength)
    for slot in range(3):
        branches = [
            functools.partial(op, image, factors[i])
            for i, op in enumerate((pixel_ops.brightness, pixel_ops.contrast, pixel_ops.color))
        ]
        image = tf.switch_case(order[slot], branches)
    return image


def draw_erasing(
    height: tf.Tensor | int, width: tf.Tensor | int, seed: tf.Tensor, probability: float
) -> DrawnBox:
    """Draw the rectangle to erase; `found` says whether there is one."""
    seeds = tf.random.split(seed, 2)
    height, width = tf.convert_to_tensor(height, tf.int32), tf.convert_to_tensor(width, tf.int32)
    box = _draw_box(height, width, (height - 1, width - 1), seeds[1], ERASED_AREA, ERASED_RATIO)
    return box._replace(found=box.found & (tf.random.stateless_uniform([], seeds[0]) < probability))


def random_erasing(image: tf.Tensor, seed: tf.Tensor, probability: float) -> tf.Tensor:
    """Replace a rectangle by normal noise with `probability` (timm, RandomErasing, mode `pixel`).

    The noise is drawn only for the pixels that are erased.

    Args:
        image: float32 [H, W, 3], normalized.
        seed: Two whole numbers.
        probability: Share of the images that lose a rectangle, of 2 % to 33 % of their area.
    Returns:
        float32 [H, W, 3].
    """
    seeds = tf.random.split(seed, 2)
    found, top, left, height, width = draw_erasing(
        *tf.unstack(tf.shape(image)[:2]), seeds[0], probability
    )
    bottom, right = top + height, left + width

    def erase() -> tf.Tensor:
        noise = tf.random.stateless_normal([height, width, CHANNELS], seeds[1])
        middle = tf.concat([image[top:bottom, :left], noise, image[top:bottom, right:]], axis=1)
        return tf.ensure_shape(
            tf.concat([image[:top], middle, image[bottom:]], axis=0), image.shape
        )

    return tf.cond(found, erase, lambda: image)


@functools.cache
def _stock_rand_augment() -> keras_cv.layers.RandAugment:
    with tf.init_scope():
        pixel_ops.have_global_generator()
        return keras_cv.layers.RandAugment(value_range=(0, 255))


def keras_cv_rand_augment(image: tf.Tensor) -> tf.Tensor:
    """keras-cv's own RandAugment with its defaults, for comparison.

    Differs: another law (ten operations, other magnitudes), and not stateless: it draws from
    TensorFlow's global generator, in whatever order the images come.
    """
    return tf.saturate_cast(tf.round(_stock_rand_augment()(image)), tf.uint8)


def check_auto_augment(name: str) -> None:
    """Refuse what `AugmentConfig.auto_augment` does not take.

    Raises:
        ValueError: If `name` is no policy; of a RandAugment policy it names the bad part.
    """
    if name.startswith("rand"):
        parse_rand_augment(name)
    elif name not in ("3-augment", "keras-cv", "none"):
        allowed = "a policy such as `rand-m9-mstd0.5-inc1`, `3-augment`, `keras-cv` or `none`"
        raise ValueError(f"`auto_augment` takes {allowed}. Received: {name!r}")


def _auto_augment(
    image: tf.Tensor, seeds: tf.Tensor, config: AugmentConfig, fill: tuple[int, ...]
) -> tf.Tensor:
    """The policy that `config.auto_augment` names; color jitter where it is no RandAugment."""
    name = config.auto_augment
    check_auto_augment(name)
    if name == "keras-cv":
        return keras_cv_rand_augment(image)
    if name.startswith("rand"):
        return rand_augment(image, seeds[0], parse_rand_augment(name), fill)
    if name == "3-augment":
        image = three_augment(image, seeds[0])
    return color_jitter(image, seeds[1], config.color_jitter) if config.color_jitter else image


def augment_image(
    encoded: tf.Tensor,
    seed: tf.Tensor,
    config: AugmentConfig,
    size: Size,
    mean: Triple,
    std: Triple,
) -> tf.Tensor:
    """Turn the bytes of an image file into one training image.

    Args:
        encoded: tf.string [], the bytes of the file.
        seed: Two whole numbers; the result is a pure function of `encoded` and them, except where
            `config.auto_augment` is `keras-cv`.
        config: A resolved config (`AugmentConfig.resolve`).
        size: Height and width of the result.
        mean: Mean of the pixels scaled to 0..1, per channel.
        std: Their standard deviation, per channel.
    Returns:
        float32 [*size, 3], normalized.
    Raises:
        ValueError: If `config.auto_augment` names no policy.
    """
    seeds = tf.random.split(seed, 5)
    image = decode_and_crop(encoded, size, seeds[0], config.scale, config.ratio)
    if config.hflip:
        image = random_flip(image, seeds[1], config.hflip)
    image = _auto_augment(image, seeds[2:4], config, fill_of(mean))
    # Rows of width * 3 values: broadcasting over three channels costs five times as much.
    rows = tf.reshape(image, [size[0], size[1] * CHANNELS])
    image = tf.reshape(
        normalize(rows, tuple(mean) * size[1], tuple(std) * size[1]), [*size, CHANNELS]
    )
    return (
        random_erasing(image, seeds[4], config.random_erasing) if config.random_erasing else image
    )
