"""Parameters of the path that templates name."""

from __future__ import annotations

import pytest

from tests.config.test_load import only, routes


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("- {name: a, to: http://a, headers: {request: {set: {x: '{param.id}'}}}}",
         "4:56: error: routes[0].headers.request.set.x: the path of route 'a' has no parameter 'id'"),
        ("- {name: a, to: http://a, match: {path: '/{idd}'}, headers: {response: {add: {x: '{param.id}'}}}}",
         "4:82: error: routes[0].headers.response.add.x: the path of route 'a' has no parameter 'id'; did you mean 'idd'?"),
        ("- {name: a, match: {path: {regex: '/(?P<id>.)'}}, redirect: {path: '/{param.no}'}}",
         "4:68: error: routes[0].redirect.path: the path of route 'a' has no parameter 'no'"),
        ("- {name: a, respond: {status: 200, headers: {x: '{param.id}'}}}",
         "4:49: error: routes[0].respond.headers.x: the path of route 'a' has no parameter 'id'"),
        ("- {name: a, to: http://a, fallback: {respond: {status: 200, headers: {x: '{param.id}'}}}}",
         "4:74: error: routes[0].fallback.respond.headers.x: the path of route 'a' has no parameter 'id'"),
    ],
)  # fmt: skip
def test_parameter_that_the_path_does_not_have_is_an_error(text: str, error: str) -> None:
    assert only(routes(text)) == error


@pytest.mark.parametrize("path", ["'/v1/{id}'", "{regex: '/(?P<id>[0-9]+)'}"])
def test_parameter_of_the_path_may_be_named(path: str) -> None:
    text = f"- {{name: a, to: http://a, match: {{path: {path}}}, headers: {{request: {{set: {{x: '{{param.id}}'}}}}}}}}"
    assert routes(text).config is not None


def test_parameters_of_a_path_that_is_wrong_itself_are_not_missed() -> None:
    text = "- {name: a, to: http://a, match: {path: 'no'}, headers: {request: {set: {x: '{param.id}'}}}}"
    assert "routes[0].match.path" in only(routes(text))
