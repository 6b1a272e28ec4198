"""Bodies both ways, in every framing; interim answers, expectations, pipelining, early answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import OK, Client, Cut, Message, Origin, Wire, answer, fetch, upstream

SIZES = [0, 1, 1000, 65_536, 65_537, 131_072, 600_000, 1_048_577, 10 * 1_048_576]


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with upstream() as running:
        running.on("/echo", echo)
        running.on("/echo-chunks", echo_chunks)
        running.on("/echo-close", echo_close)
        yield running


@pytest.fixture(scope="module")
def proxy(origin: Origin) -> Iterator[Ambassador]:
    body = f"""\
        routes:
          - {{name: respond, match: {{path: /respond}}, respond: {{status: 200, body: made here}}}}
          - {{name: retried, match: {{path: "/retried/**"}}, to: "{origin.url}", retry: {{attempts: 2, backoff: 1ms..2ms}}}}
          - {{name: all, match: {{path: "/**"}}, to: "{origin.url}"}}
        """
    with ambassador(body) as running:
        yield running


def blob(size: int) -> bytes:
    unit = bytes(range(256)) * 16 + b"!"
    return (unit * (size // len(unit) + 1))[:size]


def chunked(data: bytes, piece: int) -> bytes:
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"


def echo(wire: Wire, request: Message) -> None:
    wire.send(answer(request.body))


def echo_chunks(wire: Wire, request: Message) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(request.body, 50_000))


def echo_close(wire: Wire, request: Message) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\n\r\n" + request.body)
    wire.close()


def send_aside(client: Client, data: bytes) -> threading.Thread:
    """Send while the test reads: neither side is to wait for the other."""
    thread = threading.Thread(target=client.send, args=(data,))
    thread.start()
    return thread


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("path", ["/echo", "/echo-chunks", "/echo-close"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_bodies_come_back_whole(proxy: Ambassador, path: str, framing: str, size: int) -> None:
    body = blob(size)
    with Client(proxy.url) as client:
        for _ in range(2):
            if framing == "length":
                client.ask(path, f"content-length: {size}", method="POST")
                sending = send_aside(client, body)
            else:
                client.ask(path, "transfer-encoding: chunked", method="POST")
                sending = send_aside(client, chunked(body, 70_000))
            got = client.answer()
            sending.join()
            assert got.status == 200
            assert got.body == body


@pytest.mark.parametrize("size", [10, 100_000, 1_048_577])
def test_framing_is_kept(proxy: Ambassador, origin: Origin, size: int) -> None:
    body = blob(size)
    got = fetch(proxy.url, "/echo", method="POST", body=body)
    assert (got.get("content-length"), got.get("transfer-encoding")) == (str(size), None)
    request = origin.seen["/echo"][-1]
    assert (request.get("content-length"), request.get("transfer-encoding")) == (str(size), None)
    got = fetch(proxy.url, "/echo-chunks", method="POST", body=body)
    assert (got.get("content-length"), got.get("transfer-encoding")) == (None, "chunked")


def test_upload_streams(proxy: Ambassador, origin: Origin) -> None:
    def converse(wire: Wire, request: Message) -> None:
        assert wire.chunk() == b"ping"
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npong\r\n")
        assert wire.chunk() == b"over"
        assert wire.chunk() == b""
        wire.fields()
        wire.send("3\r\nend\r\n0\r\n\r\n")

    origin.on("/converse", converse, raw=True)
    with Client(proxy.url) as client:
        client.ask("/converse", "transfer-encoding: chunked", method="POST")
        client.send("4\r\nping\r\n")
        assert client.head().status == 200
        assert client.chunk() == b"pong"
        client.send("4\r\nover\r\n0\r\n\r\n")
        assert (client.chunk(), client.chunk(), client.fields()) == (b"end", b"", [])
        client.ask("/respond")
        assert client.answer().body == b"made here"


def test_every_byte_apart(proxy: Ambassador, origin: Origin) -> None:
    def bytewise(wire: Wire, request: Message) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n":
            wire.send(bytes([byte]))

    origin.on("/bytewise", bytewise)
    with Client(proxy.url) as client:
        head = "POST /bytewise HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        for letter in head + "2\r\nhi\r\n0\r\nx-u: 2\r\n\r\n":
            client.send(letter)
        got = client.answer()
    assert (got.body, got.trailers) == (b"abc", [("x-t", "1")])
    assert (origin.seen["/bytewise"][0].body, origin.seen["/bytewise"][0].trailers) == (b"hi", [("x-u", "2")])


@pytest.mark.parametrize("together", [True, False])
def test_trailers_pass_without_what_they_must_not_say(
    proxy: Ambassador, origin: Origin, together: bool
) -> None:
    path = f"/trailers-{together}"
    evil = (
        "Host: evil\r\nAuthorization: x\r\nConnection: x-sum, close\r\nX-Forwarded-For: 9.9.9.9\r\n"
        "Content-Length: 5\r\nTransfer-Encoding: gzip\r\n"
    )

    def with_trailers(wire: Wire, request: Message) -> None:
        wire.send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + ("2\r\nok\r\n" if together else "")
        )
        wire.send(("" if together else "2\r\nok\r\n") + f"0\r\nX-Sum: 7\r\n{evil}\r\n")

    origin.on(path, with_trailers)
    with Client(proxy.url) as client:
        for _ in range(2):
            client.ask(path, "transfer-encoding: chunked", "te: trailers", method="POST")
            client.send(f"2\r\nhi\r\n0\r\nX-Sum: 8\r\n{evil}\r\n")
            got = client.answer()
            assert (got.body, got.trailers) == (b"ok", [("x-sum", "7")])
    assert origin.seen[path][0].trailers == [("x-sum", "8")]
    assert origin.seen[path][0].get("te") == "trailers"


def test_trailers_in_one_piece_with_the_answer(proxy: Ambassador, origin: Origin) -> None:
    origin.on(
        "/whole", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"
    )
    with Client(proxy.url) as client:
        for _ in range(2):
            client.ask("/whole")
            got = client.answer()
            assert (got.body, got.trailers) == (b"ok", [("x-sum", "7")])


def test_trailers_after_a_body_that_waited_for_its_reader(proxy: Ambassador, origin: Origin) -> None:
    body = blob(8_000_000)
    sent = threading.Event()

    def large(wire: Wire, request: Message) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.send(chunked(body, 60_000)[:-2] + b"Host: evil\r\nX-Sum: 7\r\n\r\n")
        sent.set()

    origin.on("/large", large)
    with Client(proxy.url) as client:
        client.ask("/large")
        got = client.answer()
    assert got.body == body
    assert got.trailers == [("x-sum", "7")]


@pytest.mark.parametrize(
    "head",
    [
        "200 OK\r\nContent-Length: 5",
        "200 OK\r\nTransfer-Encoding: chunked",
        "200 OK",
        "204 No Content",
        "304 Not Modified\r\nContent-Length: 5\r\nETag: x",
        "404 Not Found\r\nContent-Length: 5",
    ],
)
def test_answers_without_body_keep_both_connections(proxy: Ambassador, origin: Origin, head: str) -> None:
    path = f"/bodiless-{hash(head)}"
    origin.on(path, f"HTTP/1.1 {head}\r\n\r\n".encode())
    with Client(proxy.url) as client:
        for _ in range(2):
            client.ask(path, method="HEAD")
            got = client.answer(method="HEAD")
            assert got.status == int(head[:3])
            if "Length" in head:
                assert got.get("content-length") == "5"
            if got.status in (204, 304):
                client.ask(path)
                assert client.answer().status == got.status
        client.ask("/echo")
        assert client.answer().status == 200


def test_head_of_an_error_has_no_body(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        client.ask("/respond", method="HEAD")
        got = client.answer(method="HEAD")
        assert (got.status, got.get("content-length")) == (200, "9")
        client.ask("/respond")
        assert client.answer().body == b"made here"


# Interim answers and expectations


def test_early_hints_pass_and_100_does_not(proxy: Ambassador, origin: Origin) -> None:
    hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n"
    origin.on("/hints", b"HTTP/1.1 100 Continue\r\n\r\n" + hints.encode() * 2 + OK)
    with Client(proxy.url) as client:
        client.ask("/hints")
        for _ in range(2):
            interim = client.head()
            assert (interim.status, interim.fields) == (103, [("link", "</a.css>; rel=preload")])
        assert client.answer().body == b"ok"
        client.send("GET /hints HTTP/1.0\r\n\r\n")
        assert client.head().status == 200


def test_flood_of_interim_answers_is_a_bad_gateway(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/flood", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000 + OK)
    with Client(proxy.url) as client:
        client.ask("/flood")
        assert client.answer().status == 502


@pytest.mark.parametrize("framing", ["content-length: 4", "transfer-encoding: chunked"])
def test_expectation_is_met_here(proxy: Ambassador, origin: Origin, framing: str) -> None:
    with Client(proxy.url) as client:
        client.ask("/echo", "Expect: 100-continue", framing, method="POST")
        assert client.head().start == "HTTP/1.1 100 Continue"
        client.send("data" if "length" in framing else "4\r\ndata\r\n0\r\n\r\n")
        assert client.answer().body == b"data"
    assert origin.seen["/echo"][-1].get("expect") is None


def test_expectation_with_the_body_at_hand_needs_no_100(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        client.ask("/echo", "Expect: 100-continue", method="POST", body=b"data")
        assert client.head().status == 200


def test_refused_expectation_gets_no_100_and_closes(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        client.ask("/respond", "Expect: 100-continue", "content-length: 4", method="POST")
        got = client.answer()
        assert (got.status, got.get("connection")) == (200, "close")
        assert client.is_ended()


# HTTP/1.0


def test_http_1_0_gets_no_chunks(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"abc" * 9, 5))
    with Client(proxy.url) as client:
        client.send("GET /chunks HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n")
        got = client.head()
        assert (got.status, got.get("transfer-encoding"), got.get("connection")) == (200, None, "close")
        assert client.rest() == b"abc" * 9
    assert origin.seen["/chunks"][0].start == "GET /chunks HTTP/1.1"


def test_http_1_0_may_stay(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        for _ in range(2):
            client.send("GET /sized HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n")
            got = client.answer()
            assert (got.body, got.get("connection")) == (b"ok", "keep-alive")
        client.send("GET /sized HTTP/1.0\r\n\r\n")
        assert client.answer().body == b"ok"
        assert client.is_ended()


def test_http_1_0_upstream_is_understood(proxy: Ambassador, origin: Origin) -> None:
    def old(wire: Wire, request: Message) -> None:
        wire.send("HTTP/1.0 200 OK\r\n\r\nold")
        wire.close()

    origin.on("/old", old)
    with Client(proxy.url) as client:
        for _ in range(2):
            client.ask("/old")
            assert client.answer().body == b"old"


# Pipelining


def test_pipelined_requests_are_answered_in_order(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        for number in range(40):
            body = b"%d" % number * (number % 7)
            client.ask("/echo", method="POST", body=body)
        for number in range(40):
            assert client.answer().body == b"%d" % number * (number % 7)


def test_pipelined_after_a_large_body(proxy: Ambassador) -> None:
    body = blob(700_000)
    with Client(proxy.url) as client:
        data = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        sending = send_aside(client, data * 3)
        for _ in range(3):
            assert client.answer().body == body
        sending.join()


def test_requests_before_a_malformed_one_stand(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        client.ask("/echo", method="POST", body=b"good")
        client.send("{}\r\n\r\n")
        assert client.answer().body == b"good"
        assert client.answer().status in (400, 501)
        assert client.is_ended()


def test_nothing_after_close_is_answered(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        client.ask("/echo", "connection: close", method="POST", body=b"good")
        client.ask("/echo", method="POST", body=b"late")
        assert client.answer().body == b"good"
        assert client.is_ended()


# Answers before the request's end


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("answered", ["length", "chunks"])
def test_early_answer_is_seen_and_the_connection_closed(
    proxy: Ambassador, origin: Origin, framing: str, answered: str
) -> None:
    path = f"/early-{framing}-{answered}"
    told = answer(b"no", "403 Forbidden")
    if answered == "chunks":
        told = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"no", 9)

    def refuse(wire: Wire, request: Message) -> None:
        wire.send(told)
        assert len(wire.rest()) < 30_000_000

    origin.on(path, refuse, raw=True)
    with Client(proxy.url) as client:
        if framing == "length":
            client.ask(path, "content-length: 30000000", method="POST")
            client.send(blob(100_000))
        else:
            client.ask(path, "transfer-encoding: chunked", method="POST")
            client.send(chunked(blob(100_000), 10_000)[:-5])
        got = client.answer()
        assert (got.status, got.body) == (403, b"no")
        if framing == "length":
            assert got.get("connection") == "close"
            assert client.is_ended()
    assert fetch(proxy.url, "/echo").status == 200


def test_small_body_that_nobody_read_keeps_the_connection(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        client.ask("/respond", "content-length: 8", method="POST")
        client.send("half")
        assert client.answer().body == b"made here"
        client.send("more")
        client.ask("/echo", method="POST", body=b"next")
        assert client.answer().body == b"next"


def test_malformed_body_that_nobody_read_ends_the_connection(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        client.ask("/respond", "transfer-encoding: chunked", method="POST")
        client.send("4\r\nhalf\r\n")
        assert client.answer().body == b"made here"
        client.send("zz\r\n")
        assert client.is_ended()


def test_malformed_body_reaches_the_upstream_as_a_cut(proxy: Ambassador, origin: Origin) -> None:
    ends: list[str] = []

    def take(wire: Wire, request: Message) -> None:
        try:
            wire.body_of(request, to_close=False)
        except Cut:
            ends.append("cut")
            raise

    origin.on("/malformed", take, raw=True)
    with Client(proxy.url) as client:
        client.ask("/malformed", "transfer-encoding: chunked", method="POST")
        client.send("4\r\nhalf\r\n")
        wait_until(lambda: bool(origin.seen["/malformed"]), "the request")
        client.send("zz\r\n")
        assert client.answer().status == 400
        assert client.is_ended()
    wait_until(lambda: ends == ["cut"], "the cut")


# Answers that are cut


@pytest.mark.parametrize(
    "begun",
    [
        "Content-Length: 1000\r\n\r\nabc",
        "Content-Length: 1000000\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "Transfer-Encoding: chunked\r\n\r\n300\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n",
    ],
)
@pytest.mark.parametrize(
    "how",
    [("close", "1.1", ""), ("reset", "1.1", "/retried"), ("close", "1.0", "/retried"), ("reset", "1.0", "")],
)
def test_cut_answer_never_looks_complete(
    proxy: Ambassador, origin: Origin, begun: str, how: tuple[str, str, str]
) -> None:
    end, version, route = how
    path = f"{route}/cut"

    def cut(wire: Wire, request: Message) -> None:
        wire.send("HTTP/1.1 200 OK\r\n" + begun)
        seen.wait(10)
        getattr(wire, end)()

    seen = threading.Event()
    origin.on(path, cut)
    with Client(proxy.url) as client:
        client.send(f"GET {path} HTTP/{version}\r\nhost: a\r\n\r\n")
        head = client.head()
        assert head.status == 200
        seen.set()
        with pytest.raises(Cut):
            client.body_of(head, to_close=True)


def test_reset_of_an_answer_that_ends_with_its_connection_is_a_cut(proxy: Ambassador, origin: Origin) -> None:
    def cut(wire: Wire, request: Message) -> None:
        wire.send("HTTP/1.1 200 OK\r\n\r\nabc")
        seen.wait(10)
        wire.reset()

    seen = threading.Event()
    origin.on("/open", cut)
    with Client(proxy.url) as client:
        client.ask("/open")
        head = client.head()
        seen.set()
        with pytest.raises(Cut):
            client.body_of(head, to_close=True)


def test_end_of_stream_is_passed_on_at_once(proxy: Ambassador, origin: Origin) -> None:
    def events(wire: Wire, request: Message) -> None:
        wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        seen.wait(10)
        wire.close()

    seen = threading.Event()
    origin.on("/events", events)
    with Client(proxy.url) as client:
        client.ask("/events")
        head = client.head()
        assert client.chunk() == b"data: 1\n\n"
        seen.set()
        assert client.body_of(head, to_close=True).body == b""


@pytest.mark.parametrize(
    "malformed",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 900_000 + b"\r\n\r\n",
    ],
)
def test_malformed_answer_is_a_bad_gateway(proxy: Ambassador, origin: Origin, malformed: bytes) -> None:
    origin.on("/protocol", malformed)
    got = fetch(proxy.url, "/protocol")
    assert (got.status, b'"upstream_protocol"' in got.body) == (502, True)


def test_bytes_after_an_answer_reach_nobody(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/extra", OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    with Client(proxy.url) as client:
        for _ in range(3):
            client.ask("/extra")
            assert client.answer().body == b"ok"
            client.ask("/echo", method="POST", body=b"mine")
            assert client.answer().body == b"mine"
