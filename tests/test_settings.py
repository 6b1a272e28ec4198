"""The vocabulary of settings."""

from __future__ import annotations

import pytest

from ambassador.settings import Section


class Example(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section."""

    size: int = 1


def test_section_is_immutable_and_has_no_conflicts_of_its_own() -> None:
    example = Example(size=2)
    assert list(example.conflicts()) == []
    assert (Example.shorthand, dict(Example.later), dict(Example.aliases)) == (None, {}, {})
    with pytest.raises(AttributeError):
        example.size = 3  # type: ignore[misc]
