"""Idle connections: opened one after the other, one request on each, then held."""

import contextlib
import socket
from collections.abc import Iterator

from loadtest import processes

CONNECTIONS = 5000
_TIMEOUT_S = 5.0


class IdleError(Exception):
    """A connection was refused, closed or not answered with 200."""


@contextlib.contextmanager
def connections(port: int, count: int, *, path: str = "/") -> Iterator[None]:
    """Hold `count` keep-alive connections, each of them answered once, while the body runs. Raises IdleError."""
    limit = processes.raise_descriptor_limit()
    if limit < count + 100:
        raise IdleError(
            f"{count} connections need more than the {limit} open files allowed here (ulimit -Hn)"
        )
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    with contextlib.ExitStack() as held:
        for number in range(count):
            try:
                sock = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S))
                sock.sendall(request)
                _read_answer(sock)
            except OSError as error:
                raise IdleError(f"connection {number + 1} of {count}: {error}") from error
        yield


def complete(answer: bytes) -> bool:
    """Whether an answer to a GET is there in full. Raises IdleError when it is not a 200 that keeps the connection."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    lines = head.split(b"\r\n")
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
    }
    if b" 200 " not in lines[0] + b" " or fields.get(b"connection", b"").lower() == b"close":
        raise IdleError(f"answered {lines[0].decode(errors='replace')!r} {fields!r}")
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= int(fields.get(b"content-length", b"0"))


def _read_answer(sock: socket.socket) -> None:
    answer = b""
    while not complete(answer):
        data = sock.recv(65536)
        if not data:
            raise IdleError("closed before the answer was complete")
        answer += data
