"""The download that runs beside the generator."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from loadtest import bulk
from tests.e2e.programs import wait_until

SIZE = 1 << 20
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + b"x" * SIZE


@contextlib.contextmanager
def server(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Gives the same answer on each connection, then closes it: its port, and the requests."""
    requests: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                requests.append(sock.recv(4096))
                sock.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], requests
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_download_begins_again_when_it_is_over() -> None:
    with server(WHOLE) as (port, requests):
        with bulk.download(port, started_bytes=3 * SIZE) as download:
            assert download.bytes >= 3 * SIZE
        assert len(requests) >= 3
        assert requests[0].startswith(b"GET /bulk HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (WHOLE[:-1], "cut, 1 bytes are missing"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "answered 'http/1.1 503 busy'"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "an answer without a length"),
        (b"HTTP/1.1 200", "no answer"),
    ],
)
def test_download_that_fails_is_an_error(answer: bytes, problem: str) -> None:
    with server(answer) as (port, _), pytest.raises(bulk.BulkError, match=problem):
        with bulk.download(port, started_bytes=3 * SIZE):
            pass


def test_download_that_fails_later_is_an_error_too() -> None:
    with server(WHOLE[:-1]) as (port, _), pytest.raises(bulk.BulkError, match="cut"):
        with bulk.download(port, started_bytes=SIZE // 2) as download:
            wait_until(lambda: download.problem, "the cut")
