"""Where redirects lead."""

from __future__ import annotations

import pytest

from ambassador.errors import BadRequest
from ambassador.messages import Request
from ambassador.proxy.policies.redirect import Redirect, redirector


def a_request(
    path: bytes = b"/a/b", query: bytes | None = b"q=1", host: str = "old.example", port: int | None = 8080
) -> Request:
    request = Request("GET", path, [], 1)
    request.path, request.query, request.host, request.port = path, query, host, port
    request.params = {"id": "4%202"}
    return request


def location(config: Redirect, request: Request | None = None) -> bytes:
    reply = redirector(config)(request or a_request())
    assert [name for name, _ in reply.headers] == [b"location"]
    return reply.headers[0][1]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Redirect(location="https://new.example/x?y"), b"https://new.example/x?y"),
        (Redirect(location="/x/{param.id}"), b"/x/4%202"),
        (Redirect(location="//cdn.example/x"), b"//cdn.example/x"),
        (Redirect(scheme="https"), b"https://old.example/a/b?q=1"),
        (Redirect(scheme="https", port=8443), b"https://old.example:8443/a/b?q=1"),
        (Redirect(host="new.example"), b"http://new.example/a/b?q=1"),
        (Redirect(host="new.example:81"), b"http://new.example:81/a/b?q=1"),
        (Redirect(port=9000), b"http://old.example:9000/a/b?q=1"),
        (Redirect(path="/new"), b"/new?q=1"),
        (Redirect(path="/new", query="drop"), b"/new"),
        (Redirect(path="/new/{param.id}", scheme="https"), b"https://old.example/new/4%202?q=1"),
    ],
)
def test_target(config: Redirect, expected: bytes) -> None:
    assert location(config) == expected


def test_status_is_the_configs() -> None:
    assert redirector(Redirect(location="/"))(a_request()).status == 308
    assert redirector(Redirect(location="/", status=302))(a_request()).status == 302


def test_request_path_cannot_become_a_host() -> None:
    assert location(Redirect(query="drop"), a_request(b"//evil.example/x")) == b"/evil.example/x"
    assert (
        location(Redirect(scheme="https"), a_request(b"//evil.example/x", None))
        == b"https://old.example//evil.example/x"
    )


def test_target_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(BadRequest):
        location(Redirect(location="/{client}"))
    with pytest.raises(BadRequest):
        location(Redirect(scheme="https"), a_request(host=""))


def test_conflicts() -> None:
    assert [field for field, _ in Redirect(path="new").conflicts()] == ["path"]
    assert [field for field, _ in Redirect(location="/", host="h").conflicts()] == ["host"]
    assert [field for field, _ in Redirect(status=301).conflicts()] == [None]
    assert not list(Redirect(path="/new").conflicts())
