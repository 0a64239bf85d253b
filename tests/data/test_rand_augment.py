"""RandAugment: the notation of its policy, its law over 20,000 draws, and that it applies it."""

import numpy as np
import pytest
import tensorflow as tf
from augment_cases import DRAWS, HALF, PIXELS, draw

from deit_tf.data.pixel_ops import apply_operation
from deit_tf.data.rand_augment import (
    RAND_AUGMENT_OPS,
    RandAugmentPolicy,
    draw_ops,
    operation_arguments,
    parse_rand_augment,
    rand_augment,
)

PAPER = parse_rand_augment("rand-m9-mstd0.5-inc1")


def test_policy_notation():
    assert PAPER == RandAugmentPolicy(2, 9, 0.5, True, 0.5)
    assert parse_rand_augment("rand-m7-n3-mstd1-inc0-p0.25") == RandAugmentPolicy(
        3, 7, 1.0, False, 0.25
    )
    assert parse_rand_augment("rand") == RandAugmentPolicy(2, 10, 0.0, False, 0.5)


@pytest.mark.parametrize(
    ("policy", "part"),
    [
        ("rand-m9-x3", "x3"),
        ("rand-m11", "m11"),
        ("rand-m9-p1.5", "p1.5"),
        ("rand-m9.5", "m9.5"),
        ("rand-n0", "n0"),
        ("rand-m9-m8", "m8"),
        ("rand-m", "'m'"),
        ("augmix-m3", "augmix"),
        ("rand--m9", "''"),
        ("rand-inc2", "inc2"),
    ],
)
def test_a_bad_policy_is_refused_by_its_part(policy, part):
    with pytest.raises(ValueError, match=part):
        parse_rand_augment(policy)


def test_rand_augment_draws_the_law():
    drawn = draw(lambda seed: draw_ops(seed, PAPER)._asdict())
    slots = DRAWS * 2
    counts = np.bincount(drawn["op"].ravel(), minlength=15)
    # Chi-square with 14 degrees of freedom exceeds 36 once in 1000; keras-cv's ten operations give
    # over 10,000.
    assert ((counts - slots / 15) ** 2 / (slots / 15)).sum() < 36 and len(counts) == 15
    # With replacement: the slots agree once in 15 (0.0667); four standard errors are 0.0071.
    assert abs((drawn["op"][:, 0] == drawn["op"][:, 1]).mean() - 1 / 15) < 0.0071
    # Each slot is applied with 1/2, independently; keras-cv's default is 10/11.
    assert (
        abs(drawn["applied"].mean() - 0.5) < HALF
        and abs(drawn["applied"].all(axis=1).mean() - 0.25) < HALF
    )
    assert abs((drawn["sign"] > 0).mean() - 0.5) < HALF
    magnitude = drawn["magnitude"].astype(float)
    # N(9, 0.5) clipped at 10, two standard deviations up: mean 8.9958, deviation 0.4885 (integrated
    # below); 40,000 draws have standard errors of 0.0025 and 0.0017. Unclipped noise has a
    # deviation of 0.5.
    mean, deviation = clipped_normal(9.0, 0.5, 10.0)
    assert abs(magnitude.mean() - mean) < 0.01 and abs(magnitude.std() - deviation) < 0.007
    assert magnitude.max() == 10.0 and abs((magnitude == 10.0).mean() - 0.02275) < 0.003
    # one noise per operation, not per image
    assert abs(np.corrcoef(magnitude[:, 0], magnitude[:, 1])[0, 1]) < 0.03


def clipped_normal(mean: float, deviation: float, high: float) -> tuple[float, float]:
    x = np.minimum(np.random.default_rng(1).normal(mean, deviation, 4_000_000), high)
    return float(x.mean()), float(x.std())


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_arguments_at_magnitude_nine(sign):
    arguments = operation_arguments(tf.constant(9.0), tf.constant(sign), True)
    expected = {
        "rotate": 27 * sign,
        "posterize": 1,
        "solarize": 26,
        "solarize_add": 99,
        "color": 1 + 0.81 * sign,
        "contrast": 1 + 0.81 * sign,
        "brightness": 1 + 0.81 * sign,
        "sharpness": 1 + 0.81 * sign,
        "shear_x": 0.27 * sign,
        "shear_y": 0.27 * sign,
        "translate_x": 0.405 * sign,
        "translate_y": 0.405 * sign,
    }
    assert arguments.keys() == expected.keys()
    for name, value in expected.items():
        assert arguments[name].numpy() == pytest.approx(value, rel=1e-6), name


def test_arguments_at_the_ends():
    ten = operation_arguments(tf.constant(10.0), tf.constant(-1.0), True)
    assert (
        ten["posterize"] == 0
        and ten["solarize"] == 0
        and ten["color"].numpy() == pytest.approx(0.1)
    )
    plain = operation_arguments(tf.constant(9.0), tf.constant(-1.0), False)
    assert (
        plain["posterize"] == 3
        and plain["solarize"] == 230
        and plain["color"].numpy() == pytest.approx(1.72)
    )


@pytest.mark.parametrize("index", range(15))
def test_rand_augment_applies_what_was_drawn(index):
    """With one slot that is always applied, the result is that operation at the drawn argument."""
    policy, image = RandAugmentPolicy(1, 9, 0.5, True, 1.0), tf.constant(PIXELS)
    seed = next(
        s for s in ([i, 5] for i in range(500)) if draw_ops(tf.constant(s), policy).op[0] == index
    )
    drawn = draw_ops(tf.constant(seed), policy)
    arguments = operation_arguments(drawn.magnitude[0], drawn.sign[0], True)
    name = RAND_AUGMENT_OPS[index]
    expected = apply_operation(name, image, arguments.get(name), (124, 116, 104))
    np.testing.assert_array_equal(rand_augment(image, tf.constant(seed), policy), expected)
    assert (expected.numpy() != PIXELS).any()
