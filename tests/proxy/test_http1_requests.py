"""HTTP/1 requests: what is accepted, what is refused, and that the cut of the stream makes no difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, seed, settings

from ambassador.errors import (
    BadRequest,
    BodyTooLarge,
    ExpectationFailed,
    HeaderTooLarge,
    NotImplementedByProxy,
    ProxyError,
    UriTooLong,
    VersionNotSupported,
)
from ambassador.messages import Request
from ambassador.proxy.fields import clean_trailers
from ambassador.proxy.http1_requests import Limits, RequestReader
from ambassador.proxy.methods import KNOWN
from ambassador.proxy.path import authority_host, normalise, split_target
from tests.proxy.odd_requests import (
    ACCEPTED,
    CHUNKED,
    FEED,
    GENERATED,
    HOSTILE,
    NEXT,
    STREAMS,
    STRICTNESS,
    cuts,
    get,
    pieces,
    post,
)
from tests.proxy.other_parsers import read_alike_by_all


@dataclass
class Read:
    requests: list[tuple[Any, ...]]
    error: type[ProxyError] | None
    unfinished: bool

    @property
    def targets(self) -> list[bytes]:
        return [request[1] for request in self.requests if request[6]]

    @property
    def bodies(self) -> list[bytes]:
        return [request[4] for request in self.requests if request[6]]


def summary(request: Request) -> tuple[Any, ...]:
    return (
        request.method,
        request.target,
        request.minor,
        tuple(request.passing),
        b"".join(request.body),
        tuple(request.trailers),
        request.complete,
        request.keep_alive,
        tuple(sorted(request.special.items())),
        request.authority,
    )


def read(feeds: list[bytes], limits: Limits | None = None) -> Read:
    reader = RequestReader(limits or Limits())
    for piece in feeds:
        reader.feed(piece)
    error = type(reader.error) if reader.error is not None else None
    return Read([summary(request) for request in reader.requests], error, error is None and reader.in_head)


def assert_same(got: Read, whole: Read) -> None:
    """The code for a method that is no token of ours alone may depend on the cut: the line may not be there."""
    if got.error is not whole.error:
        assert {got.error, whole.error} == {BadRequest, NotImplementedByProxy}
    assert (got.requests, got.unfinished) == (whole.requests, whole.unfinished)


def read_alike(data: bytes, limits: Limits | None = None) -> Read:
    """What `data` is read as, whole and cut in every way, with and without a memory of heads."""
    whole = read([data], limits or Limits())
    shared = limits or Limits()
    for feeds in cuts(data):
        assert_same(read(feeds, shared), whole)
    assert_same(read([data], shared), whole)
    return whole


@pytest.mark.parametrize("case", STRICTNESS)
def test_requests_are_read_strictly(case: str) -> None:
    data, error = STRICTNESS[case]
    assert len(STRICTNESS) == 24
    got = read_alike(data)
    assert got.error is error
    assert got.targets == ([b"/"] if error is None else [])


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_requests_are_refused_and_nothing_behind_them_is_read(case: str) -> None:
    data = HOSTILE[case]
    assert read_alike(data + NEXT).error is not None
    assert read_alike(data + NEXT).targets == []
    assert read_alike(NEXT + data + NEXT).targets == [b"/next"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"GET  / HTTP/1.1", BadRequest),
        (b"GET /  HTTP/1.1", BadRequest),
        (b"GET\t/ HTTP/1.1", BadRequest),
        (b"GET /\tHTTP/1.1", BadRequest),
        (b"GET / HTTP/1.1 ", BadRequest),
        (b"GET / http/1.1", BadRequest),
        (b"GET / RTSP/1.1", BadRequest),
        (b"GET / RTSP/1.2", BadRequest),
        (b"GET / RTSP/2.0", BadRequest),
        (b"SOURCE / ICE/1.1", BadRequest),
        (b"GET  / HTTP/2.0", BadRequest),
        (b"GET /", BadRequest),
        (b"GET / HTTP/1.2", VersionNotSupported),
        (b"GET / HTTP/2.0", VersionNotSupported),
        (b"GET" + b" " * 9000 + b"/ HTTP/1.1", BadRequest),
    ],
)
@pytest.mark.parametrize(
    "before",
    [b"", b"\r\n", NEXT, CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", post(b"Content-Length: 4\r\n", b"\r\n\r\n")],
)
def test_a_request_line_has_one_space_between_its_parts(
    line: bytes, error: type[ProxyError], before: bytes
) -> None:
    limits = Limits()
    read([NEXT], limits)  # the rest of the head is one that is remembered
    bad = get(line=line)
    for feeds in ([before + bad + NEXT], [before, bad + NEXT], [before + bad[:5], bad[5:] + NEXT]):
        got = read(feeds, limits)
        assert got.error is error
        assert len(got.targets) == (len(before) > 2)


def test_the_places_of_request_lines_are_found_behind_bodies_of_views() -> None:
    stream = (
        post(b"Content-Length: 40000\r\n", b"\r\n" * 20_000)
        + NEXT
        + CHUNKED
        + b"4\r\n\r\n\r\n\r\n0\r\n\r\n"
        + NEXT
    )
    for size in (FEED, 1000):
        reader = RequestReader(Limits())
        for piece in pieces(stream, size):
            reader.feed(memoryview(piece))
        assert (reader.error, len(reader.requests)) == (None, 4)


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_request_ends_where_its_framing_says(case: str) -> None:
    data, body = ACCEPTED[case]
    got = read_alike(data + NEXT)
    assert (got.error, got.bodies) == (None, [body, b""])
    assert got.targets == [b"/", b"/next"]
    assert not got.unfinished


@pytest.mark.parametrize(
    "head",
    [
        get(b"Connection: close\r\n"),
        get(b"Connection: x, close\r\n"),
        b"GET / HTTP/1.0\r\n\r\n",
        get(b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n"),
        post(b"Connection: close, Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n", b"hi"),
    ],
)
def test_what_follows_close_is_ignored(head: bytes) -> None:
    for behind in (NEXT, b"junk \0\r\n"):
        got = read_alike(head + behind)
        assert (got.error, got.targets) == (None, [b"/"])


def test_every_method_that_is_known_is_read() -> None:
    for method in KNOWN:
        got = read([get(line=method.encode() + b" / HTTP/1.1")])
        assert (got.error, [request[0] for request in got.requests]) == (None, [method])


def test_a_method_of_nobody_is_not_implemented() -> None:
    for method in (b"BREW", b"get"):
        assert read([get(line=method + b" / HTTP/1.1")]).error is NotImplementedByProxy
        for feeds in cuts(get(line=method + b" / HTTP/1.1")):
            got = read(feeds)
            assert got.error in (NotImplementedByProxy, BadRequest)
            assert got.requests == []


def test_trailers_are_kept_apart_and_cleaned() -> None:
    data = (
        CHUNKED + b"2\r\nhi\r\n0\r\nHost: evil\r\nAuthorization: x\r\nX-Sum: 1\r\nContent_Length: 9\r\n\r\n"
    )
    reader = RequestReader(Limits())
    reader.feed(data + NEXT)
    first, second = reader.requests
    assert (first.authority, second.target) == (b"a", b"/next")
    assert clean_trailers(first.trailers) == [(b"X-Sum", b"1")]
    read_alike(data + NEXT)


def test_a_head_behind_trailers_that_frame_is_read_as_strictly() -> None:
    framed = CHUNKED + b"0\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    for case in ("cl-and-te", "te-gzip-chunked", "te-and-cl"):
        data, error = STRICTNESS[case]
        got = read_alike(framed + data)
        assert (got.targets, got.error) == ([b"/"], error)


def test_the_body_behind_an_upgrade_brings_no_trailers_of_its_own() -> None:
    got = read_alike(ACCEPTED["upgrade-chunked"][0])
    assert got.requests[0][5] == ()


@pytest.mark.parametrize(
    ("limits", "data", "error"),
    [
        (Limits(uri=10), get(line=b"GET /" + b"a" * 10 + b" HTTP/1.1"), UriTooLong),
        (Limits(headers=3), get(b"X: a\r\n" * 3), HeaderTooLarge),
        (Limits(header_bytes=100), get(b"X: " + b"a" * 100 + b"\r\n"), HeaderTooLarge),
        (Limits(header_bytes=100), NEXT + get(b"X: " + b"a" * 100 + b"\r\n"), HeaderTooLarge),
        (Limits(body=4), post(b"Content-Length: 5\r\n", b"hello"), BodyTooLarge),
        (Limits(body=4), CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", BodyTooLarge),
        (Limits(headers=2), CHUNKED + b"0\r\n" + b"X: a\r\n" * 3 + b"\r\n", HeaderTooLarge),
    ],
)
def test_limits_are_exact_for_what_is_complete(limits: Limits, data: bytes, error: type[ProxyError]) -> None:
    assert read_alike(data, limits).error is error


@pytest.mark.parametrize(
    ("start", "more", "error"),
    [
        (CHUNKED + b"5;", b"a", BadRequest),
        (CHUNKED + b"0\r\n", b"X: a\r\n", ProxyError),
        (CHUNKED + b"0\r\nX: ", b"a", BadRequest),
        (b"", b"\r\n", HeaderTooLarge),
        (b"GET / HTTP/1.1\r\n", b"X: a\r\n", HeaderTooLarge),
        (b"GET / HTTP/1.1\r\nX: ", b"a", HeaderTooLarge),
        (b"GET /", b"a", UriTooLong),
        (NEXT + b"GET / HTTP/1.1\r\nX: ", b"a", HeaderTooLarge),
    ],
)
@pytest.mark.parametrize("size", [FEED, 1000])
def test_what_has_no_end_is_refused(start: bytes, more: bytes, error: type[ProxyError], size: int) -> None:
    got = read(pieces(start + more * (400_000 // len(more)), size))
    assert got.error is not None
    assert issubclass(got.error, error)


def test_small_chunks_are_not_taken_for_an_attack() -> None:
    got = read(pieces(CHUNKED + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"))
    assert (got.error, len(got.bodies[0])) == (None, 100_000)


def test_expectations_are_noted_where_there_is_a_body() -> None:
    reader = RequestReader(Limits())
    reader.feed(post(b"Expect: 100-Continue\r\nContent-Length: 2\r\n"))
    assert reader.requests[0].expects_continue
    reader = RequestReader(Limits())
    reader.feed(get(b"Expect: 100-continue\r\n"))
    assert not reader.requests[0].expects_continue
    assert read([get(b"Expect: x\r\n")]).error is ExpectationFailed


def test_blanks_around_a_value_are_no_part_of_it() -> None:
    """RFC 9110 5.5: else each number of them would be another key of a limit."""
    reader = RequestReader(Limits())
    reader.feed(get(b"X-Key: \t a b \t \r\nX-Empty:  \r\n"))
    assert reader.requests[0].headers[-2:] == [(b"X-Key", b"a b"), (b"X-Empty", b"")]


def test_a_raw_body_leaves_the_reader_at_the_next_request() -> None:
    reader = RequestReader(Limits())
    reader.feed(post(b"Content-Length: 10\r\n", b"hello"))
    request = reader.requests.popleft()
    assert reader.raw_body(request) == 5
    assert reader.raw_body(request) == 0
    reader.feed(NEXT)
    assert reader.requests[0].target == b"/next"


def test_a_raw_body_is_not_given_out_when_nothing_is_missing_or_something_is_wrong() -> None:
    reader = RequestReader(Limits())
    reader.feed(post(b"Content-Length: 5\r\n", b"hello") + CHUNKED)
    assert [reader.raw_body(request) for request in reader.requests] == [0, 0]


# Remembered heads


def test_a_remembered_head_is_read_as_the_first_time() -> None:
    limits = Limits()
    for data in (get(b"Connection: keep-alive\r\n"), post(b"Content-Length: 5\r\n", b"hello")):
        first = read([data], limits)
        assert read([data], limits) == first
        assert read([data + NEXT], limits).targets == [b"/", b"/next"]
    assert len(limits.seen) == 2


def test_a_remembered_block_is_no_part_of_a_head_under_way() -> None:
    limits = Limits()
    read([NEXT], limits)
    head = b"GET /cut HTTP/1.1\r\nX: a"
    assert read([NEXT + head, NEXT], limits) == read([NEXT + head + NEXT])
    assert read([head, NEXT], limits) == read([head + NEXT])


def test_a_request_behind_an_empty_line_is_not_remembered_as_a_block() -> None:
    limits = Limits()
    read([b"\r\n" + get()], limits)
    assert read([b"GET /x HTTP/1.1\r\n" + get()], limits).error is BadRequest


def test_a_remembered_block_with_a_body_of_another_length_goes_to_the_parser() -> None:
    limits = Limits()
    head = post(b"Content-Length: 5\r\n")
    read([head + b"hello"], limits)
    assert read([head + b"hell"], limits).targets == []
    assert read([head + b"hello" + NEXT], limits).targets == [b"/", b"/next"]
    assert read([get(b"Content-Length: 5\r\n") + b"hell", b"o" + NEXT], limits).bodies == [b"hello", b""]


# What is passed on is read alike by others


def passed_on(request: Request) -> bytes | None:
    """`request` as an exchange sends it upstream; None if the exchange refuses its target or host."""
    try:
        authority, path, query = split_target(request.target)
        authority_host(authority or request.authority)
        path = path if path == b"*" and request.method == "OPTIONS" else normalise(path)
    except BadRequest:
        return None
    fields = [*request.passing, (b"via", b"1.1 me")]
    body = b"".join(request.body)
    if request.chunked:
        fields.append((b"transfer-encoding", b"chunked"))
        trailers = b"".join(b"%b: %b\r\n" % field for field in clean_trailers(request.trailers))
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n" + trailers + b"\r\n"
    target = path if query is None else b"%b?%b" % (path, query)
    head = b"%b %b HTTP/1.1\r\nhost: a\r\n" % (request.method.encode(), target)
    return head + b"\r\n".join(map(b": ".join, fields)) + b"\r\n\r\n" + body


def assert_safe_to_pass_on(data: bytes, *, every_cut: bool) -> None:
    reader = RequestReader(Limits())
    reader.feed(data)
    for request in reader.requests:
        if request.complete and (sent := passed_on(request)) is not None:
            passed = read_alike_by_all(sent)
            assert (passed.method, passed.body) == (request.method.encode(), b"".join(request.body))
    whole = read([data])
    for feeds in cuts(data) if every_cut else [pieces(data, 1)]:
        assert_same(read(feeds), whole)


@pytest.mark.parametrize("part", range(10))  # so that none takes long where much else runs
def test_what_is_passed_on_is_read_alike_by_three_parsers(part: int) -> None:
    @seed(100 + part)
    @settings(GENERATED, max_examples=1_000)
    @given(STREAMS)
    def check(data: bytes) -> None:
        assert_safe_to_pass_on(data, every_cut=False)

    check()


@seed(2)
@settings(GENERATED, max_examples=500)
@given(STREAMS)
def test_generated_requests_are_read_alike_however_they_are_cut(data: bytes) -> None:
    assert_safe_to_pass_on(data, every_cut=True)
