"""An upstream connection: what it may be used for after an exchange."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from ambassador.errors import UpstreamReset
from ambassador.messages import Fields, RequestHead
from ambassador.proxy.lane import HANGUP, READ, Lane
from ambassador.proxy.upstream.h1 import Http1Connection
from ambassador.proxy.upstream.pool import Pool
from tests.proxy.harness import OK, a_lane, until

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n"


def head(method: str = "GET", *, sized: bool = True, takes_trailers: bool = False) -> RequestHead:
    return RequestHead(method, b"/", b"a", [(b"x", b"y")], sized=sized, takes_trailers=takes_trailers)


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    async with a_lane() as lane:
        yield lane


class Pair:
    """A connection that a pool counts, and the other end of it."""

    def __init__(self, lane: Lane) -> None:
        self.pool = Pool(lane, lambda: (), max_open=1, max_pending=0, idle_timeout_s=30.0)
        self.pool.open = 1
        with socket.create_server(("127.0.0.1", 0)) as listener:  # sockets of a pair know no resets
            near = socket.create_connection(listener.getsockname())
            self.far, _ = listener.accept()
        near.setblocking(False)
        self.connection = Http1Connection(lane.link(near), self.pool)
        self._lane = lane

    async def sends(
        self, head: RequestHead, body: bytes, trailers: Fields | None, *more: tuple[bytes, Fields | None]
    ) -> bytes:
        """What comes of a request whose body is given at the start and in further pieces."""
        strand = self._lane.strand()
        self.connection.start(strand, head, body, trailers)
        for piece, end in more:
            self.connection.write_body(piece, end)
        await self._lane.finish(strand)
        return self.far.recv(1000)

    async def exchange(self, answer: bytes) -> None:
        """Send a request and read an answer until it is complete, or nothing more is there."""
        strand = self._lane.strand()
        self.connection.start(strand, head(), b"", [])
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


POSTED = REQUEST.replace(b"GET", b"POST")


async def test_body_of_known_length_is_written_as_it_is(pair: Pair) -> None:
    assert await pair.sends(head("POST"), b"ab", None, (b"cd", None), (b"", [])) == POSTED + b"abcd"


@pytest.mark.parametrize("trailers", [[], [(b"x-sum", b"1"), (b"x-b", b"2")]])
@pytest.mark.parametrize("pieces", [(b"ab", b"c"), (b"", b"abc"), (b"abc", b""), (b"abc",), (b"",)])
async def test_body_of_unknown_length_is_chunked(
    pair: Pair, pieces: tuple[bytes, ...], trailers: Fields
) -> None:
    ends: list[Fields | None] = [None] * (len(pieces) - 1) + [trailers]
    (first, end), *more = zip(pieces, ends, strict=True)
    sent = await pair.sends(head("POST", sized=False), first, end, *more)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
    lines = b"".join(b"%b: %b\r\n" % field for field in trailers)
    assert sent == POSTED[:-2] + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + lines + b"\r\n"


async def test_trailers_are_asked_for_hop_by_hop(pair: Pair) -> None:
    sent = await pair.sends(head(takes_trailers=True), b"", [])
    assert sent == REQUEST[:-2] + b"te: trailers\r\nconnection: te\r\n\r\n"


async def test_answer_to_head_has_no_body(lane: Lane, pair: Pair) -> None:
    assert (await pair.sends(head("HEAD"), b"", [])).startswith(b"HEAD / ")
    pair.far.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
    await until(lambda: pair.connection.link.ready & READ)
    assert pair.connection.receive()
    assert pair.connection.reader.complete


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
    assert pair.pool.take() is pair.connection
    pair.connection.link.sock.shutdown(socket.SHUT_WR)  # it takes no more
    strand = lane.strand()
    pair.connection.start(strand, head(), b"", [])
    assert pair.connection.write_failed
    assert pair.connection.untouched
    await lane.finish(strand)


async def test_end_of_input_before_an_answer_is_a_reset(lane: Lane, pair: Pair) -> None:
    strand = lane.strand()
    pair.connection.start(strand, head(), b"", [])
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


PART = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no"


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 103 Early\r\n\r\n", PART], ids=["none", "interim", "part"]
)
async def test_exchange_that_is_given_up_ends_with_a_reset(pair: Pair, lane: Lane, answer: bytes) -> None:
    """The other side would take a FIN for the end of a request whose answer is still wanted."""
    strand = lane.strand()
    pair.connection.start(strand, head(), b"", [])
    assert pair.far.recv(1000) == REQUEST
    if answer:
        pair.far.send(answer)
        await until(lambda: pair.connection.link.ready & READ)
        while pair.connection.receive():
            pass
    pair.connection.close()
    await lane.finish(strand)
    with pytest.raises(ConnectionResetError):
        pair.far.recv(1000)


@pytest.mark.parametrize("exchanges", [0, 1, 2])
async def test_connection_between_two_exchanges_ends_with_a_fin(pair: Pair, exchanges: int) -> None:
    for _ in range(exchanges):
        await pair.exchange(OK)
    pair.connection.close()
    await until(lambda: pair.connection.link.sock.fileno() < 0)
    assert pair.far.recv(1000) == b""
