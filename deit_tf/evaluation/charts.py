"""Numbers and pixels as figures for a page: the geometry of line charts, pictures as data URIs.

Knows nothing of runs or models. A chart is plain data, so that the template escapes every word in
it.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 12, 26  # margins around the plot
TICKS = 5
LARGEST_PICTURE = 224
LOSSLESS = 64  # pixels a side, up to which a picture is PNG: JPEG blurs what is so small
JPEG_QUALITY = 88
ORANGE = (255, 140, 0)

# The colors of pages, as CSS has them, and of plots: `c0` is what is right, or comes first, `c1`
# what is wrong, or comes second.
PALETTE = {
    "light": {
        "ink": "#1b1f24",
        "soft": "#57606a",
        "page": "#ffffff",
        "line": "#d8dee4",
        "c0": "#0b5fb0",
        "c1": "#b8480b",
        "c2": "#1a7f4b",
        "c3": "#7a3ea8",
    },
    "dark": {
        "ink": "#e6e9ec",
        "soft": "#a3adb8",
        "page": "#14171b",
        "line": "#363d45",
        "c0": "#6cb2ff",
        "c1": "#ff9d5c",
        "c2": "#63d297",
        "c3": "#c79bff",
    },
}


def line_chart(title: str, series: Mapping[str, Sequence[float]]) -> dict | None:
    """Place lines over epochs 1, 2, ... in a box of WIDTH x HEIGHT.

    Args:
        title: What is drawn.
        series: A number per epoch by label; what is not finite is left out.
    Returns:
        `title`, `summary` (in words), `box` (width, height, left and right edge of the plot),
        `lines` (label, SVG points, last point), `x_ticks` and `y_ticks` (position, label); None
        where there is nothing to draw.
    """
    points = {
        label: [(epoch, value) for epoch, value in enumerate(values, 1) if math.isfinite(value)]
        for label, values in series.items()
    }
    points = {label: each for label, each in points.items() if each}
    if not points:
        return None
    epochs, values = zip(*(point for each in points.values() for point in each), strict=True)
    x_axis, y_axis = (1, max(max(epochs), 2)), _padded(min(values), max(values))

    def place(epoch: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (epoch - x_axis[0]) / (x_axis[1] - x_axis[0])
        y = (
            HEIGHT
            - BOTTOM
            - (HEIGHT - TOP - BOTTOM) * (value - y_axis[0]) / (y_axis[1] - y_axis[0])
        )
        return round(x, 1), round(y, 1)

    lines = []
    for label, each in points.items():
        placed = [place(*point) for point in each]
        lines.append(
            {"label": label, "points": " ".join(f"{x},{y}" for x, y in placed), "last": placed[-1]}
        )

    words = [
        f"{label} {each[0][1]:.4g} at first, {each[-1][1]:.4g} at last".strip()
        for label, each in points.items()
    ]
    return {
        "title": title,
        "summary": "; ".join(words),
        "box": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT},
        "lines": lines,
        "x_ticks": [
            (place(tick, y_axis[0])[0], f"{tick:g}") for tick in ticks(*x_axis) if tick == int(tick)
        ],
        "y_ticks": [(place(1, tick)[1], f"{tick:.4g}") for tick in ticks(*y_axis)],
    }


def ticks(low: float, high: float) -> list[float]:
    """Up to about TICKS round numbers from `low` to `high`."""
    raw = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [
        round(i * step, 12)
        for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def picture(pixels: np.ndarray) -> str:
    """An image file of uint8 [H, W, 3], at most LARGEST_PICTURE a side, as a data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    small = max(image.size) <= LOSSLESS
    kind, options = ("PNG", {}) if small else ("JPEG", {"quality": JPEG_QUALITY})

    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"


def tint(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Lay weights [rows, columns], not negative, over a picture, uint8 [H, W, 3], in orange.

    A patch is as bright as it rises above the least one, in shares of the largest: (w - min) / max.
    So a map that weighs all patches alike adds nothing anywhere, and one that weighs them nearly
    alike adds little.
    """
    rows, columns = (
        side // count for side, count in zip(pixels.shape[:2], weights.shape, strict=True)
    )
    rise = (weights - weights.min()) / weights.max()
    strength = np.kron(rise, np.ones((rows, columns)))[..., None]  # [H, W, 1]
    return (0.5 * pixels + 0.5 * strength * ORANGE).astype(np.uint8)


def cell_opacity(count: int, total: int) -> float:
    """How strongly a cell of a confusion matrix has its color, 0..1: by the root of its share of
    the images of its class, so that few errors are seen beside many right answers.
    """
    return 0.05 + 0.45 * math.sqrt(count / total) if count else 0.0


def span(weights: np.ndarray) -> str:
    """In words: the range of weights [rows, columns], as multiples of the share that each would
    have if all were alike.
    """
    low, high = (each / weights.mean() for each in (weights.min(), weights.max()))
    return f"{low:.1f} to {high:.1f} times an even share"


def where(weights: np.ndarray) -> str:
    """In words: which cell of weights [rows, columns] has the most, and how much of the sum."""
    row, column = np.unravel_index(weights.argmax(), weights.shape)
    share = weights.max() / weights.sum()
    return (
        f"row {row + 1} of {weights.shape[0]}, column {column + 1} of {weights.shape[1]}, "
        f"{100 * share:.0f} %"
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin if low != 0 else 0.0, high + margin
