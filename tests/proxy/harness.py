"""A worker's data plane inside a test: a lane, a listener on loopback, and an origin that does what the test says.

The sockets are real and so is the kernel; the clock is pytest-trio's mock where a test asks for one, so that timeouts
pass when the test says so. `until` waits for what the kernel and the lane bring about without looking at a clock.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from ambassador.config.compile import compile_table
from ambassador.config.load import load_text
from ambassador.proxy.http1_requests import Limits
from ambassador.proxy.lane import Lane
from ambassador.proxy.lasting import Lasting
from ambassador.proxy.limit_keys import NoCounts
from ambassador.proxy.listener import Listener, ListenerLimits
from ambassador.proxy.service import Service
from ambassador.proxy.tls_socket import HasContext
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.state.scope import Scopes
from tests.state.fakes import no_scopes

_PATIENCE_S = 10.0  # of real time, before a test that waits for something gives up

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class NoTokenCounts:
    """Of the tokens that are fetched for an upstream."""

    def asked(self, result: str) -> None:
        """Nobody asks how often."""

    def expires(self, unix_s: float) -> None:
        """Nor when."""


class Counts:
    """Counters that keep what they are told."""

    def __init__(self) -> None:
        self.settlements: list[int] = []
        self.attempts: list[str] = []
        self.retries: list[str] = []
        self.cache: list[str] = []
        self.replays = 0
        self.refusals: list[str] = []
        self.asked: list[str] = []
        self.closed: list[str] = []

    def route(self, route: str, upstream: str) -> Counts:
        return self

    def tokens(self, upstream: str) -> NoTokenCounts:
        return NoTokenCounts()

    def limit(self, owner: str, limit: str) -> NoCounts:
        return NoCounts()

    def access(self, route: str) -> Counts:
        return self

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)

    def client(self, name: str) -> Callable[[], None]:
        return lambda: self.asked.append(name)

    def egress(self, upstream: str) -> Callable[[], None]:
        return lambda: self.closed.append(upstream)

    def settled(self, status_class: int, seconds: float) -> None:
        self.settlements.append(status_class)

    def attempt(self, result: str, seconds: float) -> None:
        self.attempts.append(result)

    def single(self, status: int, seconds: float, attempt_seconds: float) -> None:
        self.settled(status // 100, seconds)
        self.attempt(str(status), attempt_seconds)

    @property
    def answered(self) -> int:
        return sum(each.isdigit() for each in self.attempts)

    def retry(self, reason: str) -> None:
        self.retries.append(reason)

    def cached(self, result: str) -> None:
        self.cache.append(result)

    def replayed(self) -> None:
        self.replays += 1


async def until(condition: Callable[[], object]) -> None:
    """Give everybody else turns until the condition holds."""
    give_up = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "what the test waits for does not happen"
        await trio.lowlevel.checkpoint()


class Talk:
    """One end of a connection, as raw bytes. What was read beyond what was asked for is kept."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.left = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def some(self) -> bytes:
        """What comes next; nothing at the end of input."""
        return await self.stream.receive_some()

    async def head(self) -> bytes:
        """Up to and with the empty line."""
        head = await self.next_head()
        assert head is not None, f"ended inside a head: {self.left!r}"
        return head

    async def next_head(self) -> bytes | None:
        """The same; None where the input ends before."""
        while b"\r\n\r\n" not in self.left:
            data = await self.some()
            if not data:
                return None
            self.left += data
        head, _, self.left = self.left.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    async def body(self, head: bytes) -> bytes:
        """What follows a head, whose length that says; nothing if it says none."""
        length = _LENGTH.search(head)
        return await self.exactly(int(length[1]) if length else 0)

    async def whole(self) -> tuple[bytes, bytes]:
        """Head and body of a message of known length."""
        head = await self.head()
        return head, await self.body(head)

    async def exactly(self, size: int) -> bytes:
        while len(self.left) < size:
            data = await self.some()
            assert data, f"ended after {len(self.left)} of {size} bytes"
            self.left += data
        data, self.left = self.left[:size], self.left[size:]
        return data

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of an answer of known length."""
        head, body = await self.whole()
        return int(head[9:12]), body

    async def serves(self, reply: Callable[[bytes], bytes | None]) -> None:
        """Answer each request with what `reply` says of its head, or not at all (None), until the connection ends."""
        try:
            while (head := await self.next_head()) is not None:
                await self.body(head)
                said = reply(head)
                if said is not None:
                    await self.send(said)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.close()

    async def rest(self) -> bytes:
        """Everything up to the end of input."""
        data = self.left
        while more := await self.some():
            data += more
        return data

    async def is_cut(self) -> bool:
        """Whether the connection ends with a reset."""
        try:
            await self.rest()
        except trio.BrokenResourceError:
            return True
        return False

    def reset(self) -> None:
        """End the connection with a reset."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.stream.socket.close()

    def close(self) -> None:
        self.stream.socket.close()


