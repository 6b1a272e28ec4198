"""Hostile and odd requests through a real service: what reaches the upstream has one meaning, the rest is refused."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import pytest
from hypothesis import given, seed, settings

from tests.e2e.programs import Ambassador, ambassador
from tests.e2e.raw import DEADLINE_S, Client, Message
from tests.proxy.odd_requests import ACCEPTED, GENERATED, HOSTILE, NEXT, STREAMS, STRICTNESS
from tests.proxy.other_parsers import read_alike_by_all

SENTINEL = b"GET /sentinel HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
"""Behind each stream, so that it ends: nothing else in it may keep the connection open."""

CODES = {
    "bad_request": 400, "header_too_large": 431, "uri_too_long": 414, "request_timeout": 408, "not_implemented": 501,
    "version_not_supported": 505, "expectation_failed": 417,
}  # fmt: skip


class Recorder:
    """An upstream that keeps every byte. It answers what h11 takes for a request, with the request's number."""

    def __init__(self, listener: socket.socket) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        """Each request that was answered, as it came."""
        self.complaints: list[str] = []
        self._listener = listener
        self._lock = threading.Lock()

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        parser = h11.Connection(h11.SERVER)
        seen, method = b"", ""
        with sock:
            sock.settimeout(DEADLINE_S)
            try:
                while data := sock.recv(65536):
                    seen += data
                    parser.receive_data(data)
                    while (event := parser.next_event()) is not h11.NEED_DATA:
                        if isinstance(event, h11.Request):
                            method = event.method.decode()
                        elif isinstance(event, h11.EndOfMessage):
                            if parser.trailing_data[0]:
                                self.complaints.append(f"bytes behind a request: {seen!r}")
                            sock.sendall(self._answer(parser, seen, method))
                            seen = b""
            except h11.RemoteProtocolError as error:
                self.complaints.append(f"{error}: {seen!r}")
            except OSError:
                pass  # the proxy gave the attempt up

    def _answer(self, parser: h11.Connection, request: bytes, method: str) -> bytes:
        with self._lock:
            number = str(len(self.requests))
            self.requests.append(request)
        fields = [("x-number", number), ("x-method", method), ("content-length", str(len(number)))]
        answer = parser.send(h11.Response(status_code=200, reason="OK", headers=fields)) or b""
        if method != "HEAD":
            answer += parser.send(h11.Data(data=number.encode())) or b""
        answer += parser.send(h11.EndOfMessage()) or b""
        if parser.our_state is h11.DONE:
            parser.start_next_cycle()
        return answer


@contextmanager
def recorder() -> Iterator[Recorder]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = Recorder(listener)
        thread = threading.Thread(target=upstream.accept)
        thread.start()
        try:
            yield upstream
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture(scope="module")
def origin() -> Iterator[Recorder]:
    with recorder() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(origin: Recorder) -> Iterator[Ambassador]:
    listen = '[{address: "127.0.0.1:0", limits: {header_timeout: 500ms, body_timeout: 500ms}}]'
    with ambassador(f"routes: [{{name: all, to: '{origin.url}'}}]\n", listen=listen) as running:
        yield running


def answers(proxy: Ambassador, stream: bytes) -> tuple[list[Message], list[Message]]:
    """What comes back for `stream`, to the end of the connection: the upstream's answers, then at most one refusal."""
    forwarded: list[Message] = []
    with Client(proxy.url) as client:
        client.send(stream)
        while True:
            answer = client.head()
            if answer.status < 200:
                continue
            if answer.get("x-number") is None:
                answer.body = client.rest()
                return forwarded, [answer]
            if answer.get("x-method") != "HEAD":
                client.body_of(answer, to_close=False)
            forwarded.append(answer)
            if answer.get("connection") == "close":
                assert client.is_ended()
                return forwarded, []


def assert_answered_or_refused(proxy: Ambassador, origin: Recorder, stream: bytes) -> tuple[int, int]:
    """Sends `stream` and looks at both sides. How many requests got through, how many were refused."""
    before = len(origin.requests)
    forwarded, refused = answers(proxy, stream + SENTINEL)
    assert origin.complaints == []
    assert [(answer.get("x-number"), answer.status) for answer in forwarded] == [
        (str(number), 200) for number in range(before, len(origin.requests))
    ]
    for request, answer in zip(origin.requests[before:], forwarded, strict=True):
        assert read_alike_by_all(request).method.decode() == answer.get("x-method")
    for answer in refused:
        assert (answer.get("connection"), answer.get("content-type")) == ("close", "application/problem+json")
        _, _, code = (answer.get("proxy-status") or "").partition("details=")
        assert answer.status == CODES[code.strip('"')]
        assert answer.body == b"" or json.loads(answer.body)["status"] == answer.status  # HEAD has none
    return len(forwarded), len(refused)


NAMED = {
    **HOSTILE,
    **{name: data for name, (data, _) in ACCEPTED.items()},
    **{name: data for name, (data, _) in STRICTNESS.items()},
}


def test_named_requests_are_answered_or_refused(proxy: Ambassador, origin: Recorder) -> None:
    for name, data in NAMED.items():
        counts = assert_answered_or_refused(proxy, origin, NEXT + data)
        assert (name, counts) == (name, (3, 0) if name in ACCEPTED or name == "plain" else (1, 1))


@seed(3)
@settings(GENERATED, max_examples=1000)
@given(STREAMS)
def test_generated_requests_are_answered_or_refused(
    proxy: Ambassador, origin: Recorder, stream: bytes
) -> None:
    assert_answered_or_refused(proxy, origin, stream)
