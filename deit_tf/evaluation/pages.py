"""Pages: one HTML file each, with nothing outside it: no script, no font, no picture is fetched.

`page.html` has the look that they share, light and dark, on a desk and on a phone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from deit_tf.evaluation.charts import LOSSLESS, PALETTE, cell_opacity, picture
from deit_tf.files import write_bytes

# What those who decide are called.
WHO = {
    "model": "model",
    "cls": "class head",
    "dist": "distillation head",
    "teacher": "teacher",
    "ema": "moving average",
}
NO_BREAK = "\N{NO-BREAK SPACE}"


def percent(share: float | None) -> str:
    """A share in 0..1 in percent; nothing of None."""
    return "" if share is None else f"{100 * share:.1f} %"


def interval_text(ends: tuple[float, float]) -> str:
    """The ends of an interval of shares, in percent."""
    low, high = ends
    return f"{100 * low:.1f} to {percent(high)}"


def is_small(pixels: np.ndarray) -> bool:
    """Whether the pixels of a picture [H, W, 3] are large on a page, and not to be blurred."""
    return max(pixels.shape[:2]) <= LOSSLESS


def write_page(template: str, shown: Mapping[str, Any], file: Path) -> Path:
    """Write a page, whole or not at all.

    Args:
        template: Its file beside this one, which extends `page.html`.
        shown: What it shows, untrusted text included; besides, `name` for its title, and `size`,
            height and width of its pictures.
        file: Where to write; its folder is there.
    Returns:
        The file.
    """
    loader = jinja2.PackageLoader("deit_tf.evaluation", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "percent": lambda share: percent(share).replace(" ", NO_BREAK),
        "opacity": cell_opacity,
        "picture": picture,
        "megabytes": lambda size: f"{size / 1e6:.2f}{NO_BREAK}MB",
    }

    environment.tests["small"] = is_small
    environment.globals |= {"palette": PALETTE, "who": WHO}
    page = environment.get_template(template).render(shown)
    write_bytes(page.encode("utf-8", "backslashreplace"), file)  # names of files may be no text
    return file
