from __future__ import annotations

import pytest

from ambassador.observe.secret_names import names_a_secret


@pytest.mark.parametrize(
    "name",
    [
        b"authorization", b"Proxy-Authorization", b"cookie", b"Set-Cookie", b"x-api-key", b"x-vault-token", b"X-Auth-Token",
        b"apiKey", b"client_secret", b"%74oken", b"%2574oken", b"user[password]", b"X-Amz-Signature", b"code", b"sig",
    ],
)  # fmt: skip
def test_name_of_a_secret_is_known(name: bytes) -> None:
    assert names_a_secret(name)


@pytest.mark.parametrize(
    "name", [b"", b"q", b"sort", b"encode", b"tokens", b"x-key-id", b"content-type", b"author"]
)
def test_other_name_is_not(name: bytes) -> None:
    assert not names_a_secret(name)
