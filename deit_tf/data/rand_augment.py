"""RandAugment as timm defines it: the policy's notation, what is drawn, and how strong it is.

Source: Cubuk et al. 2020; timm/data/auto_augment.py. The pixels are pixel_ops'.
"""

import functools
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from deit_tf.config import IMAGENET_MEAN, PerChannel
from deit_tf.data.pixel_ops import apply_operation
from deit_tf.data.tracing import traced_once

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


def fill_of(mean: PerChannel) -> tuple[int, ...]:
    """Gray level per channel that geometry leaves behind: (124, 116, 104) for ImageNet's mean."""
    return tuple(round(255 * channel) for channel in mean)


@dataclass(frozen=True)
class RandAugmentPolicy:
    """What RandAugment draws.

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


def parse_rand_augment(policy: str) -> RandAugmentPolicy:
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

    return RandAugmentPolicy(**given)


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


def draw_ops(seed: tf.Tensor, policy: RandAugmentPolicy) -> DrawnOps:
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
    """Argument of each operation that takes one: timm's levels.

    Args:
        magnitude: Strength, 0..10.
        sign: -1 or 1.
        increasing: Whether a stronger magnitude is a stronger effect everywhere.
    Returns:
        Arguments as `pixel_ops.OPERATIONS` counts them, by operation.
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


def rand_augment(
    image: tf.Tensor,
    seed: tf.Tensor,
    policy: RandAugmentPolicy,
    fill: tuple[int, ...] = fill_of(IMAGENET_MEAN),
    without: Collection[str] = (),
) -> tf.Tensor:
    """Apply RandAugment to one image; only the operations drawn are executed.

    Args:
        image: uint8 [H, W, 3], 0..255.
        seed: Two whole numbers; the result is a pure function of them.
        policy: What to draw.
        fill: Gray level per channel where geometry leaves nothing.
        without: Operations that, where they are drawn, leave the image as it is.
    Returns:
        uint8 [H, W, 3].
    """
    drawn = draw_ops(seed, policy)
    branch = tf.where(drawn.applied, drawn.op + 1, 0)  # 0 leaves the image

    # In a graph all slots, and all data sets of a process, share one trace of the operations.
    apply = _traced_apply_one if tf.inside_function() else _apply_one
    rule = (policy.increasing, tuple(fill), tuple(without))
    for slot in range(policy.num_ops):
        image = apply(image, branch[slot], drawn.magnitude[slot], drawn.sign[slot], *rule)
    return image


def _apply_one(
    image: tf.Tensor,
    branch: tf.Tensor,
    magnitude: tf.Tensor,
    sign: tf.Tensor,
    increasing: bool,
    fill: tuple[int, ...],
    without: tuple[str, ...],
) -> tf.Tensor:
    """The operation `branch` - 1 of one image, or for 0 none."""
    arguments = operation_arguments(magnitude, sign, increasing)

    branches = [functools.partial(tf.identity, image)]
    for name in RAND_AUGMENT_OPS:
        apply = functools.partial(apply_operation, name, image, arguments.get(name), fill)
        branches.append(functools.partial(tf.identity, image) if name in without else apply)
    return tf.switch_case(branch, branches)


_traced_apply_one = traced_once(_apply_one)
