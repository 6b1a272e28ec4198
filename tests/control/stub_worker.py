"""A worker whose plane is a few lines of trio: what the supervisor does with workers is tested without a data plane.

Answers every request with its process's number, and says when idle connections are closed. Paths make it misbehave:
`/sleep` waits a second, `/stall` blocks the loop, `/die` ends the process at once. A route named `refused` cannot be
prepared; `STUB_FAILS` in the environment makes every start fail; with `STUB_WAITS` all slots but one wait with their
start for the file of that name.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager

import trio

from ambassador.config.discover import Found
from ambassador.config.schema import Config
from ambassador.control.duties import obey
from ambassador.control.orders import Brief, KeySetTrouble, KeysRead, Start
from ambassador.control.roll import encode_roll


class StubPlane:
    def __init__(self, nursery: trio.Nursery, config: Config, log_fd: int) -> None:
        self._nursery = nursery
        self._config = config
        self._next = config
        self._log_fd = log_fd
        self._accepting: dict[int, trio.CancelScope] = {}
        self._idle: dict[object, trio.CancelScope] = {}
        self._draining = False
        self.connections = 0
        self.inflight = 0

    def prepare(self, config: Config, brief: Brief) -> Iterator[None]:
        for route in config.routes:
            if route.name == "refused":
                raise ValueError("this route is refused")
            yield
        self._next = config

    def commit(self) -> None:
        self._config = self._next

    def abort(self) -> None:
        self._next = self._config

    def add(self, listener: str, sock: socket.socket) -> None:
        scope = self._accepting[sock.fileno()] = trio.CancelScope()
        self._nursery.start_soon(self._accept, sock, scope)

    def remove(self, listener: str, sock: socket.socket) -> None:
        self._accepting.pop(sock.fileno()).cancel()

    def take_rest(self, listener: str, sock: socket.socket) -> None:
        pass

    def set_addresses(self, host: str, addresses: tuple[str, ...]) -> None:
        pass

    def take_found(self, found: Found) -> None:
        pass

    def set_unhealthy(self, unhealthy: Mapping[str, Mapping[str, str]]) -> None:
        pass

    def drain(self, *, last: bool) -> None:
        self._draining = True

    def close_idle(self) -> None:
        if self._idle:
            os.write(self._log_fd, b"closing what is idle\n")
        for scope in self._idle.values():
            scope.cancel()

    def reopen(self) -> None:
        os.write(self._log_fd, b"reopened\n")

    def answer(self, what: str, give: Callable[[bytes], None]) -> None:
        give(encode_roll(None) if what == "replicas" else json.dumps([{"name": what, "count": 1}]).encode())

    def act(self, data: bytes, done: Callable[[bytes], None]) -> None:
        done(data)

    @property
    def open_breakers(self) -> dict[str, tuple[int, int]]:
        return {}

    @property
    def ejections(self) -> dict[str, tuple[int, int]]:
        return {}

    @property
    def key_set_troubles(self) -> dict[str, KeySetTrouble]:
        return {}

    def keys_read(self) -> list[KeysRead]:
        return []

    @property
    def generation(self) -> int:
        return 1

    def counts(self, *, whole: bool) -> Iterator[bytes]:
        yield b""

    def beat(self) -> float:
        return 0.0

    async def _accept(self, sock: socket.socket, scope: trio.CancelScope) -> None:
        with scope:
            own = trio.socket.from_stdlib_socket(sock.dup())
            with own:
                while True:
                    client, _ = await own.accept()
                    self.connections += 1
                    self._nursery.start_soon(self._talk, trio.SocketStream(client))

    async def _talk(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                while await self._exchange(stream):
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.connections -= 1

    async def _exchange(self, stream: trio.SocketStream) -> bool:
        with trio.CancelScope() as self._idle[stream]:
            request = await stream.receive_some(4096)
        del self._idle[stream]
        if not request:
            return False
        self.inflight += 1
        path = request.split()[1]
        if path == b"/sleep":
            await trio.sleep(1)
        elif path == b"/stall":
            time.sleep(60)  # noqa: ASYNC251 - that is what it is for
        elif path == b"/die":
            os._exit(3)
        names = ",".join(route.name for route in self._config.routes)
        body = json.dumps({"pid": os.getpid(), "routes": names, "ppid": os.getppid()}).encode()
        close = b"connection: close\r\n" if self._draining else b""
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n%s" % (len(body), close, body))
        self.inflight -= 1
        return not close


@asynccontextmanager
async def open_stub(
    start: Start, config: Config, page_fd: int, log_fd: int, store_fd: int
) -> AsyncIterator[StubPlane]:
    if os.environ.get("STUB_FAILS"):
        raise RuntimeError("the stub was told to fail")
    go = os.environ.get("STUB_WAITS")
    while go is not None and start.slot != 1 and not await trio.Path(go).exists():  # noqa: ASYNC110
        await trio.sleep(0.02)
    async with trio.open_nursery() as nursery:
        yield StubPlane(nursery, config, log_fd)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    sys.exit(obey(int(sys.argv[1]), int(sys.argv[2]), open_stub))
