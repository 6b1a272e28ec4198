from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

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


def test_what_has_the_name_of_a_secret_is_masked() -> None:
    told = "match: {headers: {x-api-key: SECRET, x-c: d}, query: {token: [SECRET, b], sort: a}}"
    route = f"  - {{name: other, {told}, respond: {{status: 200, headers: {{x-auth-token: SECRET}}}}}}\n"
    config = load_text(CONFIG + route)
    assert "SECRET" not in b"".join(pieces(masked(config))).decode()
    match = route_status(config.routes[2]).match
    assert match["headers"] == {"x-api-key": "***", "x-c": "d"}
    assert match["query"] == {"token": "***", "sort": "a"}


def test_token_of_an_api_server_is_masked() -> None:
    where = "{service: web, namespace: shop, server: 'https://api:6443', token: 'file:/run/secret'}"
    text = f"upstreams: {{web: {{discover: {{kubernetes: {where}}}}}, other: {{endpoints: [http://a]}}}}\n"
    tree: Any = json.loads(b"".join(pieces(masked(load_text(CONFIG + text)))))
    assert tree["upstreams"]["web"]["discover"]["kubernetes"]["token"] == "***"
    assert tree["upstreams"]["web"]["discover"]["kubernetes"]["service"] == "web"
    assert tree["upstreams"]["other"]["endpoints"][0]["url"] == "http://a:80"


def test_what_is_told_is_a_config_again() -> None:
    text = CONFIG.replace(', token: "env:TOKEN"', "").replace("Authorization: Bearer abc, ", "")
    config = load_text(text)
    assert msgspec.json.decode(b"".join(pieces(masked(config))), type=Config) == config


def test_a_route_in_short() -> None:
    first, second = map(route_status, load_text(CONFIG).routes)
    assert (first.name, first.to, first.line) == ("billing", "billing", 5)
    assert first.match == {"host": "billing.internal", "path": "/v1/**"}
    assert first.policies == ["timeout", "retry", "headers"]
    assert (second.to, second.policies) == ("respond", [])


def test_every_policy_of_a_route_is_told() -> None:
    route = "{name: a, to: http://a, idempotency: {}, hedge: {}, cache: {}, concurrency: 2}"
    (told,) = map(route_status, load_text(f"version: 1\nlisten: 127.0.0.1:0\nroutes: [{route}]").routes)
    assert told.policies == ["concurrency", "idempotency", "cache", "timeout", "retry", "hedge"]


@pytest.mark.parametrize(
    "match",
    [
        {"host": ["a", "*.b"], "path": {"regex": "/x/[0-9]+"}, "methods": ["GET", "POST"]},
        {"host": "*", "path": "/v1/accounts/{id}"},
        {
            "host": "a",
            "headers": {"x-a": "1", "x-b": ["1", "2"], "x-c": {"regex": "a|b"}, "x-d": {"present": True}},
        },
        {"host": "a", "query": {"a": {"present": False}, "b": {"exact": "*"}, "c": "1"}},
    ],
)
def test_a_match_is_told_as_one_writes_it(match: dict[str, Any]) -> None:
    text = (
        f"version: 1\nlisten: 127.0.0.1:0\nroutes: [{{name: a, respond: 404, match: {json.dumps(match)}}}]\n"
    )
    (route,) = load_text(text).routes
    assert route_status(route).match == match
