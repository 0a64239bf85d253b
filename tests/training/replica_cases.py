"""What test_replicas.py runs in processes of their own: after an aborted collective TensorFlow is
of no more use.

    python tests/replica_cases.py CASE ARGUMENT...

Each case prints one JSON object. Two logical CPUs stand in for two GPUs.
"""

import json
import sys
from itertools import product

import keras
import numpy as np
import tensorflow as tf

import deit_tf
from deit_tf import train
from deit_tf.cli import main
from deit_tf.data import augment
from deit_tf.training import prefetch
from deit_tf.training.optim import AdamW, Lamb
from deit_tf.training.trainer import Trainer

CLASSES, BATCH, STEPS, SIZE = 5, 8, 4, 16
PLAIN, EVERYTHING = {}, dict(micro_batches=2, clip_norm=0.3, ema_decay=0.9, remat=True)
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adamw": lambda: AdamW(1e-3),
    # The gradient of a key's bias is 0 but for rounding, which an epsilon of 1e-8 makes a step of.
    "lamb": lambda: Lamb(1e-3, epsilon=1e-6),
}


def batches():
    """Mixed-up batches: soft labels, no image like the other."""
    draw = np.random.default_rng(0)
    images = draw.normal(size=(BATCH * STEPS, SIZE, SIZE, 3)).astype("float32")
    labels = draw.dirichlet(np.full(CLASSES, 0.3), size=len(images)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH, drop_remainder=True)


def distiller(kind, optimizer, drop_path_rate=0.0, remat=False, **options):
    """A student, the same at every call, and a teacher with batch normalization."""
    keras.utils.set_random_seed(0)
    student = deit_tf.create_model(
        "deit_test",
        num_classes=CLASSES,
        image_size=SIZE,
        depth=2,
        embed_dim=24,
        drop_path_rate=drop_path_rate,
        remat=remat,
    )
    teacher = None
    if kind != "none":
        layers = [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Conv2D(8, 3, strides=4),
            keras.layers.BatchNormalization(),
        ]
        network = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
        network.trainable = False
        teacher = deit_tf.Teacher(network)
    made = deit_tf.Distiller(student, teacher, kind=kind, temperature=2.0)
    made.compile(optimizer(), jit_compile=False, **options)
    return made


def trained(strategy, *arguments, **options):
    """Weights after `fit`, with those of the average behind them, and the figures."""
    with strategy.scope():
        made = distiller(*arguments, **options)
    figures = made.fit(batches(), epochs=2, shuffle=False, verbose=0).history
    networks = [made.student, *([made.ema.network] if made.ema else [])]
    return [w for n in networks for w in n.get_weights()], figures


def difference(a, b):
    return float(max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)))


def equality(kind):
    """Largest difference of a weight between one and two replicas, and how far the weights
    moved."""
    two, results = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), {}
    initial = distiller(kind, OPTIMIZERS["sgd"]).student.get_weights()
    several = product(("sgd", "adamw"), (PLAIN, EVERYTHING))
    for optimizer, options in (*several, ("lamb", EVERYTHING)):
        alone, figures = trained(
            tf.distribute.get_strategy(), kind, OPTIMIZERS[optimizer], **options
        )
        mirrored, others = trained(two, kind, OPTIMIZERS[optimizer], **options)
        results[f"{optimizer} {'everything' if options else 'plain'}"] = {
            "difference": difference(alone, mirrored),
            "moved": difference(alone[: len(initial)], initial),
            "loss": [figures["loss"][-1], others["loss"][-1]],
            "gradient_norm": [figures["gradient_norm"][-1], others["gradient_norm"][-1]],
        }
    return results


def undivided(optimizer):
    """The same, where the gradients of the replicas are added up and not averaged, as Keras
    would."""
    Trainer._mean_over_replicas = lambda self, gradients, context: context.all_reduce(
        "SUM", gradients
    )
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    alone, _ = trained(tf.distribute.get_strategy(), "hard", OPTIMIZERS[optimizer])
    return {"difference": difference(alone, trained(two, "hard", OPTIMIZERS[optimizer])[0])}


