"""Run by an interpreter that has keras-hub: its model with random weights, and ours in it.

python reference_keras_hub.py make FOLDER     # a preset, images, the logits
python reference_keras_hub.py load FOLDER     # logits of a preset written here, and of a photograph
"""

import sys
from pathlib import Path

import keras_hub
import numpy as np


def images(shape):
    return np.random.default_rng(1).normal(size=(2, *shape)).astype("float32")


def make(folder):
    backbone = keras_hub.models.DeiTBackbone(
        image_shape=(64, 64, 3),
        patch_size=16,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        intermediate_dim=768,
    )
    converter = keras_hub.layers.DeiTImageConverter(
        image_size=(64, 64), scale=[0.02, 0.01, 0.03], offset=[-2.0, -1.5, -1.0]
    )
    model = keras_hub.models.DeiTImageClassifier(
        backbone=backbone,
        num_classes=7,
        preprocessor=keras_hub.models.DeiTImageClassifierPreprocessor(converter),
    )
    random = np.random.default_rng(0)
    for weight in model.weights:
        if "float" in weight.dtype:
            scale = weight.shape[0] ** -0.5 if len(weight.shape) > 1 else 0.1
            noise = random.normal(size=weight.shape) * scale
            weight.assign(noise + 1.0 * weight.path.endswith("gamma"))
    model.save_to_preset(str(folder))
    answer(model, folder)


def load(folder):
    model = keras_hub.models.ImageClassifier.from_preset(str(folder))
    answer(model, folder)
    pixels = model.preprocessor.image_converter(np.load(folder / "photo.npy")[None])
    np.save(folder / "pixels.npy", pixels)


def answer(model, folder):
    image = images(model.backbone.input_shape[1:])
    np.savez(folder / "reference.npz", image=image, logits=model(image, training=False))


if __name__ == "__main__":
    command, folder = sys.argv[1:]
    globals()[command](Path(folder))
