"""Requests of every kind in great number: what each asks for, an upstream that does it, clients that check it.

An `Ask` says everything in its target, so the upstream needs no memory, and both sides know every byte that must come:
bodies are parts of one large one. Upstreams and clients run in processes of their own, because one interpreter would be
slower than what it is to load.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import random
import socket
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from tests.e2e.raw import Client, Cut, Message, Wire

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LARGEST: Final = 10 << 20
_SHIFT: Final = 4093
THREADS: Final = 12
"""Connections that one process of clients holds at a time."""
_PIPELINED: Final = 16
_SMALL: Final = 2048
_PIECE: Final = 65_536
_PAUSE_S: Final = 0.002
"""Between two pieces of a slow side: long enough that the other one waits."""
_SLOW_PIECES: Final = 12

METHODS: Final = ("GET",) * 10 + ("POST",) * 5 + ("PUT", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
STATUSES: Final = (200,) * 20 + (204, 304, 404, 503)
PLAIN: Final = "plain"
FATES: Final = {
    "slow": 4,
    "client-leaves-request": 5,
    "client-leaves-answer": 5,
    "upstream-cuts": 5,
    "upstream-resets": 5,
    "upstream-is-silent": 5,
}
"""What happens to an exchange that is not plain, in a thousand."""
_LARGE: Final = 4
"""Plain exchanges with a body of more than `_PIECE` bytes, in a thousand."""


@functools.cache
def _blob() -> memoryview:
    return memoryview(random.Random(0).randbytes(LARGEST + _SHIFT))


def body(number: int, size: int) -> memoryview:
    """The body number `number`, if it has this size."""
    start = number * 61 % _SHIFT
    return _blob()[start : start + size]


@dataclass(frozen=True, slots=True)
class Ask:
    """One exchange. `up` and `down` are the bodies' sizes, `down_framing` is `length`, `chunks` or `close`."""

    number: int
    fate: str
    method: str
    status: int
    up: int
    up_chunked: bool
    down: int
    down_framing: str

    @property
    def target(self) -> str:
        return f"/{self.fate}/{self.number}/{self.up}/{self.down}/{self.down_framing}/{self.status}"

    @classmethod
    def of(cls, request: Message) -> Self:
        """What the upstream reads from a target."""
        _, fate, number, up, down, framing, status = request.target.split("/")
        return cls(int(number), fate, request.method, int(status), int(up), False, int(down), framing)

    @property
    def sent(self) -> memoryview:
        """The request's body."""
        return body(self.number, self.up)

    @property
    def answered(self) -> memoryview:
        """The answer's body."""
        return body(self.number + 1, self.down if self.has_answer_body else 0)

    @property
    def has_answer_body(self) -> bool:
        return self.method != "HEAD" and self.status not in (204, 304)

    @property
    def is_small(self) -> bool:
        return self.fate == PLAIN and self.up <= _SMALL and self.down <= _PIECE


def asks(seed: int, count: int) -> Iterator[Ask]:
    """`count` of them, the same for the same seed."""
    chance = random.Random(seed)
    fates = [PLAIN] * (1000 - sum(FATES.values())) + [fate for fate, n in FATES.items() for _ in range(n)]
    for number in range(count):
        yield _ask(chance, seed * count + number, chance.choice(fates))


def _ask(chance: random.Random, number: int, fate: str) -> Ask:
    method, status = chance.choice(METHODS), chance.choice(STATUSES)
    up = chance.choice((0, 0, 1, chance.randrange(_SMALL))) if method not in ("HEAD", "OPTIONS") else 0
    down = chance.choice((0, 1, chance.randrange(_SMALL), chance.randrange(_SMALL)))
    framing = chance.choice(("length",) * 6 + ("chunks",) * 3 + ("close",))
    if fate == PLAIN:
        large = chance.randrange(1000)
        if large < _LARGE and method in ("POST", "PUT"):
            up = _large(chance)
        elif large < _LARGE:
            down = _large(chance)
        elif large < 20 * _LARGE:
            down = chance.randrange(_PIECE)
    else:
        method = "POST" if "request" in fate else chance.choice(("GET", "POST", "PUT"))
        status = 200
        up = chance.choice((1000, 200_000)) if method != "GET" else 0
        down = chance.choice((1000, 100_000, 600_000))
        if fate == "upstream-cuts" and framing == "close":
            framing = "length"  # such an answer is whole wherever it ends
    return Ask(number, fate, method, status, up, bool(chance.getrandbits(1)), down, framing)


