from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService

CLOSED: dict[str, Any] = {
    "name": "billing",
    "scope": "upstream",
    "state": "closed",
    "forced": None,
    "since": None,
    "retry_at": None,
    "window": {"requests": 20, "failures": 1, "slow": 0},
    "epoch": 0,
    "local": [{"replica": "a", "slot": 0, "retry_in_s": 1.0, "why": "5 failures in a row"}],
}


def test_breakers_are_listed(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    forced = {"state": "open", "until": now + 60.4, "by": "ann", "reason": "maintenance"}
    opened = CLOSED | {
        "name": "route:r",
        "state": "open",
        "forced": forced,
        "retry_at": now + 1000,
        "local": [],
    }
    service.answers["GET", "/api/breakers"] = (200, [CLOSED, opened])
    assert main(["breakers"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["BREAKER", "SCOPE", "STATE"]
    assert first.split() == ["billing", "upstream", "closed", "20", "1", "0", "-", "1", "no"]
    assert second.endswith("open for 60 s more by ann: maintenance")
    assert main(["breakers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [CLOSED, opened]


def test_times_are_reckoned_by_the_stores_clock(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    forced = {"state": "open", "until": 1060.0, "by": "ann", "reason": "maintenance"}
    opened = CLOSED | {"state": "open", "forced": forced, "retry_at": 1030.0, "now": 1000.0}
    service.answers["GET", "/api/breakers"] = (200, [opened])
    assert main(["breakers"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert float(row.split()[6]) == 30.0
    assert row.endswith("open for 60 s more by ann: maintenance")


def test_without_a_service() -> None:
    assert main(["breakers", "--control", "unix:/none"]) == 3
