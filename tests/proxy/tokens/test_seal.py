"""Sealed values: read by whoever has the key, under the name and version that they were sealed for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ambassador.proxy.tokens.seal import NONCE_BYTES, Sealer
from ambassador.secret import SecretError, Secrets

NONCE = bytes(range(NONCE_BYTES))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("a long enough secret key\n")
    return path


def sealer(path: Path) -> Sealer:
    return Sealer(Secrets().get(f"file:{path}"))


def test_sealer_opens_what_another_with_the_same_key_sealed(key: Path) -> None:
    sealed = sealer(key).seal("token:x", 3, b"the token", NONCE)
    assert b"the token" not in sealed
    assert sealer(key).open("token:x", 3, sealed) == b"the token"
    assert sealer(key).key_id == sealer(key).key_id


@pytest.mark.parametrize(("name", "version"), [("token:y", 3), ("token:x", 4), ("token:x", 2)])
def test_sealer_opens_nothing_under_another_name_or_version(key: Path, name: str, version: int) -> None:
    sealed = sealer(key).seal("token:x", 3, b"the token", NONCE)
    assert sealer(key).open(name, version, sealed) is None


def test_sealer_takes_what_another_key_sealed_for_nothing(key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("another long enough key")
    sealed = sealer(other).seal("token:x", 3, b"the token", NONCE)
    assert sealer(key).open("token:x", 3, sealed) is None
    assert sealer(key).key_id != sealer(other).key_id


def test_sealer_opens_nothing_that_was_changed_anywhere(key: Path) -> None:
    mine = sealer(key)
    sealed = mine.seal("token:x", 3, b"the token", NONCE)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert mine.open("token:x", 3, bytes(changed)) is None
    for size in range(len(sealed)):
        assert mine.open("token:x", 3, sealed[:size]) is None


def test_sealer_goes_by_the_key_that_the_file_holds_now(key: Path) -> None:
    secrets = Secrets()
    secret = secrets.get(f"file:{key}")
    mine = Sealer(secret)
    sealed, before = mine.seal("token:x", 1, b"the token", NONCE), mine.key_id
    key.write_text("this key takes its place")
    secrets.refresh()
    assert mine.key_id != before
    assert mine.open("token:x", 1, sealed) is None


def test_sealer_refuses_a_key_that_can_be_guessed(key: Path) -> None:
    key.write_text("short")
    with pytest.raises(SecretError, match="shorter than 16"):
        sealer(key).seal("token:x", 1, b"", NONCE)


def test_sealer_says_that_there_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(SecretError):
        _ = sealer(tmp_path / "nothing").key_id
