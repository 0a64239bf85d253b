"""Each pixel operation against Pillow's result (golden/pil_randaugment_ops.npz), eagerly and inside
tf.data."""

import functools
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageFilter, ImageOps

from deit_tf.data import pixel_ops
from deit_tf.data.pixel_ops import OPERATIONS, apply_operation

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import keras_cv_kernels

GOLDEN = Path(__file__).parents[1] / "golden"
PIL = np.load(GOLDEN / "pil_randaugment_ops.npz")
PHOTO, WHITE = PIL["image"], PIL["white"]  # uint8 [96, 96, 3]; WHITE has 32 white rows
FILL = (124, 116, 104)

# golden name: operation, argument, fill?, largest difference allowed in gray levels.
# 0: whole-number arithmetic. 1: float32 beside Pillow's float64 or fixed point may fall on the
# other side of a level.
CASES = {
    "auto_contrast": ("auto_contrast", None, False, 1),
    "equalize": ("equalize", None, False, 0),
    "invert": ("invert", None, False, 0),
    "posterize_1": ("posterize", 1, False, 0),
    "posterize_2": ("posterize", 2, False, 0),
    "solarize_26": ("solarize", 26, False, 0),
    "solarize_add_99": ("solarize_add", 99, False, 0),
    **{
        f"{op}_{f}": (op, f, False, 1)
        for op in ("color", "contrast", "brightness", "sharpness")
        for f in (0.19, 1.81)
    },
    "shear_x_0.27": ("shear_x", 0.27, True, 1),
    "shear_y_-0.27": ("shear_y", -0.27, True, 1),
    "translate_x_0.405": ("translate_x", 0.405, True, 1),
    "translate_y_-0.405": ("translate_y", -0.405, True, 1),
}


def run(name: str, image: np.ndarray, argument, filled: bool, graph: bool) -> np.ndarray:
    """Call an operation, the argument a scalar tensor; inside tf.data the image's size is
    unknown."""
    argument = None if argument is None else tf.constant(argument)
    call = functools.partial(
        apply_operation, name, argument=argument, fill=FILL if filled else None
    )
    if not graph:
        return call(tf.constant(image)).numpy()
    spec = tf.TensorSpec([None, None, 3], tf.uint8)
    dataset = tf.data.Dataset.from_generator(lambda: [image], output_signature=spec)
    return next(iter(dataset.map(call))).numpy()


def difference(result: np.ndarray, reference: np.ndarray) -> np.ndarray:
    assert result.dtype == np.uint8 and result.shape == reference.shape
    return np.abs(result.astype(int) - reference.astype(int))


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "tf.data"])
@pytest.mark.parametrize("case", CASES)
def test_operation_equals_pillow(case, graph):
    name, argument, filled, largest = CASES[case]
    assert (
        difference(run(name, PHOTO, argument, filled, graph), PIL[f"photo/{case}"]).max() <= largest
    )


@pytest.mark.parametrize(
    ("case", "largest"), [("auto_contrast", 1), ("equalize", 0), ("contrast_1.81", 1)]
)
def test_white_rows(case, largest):
    name, argument, filled, _ = CASES[case]
    # keras-cv's own equalization is off by 91 levels here, its contrast by 116
    assert (
        difference(run(name, WHITE, argument, filled, False), PIL[f"white/{case}"]).max() <= largest
    )


def test_solarize_add_on_white_rows():
    expected = np.where(WHITE < 128, WHITE + np.uint8(99), WHITE)
    assert difference(run("solarize_add", WHITE, 99, False, False), expected).max() == 0


