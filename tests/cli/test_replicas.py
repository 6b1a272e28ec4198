from __future__ import annotations

import json
import time

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService


def test_replicas_are_listed(
    service: FakeService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    replicas = [
        {
            "id": name,
            "workers": 2,
            "since": now - age,
            "last_beat": now - 1,
            "version": "0.1.0",
            "generation": 3,
            "state_up": name == "a",
        }
        for name, age in (("a", 30), ("b", 3 * 86400), ("c", 7200), ("d", 130), ("e", -5))
    ]
    service.answers["GET", "/api/replicas"] = (200, replicas)
    assert main(["replicas"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[4:] for row in rows] == [
        ["up", "30s", "ago", "1s", "ago"],
        ["lost", "3d", "ago", "1s", "ago"],
        ["lost", "2h", "ago", "1s", "ago"],
        ["lost", "2m", "ago", "1s", "ago"],
        ["lost", "0s", "ago", "1s", "ago"],
    ]
    assert main(["replicas", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == replicas


def test_times_are_reckoned_by_the_stores_clock(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"id": "a", "workers": 2, "version": "0.1.0", "generation": 3, "state_up": True}
    times = {"since": 1000.0, "last_beat": 1099.0, "now": 1100.0}
    service.answers["GET", "/api/replicas"] = (200, [told | times])
    assert main(["replicas"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[5:] == ["100s", "ago", "1s", "ago"]


def test_without_a_service() -> None:
    assert main(["replicas", "--control", "unix:/none"]) == 3
