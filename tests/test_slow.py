"""Every test that is set aside as slow is there under that name."""

import re
from pathlib import Path

import pytest
from slow import SLOW, is_slow

TESTS = Path(__file__).parent


@pytest.mark.parametrize("place", [place for places in SLOW.values() for place in places])
def test_a_slow_test_exists(place):
    file, name = place.partition("[")[0].split("::")  # a case of several follows in brackets
    name = name.strip("()")
    assert re.search(rf"^def {name}", (TESTS / file).read_text(), re.M)


def test_a_fixture_sets_aside_what_needs_it():
    check = "evaluation/test_check.py::test_whatever"
    assert is_slow(check, ["tmp_path", "folder"]) and not is_slow(check, ["tmp_path"])
