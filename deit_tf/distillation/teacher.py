"""A frozen network that labels the student's batch, in its own normalization, resolution and class
order.

Paper, section 4: the teacher is a convnet and sees exactly the images that the student sees.
"""

import logging
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from deit_tf.config import IMAGENET_MEAN, IMAGENET_STD, Size, TeacherConfig, Triple
from deit_tf.models import VARIANTS
from deit_tf.models.regnet import REGNETY
from deit_tf.models.resnet import RESNET, create_resnet
from deit_tf.runs import class_order, is_keras, load_run
from deit_tf.zoo import create_regnety

log = logging.getLogger(__name__)


class Teacher:
    """Any classifier as a teacher; a plain object, so that no Keras model saves it along.

    Args:
        model: From images [B, h, w, 3] to [B, K] logits or probabilities; frozen, that is with
            `model.trainable = False`.
        mean: Mean that its images are normalized with, for pixels in 0..1, per channel.
        std: Standard deviation likewise.
        image_size: Height and width that it takes, in pixels; by default what `model` declares, or
            the student's where it takes any.
        class_order: For each class of the student the index of the teacher's output that means it;
            by default the order is the same.
        from_logits: Whether `model` gives logits; otherwise probabilities.
        bgr: Whether it takes the channels as blue, green, red (the Caffe networks of
            keras.applications).
        name: Name in error messages; by default the model's.
    Raises:
        ValueError: If `model` has trainable weights.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        image_size: Size | None = None,
        class_order: Sequence[int] | None = None,
        from_logits: bool = True,
        bgr: bool = False,
        name: str | None = None,
    ):
        self.model, self.name = model, name or model.name
        self.mean, self.std, self.bgr, self.from_logits = mean, std, bgr, from_logits
        self.class_order = None if class_order is None else list(class_order)
        declared = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = declared or _declared_size(model)
        self.check_frozen()

    def check_frozen(self) -> None:
        """Raise a ValueError if the network has trainable weights."""
        if self.model.trainable_variables:
            raise ValueError(
                f"Teacher {self.name!r} has {len(self.model.trainable_variables)} trainable "
                "weights, and a teacher is frozen. Set `model.trainable = False` on the model "
                "you pass."
            )

    def logits(self, images: tf.Tensor, mean: Triple, std: Triple) -> tf.Tensor:
        """Label a batch that is normalized for the student.

        Args:
            images: float32 [B, H, W, 3], normalized with `mean` and `std`.
            mean: The student's mean.
            std: The student's standard deviation.
        Returns:
            float32 [B, C] logits in the student's class order; no gradient flows back.
        """
        images = self._adapt(images, mean, std)
        outputs = tf.cast(self.model(images, training=False), tf.float32)  # [B, K]
        if not self.from_logits:
            outputs = tf.math.log(tf.maximum(outputs, keras.config.epsilon()))
        if self.class_order is not None:
            outputs = tf.gather(outputs, self.class_order, axis=-1)
        return tf.stop_gradient(outputs)

    def check(self, student: keras.Model) -> None:
        """Refuse a teacher that cannot teach `student`, by running it on two images of noise.

        Raises:
            ValueError: If it is not frozen, has another class count, or gives no finite numbers.
        """
        self.check_frozen()
        classes, outputs = student.output_shape[-1], self.model.output_shape[-1]
        if self.class_order is not None:
            _check_order(self.name, self.class_order, classes, outputs)
        elif outputs != classes:
            raise ValueError(
                f"Teacher {self.name!r} has {outputs} classes and the student {classes}. Train "
                "a teacher on the same classes (`deit-tf train-teacher`), or pass "
                "`class_order` to pick the student's among the teacher's."
            )
        noise = (
            np.random.default_rng(0).normal(size=(2, *student.input_shape[1:])).astype("float32")
        )
        logits = self.logits(tf.constant(noise), IMAGENET_MEAN, IMAGENET_STD)
        if not np.isfinite(logits).all():
            raise ValueError(
                f"Teacher {self.name!r} gives numbers that are not finite. Check its weights "
                "and precision."
            )

    def _adapt(self, images: tf.Tensor, mean: Triple, std: Triple) -> tf.Tensor:
        """From the student's normalization and size to the teacher's."""
        if (tuple(mean), tuple(std)) != (tuple(self.mean), tuple(self.std)):
            scale, offset = _renormalization(mean, std, self.mean, self.std)
            images = images * scale + offset
        if self.image_size and tuple(images.shape[1:3]) != tuple(self.image_size):
            images = tf.image.resize(images, self.image_size, "bilinear", antialias=True)
        return images[..., ::-1] if self.bgr else images


# keras.applications by the preprocessing that its networks take.
_CAFFE = dict(mean=tuple(m / 255 for m in (123.68, 116.779, 103.939)), std=(1 / 255,) * 3, bgr=True)
_MINUS_ONE_TO_ONE = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
_IMAGENET = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)
_RAW_PIXELS = dict(mean=(0.0,) * 3, std=(1 / 255,) * 3)  # normalize themselves, from 0..255

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


def application(name: str) -> tuple[type, dict]:
    """Find a network of keras.applications and how it wants its images.

    Args:
        name: Such as `ResNet50` or `EfficientNetV2B0`.
    Returns:
        Its constructor, and the arguments `mean`, `std` and perhaps `bgr` of `Teacher`.
    Raises:
        ValueError: If keras.applications has no such network.
    """
    family = next((prefix for prefix in _PREPROCESSING if name.startswith(prefix)), None)
    if family is None or not hasattr(keras.applications, name):
        known = sorted(n for n in dir(keras.applications) if n[0].isupper())
        raise ValueError(f"keras.applications has no network {name!r}. It has: {', '.join(known)}")
    return getattr(keras.applications, name), _PREPROCESSING[family]


def application_teacher(
    name: str, weights: str | None = "imagenet", classes: int = 1000
) -> Teacher:
    """Take a network of keras.applications as teacher, in the preprocessing that it was trained
    with.

    Args:
        name: Such as `ResNet50`.
        weights: `imagenet` downloads the published weights; a file loads it; None starts fresh.
        classes: Number of classes; 1000 with `imagenet`.
    Raises:
        ValueError: If keras.applications has no such network, or its weights are for other classes.
    """
    constructor, preprocessing = application(name)
    model = constructor(weights=weights, classes=classes, classifier_activation=None)
    model.trainable = False
    return Teacher(model, **preprocessing)


def keras_hub_teacher(preset: str) -> Teacher:
    """Take a classifier of keras-hub as teacher, in the preprocessing of its preset.

    Args:
        preset: Such as `resnet_50_imagenet`; a folder or `hf://` name that keras-hub takes as well.
    Raises:
        ImportError: Where keras-hub is not installed.
        ValueError: If the preset tells no preprocessing, without which its answers would be wrong
            in silence.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            f"Teacher 'keras-hub:{preset}' needs keras-hub, which is not installed: `pip "
            "install keras-hub`."
        ) from error
    model = keras_hub.models.ImageClassifier.from_preset(preset)
    converter = getattr(model.preprocessor, "image_converter", None)
    if converter is None:
        raise ValueError(
            f"Teacher 'keras-hub:{preset}' has no image converter, so its normalization is unknown."
        )
    # The converter maps pixels 0..255 to scale * pixel + offset, per channel or for all.
    scale = np.broadcast_to(1.0 if converter.scale is None else np.ravel(converter.scale), 3)
    offset = np.broadcast_to(0.0 if converter.offset is None else np.ravel(converter.offset), 3)
    std, size = 1 / (255 * scale), converter.image_size
    model.trainable = False
    probabilities = getattr(model.output_dense, "activation", None) is keras.activations.softmax
    return Teacher(
        model,
        mean=tuple(map(float, -offset * std)),
        std=tuple(map(float, std)),
        image_size=size if size and all(size) else None,
        from_logits=not probabilities,
        name=preset,
    )


