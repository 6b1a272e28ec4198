"""Places: what is accepted, in which canonical form, and what is refused with which hint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ambassador.config import addresses
from ambassador.config.units import Wrong
from ambassador.extras import Extra


@pytest.mark.parametrize(
    ("parse", "text", "canonical"),
    [
        (addresses.listen_address, "127.0.0.1:8080", "127.0.0.1:8080"),
        (addresses.listen_address, "LOCALHOST:0", "localhost:0"),
        (addresses.listen_address, "[::0]:80", "[::]:80"),
        (addresses.listen_address, "unix:/run/a.sock", "unix:/run/a.sock"),
        (addresses.endpoint_url, "http://A.example:9000", "http://a.example:9000"),
        (addresses.endpoint_url, "http://a/", "http://a:80"),
        (addresses.endpoint_url, "HTTP://[::1]", "http://[::1]:80"),
        (addresses.endpoint_url, "HTTPS://A.example", "https://a.example:443"),
        (addresses.endpoint_url, "https://[::1]:8443/", "https://[::1]:8443"),
        (addresses.endpoint_url, "unix:/run/b.sock", "unix:/run/b.sock"),
        (addresses.cidr, "10.0.0.0/8", "10.0.0.0/8"),
        (addresses.cidr, "::1", "::1/128"),
        (addresses.host_pattern, "*", "*"),
        (addresses.host_pattern, "*.Example.COM.", "*.example.com"),
        (addresses.host_pattern, "[::1]", "[::1]"),
        (addresses.host, "keep", "keep"),
        (addresses.host, "a.b:80", "a.b:80"),
        (addresses.state_url, "local", "local"),
        (addresses.state_url, "redis://user@h:1/2", "redis://user@h:1/2"),
        (addresses.state_url, "rediss+sentinel://a,b:1/main?ca=/x", "rediss+sentinel://a,b:1/main?ca=/x"),
        (addresses.state_url, "redis+cluster://a,[::1]:1", "redis+cluster://a,[::1]:1"),
        (addresses.state_url, "unix:/run/redis.sock", "unix:/run/redis.sock"),
    ],
)
def test_place_accepted(parse: Callable[[str], str], text: str, canonical: str) -> None:
    assert parse(text) == canonical


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (addresses.listen_address, "8080"),
        (addresses.listen_address, "127.0.0.1"),
        (addresses.listen_address, "::1:80"),
        (addresses.listen_address, "a:99999"),
        (addresses.listen_address, "1.2.3:80"),
        (addresses.listen_address, "unix:relative"),
        (addresses.listen_address, "unix:/" + "x" * 120),
        (addresses.endpoint_url, "http://a/path"),
        (addresses.endpoint_url, "http://user:password@a"),
        (addresses.endpoint_url, "http://a:0"),
        (addresses.endpoint_url, "http://"),
        (addresses.endpoint_url, "ftp://a"),
        (addresses.cidr, "10.0.0.1/8"),
        (addresses.cidr, "home"),
        (addresses.host_pattern, "a.*"),
        (addresses.host_pattern, "a.b:80"),
        (addresses.host_pattern, "bücher.example"),
        (addresses.control, "127.0.0.1:1"),
        (addresses.state_url, "locale"),
        (addresses.state_url, "redis:/h"),
        (addresses.state_url, "memcached://h"),
        (addresses.state_url, "redis+sentinel://h"),
        (addresses.state_url, "redis://h/0?retry=9"),
    ],
)
def test_place_refused(parse: Callable[[str], str], text: str) -> None:
    with pytest.raises(Wrong):
        parse(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("redis://:hunter2@h", "password"),
        ("redis://me:hunter2@h/0", "password"),
        ("redis+sentinel://h/main?sentinel_password=hunter2", "sentinel_password"),
        ("redis://:hunter2@h:port", ""),
        ("redis//me:hunter2@h", ""),
    ],
)
def test_password_in_the_url_of_a_store_is_refused_and_not_repeated(text: str, key: str) -> None:
    with pytest.raises(Wrong) as caught:
        addresses.state_url(text)
    said = f"{caught.value.problem} {caught.value.hint}"
    assert "hunter2" not in said
    assert f"{key}: env:NAME" in said or not key


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("unix:/x", True),
        ("localhost:1", True),
        ("a.localhost:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("0.0.0.0:1", False),
        ("a:1", False),
    ],
)
def test_address_is_for_this_host(address: str, *, here: bool) -> None:
    assert addresses.is_for_this_host(address) is here


def test_redis_is_refused_where_its_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "REDIS", Extra("redis", ("no_such_module",)))
    assert addresses.state_url("local") == "local"
    for url in ("redis://h", "unix:/run/redis.sock"):
        with pytest.raises(Wrong) as caught:
            addresses.state_url(url)
        assert caught.value.problem == "a Redis needs the extra 'redis', which is not installed"
        assert caught.value.hint == "pip install 'ambassador-proxy[redis]'"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("A.Internal", "a.internal"), ("*.Internal", "*.internal"), ("spiffe://T/ns/*", "spiffe://T/ns/*"),
        ("a@B.test", "a@B.test"), ("10.0.0.1", "10.0.0.1"), ("2001:DB8::0:1", "2001:db8::1"), ("*", "*"),
    ],
)  # fmt: skip
def test_san_pattern_reads_names_of_certificates(text: str, read: str) -> None:
    assert addresses.san_pattern(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "", "a b", "a*.internal", "*a.internal", "spiffe://t/*/a", "spiffe://t/ns*", "*@b.test", "10.0.0.*", "a..b",
        "a/b", "a\nb", "-a.internal",
    ],
)  # fmt: skip
def test_san_pattern_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        addresses.san_pattern(text)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("https://id.example.com/jwks?x=1", "https://id.example.com:443/jwks?x=1"),
        ("https://id.example.com", "https://id.example.com:443/"),
        ("http://127.0.0.1:8080/jwks", "http://127.0.0.1:8080/jwks"),
        ("http://a.localhost/jwks", "http://a.localhost:80/jwks"),
        ("http://[::1]/jwks", "http://[::1]:80/jwks"),
        ("http://localhost:1/", "http://localhost:1/"),
        ("/etc/jwks.json", "file:/etc/jwks.json"), ("file:/etc/jwks.json", "file:/etc/jwks.json"),
    ],
)  # fmt: skip
def test_jwks_source_reads_urls_and_files(text: str, read: str) -> None:
    assert addresses.jwks_source(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "", "jwks.json", "file:jwks", "ftp://id.test/", "https://", "https://a:b@id.test/", "https://id.test/#a",
        "https://id.test/a b", "http://id.example.com/jwks", "http://10.0.0.1/jwks",
    ],
)  # fmt: skip
def test_jwks_source_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        addresses.jwks_source(text)


@pytest.mark.parametrize(
    "authority",
    [
        "2130706433",  # 127.0.0.1 as one number
        "017700000001",
        "0x7f000001",
        "0X7F.0.0.1",
        "0x7f.1",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "127.0.0.0x1",
        "a.0x7f",
        "a.1",
        "1.2.3.4.5",
        "256.0.0.1",
        "127.0.0.1\u3002",
        "\uff11\uff12\uff17.0.0.1",  # fullwidth digits
        "\u2460.0.0.1",
        "local\u200bhost",
        "lo\u0441alhost",  # a Cyrillic letter
        "user@127.0.0.1",
        "user:password@a.example",
        "a.example@127.0.0.1",
        "[::ffff:127.0.0.1%25lo]",
        "[::1%lo]",
        "[127.0.0.1]",
        "[::ffff:0x7f.1]",
        "a b",
        "a\\@b",
        "a%2eb",
        "a\tb",
        "a..b",
        "",
    ],
)
def test_endpoint_url_has_no_second_spelling_of_an_address(authority: str) -> None:
    with pytest.raises(Wrong):
        addresses.endpoint_url(f"http://{authority}:80")
    with pytest.raises(Wrong):
        addresses.endpoint_url(f"http://{authority}")


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://a:70", "ftp://a", "http+unix://a", "//a", "dict://a:1"]
)
def test_endpoint_url_has_no_other_scheme(url: str) -> None:
    with pytest.raises(Wrong):
        addresses.endpoint_url(url)


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("http://metadata.google.internal.", "http://metadata.google.internal:80"),
        ("http://METADATA.google.internal:80", "http://metadata.google.internal:80"),
        ("http://[::FFFF:127.0.0.1]", "http://[::ffff:127.0.0.1]:80"),
        ("http://10.0.0.1.", "http://10.0.0.1:80"),
        ("http://a.1b:80", "http://a.1b:80"),
    ],
)
def test_endpoint_url_has_one_spelling(url: str, canonical: str) -> None:
    read = addresses.endpoint_url(url)
    assert ipaddress_form(read) == ipaddress_form(canonical)


def ipaddress_form(url: str) -> str:
    """IPv4-mapped addresses are written in two ways by different versions of Python."""
    return url.replace("::ffff:7f00:1", "::ffff:127.0.0.1")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("::1", "::1/128"),
        ("[::1]", "::1/128"),
        ("Api.Internal.", "api.internal"),
        ("*.Internal", "*.internal"),
    ],
)
def test_egress_place_is_a_network_or_a_host(text: str, place: str) -> None:
    assert addresses.egress_place(text) == place


@pytest.mark.parametrize(
    "text", ["*", "10.0.0.1/8", "10.0.0.0/33", "a/b", "a:80", "*.a.*", "0x7f.1", "http://a", ""]
)
def test_egress_place_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        addresses.egress_place(text)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (addresses.endpoint_url, "http://[fe80::1%25lo]:8001"),
        (addresses.endpoint_url, "https://[fe80::1%eth0]"),
        (addresses.proxy_url, "socks5://[fe80::1%lo]:1080"),
        (addresses.token_url, "https://[fe80::1%lo]/token"),
        (addresses.jwks_source, "https://[fe80::1%lo]/keys"),
    ],
)
def test_address_with_a_zone_is_nothing_to_connect_to(read: Callable[[str], str], text: str) -> None:
    with pytest.raises(Wrong, match="zone"):
        read(text)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (addresses.token_url, "ftp://id.test/t?secret=CANARY"),
        (addresses.token_url, "https://id.test:0/t?secret=CANARY"),
        (addresses.jwks_source, "ftp://id.test/t?secret=CANARY"),
        (addresses.jwks_source, "http://id.test/t?secret=CANARY"),
    ],
)
def test_query_of_a_url_is_in_no_problem(read: Callable[[str], str], text: str) -> None:
    with pytest.raises(Wrong) as wrong:
        read(text)
    assert "CANARY" not in f"{wrong.value.problem}{wrong.value.hint}"
