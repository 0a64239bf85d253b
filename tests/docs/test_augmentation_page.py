"""The script of docs/augmentation.md runs as it stands, and twice the same."""

import re
from pathlib import Path

import numpy as np

PAGE = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text()


def test_the_script_runs_and_the_same_seed_gives_the_same_bytes():
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(compile(script, "augmentation.md", "exec"), names)
    first, second = names["augmented"].as_numpy_iterator()
    assert first["images"].shape == (8, 32, 32, 3) and first["labels"].shape == (8, 10)
    np.testing.assert_allclose(first["labels"].sum(-1), 1, rtol=1e-6)  # float32
    assert (first["images"] != second["images"]).any()

    again, _ = names["augmented"].as_numpy_iterator()
    np.testing.assert_array_equal(first["images"], again["images"])
    np.testing.assert_array_equal(first["labels"], again["labels"])
