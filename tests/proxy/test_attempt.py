"""One attempt: which connection it takes, when it gives up, and what it leaves behind.

`a_plane` looks at the end of each test that no connection, slot in a queue or count is left.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.proxy.harness import GET, OK, Origin, a_plane, bounded, config, finished, until


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
