"""Train a convnet of your own in plain Keras, to teach a DeiT with: a small ResNet for 32 pixels.

python examples/train_your_teacher.py photos --out teacher.keras
deit-tf train --config configs/cifar10_small.yaml --distill.teacher teacher.keras
"""

import argparse
from pathlib import Path

import deit_tf
import keras
from deit_tf.config import AugmentConfig, DataConfig, OptimConfig
from keras import layers


def conv(x, channels: int, stride: int = 1):
    """A convolution with norm and ReLU: [B, H, W, C] to [B, H / stride, W / stride, channels]."""
    init = keras.initializers.HeNormal()
    x = layers.Conv2D(channels, 3, stride, "same", use_bias=False, kernel_initializer=init)(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


def build_network(classes: int) -> keras.Model:
    """Eleven layers, three residual branches: normalized [B, 32, 32, 3] to logits [B, C]."""
    image = keras.Input((32, 32, 3), name="image")
    x = conv(image, 32)
    for channels in (64, 128, 256):
        x = conv(x, channels, stride=2)
        x = layers.Add()([x, conv(conv(x, channels), channels)])
    logits = layers.Dense(classes, dtype="float32", name="head")
    return keras.Model(image, logits(layers.GlobalAveragePooling2D()(x)))


def main() -> None:
    """Open the folder, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", default="teacher.keras")
    given = parser.parse_args()
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(given.precision)

    data = DataConfig(given.folder, batch_size=given.batch_size)
    train, held_out = deit_tf.data.open_sources(data)
    steps, classes = deit_tf.data.steps_per_epoch(train, data.batch_size), len(train.class_names)
    augment = AugmentConfig("light", scale=(0.64, 1.0), label_smoothing=0.0)
    processor = deit_tf.ImageProcessor(32, crop_ratio=1.0)
    batches = deit_tf.data.train_dataset(train, data, augment, processor, epochs=given.epochs)
    val = deit_tf.data.eval_dataset(held_out, data, processor)
    val = val.map(lambda images, labels: (images, keras.ops.one_hot(labels, classes)))
    recipe = OptimConfig("sgd", 0.4, weight_decay=5e-4, warmup_epochs=min(2, given.epochs / 2))
    optimizer = deit_tf.optim.build_optimizer(recipe, data.batch_size, steps, given.epochs)
    network, loss = build_network(classes), keras.losses.CategoricalCrossentropy(from_logits=True)
    network.compile(optimizer, loss, metrics=["accuracy"])
    network.fit(batches, epochs=given.epochs, steps_per_epoch=steps, validation_data=val, verbose=2)
    network.save(given.out)


if __name__ == "__main__":
    main()
