"""One large download through the proxy, as fast as it goes, while something else is measured.

It is thrown away in the kernel, so that reading it costs little of the core that it shares with the generator.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator

PATH = "/bulk"
_PIECE = 262_144
_TIMEOUT_S = 5.0
_STARTED = 32 << 20  # bytes after which every buffer on the way is full


class BulkError(Exception):
    """The download was refused or cut, or stood still."""


class Download:
    """What the reader tells: bytes so far, and what went wrong."""

    def __init__(self) -> None:
        self.bytes = 0
        self.problem: str | None = None
        self.started = threading.Event()
        self.stopping = threading.Event()

    def check(self) -> None:
        """Raises BulkError when it does not go on."""
        if self.problem is not None:
            raise BulkError(f"the download: {self.problem}")


@contextlib.contextmanager
def download(port: int, *, path: str = PATH, started_bytes: int = _STARTED) -> Iterator[Download]:
    """A download that runs while the body does, begun again whenever it is over. Raises BulkError.

    It is read by a thread, on the core where this is called. The body begins after the first `started_bytes`.
    """
    state = Download()
    thread = threading.Thread(target=_run, args=(state, port, path, started_bytes))
    thread.start()
    try:
        if not state.started.wait(_TIMEOUT_S):
            state.problem = f"only {state.bytes} bytes in {_TIMEOUT_S:.0f} s"
        state.check()
        yield state
        state.check()
    finally:
        state.stopping.set()
        thread.join()


def _run(state: Download, port: int, path: str, started_bytes: int) -> None:
    try:
        while not state.stopping.is_set():
            _fetch(state, port, path, started_bytes)
    except (OSError, BulkError) as error:
        state.problem = str(error)
    finally:
        state.started.set()


def _fetch(state: Download, port: int, path: str, started_bytes: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        missing = _length_from_head(sock)
        nowhere = bytearray(_PIECE)
        while missing > 0 and not state.stopping.is_set():
            # tcp(7): with MSG_TRUNC the bytes are discarded instead of copied.
            count = sock.recv_into(nowhere, min(missing, _PIECE), socket.MSG_TRUNC)
            if not count:
                raise BulkError(f"cut, {missing} bytes are missing")
            missing -= count
            state.bytes += count
            if state.bytes >= started_bytes:
                state.started.set()


def _length_from_head(sock: socket.socket) -> int:
    """Reads the head of an answer, and no byte more; how many bytes its body has."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = sock.recv(1)
        if not data:
            raise BulkError(f"no answer, {head!r}")
        head += data
    lines = head.lower().split(b"\r\n")
    if lines[0].split(b" ")[1:2] != [b"200"]:
        raise BulkError(f"answered {lines[0].decode(errors='replace')!r}")
    lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
    if len(lengths) != 1:
        raise BulkError("an answer without a length")
    return lengths[0]
