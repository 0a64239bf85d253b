"""ResNet for small images (He et al. 2016, section 4.2): the teacher where a RegNetY would be too
large.
"""

import keras
from keras import layers

from deit_tf.config import CHANNELS, Size, height_width
from deit_tf.models.variants import check_name

WIDTHS = (16, 32, 64)  # of the three stages

# name: blocks per stage; the paper's table 6
RESNET: dict[str, int] = {
    "resnet8": 1,
    "resnet20": 3,
    "resnet32": 5,
    "resnet44": 7,
    "resnet56": 9,
    "resnet110": 18,
}


def create_resnet(
    name: str, *, num_classes: int = 10, image_size: Size = 32, num_channels: int = CHANNELS
) -> keras.Model:
    """Build a ResNet for small images by its number of layers, with fresh weights.

    Returns:
        A model from float32 [B, H, W, num_channels], normalized, to float32 [B, C] logits.
    Raises:
        ValueError: For an unknown name, with the nearest ones.
    Differs: a shortcut that changes shape is a 1 x 1 convolution with norm (the paper's option B).
    """
    check_name(name, RESNET)
    image = keras.Input((*height_width(image_size), num_channels), name="image")
    x = layers.ReLU()(_conv_norm(image, WIDTHS[0], 3, 1))
    for stage, channels in enumerate(WIDTHS):
        for block in range(RESNET[name]):
            x = _block(x, channels, stride=2 if stage and block == 0 else 1)

    x = layers.GlobalAveragePooling2D()(x)  # [B, 64]
    logits = layers.Dense(num_classes, dtype="float32", name="head")(x)
    return keras.Model(image, logits, name=name)


def _block(x, channels: int, stride: int):
    """Two 3 x 3 convolutions around a shortcut."""
    shortcut = x if stride == 1 and x.shape[-1] == channels else _conv_norm(x, channels, 1, stride)
    x = layers.ReLU()(_conv_norm(x, channels, 3, stride))
    x = _conv_norm(x, channels, 3, 1)
    return layers.ReLU()(layers.Add()([x, shortcut]))


def _conv_norm(x, channels: int, kernel: int, stride: int):
    x = layers.Conv2D(
        channels, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal"
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
