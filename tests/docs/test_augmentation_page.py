"""docs/augmentation.md: its script runs, twice the same, and its table says whose kernels run."""

import re
from pathlib import Path

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from deit_tf.data.pixel_ops import OPERATIONS, apply_operation

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


# operation, layer of keras-cv, kernel
ROWS = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (keras-cv|own) \|", PAGE, re.M)
PICTURE = tf.random.stateless_uniform([12, 16, 3], [0, 0], maxval=256, dtype=tf.int32)


def test_every_operation_has_a_row():
    assert [row[0] for row in ROWS] == sorted(OPERATIONS, key=[row[0] for row in ROWS].index)
    assert len(ROWS) == len(OPERATIONS)


@pytest.mark.parametrize(("name", "layer", "kernel"), ROWS)
def test_the_kernel_is_whose_the_table_says(name, layer, kernel, monkeypatch):
    theirs = getattr(keras_cv.layers, layer)
    assert issubclass(OPERATIONS[name].layer, theirs)

    calls = []
    for method in {"augment_image", "augment_images"} & vars(theirs).keys():
        arithmetic = getattr(theirs, method)

        def counted(self, *args, arithmetic=arithmetic, **kwargs):
            calls.append(self)
            return arithmetic(self, *args, **kwargs)

        monkeypatch.setattr(theirs, method, counted)
    apply_operation(name, tf.cast(PICTURE, tf.uint8), 0.5, (124, 116, 104))
    assert bool(calls) == (kernel == "keras-cv")
