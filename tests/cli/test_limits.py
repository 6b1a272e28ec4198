from __future__ import annotations

import json
from typing import Any

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService

LIMIT: dict[str, Any] = {
    "name": "r/limit",
    "rate": "100/s",
    "burst": 100,
    "key": "r",
    "balance": 42,
    "admitted": 1000,
    "limited": 7,
    "fallback": 3,
    "credit": 2,
}


def test_limits_are_listed(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["GET", "/api/limits"] = (200, [LIMIT])
    assert main(["limits"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["LIMIT", "RATE", "BURST"]
    assert row.split() == ["r/limit", "100/s", "100", "r", "42", "1000", "7", "3", "2"]
    assert main(["limits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [LIMIT]


PERMITS: dict[str, Any] = {
    "name": "r/concurrency",
    "rate": None,
    "burst": None,
    "key": "r",
    "balance": 1,
    "admitted": 1000,
    "limited": 7,
    "max": 100,
    "limit": 40,
    "in_use": 39,
    "queued": 5,
}


def test_permits_are_listed_after_the_limits(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET", "/api/limits"] = (200, [LIMIT, PERMITS])
    assert main(["limits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("LIMIT ")
    assert lines[2] == ""
    assert lines[3].split() == ["CONCURRENCY", "MAX", "LIMIT", "IN", "USE", "QUEUED", "ADMITTED", "LIMITED"]
    assert lines[4].split() == ["r/concurrency", "100", "40", "39", "5", "1000", "7"]
    assert main(["limits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [LIMIT, PERMITS]


def test_permits_without_limits_are_one_table(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET", "/api/limits"] = (200, [PERMITS])
    assert main(["limits"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    service.answers["GET", "/api/limits"] = (200, [])
    service.answers["GET", "/api/status"] = (200, {"ready": True})
    assert main(["limits"]) == 0
    assert capsys.readouterr().out.startswith("LIMIT ")


def test_without_a_service() -> None:
    assert main(["limits", "--control", "unix:/none"]) == 3
