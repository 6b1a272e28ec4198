from __future__ import annotations

import pytest

from ambassador.errors import ConnectFailed
from ambassador.proxy.upstream.passage import Passage
from ambassador.proxy.upstream.via import Config

HTTP = Config(url="http://proxy.test:3128", user="me", password="file:/p")
SOCKS = Config(url="socks5://[::1]:1080", user="me", password="file:/p")
SHOWN = b"Basic bWU6cw=="


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://id.test/token?a=1", b"id.test:443"),
        ("https://id.test:8443/token", b"id.test:8443"),
        ("https://[2001:db8::1]/", b"[2001:db8::1]:443"),
    ],
)
def test_passage_to_https_is_a_tunnel_that_shows_the_password_in_its_greeting_alone(
    url: str, target: bytes
) -> None:
    passage = Passage(HTTP, "s", url)
    greeting = passage.greeting()
    assert passage.proxy == ("proxy.test", 3128)
    assert greeting is not None
    assert greeting.begin() == (
        b"CONNECT %b HTTP/1.1\r\nhost: %b\r\nproxy-authorization: %b\r\n\r\n" % (target, target, SHOWN)
    )
    assert passage.target("/token?a=1") == "/token?a=1"
    assert passage.fields() == []
    assert not passage.is_refusal(407)


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://id.test/token", "http://id.test/token?a=1"),
        ("http://id.test:80/", "http://id.test/token?a=1"),
        ("http://[::1]:8080/", "http://[::1]:8080/token?a=1"),
    ],
)
def test_passage_to_plain_http_is_by_whole_urls(url: str, whole: str) -> None:
    passage = Passage(HTTP, "s", url)
    assert passage.greeting() is None
    assert passage.target("/token?a=1") == whole
    assert passage.fields() == [(b"proxy-authorization", SHOWN)]
    assert passage.is_refusal(407)
    assert not passage.is_refusal(401)
    assert Passage(Config(url="http://proxy.test:3128"), None, url).fields() == []


@pytest.mark.parametrize("url", ["http://id.test/", "https://id.test/"])
def test_passage_by_socks_is_a_tunnel(url: str) -> None:
    passage = Passage(SOCKS, "s", url)
    greeting = passage.greeting()
    assert passage.proxy == ("::1", 1080)
    assert greeting is not None
    assert greeting.begin() == b"\5\2\0\2"
    assert passage.target("/") == "/"
    assert passage.fields() == []
    with pytest.raises(ConnectFailed, match="1 to 255 bytes"):
        Passage(SOCKS, "s" * 256, url).greeting()


def test_passage_can_be_asked_for_a_tunnel() -> None:
    assert Passage(HTTP, "s", "http://a.test", tunnel=True).greeting() is not None


def test_passage_shows_no_password_when_it_is_printed() -> None:
    assert "s3cret" not in repr(Passage(HTTP, "s3cret", "https://id.test/"))
