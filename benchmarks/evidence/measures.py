"""What a finished model answers on the held-out images: decisions by head, and how alike its two
tokens are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from deit_tf.data import eval_dataset
from deit_tf.models import heads
from deit_tf.models.parts import blocks
from deit_tf.runs import load_run

DECIMALS = 4
DECISIONS = "decisions.npz"  # in a run's folder
BOTH = "both"  # the mean of the logits of both heads


def measure(folder: Path) -> dict[str, Any]:
    """Accuracies of a run by head and, of a model with two tokens, their cosines.

    The decisions are kept in the run's folder, for `disagreement`.
    """
    run = load_run(folder)
    network = _network(run.model)
    held_out = eval_dataset(run.sources[1], run.config.data, run.processor)

    truth, decisions, cosines = [], {}, []
    for images, labels in held_out.as_numpy_iterator():
        outputs = {name: np.asarray(x) for name, x in network(images, training=False).items()}
        truth.append(labels)
        for head, answer in _answers(outputs).items():
            decisions.setdefault(head, []).append(answer)
        if "dist" in outputs:
            cosines.append(_cosines(outputs))

    decided = {head: np.concatenate(parts) for head, parts in decisions.items()}
    right = np.concatenate(truth)
    np.savez(folder / DECISIONS, truth=right, **decided)
    figures = {
        "images": len(right),
        "accuracy": {head: share(answer == right) for head, answer in decided.items()},
    }

    if cosines:
        mean = np.mean(np.concatenate(cosines), axis=0)
        figures["cosine"] = {
            "learned": round(_learned_cosine(run.model), DECIMALS),
            "input_and_blocks": [round(float(value), DECIMALS) for value in mean[:-1]],
            "end": round(float(mean[-1]), DECIMALS),
        }
    return figures


def _network(model: keras.Model) -> keras.Model:
    """From images to the logits of each head and, of a model with two tokens, to these."""
    if not any(layer.name == "head" for layer in model.layers):
        return keras.Model(model.input, {"cls": model.output})
    outputs = dict(heads(model).output)
    if "dist" in outputs:
        # Layers' own outputs and no new operation, whose name a loaded model may bear already.
        ways = [model.get_layer("tokens"), *blocks(model), model.get_layer("norm")]
        outputs |= {f"tokens_{place}": layer.output for place, layer in enumerate(ways)}
    return keras.Model(model.input, outputs)


def _answers(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The class [B] that each head decides for, and both together."""
    logits = {head: outputs[head] for head in ("cls", "dist") if head in outputs}
    if "dist" in logits:
        logits[BOTH] = (logits["cls"] + logits["dist"]) / 2
    return {head: each.argmax(axis=-1) for head, each in logits.items()}


def _cosines(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of both tokens: at the input, after each block, at the end, [B, depth + 2]."""
    count = sum(name.startswith("tokens_") for name in outputs)
    ways = [outputs[f"tokens_{place}"] for place in range(count)]  # [B, N, D] each
    return np.stack([cosine(tokens[:, 0], tokens[:, 1]) for tokens in ways], axis=1)


def _learned_cosine(model: keras.Model) -> float:
    """Of the two learned vectors, before the position embedding is added."""
    tokens = model.get_layer("tokens")
    cls, dist = (np.asarray(each).ravel() for each in (tokens.cls_token, tokens.dist_token))
    return float(cosine(cls, dist))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def share(hits: np.ndarray) -> float:
    """Of true values in [n]."""
    return round(float(np.mean(hits)), DECIMALS)


def disagreement(decisions: Sequence[np.ndarray]) -> list[list[float]]:
    """Shares of images that each pair of classifiers decides differently (paper, table 4)."""
    return [[share(a != b) for b in decisions] for a in decisions]
