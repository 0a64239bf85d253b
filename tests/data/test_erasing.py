"""Random erasing: timm's law over many draws, and what takes the place of the pixels."""

import numpy as np
import pytest
import tensorflow as tf
from augment_cases import area_law, draw

from deit_tf.data.erasing import draw_erasing, random_erasing


def test_erasing_draws_the_law():
    drawn = draw(lambda seed: draw_erasing(224, 224, seed, 0.25)[0]._asdict())
    found = drawn["found"]
    assert (
        abs(found.mean() - 0.25) < 0.0123
    )  # four standard errors; keras-cv's RandomCutout always erases
    height, width = drawn["height"][found].astype(float), drawn["width"][found].astype(float)
    area = height * width / 224**2
    law = area_law(224, 224, (0.02, 1 / 3), (0.3, 1 / 0.3), 1)
    # Standard errors of 5,000 draws: 0.0013 of the mean, 0.0025 of the median; the sides' rounding
    # widens the range.
    assert 0.019 < area.min() and area.max() < 0.337
    assert abs(area.mean() - law.mean()) < 0.006 and abs(np.median(area) - np.median(law)) < 0.01
    aspect = np.log(height / width)
    assert (
        abs(aspect.mean()) < 0.04 and 1.15 < np.abs(aspect).max() < 1.23
    )  # log-uniform to +-log(1 / 0.3) = 1.204
    assert (height < 224).all() and (width < 224).all()


def test_erased_pixels_are_normal_and_the_others_stay():
    image = tf.random.stateless_uniform([224, 224, 3], [0, 0], 10, 11)
    erased = draw(lambda seed: random_erasing(image, seed, 1.0), 20)
    assert not (erased == image.numpy()[None]).all(axis=(1, 2, 3)).any()
    noise = erased[erased < 9]
    assert noise.size > 100_000  # 20 rectangles of 0.16 of the image are 490,000 values
    assert (
        abs(noise.mean()) < 0.015 and abs(noise.std() - 1) < 0.01
    )  # four standard errors of 100,000
    assert len({picture.tobytes() for picture in erased}) == 20
    untouched = random_erasing(image, tf.constant([0, 0]), 0.0)
    np.testing.assert_array_equal(untouched, image)


@pytest.mark.parametrize("mode", ["const", "rand"])
def test_one_color_takes_the_place_of_a_rectangle(mode):
    image = tf.fill([64, 64, 3], 10.0)
    erased = draw(lambda seed: random_erasing(image, seed, 1.0, mode), 400)
    # two channels may well have one value where the other is left
    colors = np.array([picture[(picture != 10).all(axis=-1)][0] for picture in erased])
    for picture, color in zip(erased, colors, strict=True):
        inside = (picture == color).all(axis=-1)
        rows, columns = inside.any(axis=1), inside.any(axis=0)
        assert inside.sum() == rows.sum() * columns.sum()  # a rectangle
        assert ((picture == 10) | inside[..., None]).all()
    if mode == "const":
        assert (colors == 0).all()
        return
    assert abs(colors.mean()) < 0.12 and abs(colors.std() - 1) < 0.09  # four errors of 1,200
    assert len(np.unique(colors)) == colors.size


def test_several_rectangles_share_the_area():
    boxes = draw(lambda seed: [b._asdict() for b in draw_erasing(224, 224, seed, 0.5, 3)], 9000)
    found = np.stack([box["found"] for box in boxes])
    counts = np.bincount(found.sum(axis=0), minlength=4) / 9000
    # four standard errors of 9,000 draws
    assert abs(counts[0] - 0.5) < 0.021 and np.abs(counts[1:] - 1 / 6).max() < 0.016
    areas = np.stack([box["height"] * box["width"] / 224**2 for box in boxes])
    law = area_law(224, 224, (0.02, 1 / 3), (0.3, 1 / 0.3), 1).mean()
    for count in (1, 2, 3):
        mean = areas[:, found.sum(axis=0) == count][:count].mean()
        assert abs(mean - law / count) < 0.011 / count  # four errors of 1,500; few do not fit
    three = found.all(axis=0)
    assert (boxes[0]["top"] != boxes[1]["top"])[three].mean() > 0.9


def test_the_first_of_several_is_that_of_a_single_one():
    image = tf.random.stateless_normal([32, 48, 3], [0, 0])
    seeds = [tf.constant([i, 1]) for i in range(20)]
    single = [random_erasing(image, seed, 0.5) for seed in seeds]
    several = [random_erasing(image, seed, 0.5, "pixel", 2) for seed in seeds]
    touched = [[(each != image).numpy().any() for each in images] for images in (single, several)]
    assert touched[0] == touched[1] and 0 < sum(touched[0]) < 20
    again = random_erasing(image, seeds[0], 1.0, "rand", 3)
    np.testing.assert_array_equal(again, random_erasing(image, seeds[0], 1.0, "rand", 3))