def overflow(replica):
    """One float16 step with an infinite pixel in the part of one replica, then one without."""
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    keras.config.set_dtype_policy("mixed_float16")
    with two.scope():

        def scaled():
            return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)

        made = distiller("none", scaled, ema_decay=0.5)
    before = made.student.get_weights()
    images, labels = map(np.copy, next(batches().as_numpy_iterator()))
    images[int(replica) * BATCH // 2, 0, 0, 0] = np.inf
    seen = made.fit(tf.data.Dataset.from_tensors((images, labels)), verbose=0).history
    result = {
        "moved": difference(before, made.student.get_weights()),
        "average_moved": difference(before, made.ema.network.get_weights()),
        "scale": float(keras.ops.convert_to_numpy(made.optimizer.dynamic_scale)),
        "iterations": int(keras.ops.convert_to_numpy(made.optimizer.iterations)),
        "figures": {name: values[0] for name, values in seen.items()},
    }
    made.fit(batches().take(1), verbose=0)
    result["then_moved"] = difference(before, made.student.get_weights())
    result["then_finite"] = bool(all(np.isfinite(w).all() for w in made.student.get_weights()))
    return result


def masks():
    """The first logit of one image over and over, in each part of two steps: two replicas times two
    micro-batches."""
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    image = np.random.default_rng(1).normal(size=(1, SIZE, SIZE, 3)).astype("float32")
    with two.scope():
        made = distiller("none", OPTIMIZERS["sgd"], drop_path_rate=0.5, micro_batches=2)
        made.optimizer.build(made.learned)
    seen = []
    batch_result = made.batch_result

    def spying(data, training):
        result = batch_result(data, training)
        tf.numpy_function(lambda x: seen.append(x[:, 0].tolist()), [result.prediction], [])
        return result

    made.batch_result = spying
    half = np.repeat(image, 16, 0)
    part = (tf.constant(half), tf.one_hot([0] * 16, CLASSES))
    step = tf.function(lambda: two.run(made.train_step, (part,)))
    step()
    step()
    return {"parts": seen}


def evaluation():
    """Keras's `evaluate` on 21 images in batches of 8, on one device and on two replicas."""
    images = batches().unbatch().take(21).batch(BATCH)
    figures = []
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
    ):
        with strategy.scope():
            made = distiller("hard", OPTIMIZERS["sgd"])
        told = made.evaluate(
            images if not figures else deit_tf.data.padded(images, BATCH),
            verbose=0,
            return_dict=True,
        )
        figures.append(told)
    return {"figures": figures}


def fetched_ahead():
    """Where batches lie that are fetched ahead to a device, and whether they are the same."""
    moved = prefetch.fetched_ahead(batches(), "CPU:1")
    seen = [
        (images.device, bool(tf.reduce_all(images == wanted)))
        for (images, _), (wanted, _) in zip(moved, batches(), strict=True)
    ]
    return {"devices": sorted({device for device, _ in seen}), "same": [same for _, same in seen]}


def command(config, out, *strategies):
    """`deit-tf train` under each strategy."""
    for strategy in strategies:
        main(["train", "--config", config, "--strategy", strategy, "--out", f"{out}/{strategy}"])
    return {}


def worker(config, out, mine):
    """One worker of a cluster, which saves its student as `mine` too, and counts the images that it
    decodes; TF_CONFIG says which it is."""
    run, decode, decoded = train.Loop.run, augment.decode_and_crop, []

    def counting(*arguments):
        tf.numpy_function(lambda: decoded.append(1), [], [])
        return decode(*arguments)

    def saving(loop):
        figures = run(loop)
        loop.trainer.network.save(mine)
        return figures

    train.Loop.run, augment.decode_and_crop = saving, counting
    main(["train", "--config", config, "--strategy", "multi_worker", "--out", out])
    return {"decoded": len(decoded)}


if __name__ == "__main__":
    case = {
        f.__name__: f
        for f in (
            equality,
            undivided,
            overflow,
            masks,
            evaluation,
            fetched_ahead,
            command,
            worker,
        )
    }[sys.argv[1]]
    if case is not worker:
        physical = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            physical, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    print(json.dumps(case(*sys.argv[2:])))
