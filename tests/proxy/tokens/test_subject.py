"""The tokens that callers come with: found, or not believed to be one."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.tokens.subject import MOST_BYTES, expires_at, subject_of


def jwt(payload: object) -> bytes:
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return b"e30." + urlsafe_b64encode(text).rstrip(b"=") + b".c2ln"


@pytest.mark.parametrize("value", [b"Bearer abc", b"bearer abc", b"BEARER   abc", b" Bearer   abc \t"])
def test_subject_is_the_bearer_token(value: bytes) -> None:
    assert subject_of([(b"a", b"b"), (b"Authorization", value)]) == b"abc"


@pytest.mark.parametrize(
    "value",
    [b"", b"Bearer", b"Bearer ", b"Basic abc", b"Bearer a b", b"Bearer a\tb", b"Bearer t\xc3\xb6k", b"Bearerabc", b"abc",
     b"Bearer " + b"x" * (MOST_BYTES + 1)],
)  # fmt: skip
def test_subject_is_nothing_else(value: bytes) -> None:
    assert subject_of([(b"authorization", value)]) is None


def test_subject_of_two_is_none() -> None:
    assert subject_of([]) is None
    assert subject_of([(b"authorization", b"Bearer a"), (b"Authorization", b"Bearer a")]) is None


def test_expiry_is_what_a_jwt_says() -> None:
    assert expires_at(jwt({"exp": 1_800_000_000})) == 1_800_000_000
    assert expires_at(jwt({"exp": 1_800_000_000.5})) == 1_800_000_000.5


@pytest.mark.parametrize(
    "token",
    [b"opaque", b"a.b", b"a.b.c.d", b"..", jwt({}), jwt({"exp": "1"}), jwt({"exp": True}), jwt({"exp": None}),
     jwt([1]), jwt(b"{"), jwt(b'{"exp": 1e999}'), jwt(b'{"exp": NaN}'), jwt(b'{"exp": %b}' % (b"9" * 400)),
     jwt(b"[" * 5000), jwt(b"\xff")],
)  # fmt: skip
def test_expiry_of_anything_else_is_unknown(token: bytes) -> None:
    assert expires_at(token) is None


@given(st.binary(max_size=60))
def test_expiry_never_raises(token: bytes) -> None:
    expires_at(token)
