"""Routes back to the ambassador itself."""

from __future__ import annotations

import pytest

from ambassador.config.load import load_string


def problems(settings: str, to: str) -> list[tuple[str, str]]:
    text = f"version: 1\n{settings}\nroutes: [{{name: r, to: '{to}'}}]\n"
    return [(each.level, each.message) for each in load_string(text).problems]


LISTEN = "listen: 127.0.0.1:80\n"


@pytest.mark.parametrize(
    ("admin", "to"),
    [
        ("127.0.0.1:9901", "http://127.0.0.1:9901"),
        ("127.0.0.1:9901", "http://localhost:9901"),
        ("127.0.0.1:9901", "http://admin.localhost.:9901"),
        ("127.0.0.1:9901", "http://0.0.0.0:9901"),
        ("127.0.0.1:9901", "http://[::ffff:127.0.0.1]:9901"),
        ("localhost:9901", "http://[::1]:9901"),
        ("unix:/run/admin", "unix:/run/admin"),
    ],
)
def test_route_to_the_own_admin_api_is_an_error_without_a_token(admin: str, to: str) -> None:
    ((level, message),) = problems(f"{LISTEN}admin: '{admin}'", to)
    assert level == "error"
    assert message == f"'{admin}' is the ambassador's own admin API, which obeys everybody who gets there"
    assert problems(f"{LISTEN}admin: {{address: '{admin}', token: env:PATH}}", to) == []


@pytest.mark.parametrize(
    "to", ["http://127.0.0.1:9902", "http://127.0.0.2:9901", "http://10.0.0.1:9901", "unix:/a"]
)
def test_route_to_others_is_none(to: str) -> None:
    assert problems(f"{LISTEN}admin: 127.0.0.1:9901", to) == []


def test_route_to_the_control_socket_is_an_error() -> None:
    assert problems(f"{LISTEN}control: unix:/run/c", "unix:/run/c")[0][0] == "error"


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "127.0.0.1:80"])
def test_route_to_an_own_listener_is_warned_of(listen: str) -> None:
    text = "is a listener of this very service, which refuses what it has sent itself"
    assert ("warning", text) in problems(f"listen: {listen}", "http://localhost:80")


def test_listener_on_any_port_is_nobody() -> None:
    assert problems("listen: 127.0.0.1:0", "http://127.0.0.1:1") == []
