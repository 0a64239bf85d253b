"""Every test that is set aside as slow is there under that name."""

import re
from pathlib import Path

import pytest
from slow import SLOW

TESTS = Path(__file__).parent


@pytest.mark.parametrize("place", [place for places in SLOW.values() for place in places])
def test_a_slow_test_exists(place):
    file, name = place.partition("[")[0].split("::")  # a case of several follows in brackets
    assert re.search(rf"^def {name}", (TESTS / file).read_text(), re.M)