def test_equals_tensorflow_addons():
    reference = np.load(GOLDEN / "tfa_reference.npz")
    assert difference(run("equalize", PHOTO, None, False, False), reference["equalize"]).max() == 0
    assert (
        difference(run("equalize", WHITE, None, False, False), reference["equalize_white"]).max()
        == 0
    )
    # tensorflow-addons rounds the smoothed image down and the blend to the nearest: two roundings
    # apart
    assert (
        difference(run("sharpness", PHOTO, 1.81, False, False), reference["sharpness_1.81"]).max()
        <= 2
    )


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "tf.data"])
def test_rotation_is_bilinear(graph):
    rotated = run("rotate", PHOTO, 27.0, True, graph)
    inside = (
        np.hypot(*(np.indices((96, 96)) - 47.5)) < 40
    )  # the corners outside are cut by the rotation
    # Measured 0.33 and 1.9; a rotation the other way, or about a point half a pixel off, gives more
    # than 3.
    assert difference(rotated, PIL["photo/rotate_27_bilinear"])[inside].mean() < 0.5
    assert difference(rotated, PIL["photo/rotate_27"])[inside].mean() < 2.7
    assert (rotated[0, 0] == FILL).all()


def test_zero_bits_are_black_and_eight_change_nothing():
    for bits, expected in ((0, np.zeros_like(PHOTO)), (8, PHOTO)):
        np.testing.assert_array_equal(run("posterize", PHOTO, bits, False, False), expected)


@pytest.mark.parametrize("threshold", [0, 128, 256])
def test_solarize_thresholds(threshold):
    expected = np.asarray(ImageOps.solarize(Image.fromarray(PHOTO), threshold))
    assert difference(run("solarize", PHOTO, threshold, False, False), expected).max() == 0


@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_factor_one_changes_nothing(name):
    np.testing.assert_array_equal(run(name, PHOTO, 1.0, False, False), PHOTO)


@pytest.mark.parametrize("name", ["auto_contrast", "equalize"])
def test_one_color_stays(name):
    flat = np.full((9, 7, 3), (10, 200, 255), np.uint8)
    np.testing.assert_array_equal(run(name, flat, None, False, False), flat)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_geometry_of_a_picture_that_is_not_square(name):
    image = PHOTO[:60, :90]
    places = {
        "shear_x": (1, -0.3),
        "shear_y": (3, -0.3),
        "translate_x": (2, -27.0),
        "translate_y": (5, -18.0),
    }
    matrix = [1, 0, 0, 0, 1, 0]
    place, value = places[name]
    matrix[place] = value
    expected = Image.fromarray(image).transform(
        (90, 60), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
    )
    assert difference(run(name, image, -0.3, True, True), np.asarray(expected)).max() <= 1


def test_grayscale():
    expected = np.repeat(np.asarray(Image.fromarray(PHOTO).convert("L"))[..., None], 3, axis=2)
    assert (
        difference(run("grayscale", PHOTO, None, False, True), expected).max() <= 1
    )  # float32 beside fixed point


@pytest.mark.parametrize("radius", [0.1, 0.7, 1.3, 2.0])
def test_blur(radius):
    expected = np.asarray(Image.fromarray(PHOTO).filter(ImageFilter.GaussianBlur(radius)))
    off = difference(run("blur", PHOTO, radius, False, True), expected)
    assert off[2:-2, 2:-2].max() <= 3  # Pillow rounds after each of six passes
    assert off.mean() < 0.6  # measured 0.04 to 0.46; a true Gaussian of radius 0.7 gives 1.3


def test_every_operation_is_compared():
    compared = {case[0] for case in CASES.values()} | {"rotate", "grayscale", "blur"}
    assert compared == set(OPERATIONS) == set(keras_cv_kernels.KERAS_CV)


# Mean difference from Pillow, in gray levels, of what is replaced here for being wrong. Where an
# entry falls to the 0.6 of rounding, keras-cv is right by now, and its kernel is to come back.
WRONG = ("equalize", "solarize_add", "contrast", "brightness", "shear_x", "shear_y", "blur")
WRONG += ("translate_x", "translate_y")