class Origin:
    """A listening socket whose connections the test itself answers."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.address: tuple[str, int] = self.sock.getsockname()
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(self.sock))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    async def accept(self) -> Talk:
        return Talk(await self._listener.accept())

    async def takes(self, answer: bytes = OK) -> Talk:
        """Accept a connection, read a request's head and answer it."""
        talk = await self.accept()
        await talk.head()
        await talk.send(answer)
        return talk

    async def serves(self, reply: Callable[[bytes], bytes | None]) -> None:
        """Accept every connection and answer its requests (`Talk.serves`), until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon((await self.accept()).serves, reply)

    def close(self) -> None:
        self.sock.close()


def unused_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


@asynccontextmanager
async def a_lane() -> AsyncIterator[Lane]:
    """A running lane; what it drives must have ended when the block does."""
    async with trio.open_nursery() as nursery:
        lane = Lane()
        await nursery.start(lane.run)
        yield lane
        nursery.cancel_scope.cancel()


class Plane:
    """The data plane: its parts are there to be looked at."""

    def __init__(
        self,
        lane: Lane,
        clients: trio.Nursery,
        config: str,
        limits: ListenerLimits,
        *,
        scopes: Scopes | None = None,
        tls: HasContext | None = None,
    ) -> None:
        self.counts = Counts()
        self.lane = lane
        self.clients = clients
        self.lasting = lasting = Lasting(lane)
        self.breakers, self.bulkheads = lasting.breakers, lasting.bulkheads
        self.lasting = lasting
        table = compile_table(
            load_text(config),
            lane,
            self.counts,
            {},
            scopes or no_scopes(),
            lasting=lasting,
        )
        table.begin()
        self.service = Service(lane, table, name="test", access_log=None)
        self.listener = Listener(
            self.service, clients, limits=limits, head_limits=Limits(65536, 100, 8192, None), tls=tls
        )
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.listener.add(self._sock)
        self.address: tuple[str, int] = self._sock.getsockname()

    async def connect(self) -> Talk:
        return Talk(await trio.open_tcp_stream(*self.address))

    @property
    def endpoints(self) -> list[Endpoint]:
        return [
            endpoint for upstream in self.service.table.upstreams.values() for endpoint in upstream.endpoints
        ]

    @property
    def endpoint(self) -> Endpoint:
        (endpoint,) = self.endpoints
        return endpoint

    def stop_accepting(self) -> None:
        if self._sock.fileno() >= 0:
            self.listener.remove(self._sock)
            self._sock.close()

    def leftovers(self) -> dict[str, int]:
        """What a worker without clients must not have: everything here is 0 then, idle connections aside."""
        return {
            "connections": self.service.connections,
            "clients": self.listener.connections,
            "inflight": self.service.inflight,
            "endpoints' inflight": sum(endpoint.inflight for endpoint in self.endpoints),
            "busy": sum(endpoint.pool.open - endpoint.pool.idle_count for endpoint in self.endpoints),
            "queued": sum(len(endpoint.pool._waiting) for endpoint in self.endpoints),
            "waiting for tokens": sum(policy.waiting for policy in self.service.table.limits),
            "in queues for tokens": sum(
                len(account.queue)
                for policy in self.service.table.limits
                for limit in policy.limits
                for account in limit.all_accounts()
            ),
            "permits": sum(bulkhead.hand.used for bulkhead in self.bulkheads),
            "waiting for permits": sum(bulkhead.waiting for bulkhead in self.bulkheads),
            "waiting for a probe": sum(
                breaker.waiter is not None for breaker in self.breakers.breakers.values()
            ),
        }

    def check_clean(self) -> None:
        """Nothing is left behind once idle connections are given up as well."""
        leftovers = self.leftovers()
        assert not any(leftovers.values()), leftovers
        self.stop_accepting()
        self.service.table.retire()
        assert [endpoint.pool.open for endpoint in self.endpoints] == [0] * len(self.endpoints)
        assert self.lane.link_count == 0


def config(*urls: str, **route: str) -> str:
    """A config with one route for everything; further settings of the route are YAML."""
    settings = "".join(f", {key}: {value}" for key, value in route.items())
    return f"version: 1\nlisten: 127.0.0.1:80\nroutes: [{{name: r, to: [{', '.join(urls)}]{settings}}}]"


def bounded(url: str, *, most: int = 1, pending: int = 10, **route: str) -> str:
    """A config whose one endpoint takes few connections."""
    settings = "".join(f", {key}: {value}" for key, value in route.items())
    return (
        "version: 1\nlisten: 127.0.0.1:80\n"
        f"upstreams: {{u: {{endpoints: [{url}], connections: {{max: {most}, max_pending: {pending}}}}}}}\n"
        f"routes: [{{name: r, to: u{settings}}}]"
    )


@asynccontextmanager
async def a_plane(
    config: str,
    limits: ListenerLimits | None = None,
    scopes: Scopes | None = None,
    tls: HasContext | None = None,
) -> AsyncIterator[Plane]:
    """A running data plane; `scopes`: its stores, `tls`: what clients must speak. At the end clients are cancelled, and
    nothing may be left behind.
    """
    async with a_lane() as lane:
        async with trio.open_nursery() as clients:
            plane = Plane(lane, clients, config, limits or ListenerLimits(), scopes=scopes, tls=tls)
            try:
                yield plane
            finally:
                plane.stop_accepting()
                clients.cancel_scope.cancel()
        plane.check_clean()


async def finished(plane: Plane) -> None:
    """No request is under way any more, and what each held was given back."""
    await until(lambda: plane.service.inflight == 0)
    await until(lambda: sum(endpoint.inflight for endpoint in plane.endpoints) == 0)
    leftovers = plane.leftovers()
    del leftovers["connections"], leftovers["clients"]
    assert not any(leftovers.values()), leftovers
