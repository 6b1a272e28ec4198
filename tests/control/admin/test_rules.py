from __future__ import annotations

import pytest

from ambassador.control.admin.http import Request
from ambassador.control.admin.rules import Door, refusal

LOOPBACK = Door(local=True, host="127.0.0.1")
GUARDED = Door(local=True, host="127.0.0.1", token="secret")
REMOTE = Door(local=False, host="0.0.0.0", token="secret")
UNIX = Door(local=True)
CONTROL = Door(local=True, uids=frozenset({0, 7}))


def status(door: Door, method: str, path: str, uid: int | None = None, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in ({"host": "127.0.0.1:9901"} | headers).items()}
    refused = refusal(door, Request(method, path, headers=named, uid=uid))
    return 200 if refused is None else refused.status


BEARER = "Bearer secret"


@pytest.mark.parametrize(
    ("door", "method", "path", "headers", "expected"),
    [
        (LOOPBACK, "GET", "/api/status", {}, 200),
        (LOOPBACK, "POST", "/api/reload", {}, 200),
        (GUARDED, "GET", "/api/status", {}, 200),
        (GUARDED, "GET", "/metrics", {}, 200),
        (GUARDED, "POST", "/api/reload", {}, 401),
        (GUARDED, "POST", "/api/reload", {"authorization": "Bearer wrong"}, 401),
        (GUARDED, "POST", "/api/reload", {"authorization": "Basic secret"}, 401),
        (GUARDED, "POST", "/api/reload", {"authorization": BEARER}, 200),
        (GUARDED, "POST", "/api/reload", {"authorization": "bearer secret"}, 200),
        (REMOTE, "GET", "/livez", {}, 200),
        (REMOTE, "GET", "/readyz", {}, 200),
        (REMOTE, "GET", "/metrics", {}, 401),
        (REMOTE, "GET", "/api/status", {}, 401),
        (REMOTE, "GET", "/api/status", {"authorization": BEARER}, 200),
        (REMOTE, "GET", "/api/status", {"authorization": BEARER, "host": "amb.prod.svc:9901"}, 200),
        (REMOTE, "GET", "/api/status", {"host": "amb.prod.svc:9901"}, 421),
        (UNIX, "POST", "/api/reload", {"host": "anything"}, 200),
    ],
)
def test_who_may(door: Door, method: str, path: str, headers: dict[str, str], expected: int) -> None:
    assert status(door, method, path, None, **headers) == expected


@pytest.mark.parametrize("host", ["localhost:9901", "127.0.0.1", "[::1]:9901", "LOCALHOST", "10.0.0.1"])
def test_hosts_that_nobody_else_can_point_here(host: str) -> None:
    assert status(LOOPBACK, "GET", "/api/status", host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example:9901",
        "",
        "127.0.0.1.evil.example",
        "localhost:1@evil.test",
        "[::1]evil.test",
        "[::1",
        "localhost:x",
        "a@127.0.0.1",
        "localhost, evil.test",
    ],
)
def test_a_rebound_name_is_refused(host: str) -> None:
    assert status(LOOPBACK, "GET", "/api/status", host=host) == 421
    assert status(GUARDED, "POST", "/api/reload", host=host, authorization=BEARER) == 421


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:9901",
        "http://127.0.0.1:8080",
        "http://127.0.0.1:9901, http://evil.example",
    ],
)
def test_other_origins_are_refused(origin: str) -> None:
    assert status(LOOPBACK, "POST", "/api/reload", origin=origin) == 403
    assert status(GUARDED, "POST", "/api/reload", origin=origin, authorization=BEARER) == 403


def test_the_own_origin_may() -> None:
    assert status(LOOPBACK, "POST", "/api/reload", origin="http://127.0.0.1:9901") == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
@pytest.mark.parametrize("door", [LOOPBACK, GUARDED, REMOTE, UNIX])
def test_health_is_always_open(door: Door, path: str) -> None:
    assert status(door, "GET", path, host="anything") == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_everything_but_reading_needs_the_token_where_there_is_one(method: str) -> None:
    for door in (GUARDED, REMOTE, Door(local=True, token="secret")):
        assert status(door, method, "/api/reload") == 401
        assert status(door, method, "/api/reload", authorization=BEARER) == 200


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "secret", "Bearer secre", "Bearer secrets", "Bearer SECRET"]
)
def test_token_that_is_not_quite_it_is_refused(given: str) -> None:
    assert status(REMOTE, "GET", "/api/status", authorization=given) == 401


def test_token_may_have_letters_beyond_ascii() -> None:
    door = Door(local=False, host="0.0.0.0", token="schlüssel")
    as_received = "schlüssel".encode().decode("latin-1")
    assert status(door, "GET", "/api/status", authorization=f"Bearer {as_received}") == 200
    assert status(door, "GET", "/api/status", authorization="Bearer schlüssel") == 401


def test_nobody_is_let_in_beyond_loopback_without_a_token() -> None:
    door = Door(local=False, host="0.0.0.0")
    assert status(door, "GET", "/api/status") == 401
    assert status(door, "POST", "/api/reload", authorization="Bearer ") == 401


def test_metrics_can_be_open() -> None:
    door = Door(local=False, host="0.0.0.0", token="secret", open_metrics=True)
    assert status(door, "GET", "/metrics") == 200
    assert status(door, "GET", "/api/status") == 401


@pytest.mark.parametrize(("uid", "expected"), [(0, 200), (7, 200), (8, 403), (None, 403)])
def test_the_control_socket_trusts_its_user_and_root(uid: int | None, expected: int) -> None:
    assert status(CONTROL, "POST", "/api/drain", uid) == expected
