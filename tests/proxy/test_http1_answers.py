"""HTTP/1 answers: what is accepted, what is refused, and that the cut of the stream makes no difference."""

from __future__ import annotations

from typing import Any

import pytest

from ambassador.errors import ProxyError, UpstreamProtocol, UpstreamReset
from ambassador.proxy.fields import clean_trailers
from ambassador.proxy.http1_answers import ResponseReader, status_line
from tests.proxy.odd_requests import cuts, pieces

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def respond(feeds: list[bytes], *, for_head: bool = False, end: bool = True) -> tuple[Any, ...]:
    reader = ResponseReader()
    reader.begin(for_head=for_head)
    error: type[ProxyError] | None = None
    try:
        for piece in feeds:
            reader.feed(piece)
        if end and not reader.complete:
            reader.end_of_input()
    except ProxyError as caught:
        error = type(caught)
    if error is not None:
        return (error,)
    head = reader.head
    assert head is not None
    interim = [answer.status for answer in reader.interim]
    return head.status, b"".join(reader.body), reader.trailers, interim, reader.complete, reader.reusable


def respond_alike(data: bytes, *, for_head: bool = False) -> tuple[Any, ...]:
    whole = respond([data], for_head=for_head)
    for feeds in cuts(data):
        assert respond(feeds, for_head=for_head) == whole
    assert respond([data], for_head=for_head) == whole
    return whole


def answer(fields: bytes, body: bytes = b"", line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return line + b"\r\n" + fields + b"\r\n" + body


LENGTH_5 = b"Content-Length: 5\r\n"
TE = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("data", "for_head", "body", "reusable"),
    [
        (answer(LENGTH_5, b"hello"), False, b"hello", True),
        (answer(TE, b"5\r\nhello\r\n0\r\n\r\n"), False, b"hello", True),
        (answer(LENGTH_5, b"hello", b"HTTP/1.0 200 OK"), False, b"hello", False),
        (answer(LENGTH_5 + b"Connection: close\r\n", b"hello"), False, b"hello", False),
        (answer(b"", b"hello"), False, b"hello", False),
        (answer(b"Connection: keep-alive\r\n", b"hello", b"HTTP/1.0 200 OK"), False, b"hello", False),
        (answer(b"", line=b"HTTP/1.1 204 No Content"), False, b"", True),
        (answer(LENGTH_5, line=b"HTTP/1.1 304 Not Modified"), False, b"", True),
        (answer(TE, line=b"HTTP/1.1 304 Not Modified"), False, b"", True),
        (answer(LENGTH_5, b"hello", b"HTTP/1.1 204 No Content"), False, b"", False),
        (answer(LENGTH_5, b"hello", b"HTTP/1.1 304 Not Modified"), False, b"", False),
        (answer(LENGTH_5), True, b"", True),
        (answer(TE), True, b"", True),
        (answer(b""), True, b"", True),
        (answer(b"Connection: close\r\n"), True, b"", False),
        (answer(LENGTH_5, b"hello"), True, b"", False),
        (answer(TE, b"5"), True, b"", False),
        (answer(TE, b"5\r\n"), True, b"", False),
        (answer(TE, b"5\r\nhello\r\n0\r\n\r\n"), True, b"", False),
        (answer(TE, b"0\r\n\r\n"), True, b"", False),
        (OK + b"x", False, b"ok", False),
        (OK + b"HTTP/1.1 200", False, b"ok", False),
        (OK + OK, False, b"ok", False),
        (answer(b"Upgrade: h2c\r\nConnection: Upgrade\r\n" + LENGTH_5, b"hello"), False, b"hello", True),
    ],
)
def test_an_answer_ends_where_its_framing_says(
    data: bytes, for_head: bool, body: bytes, reusable: bool
) -> None:
    got = respond_alike(data, for_head=for_head)
    assert (got[1], got[4], got[5]) == (body, True, reusable)


@pytest.mark.parametrize(
    "data",
    [
        answer(LENGTH_5 + TE, b"0\r\n\r\n"),
        answer(TE + LENGTH_5, b"0\r\n\r\n"),
        answer(LENGTH_5 + LENGTH_5, b"hello"),
        answer(b"Content-Length: 5, 5\r\n", b"hello"),
        answer(b"Content-Length: 99999999999999999999\r\n"),
        answer(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
        answer(b"Transfer-Encoding: identity\r\n", b"hello"),
        answer(TE, b"0\r\n\r\n", b"HTTP/1.0 200 OK"),
        answer(TE, b"5;\nhello"),
        answer(TE, b"x\r\n"),
        answer(LENGTH_5, b"hello", b"HTTP/2.0 200 OK"),
        answer(LENGTH_5, b"hello", b"HTTP/1.2 200 OK"),
        answer(b"X: a\r\n b\r\n"),
        answer(b"X: a\0\r\n"),
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        answer(b"", line=b"HTTP/1.1 099 X"),
        answer(b"", line=b"HTTP/1.1 000 X"),
        answer(b"", line=b"HTTP/1.1 20 X"),
        answer(b"", line=b"HTTP/1.1 2000 X"),
        answer(LENGTH_5, b"hello" + OK, b"HTTP/1.1 103 X"),
        answer(b"Upgrade: x\r\nConnection: Upgrade\r\n", b"raw", b"HTTP/1.1 101 X"),
        answer(b"", line=b"HTTP/1.1 103 X") * 17,
        b"SSH-2.0-OpenSSH\r\n",
    ],
)
def test_malformed_answers_are_refused(data: bytes) -> None:
    assert respond_alike(data) == (UpstreamProtocol,)


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200", answer(LENGTH_5, b"hell"), answer(TE, b"5\r\nhello\r\n")]
)
def test_an_answer_that_is_cut_is_never_complete(data: bytes) -> None:
    assert respond_alike(data) == (UpstreamReset,)


