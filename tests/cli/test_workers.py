from __future__ import annotations

import json

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService

WORKER = {
    "slot": 0,
    "pid": 7,
    "state": "ready",
    "connections": 1,
    "inflight": 2,
    "loop_lag_ms": 0.5,
    "rss": None,
}


def test_the_number_is_set(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["POST", "/api/workers"] = (200, {"workers": 3})
    assert main(["workers", "3"]) == 0
    assert capsys.readouterr().out == "3 workers\n"
    assert service.asked[0][2] == {"workers": 3}


def test_workers_are_listed(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["GET", "/api/status"] = (200, {"workers": [WORKER]})
    assert main(["workers"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["0", "7", "ready", "1", "2", "0.5", "-"]
    assert main(["workers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [WORKER]
