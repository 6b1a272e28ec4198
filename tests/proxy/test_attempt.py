"""One attempt: which connection it takes, when it gives up, and what it leaves behind.

`a_plane` looks at the end of each test that no connection, slot in a queue or count is left.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tests.proxy.harness import GET, OK, Origin, a_plane, bounded, config, finished, until


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


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
