"""The pages hold what they promise: links lead somewhere, settings exist, the architecture is the
package's."""

import re
import runpy
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from deit_tf.config import TrainConfig

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "deit_tf"
IMAGES = ROOT / "docs" / "images"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "export" / "README.md"])
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def links(page):
    """Relative links of a page, as file and anchor; pictures as well."""
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", page.read_text())
    for link in (first or second for first, second in found):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            yield (page.parent / file if file else page), anchor


def anchors(page):
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for file, anchor in links(page):
        assert file.exists(), file
        assert not anchor or anchor in anchors(file), f"{file}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_exist(page):
    named = re.findall(r"\b(?:configs|examples|benchmarks)/\w+\.(?:yaml|py)\b", page.read_text())
    named += re.findall(r"\btests/[\w/]+\.py\b", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def settings(page):
    """Dotted settings that a page names, such as `--optim.lr` or `optim.lr`."""
    text = page.read_text()
    groups = "model|data|augment|optim|distill|teacher|mask|checkpoint"
    return set(re.findall(rf"(?:--|`)((?:{groups})\.\w+)", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_exist(page):
    for name in settings(page):
        config = TrainConfig()
        for part in name.split("."):
            assert is_dataclass(config) and hasattr(config, part), name
            config = getattr(config, part)


def test_the_ranks_are_those_of_the_layout_test():
    block = ARCHITECTURE.split("## Imports run one way")[1].split("```")[1]
    page = [set(line.split()) for line in block.strip().splitlines()]
    ranks = runpy.run_path(str(ROOT / "tests" / "test_layout.py"))["RANKS"]
    rooms = {path.stem for path in PACKAGE.iterdir()}
    assert [names for rank in page if (names := rank & rooms)] == [rank & rooms for rank in ranks]


def test_every_module_has_its_place_in_the_architecture():
    rows = ARCHITECTURE.split("## The rooms")[1].split("## Imports")[0].splitlines()
    for path in PACKAGE.rglob("*.py"):
        room, *inner = path.relative_to(PACKAGE).with_suffix("").parts
        if path.stem in ("__init__", "__main__"):
            continue
        row = next((line for line in rows if re.match(rf"\| `{room}(\.py|/)` ", line)), "")
        assert row, f"docs/architecture.md has no row for {room}"
        assert not inner or f"`{inner[-1]}`" in row, f"docs/architecture.md: {path.name} in {room}"


def test_the_drawing_differs_in_its_colors_alone():
    light, dark = (
        (IMAGES / f"distillation-{name}.svg").read_text().splitlines() for name in ("light", "dark")
    )
    differing = [pair for pair in zip(light, dark, strict=True) if pair[0] != pair[1]]
    assert len(differing) == 1 and differing[0][0].startswith("svg{--ground:")
    used = set(re.findall(r"var\((--[\w-]+)\)", "\n".join(light)))
    for line in differing[0]:
        assert used == set(re.findall(r"(--[\w-]+):#", line))


def test_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in IMAGES.iterdir()}
    assert "preview.png" in sizes and max(sizes.values()) < 200_000
