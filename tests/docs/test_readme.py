"""The README's script runs as it stands, and what the README names is there."""

import re
from pathlib import Path

import keras

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_script_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = re.findall(r"```python\n(.*?)```", README, re.S)[0]
    exec(compile(script, "README.md", "exec"), {})
    assert keras.saving.load_model(tmp_path / "student.keras").output_shape == (None, 10)


def test_links_and_files_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    named = re.findall(r"(?:configs|export|benchmarks)/[\w./]+\.(?:yaml|py|md)", README)
    assert links and named
    assert [name for name in links + named if not (ROOT / name).exists()] == []


def test_it_is_short():
    assert len(README.splitlines()) < 250
