from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trio

from ambassador.control.admin.api import Api
from ambassador.control.admin.http import Request, Response
from ambassador.control.breakers import BreakerView, NobodyObeyed, NoBreaker, Outcome, Override
from ambassador.control.limits import LimitView, PermitView
from ambassador.control.reload import LastReload
from ambassador.control.roll import Replica
from ambassador.control.status import RouteStatus, StateStatus, Status
from ambassador.control.sums import UpstreamStatus
from ambassador.control.turns import Turns
from ambassador.observe.families import Traffic


class FakeService:
    def __init__(self) -> None:
        self.alive = True
        self.not_ready_because: str | None = None
        self.reloaded = LastReload(ok=True, at=1.0)
        self.drained = False
        self.size = 2
        self.overrides: list[Override] = []
        self.override_fails: Exception | None = None

    def status(self) -> Status:
        return Status(
            version="1",
            name="a",
            pid=1,
            generation=3,
            started=0.0,
            draining=self.drained,
            ready=True,
            state=StateStatus(backend="local", up=True),
            workers=[],
            listeners=[],
            admin=None,
            control="/c",
            config_file=None,
            worker_restarts=0,
            last_reload=None,
        )

    def config(self) -> dict[str, Any]:
        return {"version": 1}

    def routes(self) -> Iterator[RouteStatus]:
        return iter(())

    def traffic(self) -> Iterator[Traffic]:
        return iter(
            [Traffic(route="a", upstream="-", requests=1, errors=0, unanswered=0, retries=0, seconds=0.5)]
        )

    async def replicas(self) -> list[Replica]:
        await trio.lowlevel.checkpoint()
        return []

    def metrics(self, accept: str) -> tuple[Iterator[bytes], str]:
        return iter([b"# ", accept.encode()]), "text/x"

    async def upstreams(self) -> Iterator[UpstreamStatus]:
        await trio.lowlevel.checkpoint()
        return iter([UpstreamStatus(name="a", endpoints=[])])

    async def tasks(self) -> Iterator[msgspec.Raw]:
        await trio.lowlevel.checkpoint()
        return iter([msgspec.Raw(b'[{"name":"b","count":1}]')])

    async def breakers(self) -> Iterator[BreakerView]:
        await trio.lowlevel.checkpoint()
        window = {"requests": 1, "failures": 0, "slow": 0}
        return iter(
            [
                BreakerView(
                    name="u/a:1",
                    scope="endpoint",
                    state="closed",
                    forced=None,
                    since=None,
                    retry_at=None,
                    window=window,
                    epoch=0,
                    local=[],
                )
            ]
        )

    async def limits(self) -> Iterator[LimitView | PermitView]:
        await trio.lowlevel.checkpoint()
        return iter(
            [
                LimitView(
                    name="r/limit",
                    rate="1/s",
                    burst=1,
                    key="r",
                    balance=1,
                    admitted=2,
                    limited=3,
                    fallback=0,
                    credit=0,
                ),
                PermitView(
                    name="r/concurrency",
                    key="r",
                    balance=0,
                    admitted=8,
                    limited=1,
                    max=9,
                    limit=5,
                    in_use=5,
                    queued=2,
                ),
            ]
        )

    async def override(self, order: Override) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.overrides.append(order)
        if self.override_fails is not None:
            raise self.override_fails
        return Outcome(name=order.name, state=order.to, fleet=True, detail="held")

    async def reload(self) -> LastReload:
        await trio.lowlevel.checkpoint()
        return self.reloaded

    def begin_drain(self) -> None:
        self.drained = True

    async def resize(self, workers: int) -> None:
        await trio.lowlevel.checkpoint()
        self.size = workers


@pytest.fixture
def service() -> FakeService:
    return FakeService()


async def ask(service: FakeService, method: str, path: str, body: bytes = b"", **query: str) -> Response:
    return await Api(service, Turns())(Request(method, path, query, {"accept": "x"}, body))


