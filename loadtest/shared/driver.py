"""The clients of these scenarios: an open loop, which sends what is due whatever became of what was sent before.

So a stall of a proxy is seen in the latencies, and a limit that refuses is not asked less. Every request has a
connection for itself while it lasts; connections are kept, and belong to a *gate*: one worker of one replica, so that
load can be spread over workers as a scenario wants it, which listening sockets that share a port would not allow.
"""

import heapq
import random
import select
import socket
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loadtest import procfs

CONNECTIONS = 24
"""Of each gate, to begin with. More are opened when all are busy."""
MOST_CONNECTIONS = 400
_ROUNDS = 40
_SETTLE_S = 0.1
_FIELDS = 7
_GRACE_S = 3.0
"""For answers that are out when everything was sent."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A worker: the port of its replica, and its process."""

    port: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Requests at a rate, from `begin_s` to `end_s` after the start, at random moments (a Poisson process).

    `weights` spread them over the gates. Keys are taken at random from `keys` numbers beginning with `first_key`; with
    `fresh` each request has a new one.
    """

    case: int
    rate: float
    end_s: float
    begin_s: float = 0.0
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    first_key: int = 0
    keys: int = 1
    fresh: bool = False


class Answered(NamedTuple):
    """What became of one request."""

    due_ns: int
    took_ns: int
    """From when it was due to its answer's end."""
    case: int
    key: int
    status: int
    """0: the connection broke. Negative: there was no answer at all."""
    made: int
    """1: the ambassador made this answer itself (a problem document)."""
    gate: int


class _Connection:
    __slots__ = ("data", "gate", "sent", "sock")

    def __init__(self, sock: socket.socket, gate: int) -> None:
        self.sock = sock
        self.gate = gate
        self.data = b""
        self.sent: tuple[int, int, int] | None = None
        """When it was due, case and key."""


