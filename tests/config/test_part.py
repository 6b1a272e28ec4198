"""What was read: Structs of it, and the places of what is wrong in it."""

from __future__ import annotations

import pytest

from ambassador.config.compose import compose
from ambassador.config.node import Source
from ambassador.config.part import BAD, Part, build, join, reject
from ambassador.config.problem import Problem
from ambassador.config.read import read
from ambassador.config.schema import Timeout, Upstream
from tests.config.test_read import part


def upstream(text: str) -> Part:
    problems: list[Problem] = []
    node = compose(Source("a", text, problems), text)
    assert node is not None
    found = read(Upstream, node, "upstreams.u")
    assert isinstance(found, Part)
    return found


def test_build_makes_the_struct() -> None:
    assert build(part("{connect: 2s, total: 4s}")) == Timeout(connect=2.0, total=4.0)
    assert build(part("4s")) == Timeout(total=4.0)


def test_build_of_a_mistake_is_bad() -> None:
    assert build(part("{connect: soon}")) is BAD
    assert build(part("{total: 1s, per_try: 2s}")) is BAD


def test_place_of_a_key() -> None:
    found = part("{connect: 2s}")
    node, path = found.place("connect")
    assert (node.line, node.column, path) == (1, 11, "connect")
    assert found.place("total") == found.place(None) == (found.node, "")


@pytest.mark.parametrize(
    ("key", "column", "path"),
    [
        (None, 1, "upstreams.u"),
        ("tls", 84, "upstreams.u.tls"),
        ("tls.ca", 89, "upstreams.u.tls.ca"),
        ("tls.sni", 84, "upstreams.u.tls"),
        ("endpoints.1", 37, "upstreams.u.endpoints[1]"),
        ("endpoints.1.url", 43, "upstreams.u.endpoints[1].url"),
        ("endpoints.0.url", 14, "upstreams.u.endpoints[0].url"),
        ("endpoints.2", 13, "upstreams.u.endpoints"),
        ("endpoints.url", 13, "upstreams.u.endpoints"),
        ("nothing.inner", 1, "upstreams.u"),
    ],
)
def test_place_of_what_stands_inside(key: str | None, column: int, path: str) -> None:
    found = upstream(
        "{endpoints: ['https://one.example', {url: 'https://two.example', weight: 2}], tls: {ca: /c}}"
    )
    node, where = found.place_within(key)
    assert (where, node.column) == (path, column)


def test_place_of_a_free_key_is_the_keys_own() -> None:
    outer = part("4s")
    inner = Part(None, outer.node, "params")
    key, value = outer.node, compose(Source("a", "x", []), "x")
    assert value is not None
    inner.put("a.b", "x", key, value)
    outer.put("params", inner, outer.node, outer.node)
    assert outer.place_within("params.a.b") == (key, "params.a.b")


def test_reject_reports_and_gives_bad() -> None:
    problems: list[Problem] = []
    node = compose(Source("a", "x", problems), "x")
    assert node is not None
    assert reject(node, "p", "is wrong", "mend it") is BAD
    assert [(problem.path, problem.message, problem.hint) for problem in problems] == [
        ("p", "is wrong", "mend it")
    ]


def test_join_of_paths() -> None:
    assert (join("", "a"), join("a", "b")) == ("a", "a.b")