def body_of(response: Response) -> bytes:
    return response.body if isinstance(response.body, bytes) else b"".join(response.body)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/config", {"version": 1}),
        ("/api/routes", []),
        (
            "/api/traffic",
            [
                {
                    "route": "a",
                    "upstream": "-",
                    "requests": 1,
                    "errors": 0,
                    "unanswered": 0,
                    "retries": 0,
                    "seconds": 0.5,
                }
            ],
        ),
        ("/api/upstreams", [{"name": "a", "endpoints": []}]),
        ("/api/tasks", [[{"name": "b", "count": 1}]]),
        ("/api/replicas", []),
    ],
)
async def test_gets(service: FakeService, path: str, expected: object) -> None:
    response = await ask(service, "GET", path)
    assert (response.status, json.loads(body_of(response))) == (200, expected)


async def test_status_holds_what_the_contract_names(service: FakeService) -> None:
    told = json.loads(body_of(await ask(service, "GET", "/api/status")))
    expected = [
        "version",
        "pid",
        "generation",
        "started",
        "draining",
        "state",
        "workers",
        "listeners",
        "last_reload",
    ]
    assert set(expected) <= set(told)
    assert told["state"] == {"backend": "local", "up": True, "warnings": []}


async def test_metrics_are_negotiated(service: FakeService) -> None:
    response = await ask(service, "GET", "/metrics")
    assert (body_of(response), response.content_type) == (b"# x", "text/x")


async def test_readiness_is_told_as_text_and_as_json(service: FakeService) -> None:
    ready = await ask(service, "GET", "/readyz")
    assert (ready.status, body_of(ready), ready.content_type) == (200, b"ok\n", "text/plain; charset=utf-8")
    service.not_ready_because = "draining"
    verbose = await ask(service, "GET", "/readyz", verbose="")
    assert (verbose.status, json.loads(body_of(verbose))) == (503, {"ok": False, "reason": "draining"})
    assert (await ask(service, "GET", "/livez")).status == 200


async def test_unknown_paths_and_methods(service: FakeService) -> None:
    unknown = await ask(service, "GET", "/api/nothing")
    assert (unknown.status, unknown.content_type) == (404, "application/problem+json")
    later = await ask(service, "GET", "/api/migrations")
    assert (later.status, "not supported by this version" in body_of(later).decode()) == (404, True)
    wrong = await ask(service, "GET", "/api/reload")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    wrong = await ask(service, "POST", "/api/status")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")
    assert (await ask(service, "HEAD", "/api/status")).status == 200


async def test_a_failed_reload_tells_why(service: FakeService) -> None:
    good = await ask(service, "POST", "/api/reload")
    assert (good.status, json.loads(body_of(good))["generation"]) == (200, 3)
    service.reloaded = LastReload(ok=False, at=1.0, errors=("a.yaml:1:1: error: no",))
    bad = await ask(service, "POST", "/api/reload")
    assert (bad.status, json.loads(body_of(bad))["errors"]) == (409, ["a.yaml:1:1: error: no"])


async def test_drain_and_workers(service: FakeService) -> None:
    assert (await ask(service, "POST", "/api/drain")).status == 202
    assert service.drained
    assert (await ask(service, "POST", "/api/workers", b'{"workers": 5}')).status == 200
    assert service.size == 5
    for body in (b"", b"{}", b'{"workers": 0}', b'{"workers": "3"}', b'{"workers": 1, "x": 1}'):
        assert (await ask(service, "POST", "/api/workers", body)).status == 400


async def test_limits_are_told(service: FakeService) -> None:
    told, permits = json.loads(body_of(await ask(service, "GET", "/api/limits")))
    assert permits == {
        "name": "r/concurrency", "rate": None, "burst": None, "key": "r", "balance": 0, "admitted": 8, "limited": 1,
        "max": 9, "limit": 5, "in_use": 5, "queued": 2,
    }  # fmt: skip
    assert told == {
        "name": "r/limit",
        "rate": "1/s",
        "burst": 1,
        "key": "r",
        "balance": 1,
        "admitted": 2,
        "limited": 3,
        "fallback": 0,
        "credit": 0,
    }


