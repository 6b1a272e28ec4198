"""The Structs: what is immutable, and what cannot be together."""

from __future__ import annotations

import pytest

from ambassador.config.schema import Config, Listener, Timeout, ValueMatch


def test_config_is_immutable() -> None:
    config = Config(listeners=(Listener(address="127.0.0.1:1"),))
    with pytest.raises(AttributeError):
        config.name = "x"  # type: ignore[misc]


def test_timeout_conflicts() -> None:
    assert list(Timeout(per_try=2.0, total=2.0).conflicts()) == []
    assert [field for field, _ in Timeout(per_try=3.0, first_byte=3.0, total=2.0).conflicts()] == [
        "per_try",
        "first_byte",
    ]


def test_value_match_conflicts() -> None:
    assert list(ValueMatch(exact=("a",)).conflicts()) == []
    assert len(list(ValueMatch().conflicts())) == 1
    assert len(list(ValueMatch(exact=("a",), present=True).conflicts())) == 1
