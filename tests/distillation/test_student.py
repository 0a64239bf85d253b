"""Any Keras classifier as a student, in a script: what it must be, what it is fed, what leaves."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import deit_tf
from deit_tf.distillation.student import student_heads
from deit_tf.models.layers import numbered_draw

PIXELS = deit_tf.ImageProcessor((16, 16), mean=(0.0,) * 3, std=(1 / 255,) * 3)
LABELS = np.arange(8) % 3
NORMALIZED = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
RAW = np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 3)).astype("float32")


def convnet(*first, activation=None, last="logits"):
    """A small classifier that begins with these layers, with batch normalization and dropout."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = image
    for layer in first:
        x = layer(x)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.1)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(
        image, keras.layers.Dense(3, activation=activation, name=last)(x), name="net"
    )


def frozen_teacher():
    network = convnet()
    network.trainable = False
    return deit_tf.Teacher(network)


def distiller(student, kind="none", **options):
    made = deit_tf.Distiller(
        student, None if kind == "none" else frozen_teacher(), kind=kind, **options
    )
    made.compile(keras.optimizers.SGD(0.05))
    return made


@pytest.mark.parametrize("kind", ["hard", "soft", "none"])
def test_every_kind_trains_one_head(kind):
    student = convnet()
    made = distiller(student, kind)
    history = made.fit(NORMALIZED, LABELS, batch_size=8, epochs=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert "accuracy_cls" in history and "accuracy_dist" not in history
    # its own output, and batch statistics that have moved
    assert made.student is student
    (moved,) = [w for w in student.weights if w.name == "moving_mean"]
    assert np.abs(moved.numpy()).max() > 0


def test_dropout_of_keras_draws_by_the_number_of_the_step():
    """Also within a model within the student; so a stopped run goes on with the same masks."""
    image = keras.Input((16, 16, 3))
    layers = [keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dropout(0.5)]
    inner = keras.Sequential(layers)
    distiller(keras.Model(image, keras.layers.Dense(3)(inner(image))))

    def masks(number):
        with numbered_draw(number):
            return np.array(inner(np.ones((2, 16, 16, 3), "float32"), training=True))

    np.testing.assert_array_equal(masks(7), masks(7))
    assert (masks(7) != masks(8)).any()
    first, second = (np.array(inner(np.ones((2, 16, 16, 3)), training=True)) for _ in range(2))
    assert (first != second).any()  # elsewhere as Keras does


def test_a_sequential_model_is_a_student():
    layers = [keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    made = distiller(keras.Sequential(layers))
    assert np.isfinite(made.fit(NORMALIZED, LABELS, verbose=0).history["loss"])


def test_a_layer_called_head_is_no_output_by_its_name():
    """It would be trained in place of the logits."""
    image = keras.Input((16, 16, 3))
    hidden = keras.layers.Dense(5, name="head")(keras.layers.Flatten()(image))
    student = keras.Model(image, keras.layers.Dense(3)(hidden))
    assert student_heads(student).output["cls"].shape == (None, 3)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, images):
        return self.dense(keras.ops.mean(images, axis=(1, 2)))


def dense_of(*shape):
    return keras.Sequential([keras.Input(shape), keras.layers.Dense(3)])


@pytest.mark.parametrize(
    "student, message",
    [
        (lambda: convnet(activation="softmax"), "last layer is a softmax or sigmoid.*net"),
        (lambda: convnet(activation="sigmoid"), "`classifier_activation=None`"),
        (Subclassed, r"keras.Model\(image, model\(image\)\)`.*a Subclassed"),
        (lambda: dense_of(7), r"one batch of images.*input \(None, 7\)"),
        (lambda: dense_of(16, 16, 3), r"one output, logits.*output \(None, 16, 16, 3\)"),
    ],
)
def test_what_is_no_student(student, message):
    with pytest.raises(ValueError, match=message):
        deit_tf.Distiller(student(), kind="none")


# What a student expects of its images


def test_a_student_that_normalizes_itself_takes_pixels(caplog):
    caplog.set_level(logging.INFO)
    made = distiller(convnet(keras.layers.Rescaling(1 / 127.5, offset=-1)), "hard")
    assert made.processor == PIXELS and "takes pixels 0..255" in caplog.text
    made.fit(RAW, LABELS, verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="these are normalized already"):
        made.fit(NORMALIZED, LABELS, verbose=0)


def test_its_teacher_sees_the_same_images_normalized():
    made = distiller(convnet(keras.layers.Rescaling(1 / 255)), "hard")
    teacher = made.teacher
    normalized = (RAW / 255 - np.array(teacher.mean)) / np.array(teacher.std)
    expected = teacher.model(normalized.astype("float32"))
    # pixels times 1 / 255 in float32
    np.testing.assert_allclose(teacher.logits(RAW, made.processor), expected, atol=1e-4)


def test_normalizing_twice_is_refused():
    with pytest.raises(ValueError, match="would do so twice.*include_preprocessing=False"):
        distiller(convnet(keras.layers.Rescaling(1 / 255)), processor=deit_tf.ImageProcessor(16))
    assert distiller(convnet(keras.layers.Rescaling(1 / 255)), processor=PIXELS)


def test_a_saved_one_comes_back(tmp_path):
    made = distiller(convnet(keras.layers.Rescaling(1 / 255)))
    made.save(tmp_path / "d.keras")
    assert keras.saving.load_model(tmp_path / "d.keras", compile=False).processor == PIXELS


def test_an_operation_that_may_normalize_is_warned_of(caplog):
    distiller(convnet(lambda images: images / 255))
    assert "begins with an operation that may be a normalization (TrueDivide)" in caplog.text


# What `fit` says of images that do not fit


@pytest.mark.parametrize(
    "images, message",
    [
        ({"image": NORMALIZED}, "labels come as `y`.*a dict of image"),
        (NORMALIZED[..., :1], r"grayscale_to_rgb.*num_channels=1.*\(8, 16, 16, 1\)"),
        (np.zeros((8, 16, 16, 5), "float32"), r"Make the model for them.*num_channels=5"),
        (NORMALIZED[..., 0], r"its channels as last axis"),
        (
            np.zeros((8, 20, 24, 3), "float32"),
            r"tf.image.resize\(images, \(16, 16\)\).*image_size=\(20, 24\).*\(8, 20, 24, 3\)",
        ),
        (np.uint8(RAW), "must be normalized images.*Received: uint8"),
    ],
)
def test_images_that_do_not_fit(images, message):
    student = deit_tf.create_model("deit_test", num_classes=3, image_size=16, depth=1)
    made = deit_tf.Distiller(student, kind="none")
    with pytest.raises(ValueError, match=message):
        made.batch_result((images, LABELS), training=True)


def test_teachers_that_are_none():
    student = convnet()
    with pytest.raises(ValueError, match=r"`deit_tf.Teacher\(model\)`.*'net', a Functional"):
        deit_tf.Distiller(student, convnet())
    image = keras.Input((16, 16, 3))
    prepares = keras.Model(image, keras.layers.Rescaling(1 / 255)(image))
    with pytest.raises(ValueError, match="only prepares images goes before it"):
        deit_tf.Teacher(prepares)
    with pytest.raises(ValueError, match="only prepares images.*a Rescaling"):
        deit_tf.Teacher(keras.layers.Rescaling(1 / 255))

    divides = convnet(lambda images: images / 255)
    divides.trainable = False
    with pytest.raises(
        ValueError, match=r"may be a normalization \(TrueDivide\).*Pass `processor`"
    ):
        deit_tf.Teacher(divides)
    assert deit_tf.Teacher(divides, PIXELS).std == PIXELS.std

    gray = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Flatten()])
    gray.add(keras.layers.Dense(3))
    gray.trainable = False
    with pytest.raises(ValueError, match=r"takes images of 1 channel\(s\).*have 3"):
        deit_tf.Distiller(student, deit_tf.Teacher(gray))


def test_resizing_first_hides_no_normalization():
    steps = (keras.layers.Resizing(16, 16), keras.layers.Rescaling(1 / 255))
    network = convnet(*steps)
    network.trainable = False
    assert deit_tf.Teacher(network).std == PIXELS.std


# What leaves


def test_the_student_is_exported_after_fit(tmp_path):
    student = deit_tf.create_model("deit_test", num_classes=3, image_size=16, depth=1)
    made = distiller(student, "hard")
    made.fit(NORMALIZED, LABELS, verbose=0)
    made.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    # the kernels are Keras's own
    np.testing.assert_allclose(loaded.serve(NORMALIZED), student(NORMALIZED), atol=1e-5)
