"""What is said to egress proxies, whole and split at every byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.errors import ConnectFailed
from ambassador.proxy.upstream.greeting import Connect, Greeting, Socks5


def a_connect() -> Greeting:
    return Connect(b"api.test:443", b"Basic eA==")


def a_socks() -> Greeting:
    return Socks5("api.test", 443)


def a_login() -> Greeting:
    return Socks5("api.test", 443, "me", "secret")


def talk(greeting: Greeting, said: bytes, sizes: Callable[[int], int]) -> bytes:
    """Feed what the proxy says in pieces, of which no one is longer than what is wanted: all that it is told."""
    told = greeting.begin()
    while said and greeting.wants:
        size = max(1, min(greeting.wants, sizes(len(said))))
        piece, said = said[:size], said[size:]
        told += greeting.feed(piece)
    assert not said, f"{said!r} is left for the endpoint"
    return told


CASES = [
    pytest.param(
        a_connect,
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"CONNECT api.test:443 HTTP/1.1\r\nhost: api.test:443\r\nproxy-authorization: Basic eA==\r\n\r\n",
        id="connect",
    ),
    pytest.param(
        lambda: Connect(b"[::1]:443"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 299 Fine\r\ncontent-length: 9\r\n\r\n",
        b"CONNECT [::1]:443 HTTP/1.1\r\nhost: [::1]:443\r\n\r\n",
        id="connect with fields that mean nothing",
    ),
    pytest.param(
        a_socks,
        b"\5\0\5\0\0\1\x7f\0\0\1\1\2",
        b"\5\1\0\5\1\0\3\x08api.test\1\xbb",
        id="socks",
    ),
    pytest.param(
        lambda: Socks5("10.0.0.1", 80),
        b"\5\0\5\0\0\4" + bytes(18),
        b"\5\1\0\5\1\0\1\n\0\0\1\0P",
        id="socks to an IPv4 address",
    ),
    pytest.param(
        lambda: Socks5("::1", 80),
        b"\5\0\5\0\0\3\0\1\2",
        b"\5\1\0\5\1\0\4" + bytes(15) + b"\1\0P",
        id="socks to an IPv6 address, an empty name in the answer",
    ),
    pytest.param(
        a_login,
        b"\5\2\1\0\5\0\0\3\4name\1\2",
        b"\5\2\0\2\1\2me\6secret\5\1\0\3\x08api.test\1\xbb",
        id="socks with a password",
    ),
    pytest.param(
        a_login,
        b"\5\0\5\0\0\1\0\0\0\0\0\0",
        b"\5\2\0\2\5\1\0\3\x08api.test\1\xbb",
        id="socks that asks for no password",
    ),
]


@pytest.mark.parametrize(("make", "said", "told"), CASES)
def test_greeting_leads_on(make: Callable[[], Greeting], said: bytes, told: bytes) -> None:
    for size in range(1, len(said) + 1):
        greeting = make()
        assert talk(greeting, said, lambda _, size=size: size) == told  # type: ignore[misc]
        assert greeting.wants == 0
    for cut in range(1, len(said)):
        greeting = make()
        talk(greeting, said[:cut], lambda left: left)
        assert greeting.wants > 0


@pytest.mark.parametrize(
    ("make", "said", "why"),
    [
        (a_connect, b"HTTP/1.1 407 Auth\r\n\r\n", "does not take the credentials"),
        (lambda: Connect(b"a:443"), b"HTTP/1.1 407 Auth\r\n\r\n", "wants credentials"),
        (a_connect, b"HTTP/1.1 403 Forbidden\r\ncontent-length: 5\r\n\r\n", "with status 403"),
        (a_connect, b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", "with status 302"),
        (a_connect, b"HTTP/1.1 200 OK\r\n\r\n\x16", "bytes behind its answer"),
        (a_connect, b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "malformed"),
        (a_connect, b"SSH-2.0-OpenSSH\r\n\r\n", "malformed"),
        (a_connect, b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "malformed"),
        (a_connect, b"HTTP/1.1 100 C\r\n\r\n" * 9, "malformed"),
        (a_connect, b"HTTP/1.1 200 OK\r\na: " + b"a" * 20000, "malformed"),
        (a_socks, b"\4\0", "does not speak SOCKS5"),
        (a_socks, b"HT", "does not speak SOCKS5"),
        (a_socks, b"\5\xff", "wants credentials"),
        (a_socks, b"\5\2", "in a way that is not known"),
        (a_login, b"\5\xff", "in a way that is not known"),
        (a_login, b"\5\1", "in a way that is not known"),
        (a_login, b"\5\2\1\1", "does not take the credentials"),
        (a_socks, b"\5\0\5\2\0\1\0", "its rules forbid it"),
        (a_socks, b"\5\0\5\5\0\1\0", "was refused"),
        (a_socks, b"\5\0\5\x63\0\1\0", "does not say why"),
        (a_socks, b"\5\0\4\0\0\1\0", "malformed"),
        (a_socks, b"\5\0\5\0\0\2\0", "malformed"),
    ],
)
def test_greeting_fails(make: Callable[[], Greeting], said: bytes, why: str) -> None:
    for sizes in (lambda left: left, lambda _: 100):
        with pytest.raises(ConnectFailed, match=why) as failed:
            talk(make(), said, sizes)
        assert "api.test" not in failed.value.detail
        assert "secret" not in failed.value.detail


@given(st.binary(max_size=400), st.sampled_from([a_connect, a_socks, a_login]))
def test_whatever_a_proxy_says_is_taken_or_refused(said: bytes, make: Callable[[], Greeting]) -> None:
    greeting = make()
    told = greeting.begin()
    try:
        while said and greeting.wants:
            piece, said = said[: greeting.wants], said[greeting.wants :]
            told += greeting.feed(piece)
    except ConnectFailed:
        pass
    assert len(told) < 200


@pytest.mark.parametrize(("user", "password"), [("u" * 256, "p"), ("u", "p" * 256), ("", "p"), ("u", "")])
def test_login_that_does_not_fit_is_refused(user: str, password: str) -> None:
    with pytest.raises(ConnectFailed, match="1 to 255 bytes"):
        Socks5("a", 1, user, password)
