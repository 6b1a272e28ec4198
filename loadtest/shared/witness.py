"""The origin of these scenarios: it writes down when each request arrived and when its answer was given.

Requests are `GET /CASE/KEY`; both are numbers. All keys of a case are answered alike: with a status, after a delay,
or never (`HANG`), until the client hangs up. What was written down is exact to the moment when the bytes were read, by
the monotonic clock that all processes of a host share.
"""

import heapq
import random
import select
import socket
import threading
import time
from array import array
from collections.abc import Iterator
from typing import NamedTuple

HANG = float("inf")
"""A delay: no answer."""

_BODY = b'{"id":"0001","status":"active","currency":"EUR","amount":"1250.00","name":"account-0001-x"}\n'
_FIELDS = 6


class Seen(NamedTuple):
    """One request. Times are nanoseconds of the monotonic clock."""

    arrived_ns: int
    ended_ns: int
    """When it was answered, or the client hung up (`status` 0)."""
    case: int
    key: int
    status: int
    port: int
    """The client's: whose connection it came on."""


class _Connection:
    __slots__ = ("data", "number", "port", "request", "sock")

    def __init__(self, sock: socket.socket, port: int) -> None:
        self.sock = sock
        self.port = port
        self.data = b""
        self.request: tuple[int, int, int] | None = None
        """When it arrived, case and key, while it is not answered."""
        self.number = 0


class Witness:
    """Serves from its making, in a thread of its own."""

    def __init__(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        listener.setblocking(False)
        self._listener = listener
        self._poll = select.epoll()
        self._poll.register(listener, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._behaviour: dict[int, tuple[int, float, float, float]] = {}
        self._random = random.Random(1)
        self._later: list[tuple[int, int, int, int]] = []
        """(when, descriptor, number of the request, status)"""
        self._seen = array("q")
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def behave(
        self, case: int, status: int, delay_s: float = 0.0, slow_share: float = 0.0, slow_s: float = 0.0
    ) -> int:
        """Answer a case so from now on, `slow_share` of its requests after `slow_s`; returns when that began."""
        self._behaviour[case] = (status, delay_s, slow_share, slow_s)
        return time.monotonic_ns()

    def take(self) -> bytes:
        """What was seen since the last time, for `unpack`."""
        seen, self._seen = self._seen, array("q")
        return seen.tobytes()

    def close(self) -> None:
        """Serve no more."""
        self._closing = True
        with socket.create_connection(self._listener.getsockname()):
            self._thread.join()
        for connection in self._connections.values():
            connection.sock.close()
        self._listener.close()
        self._poll.close()

    def _run(self) -> None:
        listening = self._listener.fileno()
        while not self._closing:
            timeout = -1.0
            if self._later:
                timeout = max(0.0, (self._later[0][0] - time.monotonic_ns()) / 1e9)
            for descriptor, _ in self._poll.poll(timeout):
                if descriptor == listening:
                    self._accept()
                else:
                    self._read(self._connections[descriptor])
            now = time.monotonic_ns()
            while self._later and self._later[0][0] <= now:
                _, descriptor, number, status = heapq.heappop(self._later)
                connection = self._connections.get(descriptor)
                if connection is not None and connection.number == number and connection.request is not None:
                    self._answer(connection, status)

    def _accept(self) -> None:
        while True:
            try:
                sock, (_, port) = self._listener.accept()
            except BlockingIOError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            self._connections[sock.fileno()] = _Connection(sock, port)
            self._poll.register(sock, select.EPOLLIN)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic_ns()
        if not data:
            self._close(connection, now)
            return
        connection.data += data
        if not connection.data.endswith(b"\r\n\r\n"):
            return
        _, case, key = connection.data.split(b" ", 2)[1].split(b"/", 2)
        connection.data = b""
        connection.request = (now, int(case), int(key))
        connection.number += 1
        status, delay_s, slow_share, slow_s = self._behaviour.get(int(case), (200, 0.0, 0.0, 0.0))
        if slow_share and self._random.random() < slow_share:
            delay_s = slow_s
        if not delay_s:
            self._answer(connection, status)
        elif delay_s != HANG:
            when = now + round(delay_s * 1e9)
            heapq.heappush(self._later, (when, connection.sock.fileno(), connection.number, status))

    def _answer(self, connection: _Connection, status: int) -> None:
        try:
            connection.sock.send(
                b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (status, len(_BODY), _BODY)
            )
        except OSError:
            self._close(connection, time.monotonic_ns())
            return
        self._write_down(connection, time.monotonic_ns(), status)

    def _write_down(self, connection: _Connection, now: int, status: int) -> None:
        assert connection.request is not None
        arrived, case, key = connection.request
        connection.request = None
        self._seen.extend((arrived, now, case, key, status, connection.port))

    def _close(self, connection: _Connection, now: int) -> None:
        if connection.request is not None:
            self._write_down(connection, now, 0)
        del self._connections[connection.sock.fileno()]
        connection.sock.close()


def unpack(data: bytes) -> Iterator[Seen]:
    """What `Witness.take` gave, in the order of the ends."""
    numbers = array("q")
    numbers.frombytes(data)
    for start in range(0, len(numbers), _FIELDS):
        yield Seen(*numbers[start : start + _FIELDS])
