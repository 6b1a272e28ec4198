from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.clients.basic import Config, presented


@given(st.binary(max_size=50).filter(lambda name: b":" not in name), st.binary(max_size=50))
def test_presented_gives_user_and_password(user: bytes, password: bytes) -> None:
    assert presented(base64.b64encode(user + b":" + password)) == user + b":" + password


@pytest.mark.parametrize("credentials", [b"", b"YQ==", b"!", b"YTpi!", b"YTp", b"\xff"])
def test_presented_is_none_for_what_is_no_pair(credentials: bytes) -> None:
    assert presented(credentials) is None


def test_a_user_has_no_colon() -> None:
    assert Config.refusal("user", "a:b") is not None
    assert Config.refusal("user", "a") is None
    assert Config.refusal("password", "file:/x") is None
