"""How others read an HTTP/1 request: httptools, h11 and gunicorn_h1c. Where they disagree, somebody can be fooled."""

from __future__ import annotations

from dataclasses import dataclass

import gunicorn_h1c
import h11
import httptools


@dataclass
class Passed:
    """A message as another parser reads it."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes


class HttptoolsReader:
    def __init__(self, data: bytes) -> None:
        self.target = self.body = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.in_body = self.complete = False
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        assert self.complete
        self.method: bytes = parser.get_method()

    def on_url(self, url: bytes) -> None:
        assert not self.complete
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_body:
            self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_body = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def read_by_httptools(data: bytes) -> Passed:
    got = HttptoolsReader(data)
    return Passed(got.method, got.target, got.fields, got.body)


def read_by_h11(data: bytes) -> Passed:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    head = connection.next_event()
    assert isinstance(head, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert connection.trailing_data[0] == b""
    return Passed(
        head.method, head.target, [(bytes(name), bytes(value)) for name, value in head.headers], body
    )


def read_by_gunicorn(data: bytes) -> Passed:
    body: list[bytes] = []
    parser = gunicorn_h1c.H1CProtocol(on_body=body.append)
    parser.feed(data)
    assert parser.is_complete
    fields = [(name.lower(), value.strip(b" \t")) for name, value in parser.headers]
    return Passed(parser.method, parser.path, fields, b"".join(body))


def read_alike_by_all(data: bytes) -> Passed:
    """What one request is to each of them. Fails if it is not the same, or if not all of `data` belongs to it."""
    first = read_by_httptools(data)
    assert read_by_h11(data) == first
    assert read_by_gunicorn(data) == first
    return first
