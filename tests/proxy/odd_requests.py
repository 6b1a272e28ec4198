"""Requests that are hostile or odd, by name and by generator, as the bytes of a client's stream, and ways to cut these.

For the tests of the parser and for those that send them through a whole service.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from ambassador.errors import BadRequest, NotImplementedByProxy, VersionNotSupported

FEED = 65536
"""Bytes of the longest feed."""
HOST = b"Host: a\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """`data` in two pieces in every way, and byte by byte."""
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]
    yield [data[at : at + 1] for at in range(len(data))]


def pieces(data: bytes, size: int = FEED) -> list[bytes]:
    """`data` in pieces of at most `size` bytes."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def get(fields: bytes = b"", line: bytes = b"GET / HTTP/1.1") -> bytes:
    return line + b"\r\n" + HOST + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\n" + HOST + fields + b"\r\n" + body


# What httptools, h11 and gunicorn_h1c were found to accept differently, and the rest of the table they agree on.
STRICTNESS = {
    "plain": (get(), None),
    "cl-and-te": (post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), BadRequest),
    "te-and-cl": (post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), BadRequest),
    "cl-twice-same": (post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), BadRequest),
    "cl-twice-other": (post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"), BadRequest),
    "cl-list": (post(b"Content-Length: 5, 5\r\n", b"hello"), BadRequest),
    "cl-plus": (post(b"Content-Length: +5\r\n", b"hello"), BadRequest),
    "cl-minus": (post(b"Content-Length: -5\r\n", b"hello"), BadRequest),
    "cl-hex": (post(b"Content-Length: 0x5\r\n", b"hello"), BadRequest),
    "cl-empty": (post(b"Content-Length: \r\n", b"hello"), BadRequest),
    "obs-fold": (get(b"X: a\r\n b\r\n"), BadRequest),
    "bare-lf": (b"GET / HTTP/1.1\nHost: a\n\n", BadRequest),
    "http-1.9": (get(line=b"GET / HTTP/1.9"), VersionNotSupported),
    "http-2.0": (get(line=b"GET / HTTP/2.0"), VersionNotSupported),
    "http-0.9": (b"GET / HTTP/0.9\r\n\r\n", VersionNotSupported),
    "te-gzip-chunked": (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), NotImplementedByProxy),
    "te-in-1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BadRequest),
    "two-hosts": (get(b"Host: b\r\n"), BadRequest),
    "no-host": (b"GET / HTTP/1.1\r\n\r\n", BadRequest),
    "space-before-colon": (get(b"X : a\r\n"), BadRequest),
    "no-name": (get(b": a\r\n"), BadRequest),
    "nul-in-value": (get(b"X: a\0b\r\n"), BadRequest),
    "nul-in-target": (get(line=b"GET /\0 HTTP/1.1"), BadRequest),
    "chunk-size-0x": (CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", BadRequest),
}

