"""Input that is malformed, too large or too slow: the coded answer, then a closed connection, and nothing upstream."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.origins import free_port
from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import DEADLINE_S, Client, Cut, Message, Origin, Wire, answer, fetch, upstream

LISTEN = """
  - {{address: "127.0.0.1:{}", limits: {{header_bytes: 4KiB, headers: 20, uri: 1KiB, body: 100KiB, requests_per_connection: 3}}}}
  - {{address: "127.0.0.1:{}", limits: {{header_timeout: 150ms, body_timeout: 200ms, idle: 300ms}}}}
  - {{address: "127.0.0.1:{}", limits: {{connections: 2}}}}
"""


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(origin: Origin) -> Iterator[Ambassador]:
    body = f"""\
        name: tester
        routes:
          - {{name: respond, match: {{path: /respond}}, respond: {{status: 200, body: made here}}}}
          - {{name: here, match: {{host: "*"}}, to: "{origin.url}"}}
        """
    with ambassador(body, listen=LISTEN.format(free_port(), free_port(), free_port())) as running:
        yield running


@pytest.fixture(scope="module")
def slow(proxy: Ambassador) -> str:
    """The listener with short timeouts."""
    return proxy.urls[1]


H = "GET / HTTP/1.1\r\nhost: a\r\n"
P = "POST / HTTP/1.1\r\nhost: a\r\n"

REFUSED = {
    "no host": ("GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "two hosts": (H + "host: b\r\n\r\n", 400, "bad_request"),
    "host with userinfo": ("GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", 400, "bad_request"),
    "host with path": ("GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400, "bad_request"),
    "host with space": ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400, "bad_request"),
    "empty host": ("GET / HTTP/1.1\r\nhost:\r\n\r\n", 400, "bad_request"),
    "above the root": ("GET /a/../../b HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad_request"),
    "encoded above the root": ("GET /%2e%2e/b HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad_request"),
    "star for GET": ("GET * HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad_request"),
    "no method": ("/ HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad_request"),
    "tls hello": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
    "folded": (H + "x: a\r\n b\r\n\r\n", 400, "bad_request"),
    "space before colon": (H + "x : a\r\n\r\n", 400, "bad_request"),
    "nul": (H + "x: a\0b\r\n\r\n", 400, "bad_request"),
    "bare cr": (H + "x: a\rb\r\n\r\n", 400, "bad_request"),
    "two lengths": (P + "content-length: 1\r\ncontent-length: 2\r\n\r\nab", 400, "bad_request"),
    "same length twice": (P + "content-length: 1, 1\r\n\r\na", 400, "bad_request"),
    "signed length": (P + "content-length: +1\r\n\r\na", 400, "bad_request"),
    "negative length": (P + "content-length: -1\r\n\r\na", 400, "bad_request"),
    "hex length": (P + "content-length: 0x1\r\n\r\na", 400, "bad_request"),
    "length and chunks": (
        P + "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"
    ),
    "chunks and length": (
        P + "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", 400, "bad_request"
    ),
    "chunks in 1.0": (
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"
    ),
    "chunked twice": (P + "transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", None, ""),
    "chunked inside": (P + "transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n", None, ""),
    "gzip": (P + "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "not_implemented"),
    "xchunked": (P + "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", None, ""),
    "odd chunk size": (P + "transfer-encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", 400, "bad_request"),
    "chunk without end": (P + "transfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400, "bad_request"),
    "unknown method": ("BREW / HTTP/1.1\r\nhost: a\r\n\r\n", 501, "not_implemented"),
    "connect": ("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n", 501, "not_implemented"),
    "version 2.0": ("GET / HTTP/2.0\r\nhost: a\r\n\r\n", 505, "version_not_supported"),
    "version 1.2": ("GET / HTTP/1.2\r\nhost: a\r\n\r\n", 505, "version_not_supported"),
    "expectation": (P + "expect: gold\r\ncontent-length: 1\r\n\r\na", 417, "expectation_failed"),
    "loop": (H + "via: 1.1 other, 1.1 tester\r\n\r\n", 508, "loop_detected"),
    "long uri": (f"GET /{'a' * 1024} HTTP/1.1\r\nhost: a\r\n\r\n", 414, "uri_too_long"),
    "many fields": (H + "x: y\r\n" * 20 + "\r\n", 431, "header_too_large"),
    "large field": (H + f"x: {'y' * 4096}\r\n\r\n", 431, "header_too_large"),
    "large head without end": (H + f"x: {'y' * 100_000}", 431, "header_too_large"),
    "long body": (P + "content-length: 102401\r\n\r\n", 413, "body_too_large"),
    "long body expected": (P + "content-length: 102401\r\nexpect: 100-continue\r\n\r\n", 413, "body_too_large"),
    "negative max-forwards": (
        "OPTIONS / HTTP/1.1\r\nhost: a\r\nmax-forwards: -1\r\n\r\n", 400, "bad_request"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("first", [True, False])
def test_input_is_refused_with_its_code(proxy: Ambassador, origin: Origin, name: str, first: bool) -> None:
    data, status, code = REFUSED[name]
    before = len(origin.seen["/"])
    with Client(proxy.url) as client:
        if not first:
            client.ask("/respond")
            assert client.answer().status == 200
        client.send(data)
        got = client.answer()
        assert got.status == (status or got.status)
        assert got.status >= 400
        assert f'"code":"{code}'.encode() in got.body
        assert (got.get("content-type"), got.get("connection")) == ("application/problem+json", "close")
        assert got.get("x-request-id")
        assert (got.get("proxy-status") or "").startswith("tester; error=")
        assert client.is_ended()
    whole = [request for request in origin.seen["/"][before:] if request.method != "POST"]
    assert not whole


def test_what_follows_refused_input_is_not_read(proxy: Ambassador, origin: Origin) -> None:
    with Client(proxy.url) as client:
        client.send("GET / HTTP/1.1\r\n\r\n")
        client.ask("/smuggled")
        assert client.answer().status == 400
        assert client.is_ended()
    assert not origin.seen["/smuggled"]


def test_answer_to_refused_input_survives_what_is_still_sent(proxy: Ambassador) -> None:
    for _ in range(5):
        with Client(proxy.url) as client:
            client.send(P + "content-length: 200000\r\n\r\n" + "a" * 200_000)
            assert client.answer().status == 413
            assert client.is_ended()


def test_chunked_body_over_the_limit_is_a_413(proxy: Ambassador, origin: Origin) -> None:
    with Client(proxy.url) as client:
        client.ask("/chunks-over", "transfer-encoding: chunked", method="POST")
        client.send(b"c800\r\n" + b"a" * 51_200 + b"\r\n")
        client.send(b"c801\r\n" + b"a" * 51_201 + b"\r\n")
        assert client.answer().status == 413
        assert client.is_ended()


def test_limits_themselves_are_allowed(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        client.ask("/" + "a" * 1000, *["x: y"] * 17, method="POST", body=b"a" * 102_400)
        assert client.answer().status == 200


def test_connection_ends_after_its_requests(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        for _ in range(3):
            client.ask("/respond")
        assert [client.answer().get("connection") for _ in range(3)] == [None, None, "close"]
        assert client.is_ended()


def test_connection_over_the_limit_is_told_and_closed(proxy: Ambassador) -> None:
    with Client(proxy.urls[2]) as first, Client(proxy.urls[2]) as second:
        for client in (first, second):
            client.ask("/respond")
            assert client.answer().status == 200
        with Client(proxy.urls[2]) as third:
            got = third.answer()
            assert (got.status, b'"overloaded"' in got.body) == (503, True)
            assert third.is_ended()
    wait_until(lambda: is_served(proxy.urls[2]), "room")


def is_served(url: str) -> bool:
    try:
        return fetch(url, "/respond").status == 200
    except (Cut, OSError):
        return False


# Too slow


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("begun", ["G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n"])
def test_head_that_does_not_come_is_a_408(slow: str, begun: str, first: bool) -> None:
    with Client(slow) as client:
        if not first:
            client.ask("/respond")
            assert client.answer().status == 200
        client.send(begun)
        got = client.answer()
        assert (got.status, got.get("connection")) == (408, "close")
        assert client.is_ended()


def test_head_that_drips_is_a_408_all_the_same(slow: str) -> None:
    ended = threading.Event()

    def drip() -> None:
        try:
            while not ended.wait(0.02):
                client.send("x")
        except OSError:
            pass

    with Client(slow) as client:
        client.send("GET / HTTP/1.1\r\nhost: a\r\nx: ")
        dripping = threading.Thread(target=drip)
        dripping.start()
        assert client.answer().status == 408
        ended.set()
        dripping.join()


@pytest.mark.parametrize("first", [True, False])
def test_silent_connection_is_closed_without_a_word(slow: str, first: bool) -> None:
    with Client(slow) as client:
        if not first:
            client.ask("/respond")
            assert client.answer().status == 200
        assert client.is_ended()


@pytest.mark.parametrize(
    "framing", ["content-length: 9", "content-length: 900000", "transfer-encoding: chunked"]
)
def test_body_that_does_not_come_is_a_408(slow: str, origin: Origin, framing: str) -> None:
    path = f"/stalled-{len(framing)}"
    with Client(slow) as client:
        client.ask(path, framing, method="POST")
        client.send("1\r\na\r\n")
        got = client.answer()
        assert (got.status, b'"request_timeout"' in got.body) == (408, True)
        assert client.is_ended()


@pytest.mark.parametrize("framing", ["Content-Length: 50000000", "Transfer-Encoding: chunked", "X: close"])
def test_reader_that_does_not_read_is_cut(slow: str, origin: Origin, framing: str) -> None:
    path = f"/unread-{framing[0]}"
    origin.on(path, lambda wire, request: pour(wire, framing))
    with Client(slow) as client:
        client.ask(path)
        origin.wait_for_end(path)
        with pytest.raises(Cut):
            client.body_of(client.head(), to_close=True)


def pour(wire: Wire, framing: str) -> None:
    wire.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n")
    while True:
        wire.send(b"10000\r\n" + b"a" * 65_536 + b"\r\n")


def test_slow_reader_that_reads_gets_it_all(slow: str, origin: Origin) -> None:
    size = 3_000_000
    origin.on("/slowly", answer(b"a" * size))
    with Client(slow) as client:
        client.ask("/slowly")
        head = client.head()
        pause = threading.Event()
        got = 0
        while got < size:
            got += len(client.exactly(min(200_000, size - got)))
            pause.wait(0.03)
        assert head.get("content-length") == str(size)


def test_upload_that_the_upstream_does_not_take_is_not_the_client_s_fault(slow: str, origin: Origin) -> None:
    size = 6_000_000

    def late(wire: Wire, request: Message) -> None:
        threading.Event().wait(0.5)  # longer than body_timeout
        wire.body_of(request, to_close=False)
        wire.send(answer(b"%d" % len(request.body)))

    origin.on("/late", late, raw=True)
    with Client(slow) as client:
        client.ask("/late", f"content-length: {size}", method="POST")
        sending = threading.Thread(target=client.send, args=(b"a" * size,))
        sending.start()
        got = client.answer()
        sending.join()
        assert (got.status, got.body) == (200, b"%d" % size)


def test_slow_clients_hold_nothing_but_their_connections(
    proxy: Ambassador, slow: str, origin: Origin
) -> None:
    origin.on("/many-unread", lambda wire, request: pour(wire, "Transfer-Encoding: chunked"))
    wait_until(lambda: connected(proxy) == (0, 0, 0), "the end of the tests before")
    before = origin.connections
    heads, bodies, readers = ([Client(slow) for _ in range(20)] for _ in range(3))
    try:
        for client in heads:
            client.send("GET / HTTP/1.1\r\nhost: a\r\nx: ")
        assert [client.answer().status for client in heads] == [408] * 20
        assert origin.connections == before
        for client in readers:
            client.ask("/many-unread")
        for client in bodies:
            client.ask("/many-stalled", "content-length: 900000", "connection: close", method="POST")
            client.send("a")
        assert fetch(proxy.url, "/respond").body == b"made here"
        assert [client.answer().status for client in bodies] == [408] * 20
        attempts = Counter({"/many-stalled": 20, "/many-unread": 20})
        while attempts.total():
            if (path := origin.ended.get(timeout=DEADLINE_S)) in attempts:
                attempts[path] -= 1
    finally:
        for client in (*heads, *bodies, *readers):
            client.close()
    wait_until(lambda: connected(proxy) == (0, 0, 0), "the end of every connection")


def connected(proxy: Ambassador) -> tuple[int, int, int]:
    """Clients' connections, requests under way, connections upstream that are in use."""
    (worker,) = json.loads(proxy.admin_get("/api/status"))["workers"]
    (upstream,) = json.loads(proxy.admin_get("/api/upstreams"))
    return worker["connections"], worker["inflight"], upstream["endpoints"][0]["connections"]["active"]
