"""What all tests share."""

import gc
import os
import tempfile

import pytest
from slow import is_slow

import deit_tf  # noqa: F401, before any test loads TensorFlow: it asks for the oneDNN kernels


def pytest_configure(config):
    """Keep what is found of image files out of the user's cache folder, in processes begun too."""
    cache = tempfile.TemporaryDirectory(prefix="deit_tf_cache_")
    os.environ["DEIT_TF_CACHE"] = cache.name
    config.add_cleanup(cache.cleanup)

    # Graphs are made of millions of small objects: looked through seldom, a tenth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by mark
def pytest_collection_modifyitems(items):
    """Mark the slow ones."""
    for item in items:
        if is_slow(item.nodeid.removeprefix("tests/"), item.fixturenames):
            item.add_marker(pytest.mark.slow)
