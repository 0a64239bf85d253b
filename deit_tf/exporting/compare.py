"""How far the logits of an artifact are from Keras's, and how often both name the same class.

Interval: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
"""

import numpy as np

# Nats between Keras's first and second class: the first is then e times as probable as the second.
CLEAR_MARGIN = 1.0
TOP = 5


class ExportError(RuntimeError):
    """An artifact was written and found wanting; it does not bear its final name."""


def deviation(logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How far `logits` [n, C] are from `reference` [n, C].

    Returns:
        `max_difference` and `mean_difference`, absolute, over max(1, largest |reference|);
        `relative_rms`, the difference's root mean square over the reference's; `top1_agreement`, a
        share of the rows.
    Raises:
        ExportError: If the shapes differ.
    """
    logits, reference = np.asarray(logits, np.float64), np.asarray(reference, np.float64)
    if logits.shape != reference.shape:
        raise ExportError(
            f"the artifact returns logits of shape {logits.shape}, Keras {reference.shape}"
        )
    difference = np.abs(logits - reference)
    scale = max(1.0, np.abs(reference).max())
    rms = np.sqrt(np.square(reference).mean())
    return {
        "max_difference": float(difference.max() / scale),
        "mean_difference": float(difference.mean() / scale),
        "relative_rms": float(
            np.sqrt(np.square(difference).mean()) / max(rms, np.finfo(np.float32).tiny)
        ),
        "top1_agreement": float((logits.argmax(-1) == reference.argmax(-1)).mean()),
    }


def agreement(logits: np.ndarray, reference: np.ndarray) -> dict[str, dict]:
    """How often `logits` [n, C] name the class that `reference` [n, C] puts first.

    Returns:
        `top1`; `top5`, among the first five; and `clear`, as `top1` on the rows whose reference is
        sure of itself, by `CLEAR_MARGIN`. Each with `hits`, `images`, their `share` (None of no
        images) and its `interval`, of 95 %.
    """
    logits, reference = np.asarray(logits), np.asarray(reference)
    ranked, wanted = np.argsort(-logits, axis=-1, kind="stable"), reference.argmax(-1)
    among = ranked == wanted[:, None]  # [n, C], where the wanted class stands
    second, first = (
        np.sort(reference, axis=-1)[:, -2:].T if reference.shape[-1] > 1 else (-np.inf, 0.0)
    )
    clear = np.broadcast_to(first - second >= CLEAR_MARGIN, wanted.shape)
    return {
        "top1": _share(among[:, 0]),
        "top5": _share(among[:, :TOP].any(-1)),
        "clear": _share(among[clear, 0]),
    }


def wilson(hits: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of `hits` in `trials`; `z` = 1.96 is 95 %, and of no trials it
    is (0, 1).
    """
    if not trials:
        return 0.0, 1.0
    share, square = hits / trials, z * z
    center = (share + square / (2 * trials)) / (1 + square / trials)
    half = (
        z * np.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    )
    # At either end the interval closes exactly, which rounding would miss.
    return float(center - half) if hits else 0.0, float(center + half) if hits < trials else 1.0


def _share(agrees: np.ndarray) -> dict:
    hits, images = int(agrees.sum()), len(agrees)
    interval = list(wilson(hits, images))
    return {
        "hits": hits,
        "images": images,
        "share": hits / images if images else None,
        "interval": interval,
    }
