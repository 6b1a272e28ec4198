"""Deadlines of callers: what is left goes upstream with every attempt, and none is begun that must come too late."""

from __future__ import annotations

import re

import pytest
import trio
import trio.testing

from ambassador.proxy.soonest import Soonest
from tests.proxy.harness import GET, OK, Origin, Talk, a_plane, bounded, config, finished, until
from tests.state.harness import OneStore

BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
RETRY = "{attempts: 3, when: [503], backoff: 1ms..1ms}"


def within(milliseconds: int, name: str = "x-envoy-upstream-rq-timeout-ms", unit: str = "") -> bytes:
    """A request that gives so much time."""
    return f"GET / HTTP/1.1\r\nhost: a\r\n{name}: {milliseconds}{unit}\r\n\r\n".encode()


def left_ms(head: bytes) -> int:
    """What the upstream is told to be left, by the caller's own kind of header."""
    found = re.search(rb"(?:rq-timeout-ms|grpc-timeout): (\d+)m?\r\n", head)
    assert found is not None
    assert b"\r\nx-request-deadline: " in head
    return int(found[1])


async def pass_time(clock: trio.testing.MockClock, seconds: float) -> None:
    """While everybody waits."""
    await trio.testing.wait_all_tasks_blocked(0.005)
    clock.jump(seconds)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is known to take less than 300 ms."""
    monkeypatch.setattr(Soonest, "least_s", lambda *_: 0.3)


async def is_refused(client: Talk) -> bool:
    status, body = await client.answer()
    return (status, b'"deadline_exceeded"' in body) == (504, True)


@pytest.mark.parametrize("plain", [True, False])
async def test_attempt_is_not_begun_that_takes_longer_than_is_left(
    mock_clock: trio.testing.MockClock, origin: Origin, *, plain: bool
) -> None:
    request = GET if plain else within(9000)
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        upstream: Talk | None = None
        for count in range(101):
            await client.send(request if count else within(9000))
            upstream = upstream or await origin.accept()
            await upstream.head()
            mock_clock.jump(0.05)
            await upstream.send(OK)
            await client.answer()
        assert upstream is not None
        await client.send(within(40))
        assert await is_refused(client)
        assert plane.counts.attempts == ["200"] * 101
        await client.send(within(200))
        assert left_ms(await upstream.head()) <= 200
        await upstream.send(OK)
        assert (await client.answer())[0] == 200
        await finished(plane)
        client.close()
        upstream.close()


@pytest.mark.usefixtures("slow")
async def test_retry_is_not_begun_that_takes_longer_than_is_left(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(config(origin.url, retry=RETRY)) as plane:
        client = await plane.connect()
        await client.send(within(900))
        upstream = await origin.accept()
        for seconds in (0.35, 0.3):
            await upstream.head()
            mock_clock.jump(seconds)
            await upstream.send(BUSY)
            await pass_time(mock_clock, 0.01)
        assert await client.answer() == (503, b"busy")
        assert plane.counts.attempts == ["503", "503"]
        client.close()
        upstream.close()


@pytest.mark.parametrize(
    ("status", "cooldown", "waits"),
    [
        (b"503", "", False),
        (b"503", ", cooldown: {scope: endpoint}", False),
        (b"503", ", cooldown: {scope: upstream}", True),
        (b"429", "", True),
    ],
)
async def test_retry_after_of_one_endpoint_is_not_waited_for_at_another(
    mock_clock: trio.testing.MockClock, origin: Origin, status: bytes, cooldown: str, *, waits: bool
) -> None:
    other = Origin()
    later = b"HTTP/1.1 %b Later\r\nretry-after: 20\r\ncontent-length: 4\r\n\r\nbusy" % status
    text = f"""\
