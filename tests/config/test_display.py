"""The effective config as plain data."""

from __future__ import annotations

import msgspec

from ambassador.config.display import to_display
from ambassador.config.load import load_text


def test_to_display_has_units_and_no_secrets() -> None:
    config = load_text(
        "listen: 127.0.0.1:1\nadmin: {address: 127.0.0.1:2, token: file:/run/token}\n"
        "routes: [{name: a, to: http://a, match: {path: {regex: /a}}, timeout: 250ms, retry: {backoff: 1s..2s}}]\n"
    )
    shown = to_display(config)
    assert shown["admin"]["token"] == "***"
    assert "/run/token" not in str(shown)
    (route,) = shown["routes"]
    assert (route["timeout"]["total"], route["timeout"]["idle"], route["timeout"]["per_try"]) == (
        "250ms",
        "5m",
        None,
    )
    assert (route["retry"]["backoff"], route["retry"]["budget"]["percent"]) == ("1s..2s", "20%")
    assert route["match"]["path"] == {"regex": "/a"}
    assert shown["listeners"][0]["limits"]["header_bytes"] == "64KiB"
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown
