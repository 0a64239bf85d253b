"""What all tests share."""

import gc
import os
import tempfile

import pytest
from slow import is_slow


def pytest_configure(config):
    """Load deit_tf, and keep what it finds of image files out of the user's cache folder."""
    hands_out_tests = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out_tests:
        import deit_tf  # noqa: F401, before any test loads TensorFlow: it asks for oneDNN's kernels

    # By the environment, as some tests begin processes of their own.
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
