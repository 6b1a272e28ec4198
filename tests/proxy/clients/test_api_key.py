from __future__ import annotations

import hmac

import pytest

from ambassador.proxy.clients import api_key
from ambassador.proxy.clients.api_key import Digests
from ambassador.secret import Secrets


def digests(*secrets: tuple[bytes, int]) -> Digests:
    made = Digests()
    for secret, client in secrets:
        made.add(secret, client)
    return made


def test_digests_find_whose_a_secret_is() -> None:
    made = digests((b"one", 0), (b"two", 1))
    assert (made.find(b"one"), made.find(b"two")) == (0, 1)
    for wrong in (b"", b"One", b"on", b"one ", b"three"):
        assert made.find(wrong) is None


def test_digests_keep_the_first_of_two_with_the_same_secret() -> None:
    assert digests((b"same", 3), (b"same", 4)).find(b"same") == 3


def test_digests_keep_no_secret() -> None:
    made = digests((b"canary", 0))
    assert b"canary" not in repr(made._entries).encode()


def test_compare_digest_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    made, compared = digests((b"one", 0)), []

    def differ(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return False

    monkeypatch.setattr(hmac, "compare_digest", differ)
    assert made.find(b"one") is None
    assert compared == [(32, 32)]


def test_find_takes_a_bearer_key_from_authorization_only() -> None:
    made = digests((b"one", 0))
    assert api_key.find(made, b"Bearer one", b"authorization") == 0
    assert api_key.find(made, b"one", b"authorization") == 0
    assert api_key.find(made, b"Bearer one", b"x-api-key") is None


def test_read_keys_leaves_out_what_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_THERE", "one")
    monkeypatch.delenv("KEY_GONE", raising=False)
    secrets = Secrets()
    assert api_key.read_keys([secrets.get("env:KEY_GONE"), secrets.get("env:KEY_THERE")]) == [b"one"]
