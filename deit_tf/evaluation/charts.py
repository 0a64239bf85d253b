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
ORANGE = (255, 140, 0)


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
    """A PNG file of uint8 [H, W, 3], at most LARGEST_PICTURE a side, as a data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def tint(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Lay weights [rows, columns] over a picture, uint8 [H, W, 3]: black adds nothing, the largest
    is orange.
    """
    rows, columns = (
        side // count for side, count in zip(pixels.shape[:2], weights.shape, strict=True)
    )
    strength = np.kron(weights / weights.max(), np.ones((rows, columns)))[..., None]  # [H, W, 1]
    return (0.5 * pixels + 0.5 * strength * ORANGE).astype(np.uint8)


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
