"""Where the labels stand in the examples of a TensorFlow Datasets builder: one each, or several."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from deit_tf.config import DataConfig
from deit_tf.files import check_class_names


@dataclass(frozen=True)
class LabelField:
    """The feature that holds the labels.

    Args:
        path: Names of features, each within the one before.
        names: Of the classes.
        several: Whether an example has any number of them.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    several: bool

    @classmethod
    def find(cls, features: Mapping[str, Any], config: DataConfig) -> "LabelField":
        """Those that `data.label_field` names; else `label` or `labels`."""
        field = config.label_field or next((f for f in ("label", "labels") if f in features), "")
        feature, several, path = features, False, tuple(field.split("/"))
        try:
            for part in path:
                feature = feature[part]
                several |= _is_sequence(feature)
            feature = feature.feature if _is_sequence(feature) else feature
            names = tuple(feature.names)
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(_no_labels(features, config)) from error
        if "image" not in features:
            raise ValueError(_no_labels(features, config))

        check_class_names(names, len(names))
        return cls(path, names, several)

    def item(self, example: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """`image` and `label` of an example."""
        label = example
        for part in self.path:
            label = label[part]
        if self.several:
            label = multi_hot(label, len(self.names))
        return {"image": example["image"], "label": label}


def _is_sequence(feature: Any) -> bool:
    import tensorflow_datasets as tfds  # slow to import, and needed for this source alone

    return isinstance(feature, tfds.features.Sequence)


def _no_labels(features: Mapping[str, Any], config: DataConfig) -> str:
    return (
        f"{config.source} needs `image`, and a ClassLabel or a sequence of them as `label`, "
        "`labels` or what `data.label_field` says, such as objects/label. Received: label_field="
        f"{config.label_field!r}; it has {', '.join(features)}"
    )


def multi_hot(present: tf.Tensor, classes: int) -> tf.Tensor:
    """Labels of an image, whole numbers [k], as float32 [C]: 1 where a class is there, else 0."""
    ones = tf.ones(tf.shape(present), tf.float32)
    return tf.tensor_scatter_nd_max(tf.zeros(classes), present[:, None], ones)
