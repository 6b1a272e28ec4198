from __future__ import annotations

import pytest

from ambassador.proxy.credentials.header import Config, credential, describe
from tests.proxy.credentials.shown import means, put

CONFIG = Config(name="X-Api-Key", value="env:KEY")


def test_header_has_the_whole_secret() -> None:
    made = credential(CONFIG, "u", means(KEY="k 1"))
    assert put(made, (b"x-api-key", b"x"), (b"x_api_key", b"y")) == [(b"X-Api-Key", b"k 1")]
    assert describe(CONFIG) == "the header X-Api-Key"


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "connection"])
def test_header_that_is_the_proxys_own_is_refused(name: str) -> None:
    assert "the proxy's own" in (Config.refusal("name", name) or "")
