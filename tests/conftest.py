"""What all tests share."""

import pytest
from slow import SLOW

import deit_tf  # noqa: F401, before any test loads TensorFlow: it asks for the oneDNN kernels


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by mark
def pytest_collection_modifyitems(items):
    """Mark the slow ones."""
    for item in items:
        place = item.nodeid.removeprefix("tests/")
        if any(place.startswith(names) for names in SLOW.values()):
            item.add_marker(pytest.mark.slow)