def load_teacher(name: str, labels: tuple[str, ...]) -> Teacher:
    """Load a frozen teacher as `distill.teacher` names it.

    Args:
        name: As `DistillConfig` has it.
        labels: The student's classes; the teacher's are brought into their order.
    Raises:
        FileNotFoundError: If there is no such run or file.
        ImportError: For `keras-hub:` where keras-hub is not installed.
        ValueError: If the teacher does not know all of the student's classes.
    """
    kind, _, rest = name.partition(":")
    if kind == "keras":
        return application_teacher(rest)
    if kind == "keras-hub":
        return keras_hub_teacher(rest)
    source, model = (rest, kind) if kind in REGNETY or kind in VARIANTS else (name, None)
    run = load_run(source, model)
    run.model.trainable = False
    mean, std = run.processor.mean, run.processor.std
    if run.config is None and is_keras(source):
        log.warning(
            "Teacher %r lies in no run: images normalized with mean %s and std %s are assumed.",
            name,
            mean,
            std,
        )
    order = None
    if run.labels:
        try:
            order = class_order(labels, run.labels, run.model.output_shape[-1])
        except ValueError as error:
            raise ValueError(
                f"Teacher {name!r} does not know the student's classes. {error}"
            ) from error
    logits = not gives_probabilities(run.model)
    return Teacher(run.model, mean=mean, std=std, class_order=order, from_logits=logits, name=name)