HOSTILE = {
    "te-te": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n"),
    "te-x": post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "te-empty": post(b"Transfer-Encoding: \r\n", b"0\r\n\r\n"),
    "te-vertical-tab": post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "te-space": post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    "te-fold": post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "te-quoted": post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"),
    "te-chunked-chunked": post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "te-chunked-identity": post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "cl-space": post(b"Content-Length: 5 5\r\n", b"hello"),
    "cl-huge": post(b"Content-Length: 99999999999999999999999\r\n", b"hello"),
    "cl-19-digits": post(b"Content-Length: 1000000000000000000\r\n", b"hello"),
    "extension-lf": CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "extension-cr": CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "extension-nul": CHUNKED + b"5;a\0b\r\nhello\r\n0\r\n\r\n",
    "chunk-lf": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "chunk-lf-behind": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "chunk-long": CHUNKED + b"5\r\nhello!!0\r\n\r\n",
    "chunk-empty": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "chunk-minus": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "chunk-overflow": CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "trailer-cl-twice": CHUNKED + b"0\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "trailer-cl-word": CHUNKED + b"0\r\nContent-Length: x\r\n\r\n",
    "trailer-fold": CHUNKED + b"0\r\nX: a\r\n b\r\n\r\n" + NEXT,
    "lf-in-head": get(b"X: a\nY: b\r\n"),
    "lf-ends-head": b"GET / HTTP/1.1\r\n" + HOST + b"\n" + NEXT,
    "cr-in-value": get(b"X: a\rb\r\n"),
    "cr-cr-lf": get(b"X: a\r\r\n"),
    "del-in-value": get(b"X: a\x7fb\r\n"),
    "escape-in-value": get(b"X: a\x1bb\r\n"),
    "high-byte-in-name": get(b"X\xe9: a\r\n"),
    "nul-in-name": get(b"X\0: a\r\n"),
    "no-colon": get(b"abc\r\n"),
    "field-before-head": b"GET / HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n",
    "high-byte-in-target": get(line=b"GET /\xc3\xa9 HTTP/1.1"),
    "rtsp-get": get(line=b"GET / RTSP/1.1"),
    "rtsp-other-version": get(line=b"GET / RTSP/1.2"),
    "ice-source": get(line=b"SOURCE / ICE/1.1"),
    "two-spaces-before-target": get(line=b"GET  / HTTP/1.1"),
    "two-spaces-before-version": get(line=b"GET /  HTTP/1.1"),
    "two-spaces-in-other-version": get(line=b"GET  / HTTP/2.0"),
    "tab-behind-space": get(line=b"GET \t/ HTTP/1.1"),
    "tab-before-version": get(line=b"GET /\tHTTP/1.1"),
    "tab-behind-target": get(line=b"GET / \tHTTP/1.1"),
    "tab-behind-line": get(line=b"GET / HTTP/1.1\t"),
    "space-before-line": get(line=b" GET / HTTP/1.1"),
    "tab-in-line": get(line=b"GET\t/ HTTP/1.1"),
    "space-behind-line": get(line=b"GET / HTTP/1.1 "),
    "lower-http": get(line=b"GET / http/1.1"),
    "http-1.10": get(line=b"GET / HTTP/1.10"),
    "http-3.0": get(line=b"GET / HTTP/3.0"),
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http-0.9-simple": b"GET /\r\n\r\n",
    "rtsp": b"DESCRIBE / RTSP/1.0\r\n" + HOST + b"\r\n",
    "ice": b"SOURCE / ICE/1.0\r\n" + HOST + b"\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "connect": get(line=b"CONNECT a:443 HTTP/1.1"),
    "expectation": post(b"Expect: 200-ok\r\nContent-Length: 5\r\n", b"hello"),
    "absolute-two-hosts": get(b"Host: b\r\n", b"GET http://a/ HTTP/1.1"),
}

