from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ambassador.cli import main
from ambassador.cli.top import rates
from tests.cli.service import FakeService


def sums(requests: int, errors: int = 0, retries: int = 0, seconds: float = 0.0) -> dict[str, float]:
    return {
        "requests": requests,
        "errors": errors,
        "unanswered": 0,
        "retries": retries,
        "seconds": seconds,
    }


def traffic(route: str, upstream: str, **counts: Any) -> dict[str, Any]:
    return {"route": route, "upstream": upstream} | sums(**counts)


def test_rates_are_a_second_and_the_busiest_come_first() -> None:
    before = {"a": sums(10, seconds=1.0), "b": sums(0), "gone": sums(5)}
    now = {"a": sums(14, 1, 2, 1.02), "b": sums(100), "c": sums(0)}
    told = rates(before, now, 2.0)
    assert [(each["route"], each["requests_per_s"]) for each in told] == [("b", 50.0), ("a", 2.0), ("c", 0.0)]
    a = told[1]
    assert (a["errors_per_s"], a["retries_per_s"]) == (0.5, 1.0)
    assert a["mean_ms"] == pytest.approx(5.0)
    assert told[2]["mean_ms"] is None


def test_counters_that_began_anew_are_no_negative_rates() -> None:
    (told,) = rates({"a": sums(100, 5)}, {"a": sums(3)}, 1.0)
    assert (told["requests_per_s"], told["errors_per_s"]) == (0.0, 0.0)


@pytest.fixture
def passing(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes, and traffic with it, when the command sleeps."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        count = round(sum(slept) * 10)
        service.answers["GET", "/api/traffic"] = (
            200,
            [
                traffic("a", "u", requests=count),
                traffic("a", "v", requests=count),
                traffic("-", "-", requests=0),
            ],
        )

    sleep(0.0)
    slept.clear()
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    return slept


def test_it_shows_so_many_times(passing: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--count", "2", "--every", "0.5"]) == 0
    assert passing == [0.5, 0.5]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == lines[4] == ["a", "20.0", "0.0", "0.0", "0.0", "0.0"]
    assert lines[2] == ["-", "0.0", "0.0", "0.0", "0.0", "-"]
    assert main(["top", "--count", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["requests_per_s"] == 20.0


def test_an_interrupt_is_its_end(passing: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert main(["top"]) == 0


def test_usage_and_no_service() -> None:
    for wrong in (["--every", "0"], ["--every", "x"], ["--count", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(["top", *wrong])
        assert ended.value.code == 2
    assert main(["top", "--control", "unix:/none"]) == 3
