"""What token services answer, as they write it, and what nobody should write."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.tokens.answer import (
    DEFAULT_LIFE_S,
    FAILED,
    MALFORMED,
    MOST_BYTES,
    MOST_LIFE_S,
    MOST_TOKEN,
    REFUSED,
    Failure,
    Granted,
    read,
)

KEYCLOAK = {
    "access_token": "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjF9.c2ln",
    "expires_in": 300,
    "refresh_expires_in": 0,
    "token_type": "Bearer",
    "not-before-policy": 0,
    "scope": "profile email",
}
AUTH0 = {
    "access_token": "eyJz93a.k4laUWw",
    "scope": "read:all",
    "expires_in": 86400,
    "token_type": "Bearer",
}
EXCHANGED = {
    "access_token": "abc",
    "issued_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_type": "N_A",
    "expires_in": 60,
}


def answer(**members: object) -> bytes:
    return json.dumps({"access_token": "t", "token_type": "bearer", **members}).encode()


@pytest.mark.parametrize(("body", "life_s"), [(KEYCLOAK, 300), (AUTH0, 86400), (EXCHANGED, 60)])
def test_read_takes_the_token_of_known_services(body: dict[str, object], life_s: float) -> None:
    assert read(200, json.dumps(body).encode()) == Granted(str(body["access_token"]), life_s)


@pytest.mark.parametrize("kind", ["bearer", "Bearer", "BEARER"])
def test_read_compares_the_kind_of_token_in_any_case(kind: str) -> None:
    assert isinstance(read(200, answer(token_type=kind)), Granted)


@pytest.mark.parametrize("kind", ["mac", "DPoP", 1, None, ["bearer"]])
def test_read_refuses_another_kind_of_token(kind: object) -> None:
    found = read(200, answer(token_type=kind))
    assert isinstance(found, Failure)
    assert found.result == MALFORMED


@pytest.mark.parametrize(
    ("expires_in", "life_s"),
    [
        (60, 60),
        ("60", 60),
        (60.5, 60.5),
        ("1e2", 100),
        (10**30, MOST_LIFE_S),
        ("99999999999", MOST_LIFE_S),
        (None, DEFAULT_LIFE_S),
        ("soon", DEFAULT_LIFE_S),
        ("nan", DEFAULT_LIFE_S),
        ("inf", DEFAULT_LIFE_S),
        (True, DEFAULT_LIFE_S),
        ([], DEFAULT_LIFE_S),
    ],
)
def test_read_makes_of_expires_in_what_can_be_made_of_it(expires_in: object, life_s: float) -> None:
    assert read(200, answer(expires_in=expires_in)) == Granted("t", life_s)


@pytest.mark.parametrize("expires_in", [0, -1, "-5", -(10**30)])
def test_read_takes_no_token_that_has_expired(expires_in: object) -> None:
    found = read(200, answer(expires_in=expires_in))
    assert isinstance(found, Failure)
    assert found.result == MALFORMED


@pytest.mark.parametrize(
    "token", ["a b", "a\r\nx: y", "a\n", "\x00", "tökén", "", "a\x7f", 5, None, "t" * (MOST_TOKEN + 1)]
)
def test_read_takes_no_token_that_a_header_cannot_hold(token: object) -> None:
    found = read(200, answer(access_token=token))
    assert isinstance(found, Failure)
    assert found.result == MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"<html>",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"access_token":"a","access_token":"b","token_type":"bearer"}',
        b'{"access_token":"a","token_type":"bearer","expires_in":NaN}',
        b'{"access_token":"a","token_type":"bearer","x":%b}' % (b"9" * 5000),
        b'{"access_token":"a","token_type":"bearer","x":"%b"}' % (b"x" * MOST_BYTES),
        b"access_token=a&token_type=bearer",
    ],
)
def test_read_takes_nothing_of_what_is_not_plain_json(body: bytes) -> None:
    found = read(200, body)
    assert isinstance(found, Failure)
    assert found.result == MALFORMED


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (
            401,
            {"error": "invalid_client", "error_description": "Invalid client credentials"},
            "invalid_client",
        ),
        (400, {"error": "invalid_scope"}, "invalid_scope"),
        (403, {"error": "access_denied"}, "access_denied"),
        (200, {"error": "incorrect_client_credentials"}, "incorrect_client_credentials"),
        (400, {"error": "say\r\nSet-Cookie: x"}, ""),
        (400, {"error": {"code": 1}}, ""),
        (404, {}, ""),
    ],
)
def test_read_keeps_of_a_refusal_its_code_alone(status: int, body: dict[str, object], code: str) -> None:
    found = read(status, json.dumps(body).encode())
    assert isinstance(found, Failure)
    assert (found.result, found.code) == (REFUSED, code)
    assert "description" not in found.why
    assert "\r" not in found.why


@pytest.mark.parametrize("status", [500, 502, 503, 408, 429])
def test_read_tells_a_service_that_cannot_from_one_that_does_not_want_to(status: int) -> None:
    found = read(status, b'{"error":"server_error"}', after=b"7")
    assert isinstance(found, Failure)
    assert (found.result, found.after_s) == (FAILED, 7.0)


@pytest.mark.parametrize("status", [301, 302, 307, 201, 204])
def test_read_takes_nothing_of_other_statuses(status: int) -> None:
    found = read(status, answer())
    assert isinstance(found, Failure)
    assert found.result == MALFORMED


def test_granted_shows_no_token_when_it_is_printed() -> None:
    assert "s3cret" not in repr(Granted("s3cret", 1.0))


@given(st.integers(0, 999), st.binary(max_size=200), st.binary(max_size=20))
def test_read_never_raises(status: int, body: bytes, after: bytes) -> None:
    found = read(status, body, after=after)
    assert isinstance(found, Failure | Granted)
