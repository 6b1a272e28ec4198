from __future__ import annotations

import json

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
                "zone": "eu-1a",
                "priority": 0,
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
    assert first.split() == [
        "billing",
        "http://a:1",
        "up",
        "10.0.0.1",
        "1",
        "eu-1a",
        "0",
        "2",
        "4",
        "3",
        "1.2",
    ]
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


def test_without_a_service() -> None:
    assert main(["upstreams", "--control", "unix:/none"]) == 3


@pytest.mark.parametrize(
    ("healthy", "ejected_until", "why", "state"),
    [
        (True, None, None, "up"),
        (False, None, "503", "down"),
        (True, 1e9, "5 failures in a row", "ejected"),
        (True, None, "its breaker is open", "unused"),
    ],
)
def test_state_is_a_word_and_the_reason_is_behind_it(
    service: FakeService,
    capsys: pytest.CaptureFixture[str],
    *,
    healthy: bool,
    ejected_until: float | None,
    why: str | None,
    state: str,
) -> None:
    told = UPSTREAMS[0]["endpoints"][0] | {"healthy": healthy, "ejected_until": ejected_until, "why": why}  # type: ignore[operator]
    service.answers["GET", "/api/upstreams"] = (200, [{"name": "billing", "endpoints": [told]}])
    assert main(["upstreams"]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.split()[2] == state
    assert line.endswith(why or "1.2")


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ((271.3, None, None), "billing: a token for 271 s"),
        ((None, None, None), "billing: no token"),
        (
            (None, "answered 401: invalid_client", 3.2),
            "billing: no token; the token service last: answered 401: invalid_client; not asked again for 3 s",
        ),
        ((9.0, "answered 500", 0.1), "billing: a token for 9 s; the token service last: answered 500"),
    ],
)
def test_token_that_is_fetched_is_told_of(
    service: FakeService,
    capsys: pytest.CaptureFixture[str],
    token: tuple[float | None, str | None, float | None],
    said: str,
) -> None:
    told = dict(zip(("valid_for_s", "problem", "next_try_s"), token, strict=True))
    service.answers["GET", "/api/upstreams"] = (200, [{**UPSTREAMS[0], "token": told}])
    assert main(["upstreams"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_credential_that_cannot_be_had_is_told_of(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "the credential for upstream billing cannot be read"
    service.answers["GET", "/api/upstreams"] = (200, [{**UPSTREAMS[0], "credential": told}])
    assert main(["upstreams"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"billing: {told}; its log says more"