def _large(chance: random.Random) -> int:
    return LARGEST if chance.randrange(8) == 0 else int(_PIECE * (LARGEST / _PIECE) ** chance.random())


def summary(data: bytes | memoryview) -> str:
    """Length and checksum."""
    return f"{len(data)}-{zlib.crc32(data):08x}"


def chunks(data: memoryview, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        piece = bytes(data[at : at + size])
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


def pause() -> None:
    threading.Event().wait(_PAUSE_S)


def send_slowly(wire: Wire, data: bytes) -> None:
    size = len(data) // _SLOW_PIECES + 1
    for at in range(0, len(data), size):
        wire.send(data[at : at + size])
        pause()


# The upstream


class Upstream:
    """Does for every request what its target says."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.complaints: list[str] = []

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(Wire(sock),), daemon=True).start()

    def _serve(self, wire: Wire) -> None:
        try:
            while wire.sock.fileno() >= 0:
                self._answer(wire, wire.head())
        except (Cut, OSError):
            wire.close()

    def _answer(self, wire: Wire, request: Message) -> None:
        ask = Ask.of(request)
        if ask.fate == "slow":
            pause()
        wire.body_of(request, to_close=False)
        if ask.fate == "client-leaves-request":
            self.complaints.append(f"half a request came whole: {request.start}")
        if ask.fate == "upstream-is-silent":
            return wire.close()
        data = self._message(ask, summary(request.body))
        if ask.fate == "slow":
            send_slowly(wire, data)
        elif ask.fate.startswith("upstream"):
            wire.send(data[: len(data) - ask.down // 2 - 1])
            return wire.reset() if ask.fate == "upstream-resets" else wire.close()
        else:
            wire.send(data)
        if ask.down_framing == "close" and ask.has_answer_body:
            wire.close()

    def _message(self, ask: Ask, got: str) -> bytes:
        head = f"HTTP/1.1 {ask.status} Asked For\r\nx-got: {got}\r\n"
        data = bytes(ask.answered)
        if ask.down_framing == "chunks":
            head += "transfer-encoding: chunked\r\n"
            data = b"".join(chunks(ask.answered, 50_000)) + b"0\r\n\r\n"
        elif ask.down_framing == "length":
            head += f"content-length: {ask.down}\r\n"
        return f"{head}\r\n".encode() + (data if ask.has_answer_body else b"")


def serve(told: Connection) -> None:
    """An upstream in this process, until the other side says something; then its complaints."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        actor = Upstream(listener)
        threading.Thread(target=actor.accept, daemon=True).start()
        told.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
        told.recv()
    told.send(actor.complaints)


@contextlib.contextmanager
def upstreams(count: int) -> Iterator[list[str]]:
    """Upstreams, each in a process of its own; gives their URLs. None may have anything to complain of."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield [pipe.recv() for pipe in pipes]
        for pipe in pipes:
            pipe.send(None)
        assert [pipe.recv() for pipe in pipes] == [[]] * count
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            process.terminate()
            process.join()
            process.close()
            pipe.close()


# The clients


@dataclass
class Report:
    """What a client met: exchanges by fate and outcome, and what was not as it must be."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.outcomes += other.outcomes
        self.wrong += other.wrong


class Caller:
    """One client: a connection after the other, one batch of asks after the other."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._chance = random.Random(seed)
        self._client: Client | None = None
        self.report = Report()

    def run(self, batches: Iterable[list[Ask]]) -> None:
        for batch in batches:
            client = self._client = self._client or Client(self._url)
            done, outcome = 0, ""
            try:
                for outcome in self._converse(client, batch):
                    done += 1
                    self.report.outcomes[batch[0].fate, outcome] += 1
            except (Cut, OSError, ValueError, AssertionError) as error:
                self.report.wrong.append(f"{type(error).__name__} {error}: {batch[done]}")
                self._leave()
            if outcome in ("left", "cut"):
                self._leave()
        self._leave()

    def _leave(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def _converse(self, client: Client, batch: list[Ask]) -> Iterator[str]:
        ask = batch[0]
        if ask.fate == "client-leaves-request":
            data = request(ask)
            client.send(data[: self._chance.randrange(1, len(data) - 10)])
            yield self._go(client)
        elif ask.fate == "client-leaves-answer":
            client.send(request(ask))
            chunked = head_of(client, ask).get("transfer-encoding") == "chunked"
            data = client.chunk() if chunked else client.exactly(500)
            assert data == ask.answered[: len(data)], "another body"
            yield self._go(client)
        elif ask.fate == "slow":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
            send_slowly(client, request(ask))
            yield take(client, ask, slowly=True)
        elif ask.fate == PLAIN:
            client.send(b"".join(map(request, batch)))
            for each in batch:
                yield take(client, each)
        else:
            client.send(request(ask))
            yield take_what_comes(client, ask)

    def _go(self, client: Client) -> str:
        if self._chance.getrandbits(1):
            client.reset()
        return "left"


def request(ask: Ask) -> bytes:
    head = f"{ask.method} {ask.target} HTTP/1.1\r\nhost: test\r\n"
    if not ask.up:
        return f"{head}\r\n".encode()
    if ask.up_chunked:
        pieces = b"".join(chunks(ask.sent, 30_000))
        return b"%btransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % (head.encode(), pieces)
    return b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), ask.up, bytes(ask.sent))


def head_of(client: Client, ask: Ask) -> Message:
    """The head of the answer, which says that the request came as it was sent."""
    answer = client.head()
    assert answer.status == ask.status, answer
    assert answer.get("x-got") == summary(ask.sent), answer
    assert answer.get("connection") != "close", answer
    return answer


def take(client: Client, ask: Ask, *, slowly: bool = False) -> str:
    """Read the whole answer, and see that it is what was asked for."""
    answer = head_of(client, ask)
    if slowly:
        read_slowly(client, answer)
    elif ask.has_answer_body:
        client.body_of(answer, to_close=False)
    assert len(answer.body) == len(ask.answered), "a body of another length"
    assert zlib.crc32(answer.body) == zlib.crc32(ask.answered), "another body"
    return "whole"


def read_slowly(client: Client, answer: Message) -> None:
    if answer.get("transfer-encoding") == "chunked":
        while piece := client.chunk():
            answer.body += piece
            pause()
        client.fields()
    else:
        length = int(answer.get("content-length") or 0)
        size = length // _SLOW_PIECES + 1
        for at in range(0, length, size):
            answer.body += client.exactly(min(size, length - at))
            pause()


def take_what_comes(client: Client, ask: Ask) -> str:
    """An answer that the upstream did not finish: it must not look whole, whatever has come of it."""
    try:
        answer = client.head()
        client.body_of(answer, to_close=False)
    except Cut:
        return "cut"
    assert answer.status == 502, answer
    return "bad gateway"


def batches(every: Iterable[Ask]) -> Iterator[list[Ask]]:
    """Small exchanges together, as they will be pipelined; others alone."""
    together: list[Ask] = []
    for ask in every:
        if together and (not ask.is_small or len(together) == _PIPELINED):
            yield together
            together = []
        if ask.is_small:
            together.append(ask)
        else:
            yield [ask]
    if together:
        yield together


def call(url: str, seed: int, count: int) -> Report:
    """Several clients at once in this process, with `count` exchanges together."""
    source = batches(asks(seed, count))
    lock = threading.Lock()

    def shared() -> Iterator[list[Ask]]:
        while True:
            with lock:
                batch = next(source, None)
            if batch is None:
                return
            yield batch

    callers = [Caller(url, seed * THREADS + number) for number in range(THREADS)]
    threads = [threading.Thread(target=caller.run, args=(shared(),)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = Report()
    for caller in callers:
        report.add(caller.report)
    return report


def call_from(processes: int, url: str, seed: int, count: int) -> Report:
    """The same from several processes."""
    report = Report()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        parts = [count // processes] * processes
        for part in pool.map(call, itertools.repeat(url), range(seed, seed + processes), parts):
            report.add(part)
    return report
