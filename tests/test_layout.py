"""The architecture as a test: imports run one way, and no file hides behind a name that says
nothing."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deit_tf"

# A file imports only from its own room and from ranks below it.
RANKS = [
    {"config", "config_files", "files", "losses", "native_log", "object_store", "onednn"},
    {"weights", "data", "models"},
    {"zoo", "training", "exporting"},
    {"runs"},
    {"distillation"},
    {"tasks", "evaluation"},
    {"train"},
    {"planning"},
    {"cli"},
    {"__main__"},
]
NEVER = {("models", "data"), ("data", "models")}
FILES = [
    path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
]


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


def rooms_imported(path):
    for module, names in imports(path):
        if module == "deit_tf":
            yield from names
        elif module.startswith("deit_tf."):
            yield module.split(".")[1]


def rank(name):
    return next(i for i, names in enumerate(RANKS) if name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = room(path)
    for other in set(rooms_imported(path)) - {here}:
        assert (here, other) not in NEVER
        assert rank(other) < rank(here), f"{here} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_reference_libraries_are_never_imported(path):
    roots = {module.split(".")[0] for module, _ in imports(path)}
    if room(path) == "weights":
        roots -= {"torch"}  # reads .pth files where it is installed
    assert not roots & {"torch", "timm", "transformers", "tensorflow_addons", "tf_keras", "pickle"}


def test_networks_and_losses_are_keras_alone():
    others = ("losses.py", "training/optim.py", "weights/names.py")
    for path in [*(PACKAGE / "models").glob("*.py"), *(PACKAGE / name for name in others)]:
        assert "tensorflow" not in {module.split(".")[0] for module, _ in imports(path)}, path


def test_no_file_without_a_subject():
    assert not [
        path
        for path in ROOT.rglob("*.py")
        if path.stem in {"utils", "common", "helpers", "base"} and ".venv" not in path.parts
    ]
    assert not list((ROOT / "export").rglob("__init__.py"))


def test_functions_are_short():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 50, f"{path.name}:{node.name} has {lines} lines"
