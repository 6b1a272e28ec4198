from __future__ import annotations

from ambassador.cli import demo
from ambassador.config.load import load_string


def test_the_demos_config_has_no_error_and_no_surprise() -> None:
    urls = {
        name: f"http://127.0.0.1:{port}" for port, name in enumerate(("healthy", "flaky", "slow", "soap"), 1)
    }
    text = demo._CONFIG.format(directory="/d", listen="127.0.0.1:0", admin="127.0.0.1:0", **urls)
    loaded = load_string(text)
    assert not loaded.errors
    assert [route.name for route in loaded.require().routes] == [
        "flaky",
        "slow",
        "soap",
        "hello",
        "old",
        "healthy",
    ]
