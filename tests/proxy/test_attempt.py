"""One attempt: which connection it takes, when it gives up, and what it leaves behind.

`a_plane` looks at the end of each test that no connection, slot in a queue or count is left.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.proxy.harness import GET, OK, Origin, Plane, a_plane, bounded, config, finished, until


async def test_connection_closed_while_idle_is_replaced_without_a_retry(origin: Origin) -> None:
    async with a_plane(config(origin.url, retry="{attempts: 0}")) as plane:
        client = await plane.connect()
        await client.send(GET)
        old = await origin.takes()
        await client.answer()
        await client.send(GET)
        await old.head()  # the request came, and the origin closes at that very moment
        old.close()
        talk = await origin.takes()
        assert await client.answer() == (200, b"ok")
        await finished(plane)
        assert plane.counts.retries == []
        talk.close()
        client.close()


async def test_silent_origin_is_a_timeout(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    async with a_plane(config(origin.url, timeout="{total: 2s}")) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await talk.head()
        mock_clock.jump(2.1)
        status, body = await client.answer()
        assert (status, b'"upstream_timeout"' in body) == (504, True)
        await finished(plane)
        assert plane.endpoint.pool.open == 0
        talk.close()
        client.close()


async def test_queue_ends_at_the_deadline(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    async with a_plane(bounded(origin.url, timeout="{total: 2s}")) as plane:
        first, second = await plane.connect(), await plane.connect()
        await first.send(GET)
        talk = await origin.accept()
        await talk.head()
        mock_clock.jump(1.0)
        await second.send(GET)
        await until(lambda: plane.leftovers()["queued"])
        mock_clock.jump(0.9)
        await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
        await first.head()
        mock_clock.jump(1.2)
        assert (await second.answer())[0] == 504
        assert plane.endpoint.inflight == 1
        await talk.send(b"k")
        assert await first.exactly(2) == b"ok"
        await finished(plane)
        for end in (first, second, talk):
            end.close()


async def test_full_queue_is_overloaded(origin: Origin) -> None:
    async with a_plane(bounded(origin.url, pending=0)) as plane:
        first, second = await plane.connect(), await plane.connect()
        await first.send(GET)
        talk = await origin.accept()
        await talk.head()
        await second.send(GET)
        status, body = await second.answer()
        assert (status, b'"overloaded"' in body) == (503, True)
        await talk.send(OK)
        assert await first.answer() == (200, b"ok")
        await finished(plane)
        for end in (first, second, talk):
            end.close()


SEVERAL = "\nupstreams: {{u: {{endpoints: ['{first}', '{second}']}}}}\nroutes: [{{name: r, to: u{route}}}]"


def several(first: str, second: str, route: str = "") -> str:
    text = SEVERAL.format(first=first, second=second, route=route)
    return f"version: 1\nlisten: 127.0.0.1:80{text}"


async def test_latency_is_taken_to_the_head(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    """Of a body that takes long, the client or its size may be the reason."""
    async with a_plane(several(origin.url, origin.url)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await talk.head()
        mock_clock.jump(0.5)
        await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        await client.head()
        mock_clock.jump(3.0)
        await talk.send(b"ok")
        await client.exactly(2)
        await finished(plane)
        (told,) = [endpoint for endpoint in plane.endpoints if endpoint.ewma_s]
        assert told.ewma_s == pytest.approx(0.5, abs=0.1)
        talk.close()
        client.close()


async def test_latency_of_a_stream_is_known_at_once(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(several(origin.url, origin.url)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.accept()
        await talk.head()
        mock_clock.jump(0.5)
        await talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        await client.head()
        (told,) = [endpoint for endpoint in plane.endpoints if endpoint.ewma_s]
        assert told.ewma_s == pytest.approx(0.5, abs=0.1)
        mock_clock.jump(60.0)
        talk.close()
        await finished(plane)
        assert told.ewma_s == pytest.approx(0.5, abs=0.1)
        client.close()


@pytest.mark.parametrize("status", [b"500 No", b"429 Slow down"])
async def test_failed_attempt_is_told_to_its_endpoint(origin: Origin, status: bytes) -> None:
    retry = ", retry: {when: [500, 429], backoff: 1us..1us}"
    async with a_plane(several(origin.url, origin.url, retry)) as plane:
        client = await plane.connect()
        await client.send(GET)
        first = await origin.takes(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % status)
        second = await origin.takes()
        assert await client.answer() == (200, b"ok")
        await finished(plane)
        bad, good = sorted(plane.endpoints, key=lambda each: -each.failures)
        assert (bad.failures, good.failures) == (1, 0)
        assert good.ewma_s > 0
        for end in (first, second, client):
            end.close()


async def test_refused_attempt_says_nothing_of_an_endpoint(origin: Origin) -> None:
    text = several(origin.url, origin.url).replace("]}}", "], connections: {max: 1, max_pending: 0}}}")
    async with a_plane(text) as plane:
        clients = [await plane.connect() for _ in range(3)]
        talks = []
        for client in clients[:2]:
            await client.send(GET)
            talk = await origin.accept()
            await talk.head()
            talks.append(talk)
        await clients[2].send(GET)
        assert (await clients[2].answer())[0] == 503
        assert [endpoint.ewma_s for endpoint in plane.endpoints] == [0.0, 0.0]
        for talk, client in zip(talks, clients, strict=False):
            await talk.send(OK)
            await client.answer()
        await finished(plane)
        for end in (*talks, *clients):
            end.close()


async def test_client_that_gives_up_tells_that_it_took_longer(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    """Else an endpoint that hangs looks good to clients that are less patient than the route."""
    async with a_plane(several(origin.url, origin.url)) as plane:
        for endpoint in plane.endpoints:
            endpoint.settled(0.2, plane.lane.now, failed=False)
        for waits_s, expected in ((0.05, 0.2), (2.0, 2.0)):
            client = await plane.connect()
            await client.send(GET)
            talk = await origin.accept()
            await talk.head()
            mock_clock.jump(waits_s)
            client.reset()
            await finished(plane)
            assert max(endpoint.peak_s for endpoint in plane.endpoints) == pytest.approx(expected, abs=0.1)
            talk.close()


class Watch:
    """An outlier detector that only listens."""

    def __init__(self) -> None:
        self.heard: list[bool] = []

    def settled(self, now: float, *, failed: bool) -> None:
        self.heard.append(failed)

    def recovered(self) -> None:
        raise NotImplementedError


async def test_outlier_detection_hears_of_outcomes_that_speak_of_the_endpoint(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    """A 5xx and silence are failures, other answers are not; a client that left says nothing."""
    async with a_plane(several(origin.url, origin.url, ", retry: off, timeout: 2s")) as plane:
        watch = Watch()
        for endpoint in plane.endpoints:
            endpoint.outlier = watch
        client = await plane.connect()
        talks = []
        for status in (b"200 OK", b"503 No", b"429 Slow down", b"404 None"):
            await client.send(GET)
            talks.append(
                await origin.takes(b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status)
            )
            await client.answer()
        assert watch.heard == [False, True, False, False]
        await client.send(GET)
        talks.append(await origin.accept())
        await talks[-1].head()
        mock_clock.jump(2.1)
        assert (await client.answer())[0] == 504
        assert watch.heard[4:] == [True]
        leaving = await plane.connect()
        await leaving.send(GET)
        talks.append(await origin.accept())
        await talks[-1].head()
        mock_clock.jump(1.9)  # longer than any answer took
        leaving.reset()
        await finished(plane)
        assert watch.heard[5:] == []
        for end in (*talks, client):
            end.close()


def watched(plane: Plane) -> Watch:
    """What the endpoints of the plane tell outlier detection."""
    watch = Watch()
    for upstream in plane.service.table.upstreams.values():
        for endpoint in upstream.endpoints:
            endpoint.outlier = watch
        upstream.measured = True
    return watch


@pytest.mark.parametrize(("waited_s", "heard"), [(0.1, [True]), (0.7, [])])
async def test_attempt_that_a_wait_here_left_too_little_time_says_nothing_of_its_endpoint(
    mock_clock: trio.testing.MockClock, origin: Origin, waited_s: float, heard: list[bool]
) -> None:
    text = several(
        origin.url, origin.url, f", retry: off, timeout: 1s, fault: {{delay: {{for: {waited_s}s}}}}"
    )
    async with a_plane(text) as plane:
        watch = watched(plane)
        client = await plane.connect()
        await client.send(GET)
        await until(lambda: plane.service.inflight)
        mock_clock.jump(waited_s + 0.01)
        talk = await origin.accept()
        await talk.head()
        mock_clock.jump(1.01 - waited_s)
        status, body = await client.answer()
        assert (status, b'"upstream_timeout"' in body) == (504, True)
        await finished(plane)
        assert (plane.counts.attempts, watch.heard) == (["timeout"], heard)
        talk.close()
        client.close()


async def test_queue_for_a_connection_says_nothing_of_the_endpoint(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(bounded(origin.url, timeout="{per_try: 2s, total: 60s}")) as plane:
        watch = watched(plane)
        first, second, third = [await plane.connect() for _ in range(3)]
        await first.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n")
        talk = await origin.accept()
        await talk.head()
        await second.send(GET)
        await until(lambda: plane.leftovers()["queued"])
        mock_clock.jump(2.1)
        assert (await second.answer())[0] == 504
        await third.send(GET)
        await until(lambda: plane.leftovers()["queued"])
        mock_clock.jump(1.5)
        await first.send(b"123456789")
        await talk.exactly(9)
        await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await first.answer()
        await talk.head()  # of the third, which has half a second left
        mock_clock.jump(0.6)
        assert (await third.answer())[0] == 504
        await finished(plane)
        assert plane.counts.attempts == ["timeout", "200", "timeout"]
        assert watch.heard == [False]
        for end in (first, second, third, talk):
            end.close()


@pytest.mark.parametrize(("paused_s", "heard"), [(5.0, []), (0.0, [True])])
async def test_reset_that_a_slow_client_brought_about_says_nothing_of_the_endpoint(
    mock_clock: trio.testing.MockClock, origin: Origin, paused_s: float, heard: list[bool]
) -> None:
    async with a_plane(several(origin.url, origin.url, ", retry: off")) as plane:
        watch = watched(plane)
        client = await plane.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n")
        talk = await origin.accept()
        await talk.head()
        await trio.testing.wait_all_tasks_blocked(0.005)
        mock_clock.jump(paused_s)
        if not paused_s:
            await client.send(b"123456789")
            await talk.exactly(9)
        talk.reset()
        assert (await client.answer())[0] == 502
        await finished(plane)
        assert (plane.counts.attempts, watch.heard) == (["reset"], heard)
        client.close()
