"""The recipe as keras-cv layers: the same functions of the same seeds, and nothing beside them."""

import subprocess
import sys

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf
from augment_cases import KEY, PIXELS

from deit_tf.config import AugmentConfig
from deit_tf.data import (
    ColorJitter,
    CutMix,
    MixUp,
    RandAugment,
    RandomChoice,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    SimpleRandomCrop,
    ThreeAugment,
    augment,
    crop,
    erasing,
    mixing,
    rand_augment,
)

IMAGE = tf.constant(PIXELS)
IMAGES = tf.stack([IMAGE, IMAGE[::-1], IMAGE[:, ::-1], 255 - IMAGE])
LABELS = tf.one_hot(range(4), 5)
PAPER = rand_augment.parse_rand_augment("rand-m9-mstd0.5-inc1")
THIRDS = (3 / 4, 4 / 3)

# layer: the function that it is, of an image and a seed
IMAGE_LAYERS = {
    RandomResizedCrop((32, 48), interpolation="random"): lambda image, seed: (
        crop.random_resized_crop(image, (32, 48), seed, (0.08, 1.0), THIRDS, "random")
    ),
    SimpleRandomCrop((32, 48)): lambda image, seed: crop.simple_crop(image, (32, 48), seed),
    RandomFlip(): lambda image, seed: augment.random_flip(image, seed, 0.5),
    RandAugment(): lambda image, seed: rand_augment.rand_augment(image, seed, PAPER),
    ThreeAugment(): augment.three_augment,
    ColorJitter(): lambda image, seed: augment.color_jitter(image, seed, 0.3),
    RandomErasing(0.5, "rand", 2): lambda image, seed: erasing.random_erasing(
        tf.cast(image, tf.float32), seed, 0.5, "rand", 2
    ),
}
BATCH_LAYERS = [MixUp(), CutMix(), RandomChoice([MixUp(0.8), CutMix(1.0)])]
LAYERS = [*IMAGE_LAYERS, *BATCH_LAYERS]


def name(layer) -> str:
    return type(layer).__name__


def seeds(count: int) -> list[tf.Tensor]:
    return [tf.random.fold_in(KEY, i) for i in range(count)]


@pytest.mark.parametrize("layer", IMAGE_LAYERS, ids=name)
def test_a_layer_is_its_function_of_the_seed(layer):
    results = set()
    for seed in seeds(8):
        result = layer({"images": IMAGE, "labels": LABELS[0], "seed": seed})
        expected = IMAGE_LAYERS[layer](IMAGE, layer._own_seed(seed))
        np.testing.assert_array_equal(result["images"], tf.cast(expected, tf.float32))
        np.testing.assert_array_equal(result["labels"], LABELS[0])
        np.testing.assert_array_equal(result["seed"], seed)
        results.add(result["images"].numpy().tobytes())
    assert len(results) > 1


@pytest.mark.parametrize("layer", IMAGE_LAYERS, ids=name)
def test_a_batch_is_its_images_one_by_one(layer):
    together = layer({"images": IMAGES, "seed": tf.stack(seeds(4))})["images"]
    for image, seed, result in zip(IMAGES, seeds(4), together, strict=True):
        np.testing.assert_array_equal(result, layer({"images": image, "seed": seed})["images"])


@pytest.mark.parametrize("layer", IMAGE_LAYERS, ids=name)
def test_one_seed_for_a_batch_draws_anew_for_each_image(layer):
    results = layer({"images": tf.stack([IMAGE] * 12), "seed": KEY})["images"]
    assert len({result.tobytes() for result in results.numpy()}) > 1


@pytest.mark.parametrize("layer", list(IMAGE_LAYERS)[:-1], ids=name)  # noise has no gray levels
def test_whole_gray_levels_stay_uint8_where_asked(layer):
    whole = type(layer).from_config(layer.get_config() | {"dtype": "uint8"})
    inputs = {"images": IMAGES, "seed": KEY}
    assert whole(inputs)["images"].dtype == tf.uint8
    np.testing.assert_array_equal(
        tf.cast(whole(inputs)["images"], tf.float32), layer(inputs)["images"]
    )


def law_of(layer) -> AugmentConfig:
    return AugmentConfig(recipe="none", **{type(layer).method: layer.alpha}).resolve()


@pytest.mark.parametrize("layer", [MixUp(), CutMix()], ids=name)
def test_mixing_layers_are_the_functions_of_the_pipeline(layer):
    images = tf.cast(IMAGES, tf.float32)
    for seed in seeds(4):
        mixed = layer({"images": images, "labels": LABELS, "seed": seed})
        expected = mixing.mix(images, LABELS, layer._own_seed(seed), law_of(layer))
        np.testing.assert_array_equal(mixed["images"], expected[0])
        np.testing.assert_array_equal(mixed["labels"], expected[1])


def test_a_batch_is_mixed_by_the_seed_of_its_first_image():
    inputs = {"images": IMAGES, "labels": LABELS}
    by_first = MixUp()(inputs | {"seed": seeds(1)[0]})
    by_all = MixUp()(inputs | {"seed": tf.stack(seeds(4))})
    np.testing.assert_array_equal(by_first["images"], by_all["images"])


def test_a_choice_is_the_batchs():
    with pytest.raises(ValueError, match="`batchwise` is True"):
        RandomChoice([MixUp(0.8)], batchwise=False)


