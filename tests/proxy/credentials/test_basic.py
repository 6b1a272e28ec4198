from __future__ import annotations

from base64 import b64decode

from ambassador.proxy.credentials.basic import Config, credential, describe
from tests.proxy.credentials.shown import means, put

CONFIG = Config(user="käthe", password="env:PASSWORD")


def test_basic_is_user_and_password_in_utf_8() -> None:
    ((name, value),) = put(credential(CONFIG, "u", means(PASSWORD="geh:eim")))
    assert name == b"authorization"
    assert b64decode(value.removeprefix(b"Basic ")).decode() == "käthe:geh:eim"


def test_basic_is_told_of_without_the_password() -> None:
    assert describe(CONFIG) == "basic, user käthe"


def test_user_with_a_colon_is_refused() -> None:
    assert Config.refusal("user", "a:b") is not None
    assert Config.refusal("user", "ab") is None
    assert Config.refusal("password", "env:X") is None
