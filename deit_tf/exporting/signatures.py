"""What a server can ask of an exported classifier: its signatures, as functions that hold the model
by closure.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.activations import ACTIVATIONS, SOFTMAX
from deit_tf.models.deit import heads
from deit_tf.models.features import attention_maps
from deit_tf.models.parts import has_two_heads

BYTES, IMAGES, HEADS, ROLLOUT = "serving_default", "images", "heads", "rollout"


def make_signatures(
    model: keras.Model,
    processor: ImageProcessor,
    class_names: Sequence[str],
    top_k: int,
    *,
    activation: str = SOFTMAX,
    rollout: bool = False,
    xla: bool = False,
) -> dict[str, Callable]:
    """The signatures of `export_saved_model`, which documents them and the arguments."""
    top_k = min(top_k, len(class_names))
    image = tf.TensorSpec((*processor.size, processor.num_channels), tf.float32)
    network = _network(model, xla)

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return answers(tf.cast(network(images), tf.float32), class_names, top_k, activation)

    def classify_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return classify(tf.map_fn(processor, image_bytes, fn_output_signature=image))

    encoded = tf.TensorSpec((None,), tf.string, name="image_bytes")
    batch = tf.TensorSpec((None, *image.shape), tf.float32, name="images")
    signatures = {
        BYTES: tf.function(classify_bytes, input_signature=[encoded]),
        IMAGES: tf.function(classify, input_signature=[batch]),
    }
    if has_two_heads(model):
        signatures[HEADS] = tf.function(_network(heads(model), xla), input_signature=[batch])
    if rollout:
        maps = _network(rollout_model(model), xla)
        signatures[ROLLOUT] = tf.function(
            lambda images: {"rollout": maps(images)}, input_signature=[batch]
        )

    return signatures


def answers(
    logits: tf.Tensor, class_names: Sequence[str], top_k: int, activation: str
) -> dict[str, tf.Tensor]:
    """What a server answers by, of logits float32 [B, C]."""
    probabilities = ACTIVATIONS[activation](logits)
    classes = tf.math.top_k(logits, top_k).indices  # [B, k], int32
    return {
        "logits": logits,
        "probabilities": probabilities,
        "top_k_classes": classes,
        "top_k_probabilities": tf.gather(probabilities, classes, batch_dims=1),
        "top_k_labels": tf.gather(tf.constant(list(class_names)), classes),
    }


def rollout_model(model: keras.Model) -> keras.Model:
    """From the images of a DeiT to its attention rollout [B, H/P, W/P]."""
    maps = attention_maps(model)
    return keras.Model(maps.input, maps.output["rollout"])


def _network(model: keras.Model, xla: bool) -> Callable:
    """`model` in inference, from images to what it gives; XLA takes no strings, so that decoding
    stays outside.
    """
    return tf.function(
        lambda images: model(images, training=False), jit_compile=True if xla else None
    )
