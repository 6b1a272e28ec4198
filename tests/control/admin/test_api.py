from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trio

from ambassador.control.admin.api import Api
from ambassador.control.admin.http import Request, Response
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
    assert told["state"] == {"backend": "local", "up": True}


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
    later = await ask(service, "GET", "/api/breakers")
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


async def test_the_dashboard_loads_nothing_from_elsewhere(service: FakeService) -> None:
    page = await ask(service, "GET", "/")
    assert page.content_type.startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b"https://" not in body_of(page)
