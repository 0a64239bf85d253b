"""The page's pictures, SVG on light and on dark ground: learning curves, and a dot for each run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deit_tf.files import replacing
from evidence.figures import HEADS, OURS, Row, spread
from evidence.plan import Arm

# Ground, ink, lines; then a color for each arm, in the order of the plan.
THEMES = {
    "light": ("#ffffff", "#1f2328", "#8c959f"),
    "dark": ("#0d1117", "#e6edf3", "#6e7681"),
}
COLORS = {
    "light": ("#59636e", "#0969da", "#8250df", "#bc4c00", "#1a7f37", "#9a6700"),
    "dark": ("#9198a1", "#6cb2ff", "#c297ff", "#ff9d5c", "#63d297", "#e3b341"),
}
SIZE = (7.2, 3.6)  # inches
SETTINGS = {"svg.hashsalt": "deit_tf", "svg.fonttype": "path", "font.size": 9}


def draw_all(
    records: Sequence[Mapping[str, Any]], table: Sequence[Row], folder: Path, name: str
) -> dict[str, list[Path]]:
    """Draw both pictures in both themes; returns the files by picture."""
    runs = [each for each in records if each["what"] == "run" and each["library"] == OURS]
    pictures: dict[str, Callable] = {
        "curves": lambda axes, colors: _curves(axes, colors, runs, table),
        "runs": lambda axes, colors: _dots(axes, colors, table),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for picture, paint in pictures.items():
        files[picture] = [folder / f"evidence-{name}-{picture}-{theme}.svg" for theme in THEMES]
        for theme, file in zip(THEMES, files[picture], strict=True):
            _draw(theme, file, paint)
    return files


def _draw(theme: str, file: Path, paint: Callable) -> None:
    import matplotlib  # slow to import, and needed for this alone
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ground, ink, line = THEMES[theme]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=SIZE, layout="constrained", facecolor=ground)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor=ground)
        axes.tick_params(colors=ink)
        axes.grid(axis="both", color=line, linewidth=0.4, alpha=0.5)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(line)

        paint(axes, COLORS[theme])
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_color(ink)
        if legend := axes.get_legend():
            legend.get_frame().set_visible(False)
            for text in legend.get_texts():
                text.set_color(ink)
        with replacing(file) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})


def _curves(
    axes, colors: Sequence[str], runs: Sequence[Mapping[str, Any]], table: Sequence[Row]
) -> None:
    """Held-out accuracy after each epoch; a line for each run, a color for each arm."""
    for number, arm in enumerate(_arms(table)):
        own = [run["curve"] for run in runs if run["arm"] == arm.name and "curve" in run]
        for turn, curve in enumerate(own):
            label = arm.title if turn == 0 else None
            percent = [100 * value for value in curve]
            epochs = range(1, len(curve) + 1)
            axes.plot(epochs, percent, color=colors[number], linewidth=1.4, marker=".", label=label)
    axes.set(xlabel="epoch", ylabel="held-out top-1, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.lines:
        axes.legend(loc="lower right")


def _dots(axes, colors: Sequence[str], table: Sequence[Row]) -> None:
    """A dot for each run; the mean, and the interval where one is claimed."""
    arms = [arm.name for arm in _arms(table)]
    for place, row in enumerate(table):
        color = colors[arms.index(row.arm.name)]
        values = [100 * value for value in row.accuracies.values()]
        axes.plot(values, [place] * len(values), "o", color=color, markersize=4, alpha=0.7)
        found = spread(values)
        if found and found.half_width is not None:
            axes.errorbar(found.mean, place, xerr=found.half_width, color=color, capsize=3, fmt="|")
    labels = [f"{row.arm.title}: {HEADS[row.head]}" for row in table]
    axes.set_yticks(range(len(table)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("held-out top-1, %")


def _arms(table: Sequence[Row]) -> list[Arm]:
    """The arms of a table, each once."""
    return list({row.arm.name: row.arm for row in table}.values())
