"""Both ends of the wire in the tests' own hands: a client and an upstream that send and see exact bytes.

Every wait has a deadline that is only reached when something is broken.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

DEADLINE_S = 15.0
_RESET = struct.pack("ii", 1, 0)


class Cut(Exception):
    """The other side ended the connection inside a message (or reset it)."""


@dataclass
class Message:
    """A request or an answer as it was on the wire; names of fields are lower case, in order."""

    start: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.start.split()[1])

    @property
    def method(self) -> str:
        return self.start.split()[0]

    @property
    def target(self) -> str:
        return self.start.split()[1]

    def all(self, name: str) -> list[str]:
        """Every value of a field."""
        return [value for known, value in self.fields if known == name]

    def get(self, name: str) -> str | None:
        """The one value of a field, None if it is not there."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} comes {len(values)} times"
        return values[0] if values else None


class Wire:
    """One connection, read message by message."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        self.sock = sock
        self._seen = b""

    def send(self, data: bytes | str) -> None:
        self.sock.sendall(data.encode("latin-1") if isinstance(data, str) else data)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """End it by RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    def finish(self) -> None:
        """End our direction by FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def _more(self) -> bool:
        try:
            data = self.sock.recv(262144)
        except ConnectionError as error:
            raise Cut(str(error)) from None
        self._seen += data
        return bool(data)

    def line(self) -> str:
        while b"\r\n" not in self._seen:
            if not self._more():
                raise Cut(f"ended inside a line: {self._seen!r}")
        line, _, self._seen = self._seen.partition(b"\r\n")
        return line.decode("latin-1")

    def exactly(self, size: int) -> bytes:
        pieces, missing = [self._seen[:size]], size - len(self._seen)
        self._seen = self._seen[size:]
        while missing > 0:
            try:
                data = self.sock.recv(min(missing, 262144))
            except ConnectionError as error:
                raise Cut(str(error)) from None
            if not data:
                raise Cut(f"{missing} bytes are missing")
            pieces.append(data)
            missing -= len(data)
        return b"".join(pieces)

    def rest(self) -> bytes:
        """Everything to the FIN. Raises `Cut` at a reset."""
        while self._more():
            pass
        data, self._seen = self._seen, b""
        return data

    def is_ended(self) -> bool:
        """Waits until the other side has closed; True if nothing more came before."""
        try:
            return self.rest() == b""
        except Cut:
            return True

    def fields(self) -> list[tuple[str, str]]:
        found = []
        while line := self.line():
            name, _, value = line.partition(":")
            found.append((name.lower(), value.strip()))
        return found

    def head(self) -> Message:
        return Message(self.line(), self.fields())

    def chunk(self) -> bytes:
        """One chunk; empty for the last, before the trailers."""
        size = int(self.line().partition(";")[0], 16)
        data = self.exactly(size)
        if size:
            assert self.line() == ""
        return data

    def body_of(self, message: Message, *, to_close: bool) -> Message:
        """Read what the head promises."""
        if message.get("transfer-encoding") == "chunked":
            assert message.get("content-length") is None
            message.body = b"".join(iter(self.chunk, b""))
            message.trailers = self.fields()
        elif (length := message.get("content-length")) is not None:
            message.body = self.exactly(int(length))
        elif to_close:
            message.body = self.rest()
        return message


class Client(Wire):
    """A client; `url` is the listener's."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        super().__init__(socket.create_connection((parts.hostname, parts.port), DEADLINE_S))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self, target: str, *lines: str, method: str = "GET", body: bytes | None = None, host: str = "test"
    ) -> None:
        """Send a whole request."""
        fields = [f"host: {host}", *lines]
        if body is not None:
            fields.append(f"content-length: {len(body)}")
        self.send(
            "\r\n".join([f"{method} {target} HTTP/1.1", *fields, "", ""]).encode("latin-1") + (body or b"")
        )

    def answer(self, *, method: str = "GET") -> Message:
        """The next final answer, whole."""
        message = self.head()
        while message.status < 200:
            message = self.head()
        if method == "HEAD" or message.status in (204, 304):
            return message
        return self.body_of(message, to_close=True)


def fetch(
    url: str, target: str, *lines: str, method: str = "GET", body: bytes | None = None, host: str = "test"
) -> Message:
    """One request on a connection of its own."""
    with Client(url) as client:
        client.ask(target, *lines, method=method, body=body, host=host)
        return client.answer(method=method)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Handler = Callable[["Wire", Message], object]


class Origin:
    """An upstream. `on` says what happens for a path; what is not said is answered with `OK`.

    A handler gets the connection after the head (`raw`) or the whole request was read. After it the connection
    is kept unless the handler closed it.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.authority = self.url.removeprefix("http://")
        self._handlers: dict[str, tuple[Handler, bool]] = {}
        self.seen: defaultdict[str, list[Message]] = defaultdict(list)
        """Requests by path without query."""
        self.ended: queue.Queue[str] = queue.Queue()
        """The last path of every connection that the other side ended."""
        self.connections = 0

    def on(self, path: str, handler: Handler | bytes, *, raw: bool = False) -> None:
        """`handler`: a function, or the bytes to send."""
        self._handlers[path] = (_sender(handler) if isinstance(handler, bytes) else handler, raw)

    def wait_for_end(self, path: str) -> None:
        """Wait until a connection whose last request had this path was ended by the other side."""
        while self.ended.get(timeout=DEADLINE_S) != path:
            pass

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(Wire(sock),), daemon=True).start()

    def _serve(self, wire: Wire) -> None:
        path = "-"
        try:
            while True:
                request = wire.head()
                path = request.target.partition("?")[0]
                handler, raw = self._handlers.get(path, (_sender(OK), False))
                if not raw:
                    wire.body_of(request, to_close=False)
                self.seen[path].append(request)
                handler(wire, request)
                if wire.sock.fileno() < 0:
                    return
        except (Cut, OSError):
            self.ended.put(path)
            wire.close()


def _sender(data: bytes) -> Handler:
    return lambda wire, request: wire.send(data)


@contextlib.contextmanager
def upstream() -> Iterator[Origin]:
    """An `Origin` on a free port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        origin = Origin(listener)
        thread = threading.Thread(target=origin.accept)
        thread.start()
        try:
            yield origin
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The URL of an address that neither takes nor refuses a connection: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def answer(body: bytes = b"ok", status: str = "200 OK", *lines: str) -> bytes:
    """The bytes of an answer of known length."""
    fields = "".join(f"{line}\r\n" for line in lines)
    return f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body
