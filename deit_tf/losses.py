"""The losses: pure functions. Those of distillation take logits and give one number per image, in
nats.

Source: paper, section 4 (equations 2 and 3); facebookresearch/deit losses.py. Computed in float32
    or wider.
"""

from typing import Literal

from keras import ops

Normalization = Literal["batchmean", "numel"]


def cross_entropy(logits, targets):
    """Cross-entropy against soft labels.

    Args:
        logits: [B, C].
        targets: [B, C], rows summing to 1.
    Returns:
        [B], nats per image.
    """
    return -ops.sum(targets * ops.log_softmax(_wide(logits), axis=-1), axis=-1)


def binary_cross_entropy(logits, targets, sum_classes: bool = False):
    """Binary cross-entropy of each class by itself, as if each had an answer of its own (DeiT III).

    Args:
        logits: [B, C].
        targets: [B, C], each 0..1; rows need not sum to 1.
        sum_classes: Whether the classes are summed up, timm's `bce_sum`, instead of averaged.
    Returns:
        [B], nats per image and class, or per image.
    Source: torch, binary_cross_entropy_with_logits; timm/loss/binary_cross_entropy.py.
    """
    logits = _wide(logits)
    each = ops.softplus(logits) - targets * logits  # [B, C]
    return ops.sum(each, axis=-1) if sum_classes else ops.mean(each, axis=-1)


def binarize(targets, threshold: float | None):
    """Targets [B, C] as 1 above the threshold and 0 below; None leaves them as they are.

    Source: facebookresearch/deit engine.py, which makes every target above 0 a 1; timm's
        `target_threshold`.
    """
    return targets if threshold is None else ops.cast(targets > threshold, targets.dtype)


def hard_distillation(logits, teacher_logits):
    """Cross-entropy against the teacher's decision (paper, equation 3), with no label smoothing.

    Args:
        logits: [B, C] of the student.
        teacher_logits: [B, C]; only the argmax counts.
    Returns:
        [B], nats per image.
    """
    decision = ops.one_hot(
        ops.argmax(teacher_logits, axis=-1), logits.shape[-1], dtype=_wide(logits).dtype
    )
    return cross_entropy(logits, decision)


def soft_distillation(
    logits, teacher_logits, temperature: float = 1.0, normalization: Normalization = "batchmean"
):
    """Kullback-Leibler divergence from the teacher's softened probabilities, times temperature
    squared (equation 2).

    Args:
        logits: [B, C] of the student.
        teacher_logits: [B, C].
        temperature: Divides both logits; 3.0 in the paper's baseline.
        normalization: `batchmean` sums over the classes; `numel` divides by C as well, as the
            original does for the sake of old results (facebookresearch/deit issue 61).
    Returns:
        [B], nats per image.
    """
    student = ops.log_softmax(_wide(logits) / temperature, axis=-1)
    teacher = ops.log_softmax(_wide(teacher_logits) / temperature, axis=-1)
    divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1) * temperature**2
    return divergence / logits.shape[-1] if normalization == "numel" else divergence


def multilabel_cross_entropy(logits, targets, class_weights=None):
    """Cross-entropy of each class by itself, there or not, for images of several labels or none.

    Args:
        logits: [B, C].
        targets: [B, C], each 0..1; rows may sum to anything.
        class_weights: [C], factors of the part that holds where a class is there, torch's
            `pos_weight`; None leaves them 1.
    Returns:
        [B], nats per image and class.
    Source: torch, binary_cross_entropy_with_logits.
    """
    logits = _wide(logits)
    targets = ops.cast(targets, logits.dtype)
    there = targets * ops.softplus(-logits)  # [B, C]
    if class_weights is not None:
        there = there * ops.cast(class_weights, logits.dtype)
    return ops.mean(there + (1 - targets) * ops.softplus(logits), axis=-1)


def multilabel_hard_distillation(logits, teacher_logits):
    """Cross-entropy against what the teacher takes to be there: the classes of probability above
    1/2.

    Args:
        logits: [B, C] of the student.
        teacher_logits: [B, C]; only their signs count.
    Returns:
        [B], nats per image and class.
    """
    return multilabel_cross_entropy(logits, ops.cast(teacher_logits > 0, _wide(logits).dtype))


def multilabel_soft_distillation(logits, teacher_logits, temperature: float = 1.0):
    """Kullback-Leibler divergence from the teacher's softened probability of each class, times
    temperature squared.

    Args:
        logits: [B, C] of the student.
        teacher_logits: [B, C].
        temperature: Divides both logits.
    Returns:
        [B], nats per image and class; 0 where both agree.
    """
    student, teacher = _wide(logits) / temperature, _wide(teacher_logits) / temperature
    softened = ops.sigmoid(teacher)
    entropy = multilabel_cross_entropy(teacher, softened)
    return (multilabel_cross_entropy(student, softened) - entropy) * temperature**2


def masked_l1(images, reconstruction, mask):
    """Mean absolute error on the hidden pixels, over batch and channels (SimMIM, section 3.4).

    Args:
        images: [B, H, W, 3].
        reconstruction: [B, H, W, 3].
        mask: [B, H/P * W/P], 1 or true where a patch is hidden, row by row; patches are square.
    Returns:
        A scalar; 0 where nothing is hidden.
    Source: transformers, DeiTForMaskedImageModeling: the sum over (number of hidden pixels + 1e-5),
        then over the channels.
    """
    error, hidden = _masked_error(images, reconstruction, mask)
    return ops.sum(error) / (ops.sum(hidden) + 1e-5) / images.shape[-1]


def masked_l1_of_each(images, reconstruction, mask, weight=None):
    """Each image's part of `masked_l1`, [B], whose mean `masked_l1` is: an image counts by what it
    hides. With a weight of each image, [B], it is their weighted mean.
    """
    error, hidden = (
        ops.sum(each, axis=(1, 2)) for each in _masked_error(images, reconstruction, mask)
    )  # [B]
    weight = ops.ones_like(hidden) if weight is None else ops.cast(weight, hidden.dtype)
    mean_hidden = (ops.sum(hidden * weight) + 1e-5) / ops.sum(weight)
    return error / mean_hidden / images.shape[-1]


def _masked_error(images, reconstruction, mask):
    """Absolute error summed over the channels, 0 where it is seen, and what is hidden: [B, H, W]
    each.
    """
    height, width = images.shape[1:3]
    patch = round((height * width / mask.shape[1]) ** 0.5)
    hidden = ops.cast(ops.reshape(mask, (-1, height // patch, width // patch)), "float32")
    hidden = ops.repeat(ops.repeat(hidden, patch, axis=1), patch, axis=2)  # [B, H, W]
    return ops.sum(ops.abs(_wide(images) - _wide(reconstruction)), axis=-1) * hidden, hidden


def image_weights(targets, class_weights):
    """What an image counts for, [B], by its labels [B, C]: the weight of its class, of mixed labels
    the mean by their shares. That is what Keras's `fit` makes of `class_weight`, for one label.
    """
    return ops.sum(targets * ops.cast(class_weights, targets.dtype), axis=-1)


def smooth(targets, label_smoothing: float):
    """Spread a share of each label over all C classes: (1 - s) * targets + s / C, for [B, C]."""
    return (1.0 - label_smoothing) * targets + label_smoothing / targets.shape[-1]


def _wide(logits):
    """Logits in at least float32."""
    logits = ops.convert_to_tensor(logits)
    return logits if logits.dtype == "float64" else ops.cast(logits, "float32")
