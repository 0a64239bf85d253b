"""Labels and images that would train in silence, or fail far away, are refused in a sentence."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import deit_tf
from deit_tf.training.inputs import distributions
from deit_tf.training.trainer import LabelTrainer

CLASSES, SIZE, BATCH = 5, 16, 8


def network():
    model = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    )
    return model


def distiller():
    student = deit_tf.create_model(
        "deit_test", num_classes=CLASSES, image_size=SIZE, depth=1, embed_dim=24
    )
    return deit_tf.Distiller(student, kind="none")


IMAGES = np.zeros((BATCH, SIZE, SIZE, 3), np.float32)
SOFT = np.full((BATCH, CLASSES), 1 / CLASSES, np.float32)
SEVERAL = np.tile(np.float32([1, 1, 0, 0, 0]), (BATCH, 1))


@pytest.mark.parametrize("make", [distiller, lambda: LabelTrainer(network())])
@pytest.mark.parametrize(
    "labels",
    [
        np.full(BATCH, CLASSES),  # a class too many: a row of zeros, and loss 0
        np.full(BATCH, -1),
        SEVERAL,  # several classes at once, under a softmax
        np.full((BATCH, CLASSES), 0.0, np.float32),
    ],
)
def test_labels_that_are_none_are_refused_in_the_graph(make, labels):
    trainer = make()
    trainer.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Labels are whole numbers 0..4"):
        trainer.fit(IMAGES, labels, batch_size=BATCH, verbose=0)


@pytest.mark.parametrize("rows", [1, BATCH])
def test_whole_number_rows_are_refused(rows):
    labels = tf.one_hot(np.arange(rows) % CLASSES, CLASSES, dtype=tf.int64)
    with pytest.raises(ValueError, match=rf"Received: int64 \({rows}, 5\)"):
        distributions(labels, CLASSES)


@pytest.mark.parametrize("labels", [np.arange(5), np.arange(5)[:, None], np.eye(5)])
def test_what_labels_may_be(labels):
    np.testing.assert_array_equal(distributions(tf.constant(labels), CLASSES), np.eye(5))


def test_bfloat16_rows_and_what_fills_a_batch_are_taken():
    smoothed = tf.cast(np.full((1, CLASSES), 1 / CLASSES), tf.bfloat16)
    assert distributions(smoothed, CLASSES).shape == (1, CLASSES)
    rows = np.stack([SOFT[0], np.zeros(CLASSES, np.float32)])
    distributions(tf.constant(rows), CLASSES, tf.constant([1.0, 0.0]))


@pytest.mark.parametrize(
    "images, received",
    [
        (np.zeros((BATCH, SIZE, SIZE, 1), np.float32), r"\(.*16, 16, 1\)"),
        (np.zeros((BATCH, 24, 24, 3), np.float32), r"\(.*24, 24, 3\)"),
        ({"image": IMAGES}, "a dict of image"),
    ],
)
def test_images_of_another_kind_are_named(images, received):
    trainer = distiller()
    trainer.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    batches = tf.data.Dataset.from_tensors((images, SOFT))
    with pytest.raises(ValueError, match=f"`x` must be images.*16x16x3.*Received: {received}"):
        trainer.fit(batches, verbose=0)


def test_images_of_no_known_shape_and_missing_labels_are_named():
    trainer = distiller()
    trainer.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    unknown = tf.data.Dataset.from_generator(
        lambda: iter([(IMAGES, SOFT)]), output_types=(tf.float32, tf.float32)
    )
    with pytest.raises(ValueError, match="`x` must be images of a shape that is known"):
        trainer.fit(unknown, verbose=0)
    with pytest.raises(ValueError, match="`y` must be the labels of the images. Received: none"):
        trainer.fit(IMAGES, verbose=0)


def test_a_smaller_last_batch_under_micro_batches_is_refused_in_a_sentence():
    trainer = distiller()
    trainer.compile(keras.optimizers.SGD(0.1), micro_batches=4, jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices((IMAGES[:6], SOFT[:6])).batch(4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`micro_batches` must divide"):
        trainer.fit(batches, verbose=0)
