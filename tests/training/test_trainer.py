"""The step itself: parts of a batch, clipping, the moving average, what learns."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import deit_tf
from deit_tf.models.layers import DropPath, numbered_draw
from deit_tf.training.ema import Ema
from deit_tf.training.optim import AdamW, Lamb
from deit_tf.training.trainer import LabelTrainer, MaskedTrainer

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES, SIZE = 5, 16


def data(images=32):
    draw = np.random.default_rng(0)
    labels = draw.dirichlet(np.full(CLASSES, 0.3), size=images).astype("float32")
    return draw.normal(size=(images, SIZE, SIZE, 3)).astype("float32"), labels


def distiller(optimizer=None, **options):
    keras.utils.set_random_seed(0)
    student = deit_tf.create_model(
        "deit_test", num_classes=CLASSES, image_size=SIZE, depth=1, embed_dim=24
    )
    made = deit_tf.Distiller(student, kind="none")
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    made.compile(optimizer, jit_compile=False, **options)
    return made


def fit(made, batch_size=32, epochs=3):
    return made.fit(*data(), batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0).history


def weights(model):
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdamW(1e-3),
        pytest.param(lambda: keras.optimizers.SGD(0.1, momentum=0.9), marks=pytest.mark.slow),
        pytest.param(lambda: Lamb(5e-4), marks=pytest.mark.slow),
    ],
)
def test_four_micro_batches_of_8_equal_one_batch_of_32(make):
    whole, parts = (
        distiller(make(), ema_decay=0.5),
        distiller(make(), ema_decay=0.5, micro_batches=4),
    )
    a, b = fit(whole), fit(parts)
    assert np.abs(weights(whole.student) - weights(distiller().student)).max() > 1e-3
    # Sums in another order: float32.
    np.testing.assert_allclose(weights(whole.student), weights(parts.student), atol=2e-6)
    np.testing.assert_allclose(weights(whole.ema.network), weights(parts.ema.network), atol=2e-6)
    assert int(parts.optimizer.iterations) == 3  # updates, not parts
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-5)


def test_micro_batches_must_divide_the_batch():
    with pytest.raises(
        ValueError, match="must divide the 32 images of each replica. Received: micro_batches=5"
    ):
        fit(distiller(micro_batches=5))


def test_clipping_bounds_the_step():
    plain, clipped = (
        distiller(keras.optimizers.SGD(1.0)),
        distiller(keras.optimizers.SGD(1.0), clip_norm=0.05),
    )
    start = weights(plain.student)
    norms = [fit(made, epochs=1)["gradient_norm"][0] for made in (plain, clipped)]
    assert (
        norms[0] == pytest.approx(norms[1], rel=1e-6) and norms[0] > 0.1
    )  # told before it is clipped
    steps = [weights(made.student) - start for made in (plain, clipped)]
    assert np.linalg.norm(steps[1]) == pytest.approx(
        0.05, rel=1e-3
    )  # float32 weights of 0.02 lose some of a step
    np.testing.assert_allclose(steps[1], steps[0] * 0.05 / norms[0], atol=1e-7)


def test_clipping_leaves_small_gradients_alone():
    plain, clipped = distiller(), distiller(clip_norm=1e6)
    fit(plain), fit(clipped)
    np.testing.assert_array_equal(weights(plain.student), weights(clipped.student))


def test_the_average_is_tensorflow_addons():
    reference = np.load(GOLDEN / "schedule_and_adamw.npz")
    first = reference["w0"].astype("float32")
    network = keras.Sequential(
        [keras.Input(first.shape[:1]), keras.layers.Dense(first[0].size, use_bias=False)]
    )
    network.set_weights([first.reshape(len(first), -1)])
    average, optimizer = Ema(network, 0.9), keras.optimizers.SGD(1e-2)
    for gradient in reference["grads"].astype("float32"):
        optimizer.apply(
            [tf.reshape(gradient, network.weights[0].shape)], network.trainable_variables
        )
        average.update(network, tf.constant(True))
    expected = np.load(GOLDEN / "tfa_reference.npz")["sgd_ema_0.9_final"]
    # 20 updates in float32.
    np.testing.assert_allclose(
        np.ravel(average.network.get_weights()[0]), np.ravel(expected), atol=1e-6
    )


def test_the_average_starts_at_the_first_weights_and_leaves_them_alone():
    made, plain = distiller(ema_decay=0.75), distiller()
    start = weights(made.student)
    fit(made, epochs=1), fit(plain, epochs=1)
    np.testing.assert_array_equal(weights(made.student), weights(plain.student))
    np.testing.assert_allclose(
        weights(made.ema.network), 0.75 * start + 0.25 * weights(made.student), atol=1e-7
    )


def test_a_saved_trainer_holds_its_average_and_no_second_network(tmp_path):
    made = distiller(ema_decay=0.75, micro_batches=2, clip_norm=1.0)
    fit(made, epochs=1)
    made.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert len(loaded.weights) == len(made.weights)
    assert (loaded.micro_batches, loaded.clip_norm, loaded.ema.decay) == (2, 1.0, 0.75)
    np.testing.assert_array_equal(weights(loaded.student), weights(made.student))
    np.testing.assert_array_equal(weights(loaded.ema.network), weights(made.ema.network))


@pytest.mark.parametrize(
    "learns, parts", [("^head(_dist)?/", {"head", "head_dist"}), ("/attn/", {"blocks.0"})]
)
def test_only_what_is_asked_for_learns(learns, parts):
    made = distiller(learns=learns)
    before = {w.path: np.array(w) for w in made.student.weights}
    fit(made)
    moved = {w.path for w in made.student.weights if (np.array(w) != before[w.path]).any()}
    assert {path.split("/")[0] for path in moved} == parts
    assert all("attn" in path for path in moved if path.startswith("blocks"))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(micro_batches=0), "micro_batches=0"),
        (dict(clip_norm=0.0), "clip_norm=0.0"),
        (dict(ema_decay=1.0), "ema_decay=1.0"),
        (dict(learns="tail/"), "leaves no weight to train"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        distiller(**options)


def test_both_heads_on_the_same_labels():
    images, labels = data(8)
    keras.utils.set_random_seed(0)
    student = deit_tf.create_model(
        "deit_test", num_classes=CLASSES, image_size=SIZE, depth=1, embed_dim=24
    )
    made = deit_tf.Distiller(student, kind="none", train_heads="both")
    made.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    loss = made.evaluate(images, labels, batch_size=8, verbose=0, return_dict=True)["loss"]
    entropy = [keras.ops.softmax(x) for x in deit_tf.heads(student)(images).values()]
    expected = np.mean([-(labels * np.log(p)).sum(-1).mean() for p in entropy])
    assert loss == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="`train_heads` is one of 'mean'"):
        deit_tf.Distiller(student, kind="hard", train_heads="both")


def test_a_batch_that_brings_its_teacher_along():
    images, labels = data(8)
    teacher_logits = np.random.default_rng(1).normal(size=(8, CLASSES)).astype("float32")
    student = deit_tf.create_model(
        "deit_test", num_classes=CLASSES, image_size=SIZE, depth=1, embed_dim=24
    )
    made = deit_tf.Distiller(student, kind="hard")
    made.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    seen = made.evaluate(
        images,
        {"labels": labels, "teacher_logits": teacher_logits},
        batch_size=8,
        verbose=0,
        return_dict=True,
    )
    log = np.log(keras.ops.softmax(deit_tf.heads(student)(images)["dist"]))
    assert seen["distillation_loss"] == pytest.approx(
        -log[np.arange(8), teacher_logits.argmax(-1)].mean(), rel=1e-5
    )


def test_every_trainer_over_a_network_of_its_own_kind():
    images, labels = data(8)
    network = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    )
    masked = deit_tf.create_masked_model("deit_test", image_size=SIZE, depth=1, embed_dim=24)
    hidden = np.tile([1.0, 0, 0, 1], (8, 1)).astype("float32")
    for made, batch in (
        (LabelTrainer(network), (images, labels)),
        (MaskedTrainer(masked), ({"image": images, "mask": hidden},)),
    ):
        settings = dict(ema_decay=0.5, micro_batches=2, jit_compile=False)
        made.compile(keras.optimizers.SGD(0.01), **settings)
        losses = made.fit(
            tf.data.Dataset.from_tensors(batch).repeat(4), verbose=0, epochs=2
        ).history["loss"]
        assert losses[1] < losses[0]
        averaged = made.with_network(made.ema.network)
        averaged.compile(jit_compile=False)
        assert np.isfinite(
            averaged.evaluate(tf.data.Dataset.from_tensors(batch), verbose=0, return_dict=True)[
                "loss"
            ]
        )


def test_numbered_masks_come_back():
    layer, x = DropPath(0.5, seed=3), tf.ones((64, 1))
    draws = []
    for number in (7, 8, 7):
        with numbered_draw(tf.constant(number)):
            draws.append(np.array(layer(x, training=True)))
    np.testing.assert_array_equal(draws[0], draws[2])
    assert (draws[0] != draws[1]).any()
    assert (
        np.array(layer(x, training=True)) != np.array(layer(x, training=True))
    ).any()  # Keras's own state again
    with numbered_draw(tf.constant(7)):
        assert (np.array(DropPath(0.5, seed=4)(x, training=True)) != draws[0]).any()


def averaging(decay=0.9):
    made = distiller(ema_decay=decay)
    made.build((None, SIZE, SIZE, 3))
    return made


def test_the_average_is_saved_with_the_weights_and_comes_back(tmp_path):
    trained = averaging()
    fit(trained)
    assert np.abs(weights(trained.ema.network) - weights(trained.student)).max() > 1e-3
    trained.save_weights(tmp_path / "a.weights.h5")

    other = averaging()
    other.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(weights(other.student), weights(trained.student))
    np.testing.assert_array_equal(weights(other.ema.network), weights(trained.ema.network))


def test_the_average_begins_at_weights_that_bring_none(tmp_path):
    trained = distiller()
    fit(trained)
    trained.save_weights(tmp_path / "a.weights.h5")

    other = averaging()
    other.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(weights(other.ema.network), weights(trained.student))


def test_backup_and_restore_keeps_the_average(tmp_path):
    class Stop(Exception):
        pass

    class StopAfter(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise Stop

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    whole, stopped, resumed = averaging(), averaging(), averaging()
    options = dict(batch_size=32, epochs=4, shuffle=False, verbose=0)
    whole.fit(*data(), **options)
    with pytest.raises(Stop):
        stopped.fit(*data(), **options, callbacks=[backup(), StopAfter()])
    resumed.fit(*data(), **options, callbacks=[backup()])
    # the same steps in the same order
    np.testing.assert_array_equal(weights(resumed.ema.network), weights(whole.ema.network))


def test_its_summary_tells_the_layers_of_the_network():
    lines = []
    distiller().summary(print_fn=lambda text, **_: lines.append(text))
    text = "\n".join(lines)
    assert all(name in text for name in ("patch_embed", "blocks.0", "head_dist"))
