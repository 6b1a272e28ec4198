from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from loadtest import processes, waits


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """How long was slept each time, on a clock that only sleeping moves."""
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + sum(slept))
    monkeypatch.setattr(time, "sleep", slept.append)
    yield slept
    monkeypatch.undo()


def test_sleep_ends_at_its_time_and_is_none_when_that_has_passed(slept: list[float]) -> None:
    waits.sleep_until(103.0)
    waits.sleep_until(102.0)
    assert slept == [3.0, 0.0]


def test_wait_ends_with_what_was_waited_for(slept: list[float]) -> None:
    waits.wait_for(lambda: len(slept) == 3, "the third")
    assert len(slept) == 3


def test_wait_in_vain_is_an_error_that_names_it(slept: list[float]) -> None:
    with pytest.raises(processes.StartError, match="the bus did not come within 20 s"):
        waits.wait_for(lambda: False, "the bus")
    assert sum(slept) >= waits.PATIENCE_S
