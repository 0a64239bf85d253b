"""RegNetY, the convnet that teaches DeiT (Radosavovic et al. 2020; timm/models/regnet.py).

The layers bear timm's names, so that `load_reference` takes timm's weights.
"""

import keras
import numpy as np
from keras import layers

from deit_tf.config import CHANNELS, Size, height_width

STEM_WIDTH = 32
QUANTUM = 8  # widths are multiples of it
SE_RATIO = 0.25

# name: depth, w0, wa, wm, group width (timm/models/regnet.py, model_cfgs)
REGNETY: dict[str, tuple[int, int, float, float, int]] = {
    "regnety_002": (13, 24, 36.44, 2.49, 8),
    "regnety_004": (16, 48, 27.89, 2.09, 8),
    "regnety_006": (15, 48, 32.54, 2.32, 16),
    "regnety_008": (14, 56, 38.84, 2.40, 16),
    "regnety_016": (27, 48, 20.71, 2.65, 24),
    "regnety_032": (21, 80, 42.63, 2.66, 24),
    "regnety_040": (22, 96, 31.41, 2.24, 64),
    "regnety_064": (25, 112, 33.22, 2.27, 72),
    "regnety_080": (17, 192, 76.82, 2.19, 56),
    "regnety_120": (19, 168, 73.36, 2.37, 112),
    "regnety_160": (18, 200, 106.23, 2.48, 112),
}


def build_regnety(
    depth: int,
    w0: int,
    wa: float,
    wm: float,
    group_width: int,
    *,
    num_classes: int,
    image_size: Size,
    num_channels: int = CHANNELS,
    name: str = "regnety",
) -> keras.Model:
    """Build a RegNetY from the parameters of its widths (RegNet paper, section 3.3): u_j = w0 + wa
    * j.

    Args:
        depth: Number of blocks over all stages.
        w0: First width.
        wa: Slope of the widths.
        wm: Factor from stage to stage.
        group_width: Channels per group of the 3 x 3 convolutions.
        num_classes: Classes C.
        image_size: Height and width in pixels, or one number for a square.
        num_channels: Channels of an image.
        name: Name of the Keras model.
    """
    image = keras.Input((*height_width(image_size), num_channels), name="image")
    x = layers.ReLU()(_conv_norm(image, STEM_WIDTH, 3, "stem", stride=2))
    for stage, (channels, blocks, group) in enumerate(
        _stages(depth, w0, wa, wm, group_width), start=1
    ):
        for block in range(1, blocks + 1):
            x = _block(x, channels, group, stride=2 if block == 1 else 1, name=f"s{stage}.b{block}")
    x = layers.GlobalAveragePooling2D(name="head.global_pool")(x)  # [B, channels]
    init = keras.initializers.RandomNormal(stddev=0.01)
    logits = layers.Dense(num_classes, kernel_initializer=init, name="head.fc", dtype="float32")(x)
    return keras.Model(image, logits, name=name)


def _stages(
    depth: int, w0: int, wa: float, wm: float, group_width: int
) -> list[tuple[int, int, int]]:
    """Channels, number of blocks and group width of each stage."""
    continuous = w0 + wa * np.arange(depth)
    powers = np.round(np.log(continuous / w0) / np.log(wm))
    quantized = (np.round(w0 * wm**powers / QUANTUM) * QUANTUM).astype(int)
    stages = []
    for channels, blocks in zip(*np.unique(quantized, return_counts=True), strict=True):
        group = min(group_width, int(channels))
        stages.append((round(int(channels) / group) * group, int(blocks), group))
    return stages


def _block(x, channels: int, group_width: int, stride: int, name: str):
    """1 x 1, grouped 3 x 3, squeeze-and-excitation, 1 x 1, around a shortcut."""
    entering = x.shape[-1]
    shortcut = x
    x = layers.ReLU()(_conv_norm(x, channels, 1, f"{name}.conv1"))
    x = layers.ReLU()(
        _conv_norm(x, channels, 3, f"{name}.conv2", stride, groups=channels // group_width)
    )
    x = _squeeze_excite(x, round(entering * SE_RATIO), f"{name}.se")
    # A last norm that starts at 0 makes a fresh block the identity (timm, zero_init_last).
    x = _conv_norm(x, channels, 1, f"{name}.conv3", gamma="zeros")
    if entering != channels or stride > 1:
        shortcut = _conv_norm(shortcut, channels, 1, f"{name}.downsample", stride)
    return layers.ReLU()(layers.Add()([x, shortcut]))


def _conv_norm(
    x, channels: int, kernel: int, name: str, stride: int = 1, groups: int = 1, gamma: str = "ones"
):
    if kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2)(x)  # "same" would pad one side only at stride 2
    init = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    x = layers.Conv2D(
        channels,
        kernel,
        stride,
        groups=groups,
        use_bias=False,
        kernel_initializer=init,
        name=f"{name}.conv",
    )(x)

    return layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, gamma_initializer=gamma, name=f"{name}.bn"
    )(x)


def _squeeze_excite(x, squeezed: int, name: str):
    mean = layers.GlobalAveragePooling2D(keepdims=True)(x)  # [B, 1, 1, channels]
    gate = layers.Conv2D(squeezed, 1, activation="relu", name=f"{name}.fc1")(mean)
    gate = layers.Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}.fc2")(gate)
    return layers.Multiply()([x, gate])
