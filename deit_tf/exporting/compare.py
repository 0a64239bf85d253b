"""How far the logits of an artifact are from Keras's, how often both name the same class, and what
an artifact may lose.

Interval: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Nats between Keras's first and second class: the first is then e times as probable as the second.
CLEAR_MARGIN = 1.0
TOP = 5


class ExportError(RuntimeError):
    """An artifact was written and found wanting; it does not bear its final name."""


@dataclass(frozen=True)
class Limits:
    """What an artifact may lose.

    Args:
        max_difference: Largest |logit - Keras's logit| allowed, over max(1, largest |Keras's
            logit|).
        relative_rms: Root mean square of the difference allowed, over that of Keras's logits; it
            holds small logits to account, where the other limit is loose.
        top1_agreement: Share of the images on which Keras's class must come first.
        clear_agreement: The same of images on which Keras's class leads clearly, by `CLEAR_MARGIN`.
            A share counts as too small where even the upper end of its interval is: of 4 images,
            one may differ by chance.
    """

    max_difference: float
    relative_rms: float
    top1_agreement: float
    clear_agreement: float

    def exceeded(self, measured: Mapping[str, float], agreed: Mapping[str, dict]) -> str:
        """What is beyond a limit, in words, of the figures of `deviation` and `agreement`; empty
        where nothing is.
        """
        if excess := self.exceeded_by_difference(measured):
            return excess

        for name, least in (("top1", self.top1_agreement), ("clear", self.clear_agreement)):
            counted = agreed[name]
            if counted["interval"][1] < least:
                return (
                    f"the same class on {counted['hits']} of {counted['images']} images ({name}), "
                    f"a share of {least:g} is asked"
                )
        return ""

    def or_looser(self, other: "Limits") -> "Limits":
        """Of each limit the looser one."""
        return Limits(
            max(self.max_difference, other.max_difference),
            max(self.relative_rms, other.relative_rms),
            min(self.top1_agreement, other.top1_agreement),
            min(self.clear_agreement, other.clear_agreement),
        )

    def exceeded_by_difference(self, measured: Mapping[str, float]) -> str:
        """The same of the figures of `deviation` alone."""
        for name in ("max_difference", "relative_rms"):
            if not measured[name] <= getattr(self, name):  # a NaN fails as well
                return f"{name} {measured[name]:.3g}, {getattr(self, name):g} is allowed"
        return ""


# Of float32 weights: the kernels are Keras's own, or sum in another order.
EXACT = Limits(max_difference=1e-4, relative_rms=1e-4, top1_agreement=1.0, clear_agreement=1.0)
# Of weights in half precision, and of GPUs, which compute in it where they can.
HALF = Limits(max_difference=1e-2, relative_rms=1e-2, top1_agreement=0.995, clear_agreement=1.0)


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

    difference = np.abs(logits - reference)  # [n, C]
    scale = max(1.0, np.abs(reference).max())
    rms = max(np.sqrt(np.square(reference).mean()), np.finfo(np.float32).tiny)
    return {
        "max_difference": float(difference.max() / scale),
        "mean_difference": float(difference.mean() / scale),
        "relative_rms": float(np.sqrt(np.square(difference).mean()) / rms),
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
    ranking = np.argsort(-logits, axis=-1, kind="stable")  # [n, C]
    hit_at = ranking == reference.argmax(-1)[:, None]  # [n, C], where Keras's class stands

    clear = np.ones(len(reference), bool)
    if reference.shape[-1] > 1:
        second, first = np.sort(reference, axis=-1)[:, -2:].T
        clear = first - second >= CLEAR_MARGIN

    return {
        "top1": _share(hit_at[:, 0]),
        "top5": _share(hit_at[:, :TOP].any(-1)),
        "clear": _share(hit_at[clear, 0]),
    }


def share_text(counted: Mapping) -> str:
    """`198/200 0.964-0.997`: hits, images and the interval, of one count of `agreement`."""
    low, high = counted["interval"]
    return f"{counted['hits']}/{counted['images']} {low:.3f}-{high:.3f}"


def device_text(figures: Mapping) -> str:
    """How one device takes a file, in a few words, of `measure_devices` in
    deit_tf.exporting.accelerators.
    """
    taken = "whole" if figures["whole"] else f"not {', '.join(figures['left_out'])}"
    if not figures["tried"]:
        return f"untried: {taken}"
    if "excess" not in figures:
        return f"refused: {taken}"
    return f"{taken}, {figures['max_difference']:.1e}" + " DIFFERS" * bool(figures["excess"])


def wilson(hits: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of `hits` in `trials`; `z` = 1.96 is 95 %, and of no trials it
    is (0, 1).
    """
    if not trials:
        return 0.0, 1.0
    share, square = hits / trials, z * z
    spread = np.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    center = (share + square / (2 * trials)) / (1 + square / trials)
    half = z * spread / (1 + square / trials)

    # At either end the interval closes exactly, which rounding would miss.
    low = float(center - half) if hits else 0.0
    high = float(center + half) if hits < trials else 1.0
    return low, high


def _share(agrees: np.ndarray) -> dict:
    hits, images = int(agrees.sum()), len(agrees)
    return {
        "hits": hits,
        "images": images,
        "share": hits / images if images else None,
        "interval": list(wilson(hits, images)),
    }
