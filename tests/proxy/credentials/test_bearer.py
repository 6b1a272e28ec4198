from __future__ import annotations

from ambassador.proxy.credentials.bearer import Config, credential, describe
from tests.proxy.credentials.shown import means, put


def test_bearer_token_is_in_authorization() -> None:
    made = credential(Config(token="env:TOKEN"), "u", means(TOKEN="t0k3n"))
    assert put(made, (b"Authorization", b"x"), (b"a", b"b")) == [
        (b"a", b"b"),
        (b"authorization", b"Bearer t0k3n"),
    ]
    assert made.line() == b"\r\nauthorization: Bearer t0k3n"
    assert "t0k3n" not in repr(made) + describe(Config(token="env:TOKEN"))
