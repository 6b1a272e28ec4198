"""The request target: what is matched and forwarded, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.errors import BadRequest
from ambassador.proxy.path import authority_host, normalise, split_target

NORMALISED = [
    (b"/", b"/"),
    (b"/v1/accounts/42", b"/v1/accounts/42"),
    (b"/a/./b", b"/a/b"),
    (b"/a/../b", b"/b"),
    (b"/a/b/..", b"/a/"),
    (b"/a/.", b"/a/"),
    (b"/a/..", b"/"),
    (b"/%2e%2E/", None),
    (b"/a/%2e%2e/b", b"/b"),
    (b"/a/.%2E/b", b"/b"),
    (b"/a/%2e/b", b"/a/b"),
    (b"/..", None),
    (b"/a/../..", None),
    (b"/a//b", b"/a//b"),
    (b"//", b"//"),
    (b"/a//../b", b"/a/b"),
    (b"/.//x", b"//x"),
    (b"/...", b"/..."),
    (b"/.hidden/..b/c.", b"/.hidden/..b/c."),
    (b"/.well-known/x", b"/.well-known/x"),
    (b"/%61%7E%2d", b"/a~-"),
    (b"/a%2fb", b"/a%2Fb"),
    (b"/a%5cb%00c", b"/a%5Cb%00c"),
    (b"/..%2f..%2fetc", b"/..%2F..%2Fetc"),
    (b"/%252e%252e/x", b"/%252e%252e/x"),
    (b"/caf%c3%a9", b"/caf%C3%A9"),
    (b"/%c0%ae%c0%ae/x", b"/%C0%AE%C0%AE/x"),
    (b'/"<>[]^`{|}', b"/%22%3C%3E%5B%5D%5E%60%7B%7C%7D"),
    (b"/a;v=1/b", b"/a;v=1/b"),
    (b"/a/..;/b", None),
    (b"/a/%2e%2e;x/b", None),
    (b"/a/.;x", None),
    (b"/a%", None),
    (b"/a%4", None),
    (b"/a%zz", None),
    (b"/a%+1", None),
    (b"/a\\b", None),
    (b"/a b", None),
    (b"/a\x00", None),
    (b"/a\r\nx: y", None),
    (b"/a\x7f", None),
    (b"/caf\xc3\xa9", None),
    (b"/a#b", None),
    (b"/a?b", None),
    (b"", None),
    (b"*", None),
    (b"a/b", None),
]


@pytest.mark.parametrize(("path", "expected"), NORMALISED)
def test_normalise_table(path: bytes, expected: bytes | None) -> None:
    if expected is None:
        with pytest.raises(BadRequest):
            normalise(path)
    else:
        assert normalise(path) == expected


_PIECES = st.sampled_from(
    [
        b"/",
        b"//",
        b".",
        b"..",
        b"a",
        b"%2e",
        b"%2E",
        b"%2f",
        b"%5c",
        b"%00",
        b"%41",
        b"%",
        b"%2",
        b";",
        b"[",
        b"~",
        b"\\",
        b"\x80",
    ]
)


@given(st.one_of(st.binary(max_size=30), st.lists(_PIECES, max_size=12).map(b"".join)))
def test_normalise_is_idempotent_and_leaves_nothing_ambiguous(tail: bytes) -> None:
    try:
        once = normalise(b"/" + tail)
    except BadRequest:
        return
    assert normalise(once) == once
    assert once.startswith(b"/")
    assert not {b".", b".."} & set(once.split(b"/"))
    assert all(0x20 < byte < 0x7F for byte in once)
    assert not set(once) & set(b'#?\\"<>[]^`{|}')


@given(st.binary(max_size=12))
def test_normalise_keeps_every_byte_that_is_properly_escaped(raw: bytes) -> None:
    escaped = b"/x" + b"".join(b"%%%02x" % byte for byte in raw)
    kept = normalise(escaped)
    for forbidden in (b"/", b"\\", b"\0"):
        assert forbidden not in kept[1:]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/", (None, b"/", None)),
        (b"/a/b?c=d?e", (None, b"/a/b", b"c=d?e")),
        (b"/a?", (None, b"/a", b"")),
        (b"//evil/x", (None, b"//evil/x", None)),
        (b"/?q=\xc3\xa9%zz", (None, b"/", b"q=\xc3\xa9%zz")),
        (b"*", (None, b"*", None)),
        (b"http://h", (b"h", b"/", None)),
        (b"HTTP://h:80/a?b", (b"h:80", b"/a", b"b")),
        (b"https://h?b", (b"h", b"/", b"b")),
        (b"http://u@h/", (b"u@h", b"/", None)),
    ],
)
def test_split_target_forms(target: bytes, expected: tuple[bytes | None, bytes, bytes | None]) -> None:
    assert split_target(target) == expected


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"h:443",
        b"ftp://h/",
        b"a/b",
        b"/a?b#c",
        b"/a?b c",
        b"/a?b\0",
        b"/a?\r\nx: y",
        b"://h/",
        b"?a",
        b"http:/h",
    ],
)
def test_split_target_refuses(target: bytes) -> None:
    with pytest.raises(BadRequest):
        split_target(target)


def test_split_target_leaves_a_fragment_of_the_path_to_normalise() -> None:
    for target in (b"/a#b", b"http://h#b", b"http://h/a#?b"):
        with pytest.raises(BadRequest):
            normalise(split_target(target)[1])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Billing.Internal", ("billing.internal", None)),
        (b"billing.internal.:8080", ("billing.internal", 8080)),
        (b"under_score-1", ("under_score-1", None)),
        (b"127.0.0.1:65535", ("127.0.0.1", 65535)),
        (b"h:", ("h", None)),
        (b"[::1]", ("[::1]", None)),
        (b"[2001:DB8:0:0::1]:80", ("[2001:db8::1]", 80)),
    ],
)
def test_authority_host_accepts(value: bytes, expected: tuple[str, int | None]) -> None:
    assert authority_host(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"", b":80", b".", b"..", b"a..b", b".a", b"a b", b" a", b"a\t", b"u@h", b"u:p@h", b"h/x", b"h?x", b"h#x", b"h\\x", b"h,h2",
        b"h:0", b"h:65536", b"h:123456", b"h:-1", b"h:+1", b"h:8x", b"h:80:80", b"h%41", b"*", b"h\0", b"h\r\n", b"h\n", b"caf\xc3\xa9",
        b"::1", b"[::1", b"::1]", b"[::1]x", b"[::1%25lo]", b"[1]", b"[]", b"[v1.x]", b"h:\xb2", b"a" * 255,
    ],
)  # fmt: skip
def test_authority_host_refuses(value: bytes) -> None:
    with pytest.raises(BadRequest):
        authority_host(value)


def test_authority_host_keeps_a_bounded_cache() -> None:
    for number in range(3000):
        authority_host(b"host-%d" % number)
    assert authority_host.cache_info().currsize <= 1024
