"""What an exported classifier can give beside its logits: either head, and the attention rollout.

For pages and apps that show why a class was named.
"""

from collections.abc import Callable, Mapping

import keras
import numpy as np
from keras import ops

from deit_tf.exporting.compare import ExportError, Limits, deviation
from deit_tf.exporting.reference import BATCH
from deit_tf.exporting.signatures import HEADS, ROLLOUT
from deit_tf.models.deit import heads
from deit_tf.models.features import attention_weights, rollout
from deit_tf.models.parts import has_two_heads, is_deit

LOGITS = "logits"
OUTPUTS = ("logits", "all")  # the logits alone, or all that the model can give


def all_outputs(model: keras.Model) -> Callable:
    """Give all that a classifier can say, by name.

    Returns:
        A function from the images that `model` takes to `logits` [B, C]; of a model with two heads
        `heads` [B, 2, C], the logits of the class head and of the distillation head; of a DeiT
        `rollout` [B, H/P, W/P], the share of each patch, summing to 1. Of another classifier it is
        the logits alone.
    """
    graph = {LOGITS: model.output}
    if has_two_heads(model):
        graph |= heads(model).output
    if is_deit(model):
        graph["attentions"] = attention_weights(model)
        prefix = model.get_layer("tokens").prefix
        height, width = model.get_layer("patch_embed").grid(model.input_shape)
    network = keras.Model(model.input, graph)

    # What follows is no part of the Keras graph: its automatic names would clash with those in a
    # loaded file.
    def call(images) -> dict:
        given = network(images, training=False)
        outputs = {LOGITS: given[LOGITS]}
        if "dist" in given:
            # One tensor: litert-quantizer loses an output that another op reads as well. Not
            # stacked: XNNPACK leaves PACK to slower kernels.
            both = ops.concatenate([given["cls"], given["dist"]], axis=-1)  # [B, 2 C]
            outputs[HEADS] = ops.reshape(both, (-1, 2, given["cls"].shape[-1]))
        if "attentions" in given:
            shares = rollout(given["attentions"], prefix)  # [B, N]
            outputs[ROLLOUT] = ops.reshape(shares, (-1, height, width))
        return outputs

    return call


def verify_outputs(
    name: str, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], limits: Limits
) -> dict[str, dict[str, float]]:
    """Compare what an artifact gives beside its logits with Keras.

    Args:
        name: What errors call the artifact.
        found: By name, what it gives; of n images.
        expected: By name, what Keras gives.
        limits: What it may differ by; those of differences hold here.
    Returns:
        By name, what `deviation` in deit_tf.exporting.compare measures; of the rollout, whose
        shares sum to 1, times the number of patches.
    Raises:
        ExportError: If an output is missing, or differs by more.
    """
    report = {}
    for key in expected.keys() - {LOGITS}:
        if key not in found:
            raise ExportError(f"{name} gives no output {key!r}, only {', '.join(sorted(found))}")

        report[key] = deviation(_rows(key, found[key]), _rows(key, expected[key]))
        if excess := limits.exceeded_by_difference(report[key]):
            raise ExportError(f"{name} differs from Keras in its output {key!r}: {excess}")

    return {key: report[key] for key in sorted(report)}


def expected_outputs(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """What an artifact of `model` with all outputs should give, by name, of normalized images [n,
    H, W, 3].
    """
    call = all_outputs(model)
    starts = range(0, len(images), BATCH)
    answers = [call(images[i : i + BATCH]) for i in starts]
    return {key: np.concatenate([answer[key] for answer in answers]) for key in answers[0]}


def _rows(key: str, values: np.ndarray) -> np.ndarray:
    """An output as [n, values of an image], of the size of logits."""
    rows = np.reshape(values, (len(values), -1))
    return rows * rows.shape[1] if key == ROLLOUT else rows
