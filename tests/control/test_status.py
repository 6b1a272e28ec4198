from __future__ import annotations

import json
from typing import Any

import msgspec

from ambassador.config.load import load_text
from ambassador.config.schema import Config
from ambassador.control.admin.document import pieces
from ambassador.control.status import masked, route_status

CONFIG = """\
version: 1
listen: 127.0.0.1:8080
admin: {address: 127.0.0.1:9901, token: "env:TOKEN"}
routes:
  - name: billing
    match: {host: billing.internal, path: "/v1/**"}
    to: http://127.0.0.1:9000
    headers: {request: {set: {Authorization: Bearer abc, x-a: b}}}
  - {name: rest, respond: 404}
"""


def test_secrets_are_masked() -> None:
    tree: Any = json.loads(b"".join(pieces(masked(load_text(CONFIG)))))
    assert tree["admin"]["token"] == "***"
    headers = {name.lower(): value for name, value in tree["routes"][0]["headers"]["request"]["set"].items()}
    assert headers == {"authorization": "***", "x-a": "b"}


def test_what_is_told_is_a_config_again() -> None:
    text = CONFIG.replace(', token: "env:TOKEN"', "").replace("Authorization: Bearer abc, ", "")
    config = load_text(text)
    assert msgspec.json.decode(b"".join(pieces(masked(config))), type=Config) == config


def test_a_route_in_short() -> None:
    first, second = map(route_status, load_text(CONFIG).routes)
    assert (first.name, first.to, first.line) == ("billing", "billing", 5)
    assert first.match == {"host": "billing.internal", "path": "/v1/**"}
    assert first.policies == ["timeout", "retry", "headers"]
    assert second.to == "respond"
