"""Every package that is imported is named: none is there only because another one asks for it."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "requirements.txt").read_text().splitlines()
NAMED = {re.match(r"[\w-]+", line)[0].replace("_", "-").lower() for line in LINES if line[0] != "#"}
OPTIONAL = {
    "kagglehub",
    "keras_hub",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "torch",
}  # an error says how to install them, where they are asked for
OWN = {"deit_tf", *(path.stem for path in (ROOT / "export").glob("*.py"))}


def imported() -> set[str]:
    """The top-level modules that deit_tf/ and export/ import from elsewhere, at any depth."""
    found = set()
    for folder in ("deit_tf", "export"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add(node.module.split(".")[0])
    return found - OWN - OPTIONAL - sys.stdlib_module_names


@pytest.mark.parametrize("module", sorted(imported()))
def test_an_import_is_named(module):
    distributions = {name.replace("_", "-").lower() for name in packages_distributions()[module]}
    assert distributions & NAMED
