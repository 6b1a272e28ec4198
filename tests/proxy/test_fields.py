"""Which fields pass, which are understood, and which a client can neither have removed nor smuggle in."""

from __future__ import annotations

import pytest

from ambassador.messages import Fields
from ambassador.proxy.fields import REQUEST_FIELDS, RESPONSE_FIELDS, Sorter, clean_trailers, tokens


def passing(*fields: tuple[bytes, bytes]) -> Fields:
    return REQUEST_FIELDS.sort(list(fields))[0]


def test_order_case_and_duplicates_are_kept() -> None:
    fields = [(b"X-B", b"1"), (b"x-a", b"2"), (b"X-B", b" 3 "), (b"Content-Length", b"0")]
    assert passing(*fields) == fields


@pytest.mark.parametrize("name", [
    b"Connection", b"Keep-Alive", b"Proxy-Connection", b"TE", b"Transfer-Encoding", b"Upgrade", b"HTTP2-Settings",
    b"Proxy-Authorization", b"X-Ambassador-Secret", b"X-Forwarded-For", b"Via", b"X_Forwarded_For", b"X-Forwarded_Proto",
    b"Content_Length", b"Transfer_Encoding", b"x_ambassador_attempt", b"Proxy_Authorization", b"Host", b"Expect",
])  # fmt: skip
def test_the_proxys_own_fields_do_not_pass(name: bytes) -> None:
    assert passing((name, b"x"), (name.lower(), b"x"), (b"X-Other_One", b"y")) == [(b"X-Other_One", b"y")]


def test_repeated_special_fields_are_joined() -> None:
    special = REQUEST_FIELDS.sort([(b"Via", b" 1.1 a\t"), (b"VIA", b"1.1 b")])[1]
    assert special == {b"via": b"1.1 a, 1.1 b"}


@pytest.mark.parametrize(
    "connection", [[b"x-gone"], [b"close, X-Gone"], [b"", b"x-gone"], [b",,x-gone ,"], [b"close", b"X-GONE"]]
)
def test_nominated_fields_are_removed(connection: list[bytes]) -> None:
    fields = [(b"Connection", value) for value in connection]
    assert passing(*fields, (b"X-Gone", b"1"), (b"X-Stays", b"2")) == [(b"X-Stays", b"2")]


def test_a_client_cannot_have_protected_fields_removed() -> None:
    kept = [
        (b"Authorization", b"a"), (b"Cookie", b"b"), (b"X-Api-Key", b"c"), (b"Content-Length", b"0"),
        (b"Content-Type", b"d"), (b"Idempotency-Key", b"e"), (b"Cache-Control", b"f"),
    ]  # fmt: skip
    nominated = b"close, Host, X-Forwarded-For, " + b", ".join(name for name, _ in kept)
    got, special = REQUEST_FIELDS.sort(
        [(b"Connection", nominated), (b"Host", b"a"), (b"X-Forwarded-For", b"1"), *kept]
    )
    assert got == kept
    assert (special[b"host"], special[b"x-forwarded-for"]) == (b"a", b"1")


def test_answers_keep_what_their_reader_needs() -> None:
    fields = [
        (b"Connection", b"set-cookie, x-gone"),
        (b"Set-Cookie", b"a"),
        (b"X-Gone", b"b"),
        (b"Date", b"c"),
    ]
    assert RESPONSE_FIELDS.sort(fields)[0] == [(b"Set-Cookie", b"a"), (b"Date", b"c")]


def test_the_memory_of_names_is_bounded() -> None:
    sorter = Sorter({})
    sorter.sort([(b"x-%d" % number, b"") for number in range(10_000)])
    assert len(sorter._kinds) <= 2048


def test_tokens_are_lower_case_and_stripped() -> None:
    assert tokens(b"Trailers ,\tgzip") == {b"trailers", b"gzip"}


@pytest.mark.parametrize("name", [
    b"Content-Length", b"Transfer-Encoding", b"Host", b"Authorization", b"Cookie", b"Set-Cookie", b"Trailer",
    b"Proxy-Anything", b"X-Forwarded-Port", b"X-Ambassador-X", b"If-Match", b"Range", b"content_length", b"TE",
])  # fmt: skip
def test_trailers_with_a_say_are_dropped(name: bytes) -> None:
    assert clean_trailers([(name, b"x"), (b"Grpc-Status", b"0")]) == [(b"Grpc-Status", b"0")]


def test_trailers_with_barred_names_are_dropped_in_any_spelling() -> None:
    trailers = [(b"X-Client", b"a"), (b"x_client", b"a"), (b"X-Sum", b"1")]
    assert clean_trailers(trailers, {b"x-client"}) == [(b"X-Sum", b"1")]