version: 1
listen: 127.0.0.1:80
upstreams: {{u: {{endpoints: ["{origin.url}", "{other.url}"], balance: least_request{cooldown}}}}}
routes: [{{name: r, to: u, timeout: 60s, retry: {{attempts: 2, when: [503, 429], backoff: 1ms..1ms}}}}]
"""
    async with a_plane(text) as plane, trio.open_nursery() as nursery:
        for each in (origin, other):
            nursery.start_soon(each.serves, lambda _: OK if plane.counts.attempts else later)
        client = await plane.connect()
        await client.send(GET)
        await until(lambda: plane.counts.attempts)
        if waits:
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert len(plane.counts.attempts) == 1
        mock_clock.jump(35 if waits else 1)
        assert await client.answer() == (200, b"ok")
        await finished(plane)
        client.close()
        nursery.cancel_scope.cancel()
    other.close()


@pytest.mark.usefixtures("slow")
async def test_second_attempt_beside_a_slow_one_is_not_begun_that_takes_longer_than_is_left(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    hedge = "{after: 50ms, max: 100%}"
    async with a_plane(config(origin.url, hedge=hedge, timeout="340ms", retry="off")) as plane:
        client = await plane.connect()
        for _ in range(2):
            await client.send(GET)
            if not plane.counts.attempts:
                upstream = await origin.accept()
            await upstream.head()
            await pass_time(mock_clock, 0.06 * len(plane.counts.attempts))
            await trio.testing.wait_all_tasks_blocked(0.005)
            await upstream.send(OK)
            assert (await client.answer())[0] == 200
        assert plane.counts.retries == []
        assert plane.endpoint.pool.open == 1
        client.close()
        upstream.close()


@pytest.mark.parametrize(("name", "unit"), [("x-envoy-upstream-rq-timeout-ms", ""), ("grpc-timeout", "m")])
async def test_what_is_left_goes_with_every_attempt(
    mock_clock: trio.testing.MockClock, origin: Origin, name: str, unit: str
) -> None:
    hedge = "{after: 50ms, max: 100%}"
    async with a_plane(config(origin.url, retry=RETRY, hedge=hedge)) as plane:
        client = await plane.connect()
        await client.send(within(1000, name, unit))
        upstream = await origin.accept()
        assert 0 < left_ms(await upstream.head()) <= 1000
        mock_clock.jump(0.02)
        await upstream.send(BUSY)
        await pass_time(mock_clock, 0.01)
        assert 0 < left_ms(await upstream.head()) <= 970
        await upstream.send(OK)
        assert (await client.answer())[0] == 200
        await client.send(within(1000, name, unit))
        await upstream.head()
        await pass_time(mock_clock, 0.06)
        beside = await origin.accept()
        assert 0 < left_ms(await beside.head()) <= 940
        await beside.send(OK)
        assert (await client.answer())[0] == 200
        await finished(plane)
        for end in (client, upstream, beside):
            end.close()


async def test_back_off_does_not_outlast_the_deadline(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    retry = "{attempts: 3, when: [503], backoff: 2s..2s}"
    async with a_plane(config(origin.url, retry=retry)) as plane:
        plane.service.random = lambda: 0.9
        client = await plane.connect()
        await client.send(within(1000))
        upstream = await origin.takes(BUSY)
        assert await client.answer() == (503, b"busy")
        await finished(plane)
        client.close()
        upstream.close()


async def test_deadline_ends_the_wait_for_a_connection(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(bounded(origin.url)) as plane:
        first, second = await plane.connect(), await plane.connect()
        await first.send(GET)
        upstream = await origin.accept()
        await upstream.head()
        await second.send(within(500))
        await until(lambda: plane.leftovers()["queued"])
        mock_clock.jump(0.6)
        assert await is_refused(second)
        await upstream.send(OK)
        assert await first.answer() == (200, b"ok")
        await finished(plane)
        for end in (first, second, upstream):
            end.close()


async def test_deadline_ends_the_wait_for_a_permit(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    store = OneStore()
    scope = store.open_scope()
    text = config(origin.url, concurrency="{max: 1, queue: 1, wait: 10s}")
    async with a_plane(text, scopes=store.scopes_of(0)) as plane:
        first, second = await plane.connect(), await plane.connect()
        await first.send(GET)
        await until(scope.deliver)
        upstream = await origin.accept()
        await upstream.head()
        await second.send(within(500))
        await until(lambda: plane.leftovers()["waiting for permits"])
        mock_clock.jump(0.6)
        assert await is_refused(second)
        assert plane.counts.attempts == []
        await upstream.send(OK)
        assert await first.answer() == (200, b"ok")
        await finished(plane)
        for end in (first, second, upstream):
            end.close()


@pytest.mark.usefixtures("slow")
async def test_connection_that_comes_free_too_late_is_left_to_others(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(bounded(origin.url)) as plane:
        first, second = await plane.connect(), await plane.connect()
        await first.send(GET)
        upstream = await origin.accept()
        await upstream.head()
        await second.send(within(500))
        await until(lambda: plane.leftovers()["queued"])
        mock_clock.jump(0.3)
        await upstream.send(OK)
        assert await first.answer() == (200, b"ok")
        assert await is_refused(second)
        assert plane.endpoint.pool.idle_count == 1
        await first.send(GET)
        await upstream.head()  # nothing came before it
        await upstream.send(OK)
        assert await first.answer() == (200, b"ok")
        await finished(plane)
        for end in (first, second, upstream):
            end.close()