@pytest.mark.parametrize("name", WRONG)
def test_keras_cv_itself_is_off(name):
    picture = keras_cv_kernels.white_above(PHOTO)
    by_keras_cv, here = (
        keras_cv_kernels.difference(name, way, picture).mean() for way in ("keras-cv", "here")
    )
    assert by_keras_cv > 0.6 > here


def settings(name: str) -> dict:
    return {**OPERATIONS[name].settings, "seed": 1}


def transformations(name: str, batch: int):
    """At a middling argument, as keras-cv's own layers draw them: for a batch."""
    argument = {"posterize": 3, "solarize": 100, "solarize_add": 50}.get(name, 0.2)
    given = OPERATIONS[name].transformations(argument)
    if name == "posterize" or name == "blur" or given is None:
        return given
    if not isinstance(given, dict):
        return tf.fill([batch, 1, 1, 1], given)
    shape = {"angles": [batch], "thresholds": [batch, 1, 1, 1], "additions": [batch, 1, 1, 1]}
    batched = {
        key: None if value is None else tf.fill(shape.get(key, [batch, 1]), tf.squeeze(value))
        for key, value in given.items()
    }
    return batched | ({"fill": FILL} if OPERATIONS[name].fills else {})


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_float_batch_is_its_images_one_by_one(name):
    """keras-cv hands its layers float32 batches."""
    layer = OPERATIONS[name].layer(**settings(name))
    images = np.stack([PHOTO, WHITE])
    given = transformations(name, 2)
    if hasattr(layer, "augment_images"):
        batch = layer.augment_images(tf.constant(images, tf.float32), given)
    else:
        floats = [tf.constant(image, tf.float32) for image in images]
        batch = tf.stack([layer.augment_image(image, given) for image in floats])
    assert batch.dtype == tf.float32
    argument = {"posterize": 3, "solarize": 100, "solarize_add": 50}.get(name, 0.2)
    for image, result in zip(images, batch, strict=True):
        expected = apply_operation(name, tf.constant(image), argument, FILL)
        np.testing.assert_array_equal(result, tf.cast(expected, tf.float32))


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_is_a_keras_cv_layer_that_can_be_called_and_saved(name):
    layer = OPERATIONS[name].layer(**settings(name))
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    images = tf.data.Dataset.from_tensors(np.stack([PHOTO, WHITE]))
    result = next(iter(images.map(again)))
    assert result.dtype == tf.float32 and result.shape == (2, 96, 96, 3)
    assert (result.numpy() == np.round(result)).all()


@pytest.mark.parametrize("kind", [pixel_ops.Equalize, pixel_ops.AutoContrast])
def test_another_value_range_is_refused(kind):
    with pytest.raises(ValueError, match="value_range"):
        kind(value_range=(0, 1))


def test_another_fill_mode_is_refused():
    layer = pixel_ops.Rotation(0.1, fill_mode="reflect", seed=1)
    with pytest.raises(ValueError, match="fill_mode"):
        layer(PHOTO[None].astype(np.float32))


def test_another_interpolation_is_refused():
    with pytest.raises(ValueError, match="interpolation"):
        pixel_ops.Shear(x_factor=0.1, interpolation="bilinear")
    with pytest.raises(ValueError, match="interpolation"):
        pixel_ops.Translation(height_factor=0.1, width_factor=0.1, interpolation="nearest")


def test_another_kernel_size_is_refused():
    with pytest.raises(ValueError, match="kernel_size"):
        pixel_ops.GaussianBlur(factor=1.0, kernel_size=5)


@pytest.mark.parametrize("name", ["sharpness", "rotate", "blur"])
def test_mixed_precision_changes_nothing(name):
    """Layers are made at first use, which may be under any policy."""
    before = apply_operation(name, tf.constant(PHOTO), 0.7, FILL)
    pixel_ops._layer.cache_clear()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        under = apply_operation(name, tf.constant(PHOTO), 0.7, FILL)
    finally:
        keras.mixed_precision.set_global_policy("float32")
        pixel_ops._layer.cache_clear()
    np.testing.assert_array_equal(under, before)
