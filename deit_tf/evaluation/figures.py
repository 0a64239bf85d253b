"""Plots as PNG files, by matplotlib, in the colors of the pages."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deit_tf.evaluation.charts import PALETTE, cell_opacity
from deit_tf.evaluation.pages import is_small
from deit_tf.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deit_tf.evaluation.explain import Explanation, HeadAnswer
    from deit_tf.evaluation.scores import Calibration

COLORS = PALETTE["light"]
DPI = 120
LONGEST = 36  # characters of a title, per column
NAME = 26  # characters of a class name
FEW = 30  # classes, up to which a confusion matrix has names and numbers


@contextmanager
def new_figure(file: Path, width: float, height: float) -> Iterator["Figure"]:
    """A figure of so many inches; written as PNG, whole or not at all, where the block succeeds."""
    # Slow to import, and needed for plots alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=DPI)


def draw_explanation(explanation: "Explanation", file: Path) -> Path:
    """Draw a picture, and for each head the attention rollout of its token over its most probable
    classes; returns the file.
    """
    columns = 1 + len(explanation.answers)
    with new_figure(file, 3.3 * columns, 5.6) as figure:
        lines = (Path(explanation.image).name, explanation.verdict)
        title = "\n".join(textwrap.shorten(line, LONGEST * columns) for line in lines)
        figure.suptitle(title, parse_math=False, size=11, color=COLORS["ink"])
        figure.get_layout_engine().set(wspace=0.06)
        axes = figure.subplots(2, columns, height_ratios=(3, 2), squeeze=False)

        _show(axes[0, 0], explanation.pixels, "as the model sees it")
        axes[1, 0].set_axis_off()
        for (above, below), answer in zip(axes.T[1:], explanation.answers, strict=True):
            caption = f"attention of the {answer.token}\npatches: {answer.span}"
            _show(above, explanation.tinted(answer), caption)
            _draw_classes(below, answer, explanation.agree)

    return file


def _show(axes: "Axes", pixels, caption: str) -> None:
    """A picture with a caption above it."""
    interpolation = "nearest" if is_small(pixels) else "antialiased"
    axes.imshow(pixels, interpolation=interpolation)
    axes.set_title(caption, size=9, color=COLORS["soft"])
    axes.set_axis_off()


def _draw_classes(axes: "Axes", answer: "HeadAnswer", agree: bool) -> None:
    """A bar for each class, its name and probability above it; the first in the color of what is
    wrong where the heads disagree.
    """
    shares = [one["probability"] for one in answer.classes]
    first = COLORS["c0"] if agree else COLORS["c1"]
    rows = range(len(shares))
    axes.barh(rows, shares, 0.36, color=[first, *[COLORS["soft"]] * (len(shares) - 1)])

    for row, one in enumerate(answer.classes):
        label = textwrap.shorten(one["label"], NAME, placeholder=" …")
        text = {"size": 8, "va": "bottom", "color": COLORS["ink"], "parse_math": False}
        axes.text(0, row - 0.24, label, **text)
        axes.text(1, row - 0.24, f"{100 * one['probability']:.1f} %", ha="right", **text)

    axes.set(xlim=(0, 1), ylim=(len(shares) - 0.5, -0.8))
    axes.set_title(answer.who, size=9, color=COLORS["soft"])
    axes.set_axis_off()


def draw_confusion(confusion: np.ndarray, names: Sequence[str], title: str, file: Path) -> None:
    """Draw a confusion matrix [true, answered], each row as shares of its class: right answers in
    the color of what is right, errors in that of what is wrong, as in the report.
    """
    few = len(names) <= FEW
    side = max(5, 0.35 * len(names) + 2) if few else 8
    with new_figure(file, side, side) as figure:
        axes = figure.add_subplot()
        axes.imshow(_cells(confusion), interpolation="nearest")
        axes.set(xlabel="answered", ylabel="true")
        axes.set_title(title, size=11)
        if few:
            axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
            axes.set_yticks(range(len(names)), names, parse_math=False)
            for (row, column), count in np.ndenumerate(confusion):
                if count:
                    axes.text(column, row, count, ha="center", va="center", size=8)


def _cells(confusion: np.ndarray) -> np.ndarray:
    """Colors of the cells of a confusion matrix, RGBA [C, C, 4], 0..1."""
    from matplotlib.colors import to_rgb

    cells = np.zeros((*confusion.shape, 4))
    cells[..., :3] = to_rgb(COLORS["c1"])
    diagonal = np.arange(len(confusion))
    cells[diagonal, diagonal, :3] = to_rgb(COLORS["c0"])

    totals = confusion.sum(axis=1)
    for row, column in np.argwhere(confusion):
        cells[row, column, 3] = cell_opacity(confusion[row, column], totals[row])
    return cells


def draw_reliability(calibration: "Calibration", file: Path) -> None:
    """Draw how often answers of each confidence are right, and how many there are."""
    bins = len(calibration.images)
    left = np.arange(bins) / bins
    there = calibration.images > 0
    counts = np.maximum(calibration.images, 1)
    accuracy, figures = calibration.right / counts, calibration.figures()

    with new_figure(file, 5, 5.6) as figure:
        above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        width = {"width": 1 / bins, "align": "edge", "edgecolor": COLORS["page"]}
        above.bar(left[there], accuracy[there], color=COLORS["c0"], **width)
        above.plot((0, 1), (0, 1), color=COLORS["c1"], linestyle="--", label="calibrated")
        mean = calibration.confidence[there] / counts[there]
        above.plot(mean, accuracy[there], "o", color=COLORS["ink"], ms=4, label="mean of a bin")
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="right")
        above.set_title(
            f"ECE {figures['ece']:.3f} ({bins} bins), NLL {figures['nll']:.3f} nats", size=11
        )
        above.legend(loc="upper left", frameon=False, fontsize=9)

        below.bar(left, calibration.images, color=COLORS["soft"], **width)
        below.set(xlabel="confidence", ylabel="images")
