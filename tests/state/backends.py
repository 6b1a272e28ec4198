"""What the conformance suite asks of a store under test, and the stores there are.

A backend is a store with a clock that the test moves. The suite (`test_conformance.py`) works out what it expects from
the `now_us` of the answers, so it holds for a clock that stands still between steps and for one that runs.

To have another store tested: write a class with the methods of `Backend`, and add its name and how it is opened to
`OPENERS`. An opener is a context manager; it may call `pytest.skip` where its server is not to be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from typing import Protocol

from ambassador.state.memory import MemoryStore
from ambassador.state.protocol import Answer, Event, Operation, decode_event
from ambassador.state.redis import RedisStore
from tests.state.servers import (
    CLOCK,
    PATIENCE_S,
    ClusterServers,
    Server,
    set_clock,
    shared_cluster,
    shared_server,
)


class Backend(Protocol):
    """A store under test. When it is opened it is empty, and its data is *old*: born an hour before its clock's time,
    so that buckets begin full."""

    steps_freely: bool
    """The clock may be moved by any distance, at no cost. Else `advance` sleeps: tests that need more than a second
    in all are skipped."""

    def perform(self, operations: list[Operation]) -> list[Answer]:
        """Have operations done in this order, each by itself; their answers, in the same order."""

    def advance(self, seconds: float) -> None:
        """Let the store's clock go on by that much at least. Negative only if `steps_freely`."""

    def events(self) -> list[Event]:
        """What was published since the last call, in order; all of it."""

    def wipe(self) -> None:
        """Have it lose everything it holds, its birth included: its data is born now."""


class MemoryBackend:
    """The store in memory, on a clock that stands still between steps."""

    steps_freely = True

    def __init__(self) -> None:
        self.now_us = 1_800_000_000_000_000
        self.store = MemoryStore(self.now_us - 3_600_000_000, full=False)

    def perform(self, operations: list[Operation]) -> list[Answer]:
        return [self.store.perform(operation, self.now_us) for operation in operations]

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)

    def events(self) -> list[Event]:
        return self.store.collect()

    def wipe(self) -> None:
        self.store = MemoryStore(self.now_us, full=False)


class RedisBackend:
    """The store in Redis or Valkey, by a clock of the test's: each shard's scripts look for the time in a key."""

    steps_freely = True

    def __init__(self, servers: Server | ClusterServers, url: str) -> None:
        self._clients = servers.clients_of_tags()
        self.now_us = 1_800_000_000_000_000
        self._empty()
        self.store = RedisStore(url, clock=CLOCK, timeout_s=PATIENCE_S)
        self.store.connect()
        self.wipe()
        self.advance(3600)
        self._heard = self.store.subscribe()

    def perform(self, operations: list[Operation]) -> list[Answer]:
        return self.store.perform(operations)

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)
        set_clock(self._clients, self.now_us)

    def events(self) -> list[Event]:
        # Every server says when all that it published before has been passed on.
        for client, _ in self._clients:
            client.publish(self._heard.channel, b"")
        missing = len(self._clients)
        events = []
        while missing:
            message = self._heard.receive(PATIENCE_S)
            assert message is not None
            if message:
                events.append(decode_event(message))
            else:
                missing -= 1
        return events

    def wipe(self) -> None:
        self._empty()
        self.store.connect()

    def times_to_live(self) -> dict[str, int]:
        """Milliseconds that each key is kept; -1: without end."""
        return {key.decode(): client.pttl(key) for client, _ in self._clients for key in client.scan_iter()}

    def _empty(self) -> None:
        for client, _ in self._clients:
            client.flushall()
        set_clock(self._clients, self.now_us)

    def close(self) -> None:
        self._heard.close()
        self.store.close()
        for client, _ in self._clients:
            client.flushall()
            client.close()


@contextmanager
def open_memory() -> Iterator[Backend]:
    yield MemoryBackend()


@contextmanager
def open_server(name: str) -> Iterator[Backend]:
    server = shared_server(name)
    with closing(RedisBackend(server, f"unix:{server.socket}")) as backend:
        yield backend


@contextmanager
def open_cluster() -> Iterator[Backend]:
    cluster = shared_cluster()
    with closing(RedisBackend(cluster, cluster.url)) as backend:
        yield backend


OPENERS: dict[str, Callable[[], AbstractContextManager[Backend]]] = {
    "memory": open_memory,
    "valkey": partial(open_server, "valkey"),
    "redis": partial(open_server, "redis"),
    "cluster": open_cluster,
}
"""By the name that a test's id shows."""
