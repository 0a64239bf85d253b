"""The notebook is small, was run from top to bottom, and runs."""

import base64
import io
import json
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from PIL import Image

FILE = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CELLS = NOTEBOOK["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
MOST_LINES = 18


def source(cell):
    return "".join(cell["source"])


def pictures(cell):
    """The PNG files that a cell has put out."""
    for output in cell["outputs"]:
        if "image/png" in output.get("data", {}):
            yield base64.b64decode(output["data"]["image/png"])


def without_figures(text):
    """Sums round otherwise on another CPU, and a short training shows it."""
    return re.sub(r"[0-9]+", "0", text)


def test_it_is_small_and_short():
    assert FILE.stat().st_size < 300_000
    assert 14 <= len(CELLS) <= 20
    for cell in CODE:
        lines = source(cell).splitlines()
        assert len(lines) <= MOST_LINES and max(map(len, lines)) <= 100, source(cell)


def test_it_was_run_from_top_to_bottom_without_an_error():
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    kinds = {output["output_type"] for cell in CODE for output in cell["outputs"]}
    assert "error" not in kinds
    streams = {output.get("name") for cell in CODE for output in cell["outputs"]}
    assert "stderr" not in streams  # TensorFlow's log, and paths of a machine


def test_its_pictures_are_pictures():
    drawn = [cell for cell in CODE if "show(" in source(cell).replace("def show(", "")]
    assert len(drawn) >= 5
    for cell in drawn:
        assert [Image.open(io.BytesIO(png)).width > 300 for png in pictures(cell)] == [True]


def test_the_cells_run(tmp_path, monkeypatch, capsys):
    """In one namespace, as a kernel runs them; they print and draw what is there."""
    shown = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib.pyplot, "show", lambda: shown.append(plt.gcf()))
    names: dict = {}
    for cell in CODE:
        exec(compile(source(cell), FILE.name, "exec"), names)  # noqa: S102, ours
        plt.close("all")

    assert len(shown) == sum(len([*pictures(cell)]) for cell in CODE)
    assert names["found"]["val_accuracy"] > 0.7  # of ten classes
    assert names["report"]["agreement"]["top1"]["share"] > 0.9
    assert (tmp_path / "digits.tflite").stat().st_size == names["report"]["bytes"]
    said = without_figures(capsys.readouterr().out)
    streams = [o for cell in CODE for o in cell["outputs"] if o["output_type"] == "stream"]
    for line in "".join("".join(stream["text"]) for stream in streams).splitlines():
        assert without_figures(line) in said
