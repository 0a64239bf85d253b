"""The distillation step against NumPy, the frozen teacher, and what lands in files."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import deit_tf
from deit_tf.models.layers import numbered_draw

CLASSES, BATCH = 10, 6


def batch(seed=0, n=BATCH):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, 32, 32, 3)) + 2 * rng.normal(
        size=(n, 1, 1, 3)
    )  # of several colors
    return images.astype("float32"), rng.integers(CLASSES, size=n)


def small_teacher(frozen=True, classes=CLASSES):
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=4)(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    logits = keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, logits, name="small_convnet")
    rng = np.random.default_rng(7)
    for w in model.weights:  # a fresh head gives all images the same decision
        w.assign(
            rng.normal(w.name == "gamma", 0.3, w.shape)
            if w.name != "moving_variance"
            else rng.uniform(0.5, 2, w.shape)
        )
    model.trainable = not frozen
    return model


def student(**config):
    keras.utils.set_random_seed(1)
    return deit_tf.create_model("deit_test", **{"num_classes": CLASSES, "depth": 1, **config})


def distiller(teacher=None, jit_compile=False, **kwargs):
    model = kwargs.pop("student", None) or student()
    made = deit_tf.Distiller(model, deit_tf.Teacher(teacher or small_teacher()), **kwargs)
    made.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
    return made


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


# "auto" is Keras's default: on a CPU, XLA, which takes seconds to compile
@pytest.mark.parametrize("alpha, jit_compile", [(0.5, "auto"), (0.3, False)])
def test_one_step_of_fit_equals_numpy(alpha, jit_compile):
    images, labels = batch()
    made = distiller(alpha=alpha, label_smoothing=0.1, jit_compile=jit_compile)
    both = {k: np.array(v, "float64") for k, v in deit_tf.heads(made.student)(images).items()}
    decision = np.array(made.teacher.model(images, training=False)).argmax(-1)
    assert len(set(decision)) > 1
    true = np.eye(CLASSES)[labels] * 0.9 + 0.1 / CLASSES
    taught = np.eye(CLASSES)[decision]
    base = -(true * log_softmax(both["cls"])).sum(-1).mean()
    distillation = -(taught * log_softmax(both["dist"])).sum(-1).mean()
    # Gradient of cross-entropy by a head's bias: probabilities minus labels, averaged over the
    # batch.
    by_cls = (1 - alpha) * (np.exp(log_softmax(both["cls"])) - true).mean(0)
    by_dist = alpha * (np.exp(log_softmax(both["dist"])) - taught).mean(0)
    history = made.fit(images, labels, batch_size=BATCH, verbose=0).history
    # float32 against float64 at losses of about 2.3 nats.
    assert history["base_loss"][0] == pytest.approx(base, abs=2e-6)
    assert history["distillation_loss"][0] == pytest.approx(distillation, abs=2e-6)
    assert history["loss"][0] == pytest.approx((1 - alpha) * base + alpha * distillation, abs=2e-6)
    np.testing.assert_allclose(made.student.get_layer("head").bias, -0.1 * by_cls, atol=1e-7)
    np.testing.assert_allclose(made.student.get_layer("head_dist").bias, -0.1 * by_dist, atol=1e-7)


def test_reported_accuracies():
    images, labels = batch(3, 32)
    made = distiller()
    report = made.evaluate(images, labels, batch_size=12, verbose=0, return_dict=True)
    both = {k: np.array(v) for k, v in deit_tf.heads(made.student)(images).items()}
    mean = (both["cls"] + both["dist"]) / 2
    decision = np.array(made.teacher.model(images, training=False)).argmax(-1)
    expected = {
        "accuracy_cls": (both["cls"].argmax(-1) == labels).mean(),
        "accuracy_dist": (both["dist"].argmax(-1) == labels).mean(),
        "accuracy": (mean.argmax(-1) == labels).mean(),
        "teacher_agreement": (mean.argmax(-1) == decision).mean(),
    }
    assert {k: report[k] for k in expected} == pytest.approx(expected, abs=1e-6)
    assert set(report) == {*expected, "loss", "base_loss", "distillation_loss"}


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.slow), 8.0])
def test_the_gradient_norm_is_that_of_the_loss(scale):
    images, labels = batch()
    made = distiller()
    made.compile(keras.optimizers.SGD(0.1, loss_scale_factor=scale), jit_compile=False)
    before = np.concatenate([np.ravel(w) for w in made.student.trainable_weights])
    norm = made.fit(images, labels, batch_size=BATCH, verbose=0).history["gradient_norm"][0]
    after = np.concatenate([np.ravel(w) for w in made.student.trainable_weights])
    # SGD moves by 0.1 times the gradient; float32 weights of 0.02 lose some of it
    assert norm == pytest.approx(np.linalg.norm(after - before) / 0.1, rel=1e-3)


def test_soft_labels_weights_and_metrics():
    images, labels = batch()
    made = distiller()
    top5 = keras.metrics.TopKCategoricalAccuracy(5, name="top5")
    made.compile(keras.optimizers.SGD(0.0), metrics=[top5], jit_compile=False)
    soft = np.eye(CLASSES, dtype="float32")[labels]
    plain = made.evaluate(images, soft, verbose=0, return_dict=True)
    weighted = made.evaluate(
        images, soft, sample_weight=np.r_[np.ones(3), np.zeros(3)], verbose=0, return_dict=True
    )
    half = made.evaluate(images[:3], soft[:3], verbose=0, return_dict=True)
    assert weighted["loss"] == pytest.approx(half["loss"], rel=1e-5)
    assert weighted["loss"] != pytest.approx(plain["loss"], rel=1e-5)
    assert 0 <= half["top5"] <= 1


def test_none_equals_plain_fit():
    images, labels = batch()
    plain, other = student(), student()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    made = deit_tf.Distiller(other, kind="none")
    made.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    for model in (plain, made):
        model.fit(images, labels, batch_size=BATCH, epochs=2, verbose=0)
    for a, b in zip(plain.weights, other.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_student_without_the_token_learns_both_with_one_head(kind):
    images, labels = batch()
    made = distiller(student=student(distilled=False), kind=kind, temperature=3.0, alpha=0.1)
    report = made.evaluate(images, labels, verbose=0, return_dict=True)
    logits = np.array(made.student(images), "float64")
    teacher = np.array(made.teacher.model(images, training=False), "float64")
    base = -log_softmax(logits)[np.arange(BATCH), labels].mean()
    soft = (
        9
        * (np.exp(log_softmax(teacher / 3)) * (log_softmax(teacher / 3) - log_softmax(logits / 3)))
        .sum(-1)
        .mean()
    )
    hard = -log_softmax(logits)[np.arange(BATCH), teacher.argmax(-1)].mean()
    expected = 0.9 * base + 0.1 * (hard if kind == "hard" else soft)
    assert report["loss"] == pytest.approx(expected, rel=1e-5)
    assert "accuracy_dist" not in report


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def binary(logits, targets):
    """Binary cross-entropy [B], averaged over the classes."""
    logits = np.array(logits, "float64")
    return (np.logaddexp(0, logits) - targets * logits).mean(-1)


@pytest.mark.parametrize("settings", [{}, {"bce_target_thresh": 0.5}, {"bce_sum": True}])
def test_the_class_head_learns_each_class_by_itself(settings):
    images, labels = batch()
    mixed = 0.4 * np.eye(CLASSES)[labels] + 0.6 * np.eye(CLASSES)[labels[::-1]]
    mixed = mixed.astype("float32")
    made = distiller(loss="binary_cross_entropy", **settings)
    both = deit_tf.heads(made.student)(images)
    teacher = np.array(made.teacher.model(images, training=False)).argmax(-1)
    hard = -log_softmax(np.array(both["dist"], "float64"))[np.arange(BATCH), teacher].mean()

    base = binary(both["cls"], mixed > settings.get("bce_target_thresh", 0)).mean()
    base *= CLASSES if settings.get("bce_sum") else 1
    report = made.evaluate(images, mixed, verbose=0, return_dict=True)
    assert report["base_loss"] == pytest.approx(base, rel=1e-5)
    assert report["loss"] == pytest.approx(0.5 * base + 0.5 * hard, rel=1e-5)


@pytest.mark.parametrize("train_heads", ["mean", "both"])
def test_heads_without_a_teacher_learn_each_class_by_itself(train_heads, tmp_path):
    images, labels = batch()
    made = deit_tf.Distiller(
        student(), kind="none", train_heads=train_heads, loss="binary_cross_entropy"
    )
    made.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    made.save(tmp_path / "distiller.keras")
    made = keras.saving.load_model(tmp_path / "distiller.keras")
    cls, dist = deit_tf.heads(made.student)(images).values()
    true = np.eye(CLASSES)[labels]
    of_both = (binary(cls, true) + binary(dist, true)) / 2
    expected = binary((cls + dist) / 2, true) if train_heads == "mean" else of_both
    report = made.evaluate(images, labels, verbose=0, return_dict=True)
    assert report["loss"] == pytest.approx(expected.mean(), rel=1e-5)


def test_two_submodels_learn_from_each_other():
    images, labels = batch()
    made = deit_tf.Distiller(
        student(drop_path_rate=0.5, depth=2), kind="none", loss="binary_cross_entropy", cosub=True
    )
    made.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    true = np.eye(CLASSES)[labels]
    with numbered_draw(3):
        twice = deit_tf.heads(made.student)(np.concatenate([images, images]), training=True)
    one, other = np.split(np.array(sum(twice.values()) / 2, "float64"), 2)
    assert np.abs(one - other).max() > 1e-3  # other branches are dropped
    base = (binary(one, true) + binary(other, true)) / 2
    each_other = (binary(one, sigmoid(other)) + binary(other, sigmoid(one))) / 2

    with numbered_draw(3), tf.GradientTape() as tape:
        result = made.batch_result((images, labels), training=True)
        loss = result.mean_loss()
    np.testing.assert_allclose(result.values["base_loss"], base, rtol=1e-5)
    np.testing.assert_allclose(result.values["loss"], (base + each_other) / 2, rtol=1e-5)
    assert result.prediction.shape == (BATCH, CLASSES)

    # what the other one says stands still: gradient of a bias, mean of both heads
    gradient = tape.gradient(loss, made.student.get_layer("head").bias)
    towards = [(sigmoid(a) - (true + sigmoid(b)) / 2) for a, b in ((one, other), (other, one))]
    expected = sum(towards).mean(0) / CLASSES / 2 / 2
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_evaluation_knows_no_submodels():
    images, labels = batch()
    settings = dict(kind="none", loss="binary_cross_entropy")
    network = student(drop_path_rate=0.5, depth=2)
    with_and_without = [
        deit_tf.Distiller(network, cosub=cosub, **settings).batch_result((images, labels), False)
        for cosub in (True, False)
    ]
    for name, value in with_and_without[0].values.items():
        np.testing.assert_array_equal(value, with_and_without[1].values[name])


def test_every_weight_of_the_student_learns():
    images, labels = batch()
    made = distiller()
    before = [np.array(w) for w in made.student.trainable_weights]
    made.fit(images, labels, batch_size=BATCH, epochs=2, verbose=0)
    still = [
        w.path
        for w, b in zip(made.student.trainable_weights, before, strict=True)
        if (np.array(w) == b).all()
    ]
    assert still == []


def test_the_teacher_stays_bit_identical():
    images, labels = batch()
    network = small_teacher()
    made = distiller(network)
    before = [np.array(w) for w in network.weights]
    made.fit(images, labels, batch_size=3, epochs=3, verbose=0)
    assert any("moving_mean" in w.path for w in network.weights)
    for weight, old in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def arrays_in(path):
    """Every array that a .keras or .weights.h5 file holds, by its place."""
    found = {}
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            path = archive.extract("model.weights.h5", path.parent)
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def test_files_hold_the_student_once_and_no_teacher(tmp_path):
    images, labels = batch()
    made = distiller()
    made.fit(images, labels, verbose=0)
    made.save(tmp_path / "distiller.keras")
    made.save_weights(tmp_path / "distiller.weights.h5")
    made.student.save(tmp_path / "student.keras")
    count = len(made.student.weights)
    assert len(arrays_in(tmp_path / "student.keras")) == count
    for name in ("distiller.keras", "distiller.weights.h5"):
        arrays = arrays_in(tmp_path / name)
        teacher_sizes = {w.shape for w in made.teacher.model.weights} - {
            w.shape for w in made.student.weights
        }
        assert teacher_sizes and not teacher_sizes & {a.shape for a in arrays.values()}
        assert sum(
            a.size for k, a in arrays.items() if "optimizer" not in k and a.dtype == "float32"
        ) == pytest.approx(made.student.count_params(), abs=20)


def test_round_trip_without_teacher(tmp_path):
    images, labels = batch()
    made = distiller(alpha=0.3)
    made.fit(images, labels, verbose=0)
    made.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), made.predict(images, verbose=0)
    )
    assert loaded.alpha == 0.3 and loaded.teacher is None
    with pytest.raises(ValueError, match="has no teacher"):
        loaded.fit(images, labels, verbose=0)
    loaded.teacher = made.teacher
    loaded.fit(images, labels, verbose=0)
    assert int(loaded.optimizer.iterations) == 2


def test_weights_round_trip(tmp_path):
    images, _ = batch()
    made, other = (
        distiller(),
        distiller(student=deit_tf.create_model("deit_test", num_classes=CLASSES, depth=1)),
    )
    made.save_weights(tmp_path / "d.weights.h5")
    other.load_weights(tmp_path / "d.weights.h5")
    np.testing.assert_array_equal(made.predict(images, verbose=0), other.predict(images, verbose=0))


@pytest.mark.parametrize(
    "argument, message",
    [
        (dict(kind="medium"), "kind='medium'"),
        (dict(alpha=1.5), "alpha=1.5"),
        (dict(temperature=0), "temperature=0"),
        (dict(label_smoothing=1), "label_smoothing=1"),
        (dict(normalization="mean"), "normalization='mean'"),
        (dict(loss="hinge"), "loss='hinge'"),
        (dict(cosub=True), "`cosub` is for a student without a teacher.*kind='hard'"),
        (
            dict(loss="binary_cross_entropy", label_smoothing=0.1),
            "every target would become 1.*label_smoothing=0.1, bce_target_thresh=0.0",
        ),
    ],
)
def test_bad_arguments(argument, message):
    with pytest.raises(ValueError, match=message):
        distiller(**argument)


def test_no_teacher_is_refused_before_the_first_step():
    made = deit_tf.Distiller(student())
    made.compile(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="has no teacher"):
        made.fit(*batch(), verbose=0)


def test_a_teacher_thawed_later_is_refused():
    made = distiller()
    made.teacher.model.trainable = True
    with pytest.raises(ValueError, match="'small_convnet' has .* trainable"):
        made.fit(*batch(), verbose=0)


def test_a_loss_of_the_users_is_refused():
    with pytest.raises(ValueError, match="`loss` must be left out"):
        distiller().compile("sgd", loss="mse")


def test_labels_of_the_wrong_kind_are_refused():
    images, labels = batch()
    with pytest.raises(ValueError, match="Labels are whole numbers"):
        distiller().fit(images, labels.astype("float32"), verbose=0)


def test_a_student_of_any_size_trains():
    inputs = keras.Input((None, None, 3))
    features = keras.layers.GlobalAveragePooling2D()(inputs)
    made = distiller(student=keras.Model(inputs, keras.layers.Dense(CLASSES)(features)))
    assert made.processor == deit_tf.ImageProcessor()
    made.fit(*batch(), batch_size=BATCH, verbose=0)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_mixed_precision_trains(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = student()
        optimizer = keras.optimizers.SGD(0.1)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    finally:
        keras.config.set_dtype_policy("float32")
    made = deit_tf.Distiller(model, deit_tf.Teacher(small_teacher()))
    made.compile(optimizer, jit_compile=False)
    first, last = np.array(
        made.fit(*batch(), batch_size=BATCH, epochs=12, verbose=0).history["loss"]
    )[[0, -1]]
    assert np.isfinite(last) and last < first
    assert model.output.dtype == "float32"
