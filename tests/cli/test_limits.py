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


def test_without_a_service() -> None:
    assert main(["limits", "--control", "unix:/none"]) == 3
