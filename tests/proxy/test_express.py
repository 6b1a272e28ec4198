"""The short way and the long way of a request are the same: what both sides see, and what is counted."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import ambassador.proxy.http1
from ambassador.proxy.exchange import Exchange
from ambassador.proxy.http1 import ClientConnection
from tests.proxy.harness import Origin, a_plane, config

_NEW_EACH_TIME = re.compile(rb"(x-request-id|traceparent|x-request-deadline): [^\r]*")
DATED = b"HTTP/1.1 200 OK\r\ndate: Fri, 27 Nov 2026 06:44:34 GMT\r\nContent-Length: %d\r\nX-A: b\r\n\r\n%b"


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


async def _no_ride(client: ClientConnection) -> Exchange | None:
    return None


async def _talk(origin: Origin, request: bytes, answer: bytes) -> tuple[bytes, bytes, list[int], list[str]]:
    """What the upstream and the client see of the third of three equal requests, and what was counted of all."""
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        upstream = None
        got = said = b""
        for _ in range(3):
            await client.send(request)
            upstream = upstream or await origin.accept()
            head = await upstream.head()
            length = re.search(rb"(?i)content-length: (\d+)", head)
            got = head + (await upstream.exactly(int(length[1])) if length else b"")
            await upstream.send(answer)
            head = await client.head()
            length = re.search(rb"(?i)content-length: (\d+)", head)
            said = head + (await client.exactly(int(length[1])) if length else b"")
        assert upstream is not None
        client.close()
        upstream.close()
        return (
            _NEW_EACH_TIME.sub(rb"\1", got), _NEW_EACH_TIME.sub(rb"\1", said), plane.counts.settlements,
            plane.counts.attempts,
        )  # fmt: skip


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a/../b?q=1 HTTP/1.1\r\nhost: a:8080\r\nX-Two: 1\r\nx-two: 2\r\nAccept: */*\r\n\r\n",
        b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Type: text/plain\r\n\r\nabcd",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\ntraceparent: 00-%b-%b-01\r\ntracestate: a=1\r\n\r\n"
        % (b"a" * 32, b"b" * 16),
    ],
)
@pytest.mark.parametrize("answer", [DATED % (0, b""), DATED % (5, b"hello"), DATED % (66000, b"x" * 66000)])
async def test_both_ways_are_the_same(
    monkeypatch: pytest.MonkeyPatch, origin: Origin, request_: bytes, answer: bytes
) -> None:
    short = await _talk(origin, request_, answer)
    monkeypatch.setattr(ambassador.proxy.http1, "ride", _no_ride)
    assert await _talk(origin, request_, answer) == short


@pytest.mark.parametrize("target", [b"/.well-known/ambassador/health", b"/.well-known/ambassador/health?"])
async def test_health_is_answered_here_though_a_route_takes_everything(origin: Origin, target: bytes) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        for _ in range(2):
            await client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
            assert await client.answer() == (200, b"ok\n")
        assert plane.endpoint.pool.open == 0
        client.close()
