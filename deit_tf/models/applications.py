"""Networks of keras.applications: the preprocessing that each was made for, and classifiers of them
that take images normalized otherwise.

Source: the `preprocess_input` of each file in keras/src/applications.
"""

from collections.abc import Callable

import keras

from deit_tf.config import CHANNELS, IMAGENET_MEAN, IMAGENET_STD
from deit_tf.models.detection import PIXELS, Normalization, renormalization

# By the beginning of a name, what its networks take: mean, std, and whether blue comes first.
_CAFFE = (tuple(m / 255 for m in (123.68, 116.779, 103.939)), (1 / 255,) * 3, True)
_MINUS_ONE_TO_ONE = ((0.5,) * 3, (0.5,) * 3, False)
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD, False)
_RAW_PIXELS = (*PIXELS, False)  # normalize themselves

_PREPROCESSING = {
    "ResNet50V2": _MINUS_ONE_TO_ONE,
    "ResNet101V2": _MINUS_ONE_TO_ONE,
    "ResNet152V2": _MINUS_ONE_TO_ONE,
    "ResNet": _CAFFE,
    "VGG": _CAFFE,
    "DenseNet": _IMAGENET,
    "Inception": _MINUS_ONE_TO_ONE,
    "Xception": _MINUS_ONE_TO_ONE,
    "MobileNetV3": _RAW_PIXELS,
    "MobileNet": _MINUS_ONE_TO_ONE,
    "NASNet": _MINUS_ONE_TO_ONE,
    "EfficientNet": _RAW_PIXELS,
    "ConvNeXt": _RAW_PIXELS,
}


def application(name: str) -> tuple[Callable[..., keras.Model], tuple]:
    """Find a network of keras.applications and how it wants its images.

    Args:
        name: Such as `ResNet50` or `EfficientNetV2B0`.
    Returns:
        Its constructor; and the mean and deviation of its images, and whether blue comes first.
    Raises:
        ValueError: If keras.applications has no such network.
    """
    family = next((prefix for prefix in _PREPROCESSING if name.startswith(prefix)), None)
    if family is None or not hasattr(keras.applications, name):
        known = sorted(n for n in dir(keras.applications) if n[0].isupper())
        raise ValueError(f"keras.applications has no network {name!r}. It has: {', '.join(known)}")
    return getattr(keras.applications, name), _PREPROCESSING[family]


def build_application(
    name: str,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    normalization: Normalization,
    weights: str | None = None,
) -> keras.Model:
    """Build a classifier on a network of keras.applications: average pooling and a linear head in
    place of its own top.

    Args:
        name: Such as `MobileNetV3Small`.
        num_classes: Classes C.
        image_size: Height and width in pixels.
        normalization: Mean and deviation that its images are normalized with; what the network
            itself takes is made of them inside.
        weights: As of its constructor, for the part below the head: `imagenet`, a file of Keras's,
            or None for fresh ones.
    Returns:
        A model from float32 [B, H, W, 3], normalized so, to float32 [B, C] logits.
    Raises:
        ValueError: If keras.applications has no such network, or it takes no images of that size.
    Differs: MobileNetV3 has a hidden layer between the pooling and the head, which is left out.
    """
    constructor, (mean, std, bgr) = application(name)
    shape = (*image_size, CHANNELS)
    image = keras.Input(shape, name="image")
    scale, offset = renormalization(*normalization, mean, std)
    x = keras.layers.Rescaling(scale.tolist(), offset.tolist(), name="renormalize")(image)
    x = x[..., ::-1] if bgr else x

    try:
        trunk = constructor(include_top=False, weights=weights, pooling="avg", input_shape=shape)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"keras:{name} cannot be built for images of {shape[0]} x {shape[1]} pixels and these "
            f"weights. Set another `image_size` or `weights`. Keras says: {reason}"
        ) from error
    logits = keras.layers.Dense(num_classes, dtype="float32", name="head")(trunk(x))  # [B, C]

    return keras.Model(image, logits, name=name)