class Driver:
    """Connects to the gates, and drives streams through them."""

    def __init__(self) -> None:
        self._gates: list[Gate] = []
        self._idle: list[list[_Connection]] = []
        self._waiting: list[deque[tuple[int, int, int]]] = []
        self._open: list[int] = []
        self._connections: dict[int, _Connection] = {}
        self._poll = select.epoll()
        self._answers = array("q")
        self._out = 0
        self._thread: threading.Thread | None = None
        self._requests: dict[tuple[int, int], bytes] = {}

    def connect(self, gates: Sequence[Gate]) -> None:
        """Open connections until every gate has its own; those there were are closed."""
        for old in list(self._connections.values()):
            self._drop(old)
        self._gates = list(gates)
        self._idle = [[] for _ in gates]
        self._waiting = [deque() for _ in gates]
        self._open = [0] * len(gates)
        for _ in range(_ROUNDS):
            short = {
                gate.port for gate, idle in zip(gates, self._idle, strict=True) if len(idle) < CONNECTIONS
            }
            if not short:
                return
            fresh = [_connect(port) for port in sorted(short) for _ in range(CONNECTIONS)]
            time.sleep(_SETTLE_S)
            peers = [
                {remote for local, remote in procfs.connections(gate.pid) if local == gate.port}
                for gate in gates
            ]
            for sock in fresh:
                port = sock.getsockname()[1]
                number = next((at for at, ports in enumerate(peers) if port in ports), None)
                if number is None or len(self._idle[number]) >= CONNECTIONS:
                    sock.close()
                else:
                    self._keep(sock, number)
        raise OSError("a worker takes no connections")

    def start(self, streams: Sequence[Stream], seed: int = 1) -> int:
        """Begin; returns when that was (monotonic nanoseconds)."""
        self._answers = array("q")
        began = time.monotonic_ns()
        self._thread = threading.Thread(target=self._run, args=(list(streams), seed, began), daemon=True)
        self._thread.start()
        return began

    def wait(self) -> bytes:
        """Wait until all was sent and answered, for a while at least; what became of it, for `unpack`."""
        assert self._thread is not None
        self._thread.join()
        return self._answers.tobytes()

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._poll.close()

    def _run(self, streams: list[Stream], seed: int, began: int) -> None:
        chance = random.Random(seed)
        due = [
            (began + round((stream.begin_s + chance.expovariate(stream.rate)) * 1e9), number)
            for number, stream in enumerate(streams)
            if stream.rate > 0
        ]
        heapq.heapify(due)
        ends = [began + round(stream.end_s * 1e9) for stream in streams]
        sums = [_sums(stream.weights) for stream in streams]
        nexts = [stream.first_key for stream in streams]
        give_up = max(ends) + round(_GRACE_S * 1e9)
        while due or (self._out and time.monotonic_ns() < give_up):
            now = time.monotonic_ns()
            while due and due[0][0] <= now:
                at, number = due[0]
                if at >= ends[number]:
                    heapq.heappop(due)
                    continue
                stream = streams[number]
                if stream.fresh:
                    key = nexts[number]
                    nexts[number] += 1
                else:
                    key = stream.first_key + (chance.randrange(stream.keys) if stream.keys > 1 else 0)
                x = chance.random()
                gate = next(index for index, most in enumerate(sums[number]) if x < most)
                self._send(gate, (now, stream.case, key))
                heapq.heapreplace(due, (at + round(chance.expovariate(stream.rate) * 1e9), number))
            timeout = (due[0][0] - time.monotonic_ns()) / 1e9 if due else 0.1
            for descriptor, _ in self._poll.poll(max(0.0, timeout)):
                connection = self._connections.get(descriptor)
                if connection is not None:
                    self._read(connection)
        for connection in list(self._connections.values()):
            if connection.sent is not None:
                self._broken(connection, -1)
        for gate, waiting in enumerate(self._waiting):
            for at, case, key in waiting:
                self._answers.extend((at, time.monotonic_ns() - at, case, key, -1, 0, gate))
            waiting.clear()
        self._out = 0

    def _send(self, gate: int, request: tuple[int, int, int]) -> None:
        self._out += 1
        idle = self._idle[gate]
        if idle:
            self._write(idle.pop(), request)
        elif self._open[gate] < MOST_CONNECTIONS:
            try:
                self._write(self._keep(_connect(self._gates[gate].port), gate, idle=False), request)
            except OSError:
                self._out -= 1
                self._answers.extend((request[0], 0, request[1], request[2], 0, 0, gate))
        else:
            self._waiting[gate].append(request)

    def _write(self, connection: _Connection, request: tuple[int, int, int]) -> None:
        connection.sent = request
        _, case, key = request
        text = self._requests.get((case, key))
        if text is None:
            if len(self._requests) > 100_000:
                self._requests.clear()
            text = b"GET /%d/%d HTTP/1.1\r\nHost: load\r\nx-key: %d\r\n\r\n" % (case, key, key)
            self._requests[case, key] = text
        try:
            connection.sock.send(text)
        except OSError:
            self._broken(connection, 0)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._broken(connection, 0)
            return
        data = connection.data = connection.data + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = data[:end].lower()
        length = head.find(b"\r\ncontent-length: ")
        stop = head.find(b"\r", length + 18)
        size = int(head[length + 18 : stop if stop > 0 else end])
        if len(data) < end + 4 + size:
            return
        connection.data = b""
        now = time.monotonic_ns()
        assert connection.sent is not None
        at, case, key = connection.sent
        connection.sent = None
        made = b"application/problem+json" in head
        self._answers.extend((at, now - at, case, key, int(data[9:12]), made, connection.gate))
        self._out -= 1
        if b"connection: close" in head:
            self._drop(connection)
            return
        waiting = self._waiting[connection.gate]
        if waiting:
            self._write(connection, waiting.popleft())
        else:
            self._idle[connection.gate].append(connection)

    def _broken(self, connection: _Connection, status: int) -> None:
        if connection.sent is not None:
            at, case, key = connection.sent
            connection.sent = None
            self._out -= 1
            self._answers.extend((at, time.monotonic_ns() - at, case, key, status, 0, connection.gate))
        self._drop(connection)

    def _keep(self, sock: socket.socket, gate: int, *, idle: bool = True) -> _Connection:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connection = self._connections[sock.fileno()] = _Connection(sock, gate)
        self._poll.register(sock, select.EPOLLIN)
        self._open[gate] += 1
        if idle:
            self._idle[gate].append(connection)
        return connection

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        self._open[connection.gate] -= 1
        idle = self._idle[connection.gate]
        if connection in idle:
            idle.remove(connection)
        connection.sock.close()


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=2.0)


def _sums(weights: Sequence[float]) -> list[float]:
    whole = sum(weights)
    sums = [sum(weights[: at + 1]) / whole for at in range(len(weights))]
    return [*sums[:-1], 1.0]


def unpack(data: bytes) -> Iterator[Answered]:
    """What `Driver.wait` gave, in the order of the answers."""
    numbers = array("q")
    numbers.frombytes(data)
    for start in range(0, len(numbers), _FIELDS):
        yield Answered(*numbers[start : start + _FIELDS])
