"""What a run of the storms' scenario says."""

from __future__ import annotations

import pytest

from loadtest import storms


@pytest.mark.parametrize(("attempts", "held"), [(1200, True), (1223, True), (1224, False)])
def test_attempts_are_compared_with_what_budgets_allow(attempts: int, *, held: bool) -> None:
    found = storms.new_findings()
    storms.judge(storms.Case(name="one"), 1000, attempts, found)
    assert [check.held for check in found.checks] == [held, True]
    assert found.rows[0][:3] == ["one", "1000", str(attempts)]