async def test_breakers_are_told(service: FakeService) -> None:
    (told,) = json.loads(body_of(await ask(service, "GET", "/api/breakers")))
    assert told == {
        "name": "u/a:1",
        "scope": "endpoint",
        "state": "closed",
        "forced": None,
        "since": None,
        "retry_at": None,
        "window": {"requests": 1, "failures": 0, "slow": 0},
        "epoch": 0,
        "local": [],
        "now": None,
    }
    assert json.loads(body_of(await ask(service, "GET", "/api/breakers/u/a:1"))) == told
    assert (await ask(service, "GET", "/api/breakers/nope")).status == 404


@pytest.mark.parametrize(
    ("body", "to", "for_ms", "by"),
    [
        (b'{"state": "open", "for": "10m", "reason": "x", "by": "ann"}', "open", 600_000, "ann"),
        (b'{"state": "close", "reason": "x"}', "closed", 0, "the admin API"),
        (b'{"state": "closed", "reason": "x"}', "closed", 0, "the admin API"),
        (b'{"state": "auto", "reason": "x"}', "auto", 0, "the admin API"),
    ],
)
async def test_breaker_is_held(service: FakeService, body: bytes, to: str, for_ms: int, by: str) -> None:
    response = await ask(service, "POST", "/api/breakers/u/a:1", body)
    assert (response.status, json.loads(body_of(response))["fleet"]) == (200, True)
    (order,) = service.overrides
    assert (order.name, order.to, order.for_ms, order.by, order.reason) == ("u/a:1", to, for_ms, by, "x")


async def test_time_that_is_none_is_told_without_a_word_of_the_body(service: FakeService) -> None:
    body = b'{"state": "open", "for": "100000d", "reason": "x"}'
    response = await ask(service, "POST", "/api/breakers/u", body)
    assert response.status == 400
    assert json.loads(body_of(response))["detail"].startswith("'for': ")


async def test_breaker_is_held_by_a_user_who_is_known(service: FakeService) -> None:
    request = Request("POST", "/api/breakers/u", {}, {}, b'{"state": "open", "reason": "x"}', uid=1000)
    assert (await Api(service, Turns())(request)).status == 200
    assert service.overrides[0].by == "uid 1000"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"state": "open"}',
        b'{"state": "open", "reason": " "}',
        b'{"state": "ajar", "reason": "x"}',
        b'{"state": "open", "reason": "x", "for": "soon"}',
        b'{"state": "open", "reason": "x", "for": "0s"}',
        b'{"state": "open", "reason": "x", "for": "0.4ms"}',
        b'{"state": "open", "reason": "a\\nb"}',
        b'{"state": "open", "reason": "a\\u0000"}',
        b'{"state": "open", "reason": "\\u001b[31m"}',
        b'{"state": "open", "reason": "x", "by": "a\\rb"}',
        b'{"state": "auto", "reason": "x", "for": "5m"}',
        b'{"state": "open", "reason": "%b"}' % (b"x" * 501),
    ],
)
async def test_order_that_makes_no_sense_is_refused(service: FakeService, body: bytes) -> None:
    assert (await ask(service, "POST", "/api/breakers/u", body)).status == 400
    assert not service.overrides


async def test_order_with_control_characters_is_told_what_is_wrong(service: FakeService) -> None:
    body = b'{"state": "open", "reason": "a\\nb\\u001b[31m"}'
    told = json.loads(body_of(await ask(service, "POST", "/api/breakers/u", body)))
    assert told["detail"] == r"'reason' must be one line without control characters: a\x0ab\x1b[31m"


async def test_order_that_nobody_carries_out(service: FakeService) -> None:
    body = b'{"state": "open", "reason": "x"}'
    service.override_fails = NoBreaker("there is no breaker 'u'")
    assert (await ask(service, "POST", "/api/breakers/u", body)).status == 404
    service.override_fails = NobodyObeyed("nobody")
    assert (await ask(service, "POST", "/api/breakers/u", body)).status == 503


async def test_the_dashboard_loads_nothing_from_elsewhere(service: FakeService) -> None:
    page = await ask(service, "GET", "/")
    assert page.content_type.startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b"https://" not in body_of(page)
