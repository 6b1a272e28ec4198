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
        (words.path_pattern, "/", "/"),
        (words.path_pattern, "/**", "/**"),
        (words.path_pattern, "/v1/accounts/{id}/x/**", "/v1/accounts/{id}/x/**"),
        (words.method, "PROPFIND", "PROPFIND"),
        (words.method, "QUERY", "QUERY"),
        (words.template, "{client} {{x}} {param.id}", "{client} {{x}} {param.id}"),
        (words.retry_condition, "502-504", "502-504"),
        (words.secret, "file:/run/t", "file:/run/t"),
    ],
)
def test_word_accepted(parse: Callable[[str], str], text: str, canonical: str) -> None:
    assert parse(text) == canonical


@pytest.mark.parametrize(
    ("parse", "text"),
    [
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


def test_regex_that_only_re2_can_match_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "RE2", Extra("re2", ("no_such_module",)))
    monkeypatch.setattr(path_regex, "re2", None)
    with pytest.raises(Wrong) as caught:
        words.regex("(?i)a")
    assert caught.value.hint == "pip install 'ambassador-proxy[re2]'"
    with pytest.raises(Wrong) as caught:
        words.regex(r"(a)\1")
    assert caught.value.hint is None  # RE2 could not do it either


def test_client_name_may_stand_for_all() -> None:
    assert (words.client_name("*"), words.client_name("a")) == ("*", "a")
    with pytest.raises(Wrong):
        words.client_name("*a")
