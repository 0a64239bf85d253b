"""The step of several labels against NumPy, its teacher, its files."""

import keras
import numpy as np
import pytest
from sklearn.metrics import f1_score

import deit_tf
from deit_tf.distillation.kinds import KINDS, MULTILABEL_LOSSES
from deit_tf.distillation.multilabel import MultilabelDistiller
from deit_tf.training.trainer import LabelTrainer

CLASSES, BATCH = 4, 6


def batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 16, 16, 3)).astype("float32")
    labels = (rng.random((BATCH, CLASSES)) < 0.4).astype("float32")
    labels[0] = 0  # none of them
    return images, labels


def student():
    keras.utils.set_random_seed(1)
    return deit_tf.create_model("deit_test", num_classes=CLASSES, depth=1, image_size=16)


def convnet(activation=None):
    keras.utils.set_random_seed(2)
    image = keras.Input((16, 16, 3))
    logits = keras.layers.Dense(CLASSES, activation=activation, kernel_initializer="normal")
    model = keras.Model(image, logits(keras.layers.Flatten()(image)))
    model.trainable = False
    return model


def made(**kwargs):
    distiller = MultilabelDistiller(student(), deit_tf.Teacher(convnet()), **kwargs)
    distiller.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    return distiller


def cross_entropy(logits, targets, weights=1.0):
    logits, targets = np.float64(logits), np.float64(targets)
    there, absent = np.logaddexp(0, -logits), np.logaddexp(0, logits)
    return (weights * targets * there + (1 - targets) * absent).mean(-1)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_loss_equals_numpy(kind):
    images, labels = batch()
    weights = [1.0, 2.0, 0.5, 3.0]
    distiller = made(kind=kind, alpha=0.3, temperature=2.0, class_weights=weights)
    cls, dist = (np.array(each) for each in deit_tf.heads(distiller.student)(images).values())
    teacher = distiller.teacher.model(images).numpy()

    temperature = 1 if kind == "hard" else 2
    soft = 1 / (1 + np.exp(-teacher / 2))
    taught = np.float64(teacher > 0) if kind == "hard" else soft
    distillation = cross_entropy(dist / temperature, taught)
    if kind == "soft":
        distillation = 4 * (distillation - cross_entropy(teacher / 2, soft))

    for training, factors in ((True, weights), (False, 1.0)):
        values = distiller.batch_result((images, labels), training=training).values
        base = cross_entropy(cls, labels, factors)
        np.testing.assert_allclose(values["base_loss"], base, rtol=1e-5)
        np.testing.assert_allclose(values["distillation_loss"], distillation, atol=1e-6)
        np.testing.assert_allclose(values["loss"], 0.7 * base + 0.3 * distillation, atol=1e-6)


def test_the_figures_are_those_of_scikit_learn():
    images, labels = batch()
    distiller = made()
    values = distiller.batch_result((images, labels), training=False).values
    found = distiller.student.predict(images, verbose=0) > 0
    expected = f1_score(labels, found, average="samples", zero_division=1)
    assert np.mean(values["f1_samples"]) == pytest.approx(expected)
    same = found == (distiller.teacher.model(images).numpy() > 0)
    assert np.mean(values["teacher_agreement"]) == pytest.approx(same.mean())


def test_an_image_of_no_label_scores_where_none_is_found():
    score = made()._score(np.array([[-1.0, -1.0], [1.0, -1.0]]), np.zeros((2, 2), "float32"))
    assert np.array(score).tolist() == [1, 0]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_teacher_of_probabilities_is_refused(activation):
    with pytest.raises(ValueError, match="`teacher` must give logits of several labels"):
        MultilabelDistiller(student(), deit_tf.Teacher(convnet(activation)))
    with pytest.raises(ValueError, match="`student` must give logits of several labels"):
        MultilabelDistiller(convnet(activation), kind="none")


@pytest.mark.parametrize("labels", [np.array([0, 1] * 3), np.ones((6, 5), "float32")])
def test_labels_of_another_form_are_refused(labels):
    with pytest.raises(ValueError, match=r"Labels of several classes are float \[B, 4\]"):
        made().batch_result((batch()[0], labels), training=True)


def test_several_labels_are_still_refused_by_a_softmax():
    distiller = deit_tf.Distiller(student(), kind="none")
    with pytest.raises(Exception, match="for several classes per image this loss is the wrong"):
        distiller.batch_result((batch()[0], np.ones((6, 4), "float32")), training=True)


def test_it_comes_back_from_a_file(tmp_path):
    distiller = made(class_weights=[1, 2, 3, 4])
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert list(loaded.class_weights) == [1, 2, 3, 4] and loaded.teacher is None
    images, _ = batch()
    np.testing.assert_array_equal(loaded(images), distiller(images))


def test_class_weights_of_a_softmax_are_those_of_fit():
    """One step of Keras's own `fit` with `class_weight`, on the same model."""
    images, labels = batch()[0], np.array([0, 1, 2, 3, 0, 1])
    weights = [1.0, 2.0, 0.5, 3.0]

    def model():
        keras.utils.set_random_seed(3)
        image = keras.Input((16, 16, 3))
        return keras.Model(image, keras.layers.Dense(CLASSES)(keras.layers.Flatten()(image)))

    plain = model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    plain.fit(images, labels, BATCH, verbose=0, class_weight=dict(enumerate(weights)))

    trainers = [
        LabelTrainer(model(), class_weights=weights),
        deit_tf.Distiller(model(), kind="none", class_weights=weights),
    ]
    for trainer in trainers:
        trainer.compile(keras.optimizers.SGD(0.1), jit_compile=False)
        trainer.fit(images, labels, BATCH, verbose=0)
        for ours, theirs in zip(trainer.network.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)  # float32 sums of another order


def test_as_many_weights_as_classes():
    with pytest.raises(ValueError, match="`class_weights` are 4 numbers"):
        deit_tf.Distiller(student(), kind="none", class_weights=[1, 2])


def test_every_kind_has_a_loss_of_several_labels():
    assert set(MULTILABEL_LOSSES) == set(KINDS)