def test_a_choice_takes_each_layer_half_the_time():
    choice = RandomChoice([RandomFlip(0.0), RandomFlip(1.0)])
    images = tf.constant([[[[0.0] * 3, [1.0] * 3]]])  # flipped, it begins with 1
    inputs = tf.data.Dataset.from_tensor_slices({"seed": tf.stack(seeds(400))})
    chosen = inputs.map(lambda x: choice(x | {"images": images})["images"][0, 0, 0, 0])
    share = np.mean(list(chosen.as_numpy_iterator()))
    assert abs(share - 0.5) < 0.1  # four standard errors of 400 draws


def pipeline(seed: int, given: bool, parallel: int | None) -> list[np.ndarray]:
    """Fresh layers, as in another process; of one operation, as each costs seconds to trace."""
    one_image = keras_cv.layers.Augmenter(
        [
            RandomResizedCrop((32, 48), seed=seed),
            RandomFlip(seed=seed),
            RandAugment("rand-m9-n1-mstd0.5-inc1", seed=seed),
            RandomErasing(seed=seed),
        ]
    )
    batch = RandomChoice([MixUp(seed=seed), CutMix(seed=seed)], seed=seed)

    def augment_one(index, inputs):
        return one_image(inputs | ({"seed": tf.random.fold_in(KEY, index)} if given else {}))

    items = tf.data.Dataset.from_tensor_slices({"images": IMAGES, "labels": LABELS}).repeat(4)
    batches = items.enumerate().map(augment_one, parallel).batch(4).map(batch, parallel)
    return [x["images"] for x in batches.as_numpy_iterator()]


def test_same_seeds_same_bytes_at_any_parallelism():
    one, eight = pipeline(0, True, None), pipeline(0, True, 8)
    np.testing.assert_array_equal(one, eight)
    assert (np.array(pipeline(1, True, 8)) != np.array(one)).any()


def test_without_seeds_in_the_inputs_the_order_of_calls_decides():
    one = pipeline(0, False, None)
    np.testing.assert_array_equal(pipeline(0, False, None), one)
    assert (np.array(pipeline(1, False, None)) != np.array(one)).any()


def test_layers_of_one_seed_draw_apart():
    own = {layer._own_seed(KEY).numpy().tobytes() for layer in LAYERS}
    assert len(own) == len(LAYERS)
    assert (RandomFlip(seed=1)._own_seed(KEY) != RandomFlip(seed=2)._own_seed(KEY)).numpy().any()


@pytest.mark.parametrize("layer", LAYERS, ids=name)
def test_a_layer_comes_back_from_its_config(layer):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer)
    inputs = {"images": IMAGES, "labels": LABELS, "seed": KEY}
    np.testing.assert_array_equal(again(inputs)["images"], layer(inputs)["images"])


def test_arguments_come_back_from_the_config():
    changed = [
        RandomResizedCrop((8, 9), (0.3, 0.4), (1.0, 2.0), seed=3),
        RandomFlip(0.1, seed=3),
        RandAugment("rand-m5-n3", (1, 2, 3), seed=3),
        ThreeAugment(seed=3),
        ColorJitter(0.2, seed=3),
        RandomErasing(0.6, seed=3),
        MixUp(0.3, seed=3),
        CutMix(0.3, seed=3),
    ]
    for layer in changed:
        again = type(layer).from_config(layer.get_config())
        inputs = {"images": IMAGES, "labels": LABELS, "seed": KEY}
        np.testing.assert_array_equal(again(inputs)["images"], layer(inputs)["images"])
        assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("layer", LAYERS, ids=name)
def test_boxes_and_masks_are_refused(layer):
    inputs = {"images": IMAGES, "labels": LABELS, "segmentation_masks": IMAGES}
    with pytest.raises(ValueError, match="segmentation_masks"):
        layer(inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomErasing(1.5), "rate"),
        (lambda: RandomFlip(-0.1), "rate"),
        (lambda: ColorJitter(-1), "factor"),
        (lambda: MixUp(0.0), "alpha"),
        (lambda: RandAugment("rand-m99"), "m99"),
        (lambda: MixUp()(IMAGES), "labels"),
        (lambda: CutMix()({"images": IMAGES, "labels": tf.range(4)}), "float"),
        (lambda: MixUp()({"images": IMAGE, "labels": LABELS[0]}), "single image"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


IN_A_FRESH_PROCESS = """
import sys
import tensorflow as tf
import deit_tf.data
assert "keras_cv" not in sys.modules, "deit_tf.data brings keras-cv"
tf.config.experimental.enable_op_determinism()
tf.keras.utils.set_random_seed(1)
from deit_tf.data import MixUp, RandAugment, RandomErasing, RandomResizedCrop, ThreeAugment
layers = [RandomResizedCrop((16, 16)), RandAugment("rand-n1"), ThreeAugment(), RandomErasing(1.0)]
def one(index):
    inputs = {"images": tf.zeros([20, 24, 3]), "labels": tf.one_hot(index, 4)}
    for layer in layers:
        inputs = layer(inputs)
    return inputs
batches = tf.data.Dataset.range(4).map(one, 2).batch(4).map(MixUp())
assert next(iter(batches))["images"].shape == (4, 16, 16, 3)
"""


def test_loads_keras_cv_only_when_asked_and_runs_with_deterministic_ops():
    """Under deterministic ops there is no global generator, which keras-cv's layers ask for."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
