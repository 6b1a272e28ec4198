"""Words: what is accepted, in which canonical form, and what is refused with which hint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ambassador.config import words
from ambassador.config.units import Wrong
from ambassador.extras import Extra
from ambassador.proxy import path_regex


@pytest.mark.parametrize(
    ("parse", "text", "canonical"),
    [
        (words.listen_address, "127.0.0.1:8080", "127.0.0.1:8080"),
        (words.listen_address, "LOCALHOST:0", "localhost:0"),
        (words.listen_address, "[::0]:80", "[::]:80"),
        (words.listen_address, "unix:/run/a.sock", "unix:/run/a.sock"),
        (words.endpoint_url, "http://A.example:9000", "http://a.example:9000"),
        (words.endpoint_url, "http://a/", "http://a:80"),
        (words.endpoint_url, "HTTP://[::1]", "http://[::1]:80"),
        (words.endpoint_url, "HTTPS://A.example", "https://a.example:443"),
        (words.endpoint_url, "https://[::1]:8443/", "https://[::1]:8443"),
        (words.endpoint_url, "unix:/run/b.sock", "unix:/run/b.sock"),
        (words.cidr, "10.0.0.0/8", "10.0.0.0/8"),
        (words.cidr, "::1", "::1/128"),
        (words.host_pattern, "*", "*"),
        (words.host_pattern, "*.Example.COM.", "*.example.com"),
        (words.host_pattern, "[::1]", "[::1]"),
        (words.host, "keep", "keep"),
        (words.host, "a.b:80", "a.b:80"),
        (words.path_pattern, "/", "/"),
        (words.path_pattern, "/**", "/**"),
        (words.path_pattern, "/v1/accounts/{id}/x/**", "/v1/accounts/{id}/x/**"),
        (words.method, "PROPFIND", "PROPFIND"),
        (words.method, "QUERY", "QUERY"),
        (words.template, "{client} {{x}} {param.id}", "{client} {{x}} {param.id}"),
        (words.retry_condition, "502-504", "502-504"),
        (words.secret, "file:/run/t", "file:/run/t"),
        (words.state_url, "local", "local"),
        (words.state_url, "redis://user@h:1/2", "redis://user@h:1/2"),
        (words.state_url, "rediss+sentinel://a,b:1/main?ca=/x", "rediss+sentinel://a,b:1/main?ca=/x"),
        (words.state_url, "redis+cluster://a,[::1]:1", "redis+cluster://a,[::1]:1"),
        (words.state_url, "unix:/run/redis.sock", "unix:/run/redis.sock"),
    ],
)
def test_word_accepted(parse: Callable[[str], str], text: str, canonical: str) -> None:
    assert parse(text) == canonical


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (words.listen_address, "8080"),
        (words.listen_address, "127.0.0.1"),
        (words.listen_address, "::1:80"),
        (words.listen_address, "a:99999"),
        (words.listen_address, "1.2.3:80"),
        (words.listen_address, "unix:relative"),
        (words.listen_address, "unix:/" + "x" * 120),
        (words.endpoint_url, "http://a/path"),
        (words.endpoint_url, "http://user:password@a"),
        (words.endpoint_url, "http://a:0"),
        (words.endpoint_url, "http://"),
        (words.endpoint_url, "ftp://a"),
        (words.cidr, "10.0.0.1/8"),
        (words.cidr, "home"),
        (words.host_pattern, "a.*"),
        (words.host_pattern, "a.b:80"),
        (words.host_pattern, "bücher.example"),
        (words.path_pattern, "x"),
        (words.path_pattern, "/a/../b"),
        (words.path_pattern, "/%7Euser"),
        (words.path_pattern, "/a?b"),
        (words.path_pattern, "/a*"),
        (words.path_pattern, "/**/x"),
        (words.path_pattern, "/{a}/{a}"),
        (words.path_pattern, "/x{a}"),
        (words.path_pattern, "/café"),
        (words.method, "get"),
        (words.method, "GTE"),
        (words.header_name, "x y"),
        (words.header_value, "a\r\nb"),
        (words.header_value, "a\0"),
        (words.template, "{nope}"),
        (words.template, "{"),
        (words.retry_condition, "conect"),
        (words.retry_condition, "504-502"),
        (words.retry_condition, "200"),
        (words.retry_condition, "grpc:unavailable"),
        (words.regex, "(a"),
        (words.regex, r"(a)\1"),
        (words.name, "-"),
        (words.name, "a/b"),
        (words.log_target, "syslog"),
        (words.control, "127.0.0.1:1"),
        (words.state_url, "locale"),
        (words.state_url, "redis:/h"),
        (words.state_url, "memcached://h"),
        (words.state_url, "redis+sentinel://h"),
        (words.state_url, "redis://h/0?retry=9"),
    ],
)
def test_word_refused(parse: Callable[[str], str], text: str) -> None:
    with pytest.raises(Wrong):
        parse(text)


@pytest.mark.parametrize("text", ["hunter2", "env:1x", "file:relative", "vault:x"])
def test_secret_is_not_repeated(text: str) -> None:
    with pytest.raises(Wrong) as caught:
        words.secret(text)
    assert text not in f"{caught.value.problem} {caught.value.hint}"


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
        words.state_url(text)
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
    assert words.is_for_this_host(address) is here


@pytest.mark.parametrize("text", ["route", "client_ip", "upstream", "header:x-tenant"])
def test_limit_per_is_one_of_a_few_or_a_header(text: str) -> None:
    assert words.limit_per(text.replace("x-", "X-")) == text


@pytest.mark.parametrize("text", ["client_ip", "header:x-tenant", "cookie:Sid"])
def test_balance_key_is_the_address_a_header_or_a_cookie(text: str) -> None:
    assert words.balance_key(text.replace("x-", "X-")) == text


@pytest.mark.parametrize("text", ["", "client", "header:", "header:a b", "cookie:", "cookie:a;b", "query:x"])
def test_balance_key_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        words.balance_key(text)


@pytest.mark.parametrize("text", ["eu-west-1a", "env:ZONE", "env:_z1"])
def test_zone_is_a_name_or_a_variable(text: str) -> None:
    assert words.zone(text) == text


@pytest.mark.parametrize("text", ["", "a b", "env:", "env:1", "env:a-b"])
def test_zone_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        words.zone(text)


@pytest.mark.parametrize("text", ["client", "route", "client_ip", "upstream"])
def test_limit_per_takes_its_words(text: str) -> None:
    assert words.limit_per(text) == text


@pytest.mark.parametrize("text", ["header", "header:", "header:a b", "ip", "Route", ""])
def test_limit_per_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        words.limit_per(text)


@pytest.mark.parametrize("text", ["1", "250", "header:x-cost"])
def test_limit_cost_is_a_number_or_a_header(text: str) -> None:
    assert words.limit_cost(text) == text


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "01", "header", "header:\n", "many"])
def test_limit_cost_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        words.limit_cost(text)


def test_redis_is_refused_where_its_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "REDIS", Extra("redis", ("no_such_module",)))
    assert words.state_url("local") == "local"
    for url in ("redis://h", "unix:/run/redis.sock"):
        with pytest.raises(Wrong) as caught:
            words.state_url(url)
        assert caught.value.problem == "a Redis needs the extra 'redis', which is not installed"
        assert caught.value.hint == "pip install 'ambassador-proxy[redis]'"


def test_regex_that_only_re2_can_match_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "RE2", Extra("re2", ("no_such_module",)))
    monkeypatch.setattr(path_regex, "re2", None)
    with pytest.raises(Wrong) as caught:
        words.regex("(?i)a")
    assert caught.value.hint == "pip install 'ambassador-proxy[re2]'"
    with pytest.raises(Wrong) as caught:
        words.regex(r"(a)\1")
    assert caught.value.hint is None  # RE2 could not do it either


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("A.Internal", "a.internal"), ("*.Internal", "*.internal"), ("spiffe://T/ns/*", "spiffe://T/ns/*"),
        ("a@B.test", "a@B.test"), ("10.0.0.1", "10.0.0.1"), ("2001:DB8::0:1", "2001:db8::1"), ("*", "*"),
    ],
)  # fmt: skip
def test_san_pattern_reads_names_of_certificates(text: str, read: str) -> None:
    assert words.san_pattern(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "", "a b", "a*.internal", "*a.internal", "spiffe://t/*/a", "spiffe://t/ns*", "*@b.test", "10.0.0.*", "a..b",
        "a/b", "a\nb", "-a.internal",
    ],
)  # fmt: skip
def test_san_pattern_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        words.san_pattern(text)


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
    assert words.jwks_source(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "", "jwks.json", "file:jwks", "ftp://id.test/", "https://", "https://a:b@id.test/", "https://id.test/#a",
        "https://id.test/a b", "http://id.example.com/jwks", "http://10.0.0.1/jwks",
    ],
)  # fmt: skip
def test_jwks_source_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        words.jwks_source(text)


def test_client_name_may_stand_for_all() -> None:
    assert (words.client_name("*"), words.client_name("a")) == ("*", "a")
    with pytest.raises(Wrong):
        words.client_name("*a")


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
        words.endpoint_url(f"http://{authority}:80")
    with pytest.raises(Wrong):
        words.endpoint_url(f"http://{authority}")


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://a:70", "ftp://a", "http+unix://a", "//a", "dict://a:1"]
)
def test_endpoint_url_has_no_other_scheme(url: str) -> None:
    with pytest.raises(Wrong):
        words.endpoint_url(url)


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
    read = words.endpoint_url(url)
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
    assert words.egress_place(text) == place


@pytest.mark.parametrize(
    "text", ["*", "10.0.0.1/8", "10.0.0.0/33", "a/b", "a:80", "*.a.*", "0x7f.1", "http://a", ""]
)
def test_egress_place_refuses_the_rest(text: str) -> None:
    with pytest.raises(Wrong):
        words.egress_place(text)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (words.endpoint_url, "http://[fe80::1%25lo]:8001"),
        (words.endpoint_url, "https://[fe80::1%eth0]"),
        (words.proxy_url, "socks5://[fe80::1%lo]:1080"),
        (words.token_url, "https://[fe80::1%lo]/token"),
        (words.jwks_source, "https://[fe80::1%lo]/keys"),
    ],
)
def test_address_with_a_zone_is_nothing_to_connect_to(read: Callable[[str], str], text: str) -> None:
    with pytest.raises(Wrong, match="zone"):
        read(text)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (words.token_url, "ftp://id.test/t?secret=CANARY"),
        (words.token_url, "https://id.test:0/t?secret=CANARY"),
        (words.jwks_source, "ftp://id.test/t?secret=CANARY"),
        (words.jwks_source, "http://id.test/t?secret=CANARY"),
    ],
)
def test_query_of_a_url_is_in_no_problem(read: Callable[[str], str], text: str) -> None:
    with pytest.raises(Wrong) as wrong:
        read(text)
    assert "CANARY" not in f"{wrong.value.problem}{wrong.value.hint}"
