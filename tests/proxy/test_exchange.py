"""An exchange: what the client gets for what the origin does, and what is left behind when it is cut short.

`a_plane` looks at the end of each test that no connection, slot in a queue or count is left.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing

from ambassador.observe.access_log import AccessLog
from ambassador.proxy.http1 import ClientConnection
from ambassador.proxy.http1_requests import Limits
from ambassador.proxy.listener import ListenerLimits
from tests.proxy.harness import (
    GET,
    OK,
    Origin,
    Plane,
    Talk,
    a_plane,
    config,
    finished,
    until,
    unused_port,
)
from tests.proxy.two_ways import Log

POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
BIG = 8 << 20  # more than the kernel's buffers on both ways hold
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


async def test_request_goes_up_and_the_answer_comes_down(origin: Origin) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes()
        assert await client.answer() == (200, b"ok")
        assert plane.endpoint.pool.idle_count == 1
        await client.send(GET)
        await talk.head()
        await talk.send(OK)
        assert await client.answer() == (200, b"ok")
        await finished(plane)
        assert plane.counts.settlements == [2, 2]
        assert plane.counts.attempts == ["200", "200"]
        talk.close()
        client.close()


async def test_refused_connection_is_answered_and_uncounted() -> None:
    async with a_plane(config(f"http://127.0.0.1:{unused_port()}", retry="{attempts: 0}")) as plane:
        client = await plane.connect()
        await client.send(GET)
        status, body = await client.answer()
        assert (status, b'"connect_failed"' in body) == (503, True)
        await finished(plane)
        assert plane.counts.attempts == ["connect"]
        client.close()


async def test_refused_connection_is_tried_elsewhere(origin: Origin) -> None:
    urls = [f"http://127.0.0.1:{unused_port()}", origin.url]
    async with a_plane(config(*urls)) as plane:
        plane.service.random = lambda: 0.0
        plane.endpoints[1].inflight += 5  # so that the other is picked first
        client = await plane.connect()
        await client.send(POST % 3 + b"abc")
        talk = await origin.accept()
        assert b"x-ambassador-attempt: 2" in await talk.head()
        assert await talk.exactly(3) == b"abc"
        await talk.send(OK)
        assert await client.answer() == (200, b"ok")
        plane.endpoints[1].inflight -= 5
        await finished(plane)
        assert plane.counts.attempts == ["connect", "200"]
        assert plane.counts.retries == ["connect"]
        talk.close()
        client.close()


async def test_status_is_tried_again_and_the_last_answer_passed_on(origin: Origin) -> None:
    async with a_plane(config(origin.url, retry="{attempts: 2, when: [503]}")) as plane:
        plane.service.random = lambda: 0.0
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes(UNAVAILABLE)
        for _ in range(2):
            await talk.head()
            await talk.send(UNAVAILABLE)
        assert (await client.answer())[0] == 503
        await finished(plane)
        assert plane.counts.retries == ["503", "503"]
        talk.close()
        client.close()


async def test_reset_inside_the_answer_cuts_the_client(origin: Origin) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome")
        await client.head()
        talk.reset()
        assert await client.is_cut()
        await finished(plane)
        client.close()


Stage = Callable[[Plane, Origin], AbstractAsyncContextManager[Talk]]

# Each stage of an exchange, as a block inside which the exchange stays there.


@asynccontextmanager
async def idle(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    client = await plane.connect()
    await until(lambda: plane.service.connections == 1)
    yield client
    client.close()


@asynccontextmanager
async def in_head(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    client = await plane.connect()
    await client.send(GET[:10])
    await until(lambda: any(each.reader.in_head for each in plane.listener._clients))
    yield client
    client.close()


@asynccontextmanager
async def connecting(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    """The listener's queue is filled, so that the kernel answers no more."""
    origin.sock.listen(0)
    fillers = [trio.socket.socket() for _ in range(4)]
    client = await plane.connect()
    try:
        async with trio.open_nursery() as nursery:
            for filler in fillers:
                nursery.start_soon(filler.connect, origin.address)
            await trio.testing.wait_all_tasks_blocked()
            await client.send(GET)
            await until(lambda: plane.endpoint.pool.open == 1)
            yield client
            nursery.cancel_scope.cancel()
    finally:
        for filler in fillers:
            filler.close()
        client.close()