def test_interim_answers_and_trailers_are_kept_apart() -> None:
    early = answer(b"", line=b"HTTP/1.1 100 Continue") + answer(
        b"Link: a\r\n", line=b"HTTP/1.1 103 Early Hints"
    )
    got = respond_alike(early + answer(TE, b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n"))
    assert got == (200, b"hi", [(b"X-Sum", b"1")], [100, 103], True, True)


@pytest.mark.parametrize(("start", "more"), [
    (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    (answer(TE, b"5;"), b"a"),
    (answer(TE, b"0\r\n"), b"X: a\r\n"),
])  # fmt: skip
def test_answers_without_end_are_refused(start: bytes, more: bytes) -> None:
    assert respond(pieces(start + more * (500_000 // len(more)))) == (UpstreamProtocol,)


def test_a_head_is_not_remembered_under_the_name_of_an_interim_answer() -> None:
    early = answer(b"X-Only: here\r\n", line=b"HTTP/1.1 100 Continue")
    reader = ResponseReader()
    reader.begin(for_head=False)
    reader.feed(early)
    reader.interim = []  # as the exchange does when it passed them on
    reader.feed(OK)
    other = answer(LENGTH_5, b"hello", b"HTTP/1.1 404 Not Found")
    assert respond([early + other])[:2] == (404, b"hello")
    assert respond([early + b"ok"], end=True) == (UpstreamProtocol,)


def test_a_head_is_not_remembered_under_the_name_of_empty_lines() -> None:
    assert respond([b"\r\n\r\n" + OK])[:2] == (200, b"ok")
    assert respond([b"\r\n\r\n" + answer(LENGTH_5, b"hello", b"HTTP/1.1 404 X")])[:2] == (404, b"hello")


def test_a_remembered_answer_leaves_the_rest_of_its_body_to_be_read_raw() -> None:
    data = answer(LENGTH_5 + b"X-Raw: 1\r\n", b"hello")
    respond([data])
    for cut in (b"", b"hel"):
        reader = ResponseReader()
        reader.begin(for_head=False)
        reader.feed(memoryview(data[: len(data) - 5] + cut))
        assert b"".join(reader.body) == cut
        assert reader.raw_body() == 5 - len(cut)
        assert not reader.reusable


def test_a_reader_goes_on_to_the_next_answer() -> None:
    reader = ResponseReader()
    for for_head, data, body in [
        (False, OK, b"ok"),
        (True, answer(LENGTH_5), b""),
        (False, answer(TE, b"2\r\nhi\r\n0\r\n\r\n"), b"hi"),
        (False, answer(LENGTH_5, line=b"HTTP/1.1 304 X"), b""),
        (False, OK, b"ok"),
    ]:
        reader.begin(for_head=for_head)
        reader.feed(data)
        assert (b"".join(reader.body), reader.reusable) == (body, True)


@pytest.mark.parametrize(
    "trailer", [b"Content-Length: 5", b"Transfer-Encoding: gzip", b"Connection: close", b"Upgrade: x"]
)
def test_an_answer_with_trailers_that_frame_ends_where_its_chunks_do(trailer: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = head + b"2\r\nok\r\n0\r\n" + trailer + b"\r\nX-A: 1\r\n\r\n"
    for feeds in ([data], *cuts(data)):
        reader = ResponseReader()
        for _ in range(2):
            reader.begin(for_head=False)
            for piece in feeds:
                reader.feed(piece)
            assert (b"".join(reader.body), reader.complete, reader.reusable) == (b"ok", True, True)
            assert clean_trailers(reader.trailers) == [(b"X-A", b"1")]
        reader.begin(for_head=False)
        with pytest.raises(UpstreamProtocol):
            reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")


def test_a_reason_phrase_is_read_whole_however_it_is_cut() -> None:
    data = b"HTTP/1.1 299 Fine So Far\r\nContent-Length: 2\r\n\r\nok"
    for parts in cuts(data):
        reader = ResponseReader()
        reader.begin(for_head=False)
        for part in parts:
            reader.feed(part)
        assert reader.head is not None
        assert reader.head.reason == b"Fine So Far"


def test_a_status_line_has_the_standard_phrase_where_none_was_given() -> None:
    assert status_line(200) == b"HTTP/1.1 200 OK\r\n"
    assert status_line(200, b"Yes") == b"HTTP/1.1 200 Yes\r\n"
    assert status_line(200, b"a\x00b") == b"HTTP/1.1 200 OK\r\n"
    assert status_line(299) == b"HTTP/1.1 299 \r\n"


def test_answer_in_tls_is_told_as_such() -> None:
    reader = ResponseReader()
    reader.begin(for_head=False)
    with pytest.raises(UpstreamProtocol, match="answers in TLS"):
        reader.feed(b"\x15\x03\x01\x00\x02\x02\x46")
