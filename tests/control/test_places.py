from __future__ import annotations

import pytest

from ambassador.control.places import blaming, told

PLACES = {"control": "a.yaml:3:10: error: control"}


def test_an_error_is_told_with_the_place_of_its_setting() -> None:
    assert told(PLACES, "control", "no") == "a.yaml:3:10: error: control: no"
    assert told({}, "control", "no") == "control: no"


def test_only_errors_of_the_kind_are_blamed_on_a_setting() -> None:
    with (
        pytest.raises(ValueError, match=r"^a.yaml:3:10: error: control: no$"),
        blaming(PLACES, "control", ValueError),
    ):
        raise ValueError("no")
    with pytest.raises(KeyError, match=r"^'no'$"), blaming(PLACES, "control", ValueError):
        raise KeyError("no")
    with pytest.raises(ValueError, match=r"^no$"), blaming({}, "control", ValueError):
        raise ValueError("no")
