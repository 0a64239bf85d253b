"""Mixing: timm's images and targets for timm's draws (golden/timm_*.npz), and the law of the
draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from deit_tf.config import AugmentConfig
from deit_tf.data import mixing

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = AugmentConfig(recipe="deit").resolve()
SIZE, DRAWS = (224, 224), 20_000
FEW = 200  # for what holds of every draw
ROUNDING = 1e-4  # float32 beside torch's: pixels are of order 255


def timm(name: str):
    golden = np.load(GOLDEN / f"timm_{name}.npz")
    images = tf.constant(golden["image_nchw"].transpose(0, 2, 3, 1))
    return golden, images, mixing.one_hot(golden["labels"], 10, 0.1)


@pytest.mark.parametrize("draw", range(4))
def test_mixup_equals_timm(draw):
    golden, images, labels = timm("mixup")
    drawn = {
        "lam": tf.constant(golden[f"lam_drawn_{draw}"], tf.float32),
        "cutmix": False,
        "box": tf.zeros(4, tf.int32),
    }
    mixed, targets = mixing.apply_mix(images, labels, drawn)
    np.testing.assert_allclose(mixed, golden[f"image_{draw}"].transpose(0, 2, 3, 1), atol=ROUNDING)
    np.testing.assert_allclose(targets, golden[f"target_{draw}"], atol=1e-6)


@pytest.mark.parametrize("draw", range(4))
def test_cutmix_equals_timm(draw):
    golden, images, labels = timm("cutmix")
    np.random.seed(
        draw
    )  # timm draws the switch, lambda, then the center from numpy's global generator
    np.random.rand()
    lam = np.random.beta(1.0, 1.0)
    assert lam == golden[f"lam_drawn_{draw}"]
    cut = int(16 * np.sqrt(1 - lam))
    center = [np.random.randint(0, 16), np.random.randint(0, 16)]
    top, left, bottom, right = mixing.cutmix_box(
        tf.constant(lam), tf.constant(center), (16, 16)
    ).numpy()
    if cut:
        np.testing.assert_array_equal([top, bottom, left, right], golden[f"changed_box_{draw}"])
    box = tf.stack([top, left, bottom, right])
    kept = tf.constant(1 - (bottom - top) * (right - left) / 256, tf.float32)
    mixed, targets = mixing.apply_mix(images, labels, {"lam": kept, "cutmix": True, "box": box})
    np.testing.assert_array_equal(mixed, golden[f"image_{draw}"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(targets, golden[f"target_{draw}"], atol=1e-6)


MODES = np.load(GOLDEN / "timm_mix_modes.npz")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["elem", "pair", "minmax"])
def test_mixing_by_image_and_by_pair_equals_timm(mode, seed):
    golden = {name: MODES[f"{mode}/{seed}/{name}"] for name in ("lam", "cutmix", "box")}
    # what timm drew for a half, or for the batch, is each image's
    rows = {"elem": range(6), "pair": [0, 1, 2, 2, 1, 0], "minmax": [0] * 6}[mode]
    drawn = {name: tf.constant(values[list(rows)]) for name, values in golden.items()}
    drawn["box"] = tf.cast(drawn["box"], tf.int32)
    images = tf.constant(MODES["image_nchw"].transpose(0, 2, 3, 1))
    mixed, targets = mixing.mix_each(images, mixing.one_hot(MODES["labels"], 5, 0.1), drawn)
    expected = MODES[f"{mode}/{seed}/image"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(mixed, expected, atol=1e-6)  # float32 pixels of order 1
    np.testing.assert_allclose(targets, MODES[f"{mode}/{seed}/target"], atol=1e-6)


@pytest.mark.parametrize("cutmix", [False, True])
def test_one_draw_for_all_is_that_of_the_batch(cutmix):
    images, labels = tf.random.stateless_normal([5, 6, 8, 3], [0, 0]), tf.eye(5)
    drawn = {"lam": tf.constant(0.75), "cutmix": cutmix, "box": tf.constant([1, 0, 4, 4])}
    each = {name: tf.stack([value] * 5) for name, value in drawn.items()}
    together = mixing.apply_mix(images, labels, drawn)
    for ours, theirs in zip(mixing.mix_each(images, labels, each), together, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("mode", ["elem", "pair"])
def test_who_shares_a_draw(mode):
    config = replace(CONFIG, mix_mode=mode, mix_probability=0.5)
    images, labels = tf.random.stateless_normal([7, 16, 16, 3], [0, 0]), tf.eye(7)
    kept = np.stack(
        [tf.linalg.diag_part(mixing.mix(images, labels, [0, i], config)[1]) for i in range(20)]
    )  # the share of an image's own label
    assert (kept[:, 3] == 1).all()  # it is its own partner
    assert (kept[:, :3] == kept[:, :3:-1]).all() == (mode == "pair")
    assert len(np.unique(kept[:, :3])) > 20 and 0.2 < (kept[:, :3] == 1).mean() < 0.8


@pytest.mark.parametrize("settings", [{"mix_mode": "elem"}, {"cutmix_minmax": (0.2, 0.8)}])
def test_the_law_of_an_image_is_that_of_a_batch(settings):
    config = replace(CONFIG, **settings).resolve()
    several = mixing.draw_mix(tf.constant([1, 2]), SIZE, config, [DRAWS])
    lam, cutmix = several["lam"].numpy(), several["cutmix"].numpy()
    assert abs(cutmix.mean() - 0.5) < 0.015 and abs(lam[~cutmix].var() - 1 / 10.4) < 0.003
    top, left, bottom, right = several["box"].numpy()[cutmix].T
    area = (bottom - top) * (right - left) / 224**2
    np.testing.assert_allclose(lam[cutmix], 1 - area, atol=1e-6)
    if "mix_mode" in settings:
        assert abs(lam[cutmix].mean() - reference_share()) < 0.013
        return

    # timm: sides from int(0.2 * 224) = 44 to int(0.8 * 224) - 1 = 178, drawn apart, anywhere
    height, width = bottom - top, right - left
    assert (height.min(), height.max(), width.min(), width.max()) == (44, 178, 44, 178)
    assert abs(height.mean() - 111) < 1.6 and abs(np.corrcoef(height, width)[0, 1]) < 0.04
    assert top.min() == 0 and bottom.max() == 224 and (bottom <= 224).all()
    assert abs((top / (224 - height)).mean() - 0.5) < 0.012


def test_a_box_between_two_shares_turns_cutmix_on():
    config = AugmentConfig("light", cutmix_minmax=(0.3, 0.6)).resolve()
    assert config.cutmix == 1 and draws(config, count=FEW)["cutmix"].all()
    with pytest.raises(ValueError, match="`augment.cutmix_minmax` is the smallest and the largest"):
        AugmentConfig("light", cutmix_minmax=(0.6, 0.3)).resolve()


def draws(config: AugmentConfig, size=SIZE, count=DRAWS) -> dict[str, np.ndarray]:
    key = tf.constant([7, 0], tf.int64)
    seeds = tf.data.Dataset.range(count).map(lambda i: tf.random.fold_in(key, i))
    drawn = seeds.map(lambda seed: mixing.draw_mix(seed, size, config)).batch(count)
    return {key: value.numpy() for key, value in next(iter(drawn)).items()}


def test_law():
    drawn = draws(CONFIG)
    cutmix, lam = drawn["cutmix"], drawn["lam"].astype(float)
    # Standard error of a share of 20,000 draws is 0.0035 at most: 0.015 is four of them.
    assert abs(cutmix.mean() - 0.5) < 0.015
    mixup = lam[~cutmix]  # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 * 2.6)
    assert abs(mixup.mean() - 0.5) < 0.013  # four standard errors of 10,000 draws
    assert abs(mixup.var() - 1 / 10.4) < 0.003  # Beta(1, 1) has 0.0833, 0.013 away
    height, width = (drawn["box"][cutmix][:, i + 2] - drawn["box"][cutmix][:, i] for i in (0, 1))
    np.testing.assert_allclose(lam[cutmix], 1 - height * width / (224 * 224), atol=1e-6)
    # Clipping the box raises the mean share kept from 1/2 to 0.69; keras-cv's labels keep 0.51.
    assert abs(lam[cutmix].mean() - reference_share()) < 0.013


def reference_share() -> float:
    """Mean share of the pixels that remain, by timm's rand_bbox."""
    random = np.random.default_rng(0)
    cut = (224 * np.sqrt(1 - random.random(200_000))).astype(int)
    sides = []
    for _ in range(2):
        center = random.integers(0, 224, cut.size)
        sides.append(np.clip(center + (cut + 1) // 2, 0, 224) - np.clip(center - cut // 2, 0, 224))
    return float(1 - (sides[0] * sides[1]).mean() / 224**2)


def test_probability_and_single_methods():
    share = (draws(replace(CONFIG, mix_probability=0.3))["lam"] < 1).mean()
    assert (
        abs(share - 0.3) < 0.015
    )  # four standard errors; a CutMix box of no pixels is rarer than 1e-4
    # Were a setting passed over, half of the draws would show it: missed once in 2 ** FEW.
    assert not draws(replace(CONFIG, cutmix=0.0), count=FEW)["cutmix"].any()
    assert draws(replace(CONFIG, mixup=0.0), count=FEW)["cutmix"].all()


def test_box_of_images_that_are_not_square():
    drawn = draws(replace(CONFIG, mixup=0.0), (20, 60), 10 * FEW)
    top, left, bottom, right = drawn["box"].T
    assert (top >= 0).all() and (left >= 0).all() and bottom.max() == 20 and right.max() == 60
    inside = (top > 0) & (left > 0) & (bottom < 20) & (right < 60)
    height, width = (bottom - top)[inside], (right - left)[inside]
    assert (
        (width >= 3 * height) & (width < 3 * height + 3)
    ).all()  # int(20 r) and int(60 r) of the same r


@pytest.mark.parametrize("batch", [4, 5])
@pytest.mark.parametrize("cutmix", [False, True])
def test_an_odd_batch_keeps_its_middle_image(batch, cutmix):
    images = tf.random.stateless_normal([batch, 6, 8, 3], [0, 0])
    labels = mixing.one_hot(tf.range(batch), batch, 0.0)
    drawn = {"lam": tf.constant(0.75), "cutmix": cutmix, "box": tf.constant([0, 0, 3, 4])}
    mixed, targets = mixing.apply_mix(images, labels, drawn)
    np.testing.assert_allclose(targets[0], [0.75, *[0] * (batch - 2), 0.25])
    assert not np.allclose(mixed[0], images[0])
    if batch % 2:
        np.testing.assert_allclose(mixed[batch // 2], images[batch // 2], atol=1e-6)
        np.testing.assert_allclose(targets[batch // 2], labels[batch // 2])


def test_mix_is_a_pure_function_of_the_seed():
    images, labels = (
        tf.random.stateless_normal([6, 16, 16, 3], [0, 0]),
        mixing.one_hot(tf.range(6), 6, 0.1),
    )
    seeds = [tf.constant([0, i]) for i in range(4)]
    dataset = tf.data.Dataset.from_tensor_slices(seeds)
    in_graph = list(
        dataset.map(lambda seed: mixing.mix(images, labels, seed, CONFIG), num_parallel_calls=4)
    )
    for seed, (image, label) in zip(seeds, in_graph, strict=True):
        again = mixing.mix(images, labels, seed, CONFIG)
        np.testing.assert_allclose(
            image, again[0], atol=1e-6
        )  # the compiled graph may fuse the product
        np.testing.assert_allclose(label, again[1], atol=1e-6)
        np.testing.assert_allclose(tf.reduce_sum(label, 1), 1.0, atol=1e-6)
    assert len({image.numpy().tobytes() for image, _ in in_graph}) == 4


def test_nothing_to_mix():
    images, labels = tf.zeros([2, 4, 4, 3]), mixing.one_hot([0, 1], 4, 0.1)
    mixed, targets = mixing.mix(
        images, labels, tf.constant([0, 0]), replace(CONFIG, mixup=0.0, cutmix=0.0)
    )
    assert mixed is images and targets is labels
    np.testing.assert_allclose(labels[0], [0.925, 0.025, 0.025, 0.025], rtol=1e-6)
