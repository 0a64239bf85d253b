"""What the images of each class count for in the loss (`data.class_weights`)."""

from collections.abc import Sequence

import numpy as np

from deit_tf.data.sources import Source

BALANCED = "balanced"
BATCH = 1024


def class_weights(setting: str | Sequence[float] | None, source: Source) -> np.ndarray | None:
    """The weight of each class, float32 [C]; None where every image counts alike.

    Args:
        setting: `balanced`, or numbers above 0 in the order of the class names.
        source: The images to train on. `balanced` counts them: of a folder, a file of labels and
            digits by what is known of them, of TensorFlow Datasets by reading all records once.
    Raises:
        ValueError: If there are not as many numbers as classes, or a class has no image, or of
            several labels is in every one.
    Source: scikit-learn, compute_class_weight: n / (C n_c); of several labels torch's
        `pos_weight`, (n - n_c) / n_c.
    """
    if setting is None:
        return None
    classes = len(source.class_names)
    if setting != BALANCED:
        if len(setting) != classes:
            raise ValueError(
                f"`data.class_weights` has a number for each of the {classes} classes, in the "
                f"order of their names. Received: {len(setting)}"
            )
        return np.array(setting, np.float32)

    counts = images_of_classes(source)
    others = source.size - counts if source.multilabel else np.full(classes, source.size / classes)
    uncountable = [
        name
        for name, with_it, without in zip(source.class_names, counts, others, strict=True)
        if not with_it or not without
    ]
    if uncountable:
        raise ValueError(
            "`data.class_weights` balanced needs images of each class, and of several labels such "
            f"without it. Not so in {source.name}: {', '.join(uncountable[:5])}. Give a list."
        )
    return (others / counts).astype(np.float32)


def images_of_classes(source: Source) -> np.ndarray:
    """How many images each class has, int64 [C]."""
    if source.counts is not None:
        return source.counts
    classes = len(source.class_names)
    counts = np.zeros(classes, np.int64)
    labels = source.read(None).map(lambda item: item["label"])
    for batch in labels.batch(BATCH).as_numpy_iterator():
        one = not source.multilabel
        counts += np.bincount(batch, minlength=classes) if one else batch.astype(np.int64).sum(0)
    return counts
