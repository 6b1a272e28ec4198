"""Fixed answers."""

from __future__ import annotations

from ambassador.messages import Request
from ambassador.proxy.policies.respond import Respond, responder


def a_request() -> Request:
    request = Request("GET", b"/", [], 1)
    request.request_id = b"r-1"
    return request


def test_status_alone_has_no_body_and_no_type() -> None:
    reply = responder(Respond(status=404))(a_request())
    assert (reply.status, reply.headers, reply.body) == (404, [], b"")


def test_body_is_text_unless_said_otherwise() -> None:
    assert responder(Respond(body="é"))(a_request()).headers == [
        (b"content-type", b"text/plain; charset=utf-8")
    ]
    reply = responder(Respond(body="{}", headers={"Content-Type": "application/json"}))(a_request())
    assert reply.headers == [(b"Content-Type", b"application/json")]
    assert reply.body == b"{}"


def test_headers_are_templates_and_left_out_when_they_cannot_be_made() -> None:
    respond = responder(Respond(headers={"x-id": "{request_id}", "x-client": "{client}"}))
    assert respond(a_request()).headers == [(b"x-id", b"r-1")]


def test_each_answer_has_its_own_list_of_headers() -> None:
    respond = responder(Respond(headers={"a": "1"}))
    respond(a_request()).headers.clear()
    assert respond(a_request()).headers == [(b"a", b"1")]


def test_framing_and_impossible_bodies_are_conflicts() -> None:
    assert [field for field, _ in Respond(headers={"Content-Length": "3"}).conflicts()] == [
        "headers.Content-Length"
    ]
    assert [field for field, _ in Respond(status=204, body="x").conflicts()] == ["body"]
    assert not list(Respond(status=204, headers={"x": "y"}).conflicts())
