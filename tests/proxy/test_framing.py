"""Headers that no config may touch."""

from __future__ import annotations

import pytest

from ambassador.proxy.framing import FRAMING, refusals


@pytest.mark.parametrize("name", sorted(FRAMING))
def test_framing_is_refused_in_any_case(name: str) -> None:
    ((refused, problem),) = refusals(["x", name.title()])
    assert refused == name.title()
    assert f"'{name.title()}'" in problem


def test_every_one_is_told_and_other_headers_are_not() -> None:
    assert len(refusals(["Host", "content-type", "via", "te", "x-host"])) == 2
    assert refusals([]) == []