@asynccontextmanager
async def queueing(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    plane.endpoint.pool._max_open = 0
    client = await plane.connect()
    await client.send(GET)
    await until(lambda: plane.leftovers()["queued"])
    yield client
    client.close()


@asynccontextmanager
async def until_head(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    client = await plane.connect()
    await client.send(GET)
    talk = await origin.accept()
    await talk.head()
    yield client
    client.close()
    talk.close()


@asynccontextmanager
async def until_head_on_idle(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    client = await plane.connect()
    await client.send(GET)
    talk = await origin.takes()
    await client.answer()
    await client.send(GET)
    await talk.head()
    yield client
    client.close()
    talk.close()


@asynccontextmanager
async def uploading(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    """The origin does not read, so the upload is blocked."""
    client = await plane.connect()
    ends = [client]
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_into_the_void, client, POST % BIG + b"x" * BIG)
            ends.append(await origin.accept())
            await until(lambda: plane.endpoint.inflight == 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            yield client
            nursery.cancel_scope.cancel()
    finally:
        for end in ends:
            end.close()


@asynccontextmanager
async def uploading_slowly(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    client = await plane.connect()
    await client.send(POST % 10 + b"abc")
    talk = await origin.accept()
    await talk.head()
    await talk.exactly(3)
    yield client
    client.close()
    talk.close()


@asynccontextmanager
async def downloading(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    """The client does not read, so the answer is blocked."""
    client = await plane.connect()
    ends = [client]
    try:
        await client.send(GET)
        async with trio.open_nursery() as nursery:
            talk = await origin.takes(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % BIG)
            ends.append(talk)
            nursery.start_soon(_send_into_the_void, talk, b"x" * BIG)
            await client.head()
            await trio.testing.wait_all_tasks_blocked(0.01)
            yield client
            nursery.cancel_scope.cancel()
    finally:
        for end in ends:
            end.close()


@asynccontextmanager
async def downloading_slowly(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    client = await plane.connect()
    await client.send(GET)
    talk = await origin.takes(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
    await client.head()
    yield client
    client.close()
    talk.close()


@asynccontextmanager
async def backing_off(plane: Plane, origin: Origin) -> AsyncIterator[Talk]:
    plane.service.random = lambda: 0.9
    client = await plane.connect()
    await client.send(GET)
    talk = await origin.takes(UNAVAILABLE)
    await until(lambda: plane.counts.attempts)
    yield client
    client.close()
    talk.close()


async def _send_into_the_void(talk: Talk, data: bytes) -> None:
    try:
        await talk.send(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


STAGES = [
    idle, in_head, connecting, queueing, until_head, until_head_on_idle, uploading, uploading_slowly,
    downloading, downloading_slowly, backing_off,
]  # fmt: skip
CONFIG = {"timeout": "{connect: 30s, total: 60s}", "retry": "{attempts: 2, when: [503], backoff: 20s..20s}"}


@pytest.mark.parametrize("stage", STAGES)
async def test_cancellation_leaves_nothing_behind(
    stage: Stage, mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(config(origin.url, **CONFIG)) as plane:
        async with stage(plane, origin):
            plane.clients.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await until(lambda: plane.service.connections == 0)
                assert not any(plane.leftovers().values()), plane.leftovers()
                assert plane.endpoint.pool.open == plane.endpoint.pool.idle_count


@pytest.mark.parametrize("stage", STAGES)
async def test_client_that_is_gone_leaves_nothing_behind(
    stage: Stage, mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(config(origin.url, **CONFIG)) as plane:
        async with stage(plane, origin) as client:
            client.reset()
            await until(lambda: plane.service.connections == 0)
            assert not any(plane.leftovers().values()), plane.leftovers()


@pytest.mark.parametrize("stage", [connecting, queueing])
@pytest.mark.parametrize("framing", [b"content-length: 10", b"transfer-encoding: chunked"])
async def test_fin_inside_a_request_ends_the_wait_for_a_connection(
    stage: Stage, framing: bytes, mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(config(origin.url, **CONFIG)) as plane:
        async with stage(plane, origin):
            client = await plane.connect()
            await client.send(b"POST / HTTP/1.1\r\nhost: a\r\n%b\r\n\r\n3\r\nabc" % framing)
            await until(lambda: plane.service.inflight == 2)
            await client.stream.send_eof()
            await until(lambda: plane.service.inflight == 1)
            client.close()


@pytest.mark.parametrize("stage", [connecting, queueing])
async def test_half_close_after_a_whole_request_goes_on_waiting_for_a_connection(
    stage: Stage, mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(config(origin.url, **CONFIG)) as plane:
        async with stage(plane, origin) as client:
            other = await plane.connect()
            await other.send(POST % 10 + b"abc")
            await until(lambda: plane.service.inflight == 2)
            await other.send(b"defghij")
            await other.stream.send_eof()
            await client.stream.send_eof()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert plane.service.inflight == 2
            mock_clock.jump(60.1)
            assert (await client.answer())[0] in (503, 504)
            other.reset()
            await until(lambda: plane.service.connections == 0)
            assert not any(plane.leftovers().values()), plane.leftovers()


async def test_body_that_came_whole_while_its_request_queued_is_sent(origin: Origin) -> None:
    async with a_plane(config(origin.url, **CONFIG)) as plane:
        pool = plane.endpoint.pool
        pool._max_open = 0
        client = await plane.connect()
        await client.send(POST % 10 + b"abc")
        await until(lambda: plane.leftovers()["queued"])
        await client.send(b"defghij")
        await client.stream.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.01)
        pool._max_open, pool.open = 1, 1
        pool.forget()
        talk = await origin.accept()
        await talk.head()
        assert await talk.exactly(10) == b"abcdefghij"
        await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert (await client.answer())[0] == 200
        await finished(plane)
        client.close()
        talk.close()


GRPC = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GRPC + b"content-length: 10\r\n\r\n", b"8"),
        (GRPC + b"transfer-encoding: chunked\r\n\r\na\r\n", b"8"),
        (GRPC + b"x: " + b"a" * 3000 + b"\r\n\r\n", b"3"),
        (GRPC + b"a: b\r\nx\r\n\r\n", b"3"),
        (GRPC + b"a: b\r\nx", b"4"),
        (GRPC + b"content-length: 4\r\n\r\n", b"4"),
    ],
)
async def test_grpc_callers_get_no_documents(
    request_: bytes, status: bytes, mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    """What is too large, malformed, or too slow."""
    limits = ListenerLimits(header_timeout=1.0, body_timeout=1.0, min_rate=None)
    async with a_plane(config(origin.url), limits) as plane:
        plane.listener.head_limits = Limits(body=4, header_bytes=2000)
        client = await plane.connect()
        await client.send(request_)
        if request_.endswith(b"\r\na\r\n"):
            await client.send(b"0123456789")
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(1.1)
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"\r\ngrpc-status: %b\r\n" % status in head
        assert b"application/problem+json" not in head
        client.close()


async def test_upstream_without_endpoints_counts_an_attempt_of_no_time(origin: Origin) -> None:
    async with a_plane(config(origin.url)) as plane:
        (upstream,) = plane.service.table.upstreams.values()
        upstream.set_endpoints([])
        took: list[float] = []
        plane.counts.attempt = lambda result, seconds: took.append(seconds)  # type: ignore[method-assign]
        client = await plane.connect()
        await client.send(GET)
        status, body = await client.answer()
        assert (status, b'"no_endpoint"' in body) == (503, True)
        await finished(plane)
        assert took == [0.0]
        client.close()


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (POST % 100 + b"abc", None),
        (GET, None),
        (GET, b""),
        (GET, b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok"),
        (b"GET / FOO\r\n\r\n", None),
        (b"GET / HT", None),
    ],
    ids=["body", "waiting", "reset", "cut", "malformed", "head"],
)
async def test_what_ended_early_is_forgotten(origin: Origin, request_: bytes, answer: bytes | None) -> None:
    async def serve(talk: Talk) -> None:
        with contextlib.closing(talk):
            try:
                await talk.head()
                if answer is None:
                    await talk.rest()
                else:
                    await talk.send(answer)
            except (AssertionError, trio.BrokenResourceError):
                pass

    async def accept() -> None:
        while True:
            nursery.start_soon(serve, await origin.accept())

    def connections() -> int:
        return sum(isinstance(each, ClientConnection) for each in gc.get_objects())

    gc.collect()
    before = connections()
    async with a_plane(config(origin.url)) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        for _ in range(5):
            client = await plane.connect()
            await client.send(request_)
            if answer is not None:
                await client.some()
            client.reset()
        await until(lambda: plane.service.connections == 0)
        await until(lambda: plane.lane.link_count <= 1 + plane.endpoint.pool.idle_count)
        gc.collect()
        assert connections() == before
        nursery.cancel_scope.cancel()


async def test_options_of_the_whole_server_need_no_route(origin: Origin) -> None:
    async with a_plane(config(origin.url, match="{path: /a}")) as plane:
        client = await plane.connect()
        await client.send(b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n")
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 204 No Content\r\n")
        assert b"\r\nallow: GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE\r\n" in head
        await client.send(b"OPTIONS /b HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await client.answer())[0] == 404
        client.close()


async def test_options_of_the_whole_server_go_to_a_route_that_takes_them(origin: Origin) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n")
        talk = await origin.takes()
        assert await client.answer() == (200, b"ok")
        client.close()
        talk.close()


async def test_health_has_a_request_id(origin: Origin) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(b"GET /.well-known/ambassador/health HTTP/1.1\r\nx-request-id: abc\r\n\r\n")
        assert b"\r\nx-request-id: abc\r\n" in await client.head()
        assert await client.exactly(3) == b"ok\n"
        await client.send(b"GET /.well-known/ambassador/health HTTP/1.1\r\n\r\n")
        assert b"\r\nx-request-id: " in await client.head()
        client.close()


async def test_what_gets_no_trailers_is_promised_none(origin: Origin) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"
    async with a_plane(config(origin.url)) as plane:
        for version, promised in ((b"1.0", False), (b"1.1", True)):
            client = await plane.connect()
            await client.send(b"GET / HTTP/%b\r\nhost: a\r\n\r\n" % version)
            talk = await origin.takes(answer)
            assert (b"\r\nTrailer: x-sum\r\n" in await client.head()) is promised
            client.close()
            talk.close()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (b"299 Fine So Far", b"299 Fine So Far"),
        (b"200 Very \xc3\xa4 OK", b"200 Very \xc3\xa4 OK"),
        (b"200 ", b"200 OK"),
        (b"404", b"404 Not Found"),
        (b"299 ", b"299 "),
    ],
)
async def test_the_upstreams_reason_phrase_is_kept(origin: Origin, given: bytes, told: bytes) -> None:
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        talk = None
        for more in (
            b"",
            b"",
            b"",
            b"location: /\r\n",
        ):  # parsed, remembered, on the short way, on the long one
            await client.send(GET)
            talk = talk or await origin.accept()
            await talk.head()
            await talk.send(b"HTTP/1.1 %b\r\ndate: x\r\n%bcontent-length: 2\r\n\r\nok" % (given, more))
            assert (await client.head()).startswith(b"HTTP/1.1 %b\r\n" % told)
            assert await client.exactly(2) == b"ok"
        client.close()
        assert talk is not None
        talk.close()


@pytest.mark.parametrize(
    ("target", "host", "shown"),
    [
        (b"/../a?token=SECRET", b"a", "/../a?token=***"),
        (b"http://user:SECRET@a/", b"a", "http://***@a/"),
        (b"/a?key=SECRET", b"a b", "/a?key=***"),
    ],
)
async def test_target_that_is_refused_stands_in_the_log_once_and_without_secrets(
    target: bytes, host: bytes, shown: str
) -> None:
    async with a_plane(config("http://127.0.0.1:1")) as plane:
        log = Log()
        plane.service.access_log = cast("AccessLog", log)
        client = await plane.connect()
        await client.send(b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (target, host))
        assert (await client.answer())[0] == 400
        await finished(plane)
        client.close()
    assert [line["path"] for line in log.written] == [shown]