def gives_probabilities(model: keras.Model) -> bool:
    """Whether a classifier ends in a softmax, by its last layer or operation, that of a model
    within it included.
    """
    last = model
    while isinstance(last, keras.Model):
        last = [None, *getattr(last, "operations", last.layers)][-1]
    return (
        type(last).__name__ == "Softmax"
        or getattr(last, "activation", None) is keras.activations.softmax
    )


def build_teacher(
    config: TeacherConfig,
    num_classes: int,
    *,
    image_size: Size,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> keras.Model:
    """Build the convnet that `deit-tf train-teacher` trains.

    Args:
        config: Its name and weights.
        num_classes: Classes C; the head is fresh, but that of a RegNetY whose weights have as many.
        image_size: Height and width in pixels, or one number for a square.
        mean: Mean of the normalization of its images, per channel.
        std: Standard deviation likewise.
    Returns:
        A model from float32 [B, H, W, 3], normalized so, to float32 [B, C] logits.
    Raises:
        ValueError: For an unknown name, or weights for a network that has none here.
    """
    if config.name in RESNET:
        if config.weights:
            raise ValueError(
                f"`teacher.weights` must be null for {config.name}, of which none are published."
            )
        return create_resnet(config.name, num_classes=num_classes, image_size=image_size)
    if not config.name.startswith("keras:"):
        return create_regnety(
            config.name, num_classes=num_classes, image_size=image_size, weights=config.weights
        )
    constructor, wanted = application(config.name.removeprefix("keras:"))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    image = keras.Input((height, width, 3), name="image")
    scale, offset = _renormalization(mean, std, wanted["mean"], wanted["std"])
    x = keras.layers.Rescaling(scale.tolist(), offset.tolist(), name="renormalize")(image)
    x = x[..., ::-1] if wanted.get("bgr") else x
    trunk = constructor(
        include_top=False, weights=config.weights, pooling="avg", input_shape=(height, width, 3)
    )
    logits = keras.layers.Dense(num_classes, dtype="float32", name="head")(trunk(x))
    return keras.Model(image, logits, name=config.name.removeprefix("keras:"))


def _renormalization(
    mean: Triple, std: Triple, new_mean: Triple, new_std: Triple
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset, float32 [3] each, from one normalization to another."""
    scale = np.divide(std, new_std)
    offset = np.subtract(mean, new_mean) / new_std
    return scale.astype("float32"), offset.astype("float32")


def _declared_size(model: keras.Model) -> tuple[int, int] | None:
    height, width = model.input_shape[1:3]
    return (height, width) if height and width else None


def _check_order(name: str, order: list[int], classes: int, outputs: int) -> None:
    if len(order) != classes or not all(0 <= index < outputs for index in order):
        raise ValueError(
            f"`class_order` of teacher {name!r} needs {classes} numbers from 0 to "
            f"{outputs - 1}, one per class of the student. Received {len(order)}: {order[:10]}"
        )
