"""Placeholders: constants cost nothing, and no control character gets into a value."""

from __future__ import annotations

import pytest

from ambassador.messages import Request
from ambassador.proxy import template


def a_request(**params: str) -> Request:
    request = Request("GET", b"/", [], 1)
    request.params = params or None
    request.request_id = b"r-1"
    request.route = "billing"
    return request


def render(text: str, request: Request, *, decode: bool = True) -> bytes | None:
    made = template.compile(text, decode=decode)
    assert not isinstance(made, bytes)
    return made(request)


def test_constant_is_bytes() -> None:
    assert template.compile("") == b""
    assert template.compile("a {{b}} é") == "a {b} é".encode()


def test_placeholders_are_replaced() -> None:
    request = a_request(id="42")
    request.client = "acme"
    assert render("{client}/{request_id}/{route}/{param.id}{{}}", request) == b"acme/r-1/billing/42{}"


def test_what_is_not_known_makes_no_value() -> None:
    assert render("x-{client}", a_request()) is None
    assert render("{param.id}", a_request()) is None
    assert render("{param.id}", a_request(other="1")) is None


def test_parameters_are_decoded_for_headers_and_kept_for_urls() -> None:
    request = a_request(id="a%20b%2Fc%C3%A9")
    assert render("{param.id}", request) == "a b/cé".encode()
    assert render("{param.id}", request, decode=False) == b"a%20b%2Fc%C3%A9"


@pytest.mark.parametrize("escape", ["%0D", "%0A", "%00", "%0d%0ax-evil: 1", "%1B", "%7F"])
def test_a_parameter_with_a_control_character_makes_no_value(escape: str) -> None:
    assert render("x{param.id}", a_request(id="a" + escape)) is None


@pytest.mark.parametrize("text", ["{nope}", "{", "}", "a{b", "{}", "{param}", "{ client }"])
def test_unknown_placeholders_and_lonely_braces_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not known|brace"):
        template.compile(text)
