from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from ambassador.secret import MOST_BYTES, SecretError, Secrets, quiet, read_secret


def test_secret_is_read_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "from env")
    (tmp_path / "t").write_text("from file\n")
    assert read_secret("env:TOKEN") == "from env"
    assert read_secret(f"file:{tmp_path}/t") == "from file"
    (tmp_path / "t").write_text("\n")
    (tmp_path / "long").write_bytes(b"x" * (MOST_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for bad in (
        "env:NONE",
        *(f"file:{tmp_path}/{name}" for name in ("none", "t", "long", "binary", "n\0ul")),
    ):
        with pytest.raises(SecretError):
            read_secret(bad)


def test_device_and_pipe_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(SecretError):
            read_secret(f"file:{path}")


class Kept:
    """Secrets of one file, and what they say of it."""

    def __init__(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.file = tmp_path / "token"
        self.secrets = Secrets(logging.getLogger("test"))
        self.log = caplog

    def messages(self) -> list[str]:
        """What was said since the last call."""
        said = [record.getMessage() for record in self.log.records]
        self.log.clear()
        return said


@pytest.fixture
def kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Kept:
    caplog.set_level(logging.DEBUG)
    return Kept(tmp_path, caplog)


def test_changed_file_is_a_new_version(kept: Kept) -> None:
    kept.file.write_text("one")
    secret = kept.secrets.get(f"file:{kept.file}")
    assert (secret.value, secret.version) == ("one", 1)
    kept.secrets.refresh()
    assert secret.version == 1
    kept.file.write_text("two\n")
    kept.secrets.refresh()
    assert (secret.value, secret.version) == ("two", 2)
    assert kept.messages() == []


def test_value_stays_while_the_file_is_away_and_is_told_of_once(kept: Kept) -> None:
    kept.file.write_text("one")
    secret = kept.secrets.get(f"file:{kept.file}")
    kept.file.unlink()
    kept.secrets.refresh()
    kept.secrets.refresh()
    assert (secret.value, secret.version) == ("one", 1)
    assert kept.messages() == [f"file:{kept.file}: cannot be read, what was read before is used"]
    kept.file.write_text("")
    kept.secrets.refresh()
    assert kept.messages() == [f"file:{kept.file}: is empty, what was read before is used"]
    kept.file.write_text("two")
    kept.secrets.refresh()
    kept.file.unlink()
    kept.secrets.refresh()
    assert secret.value == "two"
    assert len(kept.messages()) == 1  # it was well in between


def test_secret_that_never_was_there_raises_until_it_comes(kept: Kept) -> None:
    secret = kept.secrets.get(f"file:{kept.file}")
    with pytest.raises(SecretError, match="cannot be read"):
        _ = secret.value
    assert kept.messages() == [f"file:{kept.file}: cannot be read"]
    kept.file.write_text("late")
    kept.secrets.refresh()
    assert (secret.value, secret.version) == ("late", 1)


def test_same_reference_is_the_same_secret_and_goes_when_nobody_holds_it(kept: Kept) -> None:
    kept.file.write_text("one")
    reference = f"file:{kept.file}"
    secret = kept.secrets.get(reference)
    assert kept.secrets.get(reference) is secret
    assert kept.secrets.files() == [secret]
    del secret
    assert not kept.secrets.files()
    home = kept.secrets.get("env:HOME")
    assert not kept.secrets.files()  # what a process has in its environment stays
    assert home.value


def test_value_is_in_no_repr(kept: Kept) -> None:
    kept.file.write_text("hidden")
    secret = kept.secrets.get(f"file:{kept.file}")
    assert "hidden" not in repr(secret) + str(secret) + repr(kept.secrets)


def test_value_that_cannot_be_used_is_told_of_once_for_each(kept: Kept) -> None:
    kept.file.write_text("one")
    secret = kept.secrets.get(f"file:{kept.file}")
    for _ in range(2):
        secret.unusable("is no key")
    assert kept.messages() == [f"file:{kept.file}: is no key"]
    kept.file.write_text("two")
    kept.secrets.refresh()
    secret.unusable("is no key")
    assert len(kept.messages()) == 1


def test_quiet_log_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Secrets(quiet()).get(f"file:{tmp_path / 'none'}").unusable("is no key")
    assert caplog.messages == []


def test_what_another_process_read_stands_in_for_what_cannot_be_read(kept: Kept) -> None:
    reference = f"file:{kept.file}"
    kept.secrets.hand_over({reference: "one"})
    secret = kept.secrets.get(reference)
    assert (secret.value, secret.version) == ("one", 1)
    assert kept.messages() == [f"{reference}: cannot be read, what was read before is used"]
    kept.secrets.refresh()
    assert (secret.value, secret.version) == ("one", 1)
    assert kept.messages() == []
    kept.file.write_text("two")
    kept.secrets.refresh()
    assert (secret.value, secret.version) == ("two", 2)


def test_what_can_be_read_comes_before_what_another_process_read(kept: Kept) -> None:
    kept.file.write_text("two")
    kept.secrets.hand_over({f"file:{kept.file}": "one"})
    assert kept.secrets.get(f"file:{kept.file}").value == "two"
