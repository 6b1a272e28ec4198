"""An upstream connection: what it may be used for after an exchange."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from ambassador.errors import UpstreamReset
from ambassador.proxy.lane import HANGUP, READ, Lane
from ambassador.proxy.upstream.h1 import Http1Connection
from ambassador.proxy.upstream.pool import Pool
from tests.proxy.harness import OK, a_lane, until

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    async with a_lane() as lane:
        yield lane


class Pair:
    """A connection that a pool counts, and the other end of it."""

    def __init__(self, lane: Lane) -> None:
        self.pool = Pool(lane, lambda: (), max_open=1, max_pending=0, idle_timeout_s=30.0)
        self.pool.open = 1
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.connection = Http1Connection(lane.link(near), self.pool)
        self._lane = lane

    async def exchange(self, answer: bytes) -> None:
        """Send a request and read an answer until it is complete, or nothing more is there."""
        strand = self._lane.strand()
        self.connection.start(strand, REQUEST, for_head=False)
        assert self.far.recv(1000) == REQUEST
        self.far.send(answer)
        await until(lambda: self.connection.link.ready & READ)
        while not self.connection.reader.complete and self.connection.receive():
            pass
        await self._lane.finish(strand)

    def close(self) -> None:
        self.connection.close()
        self.far.close()


@pytest.fixture
async def pair(lane: Lane) -> AsyncIterator[Pair]:
    pair = Pair(lane)
    yield pair
    pair.close()


async def test_complete_exchange_leaves_it_idle(pair: Pair) -> None:
    await pair.exchange(OK)
    assert pair.connection.reader.head is not None
    assert pair.connection.reader.head.status == 200
    assert not pair.connection.used
    pair.connection.release()
    assert (pair.pool.idle_count, pair.pool.open) == (1, 1)
    assert pair.connection.used
    assert pair.pool.take() is pair.connection


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    ],
    ids=["close", "http/1.0", "incomplete", "unsized"],
)
async def test_connection_that_carries_no_more_is_closed(pair: Pair, answer: bytes) -> None:
    await pair.exchange(answer)
    pair.connection.release()
    assert pair.connection.link.closed
    assert (pair.pool.idle_count, pair.pool.open) == (0, 0)


async def test_bytes_after_the_answer_poison_it(pair: Pair) -> None:
    """They would be taken for the next request's answer."""
    await pair.exchange(OK)
    pair.far.send(b"HTTP/1.1 200 OK\r\n")
    await until(lambda: pair.connection.link.ready & READ)
    pair.connection.release()
    assert pair.pool.open == 0


async def test_untouched_until_the_kernel_takes_a_byte(lane: Lane, pair: Pair) -> None:
    await pair.exchange(OK)
    pair.connection.release()
    pair.far.close()
    strand = lane.strand()
    assert pair.pool.take() is pair.connection
    pair.connection.start(strand, REQUEST, for_head=False)
    assert pair.connection.write_failed
    assert pair.connection.untouched
    await lane.finish(strand)


async def test_end_of_input_before_an_answer_is_a_reset(lane: Lane, pair: Pair) -> None:
    strand = lane.strand()
    pair.connection.start(strand, REQUEST, for_head=False)
    assert not pair.connection.untouched
    pair.far.recv(1000)
    pair.far.close()
    await until(lambda: pair.connection.link.ready & HANGUP)
    with pytest.raises(UpstreamReset):
        pair.connection.receive()
    await lane.finish(strand)


async def test_closing_twice_counts_once(pair: Pair) -> None:
    pair.connection.close()
    pair.connection.close()
    assert pair.pool.open == 0
