from __future__ import annotations

import json
from typing import Any

import pytest

from ambassador.cli import main
from tests.cli.service import FakeService

UPSTREAMS = [
    {
        "name": "billing",
        "endpoints": [
            {
                "url": "http://a:1",
                "address": address,
                "healthy": address is not None,
                "ejected_until": None,
                "weight": 1,
                "inflight": 2,
                "ewma_ms": ewma_ms,
                "connections": {"idle": 3, "active": 4},
                "why": None if address else "the name has no address",
            }
            for address, ewma_ms in (("10.0.0.1", 1.25), (None, None))
        ],
    }
]


def test_endpoints_are_listed(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["GET", "/api/upstreams"] = (200, UPSTREAMS)
    assert main(["upstreams"]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["billing", "http://a:1", "up", "10.0.0.1", "1", "2", "4", "3", "1.2"]
    assert "the name has no address" in second
    assert main(["upstreams", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == UPSTREAMS


def test_upstream_without_endpoints_says_where_they_are_looked_for(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = "a.yaml:1:1: error: is empty"
    told = [{"name": "billing", "endpoints": [], "source": "file a.yaml", "problem": problem}]
    service.answers["GET", "/api/upstreams"] = (200, told)
    assert main(["upstreams"]) == 0
    _, row, last = capsys.readouterr().out.splitlines()
    assert row.split()[:5] == ["billing", "file", "a.yaml", "no", "endpoint"]
    assert last == f"billing: file a.yaml says nothing new: {problem}"


@pytest.mark.parametrize(
    ("known", "state"),
    [
        ((True, None, None), "up"),
        ((False, None, "unhealthy: status 503"), "unhealthy: status 503"),
        ((True, 1.7e9, "ejected: 5 failures in a row"), "ejected: 5 failures in a row"),
        ((True, 1.7e9, None), "ejected"),
        ((False, None, None), "down"),
    ],
)
def test_state_says_why_an_endpoint_gets_nothing(
    service: FakeService,
    capsys: pytest.CaptureFixture[str],
    known: tuple[bool, float | None, str | None],
    state: str,
) -> None:
    first: dict[str, Any] = UPSTREAMS[0]["endpoints"][0]  # type: ignore[assignment]
    endpoint = {**first, **dict(zip(("healthy", "ejected_until", "why"), known, strict=True))}
    service.answers["GET", "/api/upstreams"] = (200, [{"name": "billing", "endpoints": [endpoint]}])
    assert main(["upstreams"]) == 0
    assert f"  {state}  " in capsys.readouterr().out


def test_without_a_service() -> None:
    assert main(["upstreams", "--control", "unix:/none"]) == 3