ACCEPTED = {
    "chunked-get": (b"GET" + CHUNKED[4:] + b'5;a=b;c="d"\r\nhello\r\n0\r\n\r\n', b"hello"),
    "chunk-leading-zeros": (CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    "length-on-get": (get(b"Content-Length: 5\r\n") + b"hello", b"hello"),
    "length-leading-zeros": (post(b"Content-Length: 005\r\n", b"hello"), b"hello"),
    "te-other-case": (post(b"tRANSFER-eNCODING: Chunked\r\n", b"1\r\nx\r\n0\r\n\r\n"), b"x"),
    "empty-lines-before": (b"\r\n\r\n" + get(), b""),
    "upgrade-with-length": (
        post(b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 31\r\n", NEXT),
        NEXT,
    ),
    "upgrade-chunked": (
        CHUNKED[:-2]
        + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n1f\r\n"
        + NEXT
        + b"\r\n0\r\n\r\n",
        NEXT,
    ),
    "upgrade-no-body": (get(b"Upgrade: websocket\r\nConnection: Upgrade\r\n"), b""),
    "upgrade-not-connected": (get(b"Upgrade: websocket\r\n"), b""),
    "trailer-framing": (
        CHUNKED + b"1\r\nx\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: gzip\r\nConnection: close\r\n\r\n",
        b"x",
    ),
    "trailer-framing-behind-upgrade": (
        CHUNKED[:-2]
        + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n1\r\nx\r\n0\r\nContent-Length: 5\r\nUpgrade: x\r\n\r\n",
        b"x",
    ),
    "1.0-keep-alive": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b""),
}


# Generated

METHODS = st.sampled_from(
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"PROPFIND", b"TRACE"]
)
TARGETS = st.one_of(
    st.sampled_from([
        b"/", b"*", b"/a/../b?c=d", b"/a//b", b"/%2e%2e/x", b"/%2F?", b"http://a/x?y", b"http://a:80", b"/..", b"/a#b", b"a",
    ]),
    st.from_regex(rb"/[!-~]{0,12}(\?[!-~]{0,8})?", fullmatch=True),
)  # fmt: skip
FIELDS = st.one_of(
    st.sampled_from([
        b"Connection: close", b"Connection: keep-alive, x-a", b"Connection: content-length, host", b"Connection:",
        b"Upgrade: h2c", b"Connection: Upgrade", b"TE: trailers", b"Expect: 100-continue", b"Via: 1.1 x", b"X-A: 1",
        b"Content-Length: 3", b"Content-Length: 0", b"Content-Length: 03", b"Content-Length: 3, 3", b"Content-Length: +3",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity",
        b"Transfer-Encoding : chunked", b"Transfer-Encoding:\x0bchunked", b"Transfer_Encoding: chunked",
        b"Content_Length: 3", b"Host: b", b" folded", b"X: a\nY: b", b"X: a\rb", b"X: a\0b", b": a", b"Trailer: x-t",
    ]),
    st.from_regex(rb"[A-Za-z][A-Za-z0-9_-]{0,8}:[ \t]?[\t -~\x80-\xff]{0,12}", fullmatch=True),
)  # fmt: skip
CHUNKS = st.lists(
    st.sampled_from([
        b"3\r\nabc\r\n", b"1;x=y\r\nz\r\n", b'2;q="a;b"\r\nhi\r\n', b"03\r\n\r\n0\r\n", b"3\nabc\r\n", b"3\r\nabcd\r\n",
        b"3;a\nb\r\nabc\r\n", b"0x3\r\nabc\r\n",
    ]),
    max_size=3,
).map(b"".join)  # fmt: skip
ENDS = st.sampled_from([
    b"0\r\n\r\n", b"0\r\nX-T: 1\r\n\r\n", b"0\r\nHost: evil\r\nContent_Length: 9\r\n\r\n", b"0\r\nContent-Length: 1\r\n\r\n",
    b"0\r\n", b"0\n\n",
])  # fmt: skip


@st.composite
def generated_requests(draw: st.DrawFn) -> bytes:
    """One request, most often well-formed, with its body or with another's."""
    version = draw(st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/1.9", b"HTTP/2.0", b"HTTP/0.9"]))
    lines = [
        b" ".join((draw(METHODS), draw(TARGETS), version)),
        b"Host: a",
        *draw(st.lists(FIELDS, max_size=4)),
    ]
    kind = draw(st.integers(0, 3))
    body = b""
    if kind == 1:
        body = draw(st.binary(max_size=12))
        lines.append(b"Content-Length: %d" % len(body))
    elif kind == 2:
        body = draw(CHUNKS) + draw(ENDS)
        lines.append(b"Transfer-Encoding: chunked")
    elif kind == 3:
        body = draw(st.sampled_from([b"", b"abc", b"\r\n", b"0\r\n\r\n", NEXT]))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


STREAMS = st.one_of(
    st.lists(generated_requests(), min_size=1, max_size=2).map(b"".join),
    st.sampled_from(
        [*HOSTILE.values(), *(data for data, _ in ACCEPTED.values()), *(d for d, _ in STRICTNESS.values())]
    ),
)
GENERATED = settings(
    deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)  # fmt: skip
