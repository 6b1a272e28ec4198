"""Reading nodes by the schema; the mistakes themselves are in test_load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ambassador.config.compose import compose
from ambassador.config.node import Source
from ambassador.config.part import BAD, Part, build
from ambassador.config.problem import Problem
from ambassador.config.read import read
from ambassador.config.schema import Document, Timeout
from ambassador.extras import Extra
from ambassador.settings import Count, Section


def part(text: str, section: type[Timeout] = Timeout) -> Part:
    problems: list[Problem] = []
    node = compose(Source("a", text, problems), text)
    assert node is not None
    found = read(section, node)
    assert isinstance(found, Part)
    return found


def test_every_type_of_the_schema_has_a_reader() -> None:
    problems: list[Problem] = []
    text = "\n".join(f"{name}: {{}}" for name in Document.__struct_fields__)
    node = compose(Source("a", text, problems), text)
    assert node is not None
    assert read(Document, node) is not None


class Extended(Section, frozen=True):
    """Keys that need what is not installed, and what is."""

    extras: ClassVar[Mapping[str, Extra]] = {
        "odd": Extra("odd", ("no_such_module",)),
        "usual": Extra("usual", ("json",)),
    }
    odd: Count | None = None
    usual: Count | None = None


def test_key_that_needs_an_extra_is_an_error_where_that_is_missing_and_the_key_asks_for_something() -> None:
    problems: list[Problem] = []
    for text in ("{odd: 1, usual: 2}", "{odd: off}", "{odd: none}"):
        node = compose(Source("a", text, problems), text)
        assert node is not None
        found = read(Extended, node, "x")
        assert isinstance(found, Part)
        assert (build(found) is BAD) == (text != "{odd: off}")
    (missing, wrong) = problems
    assert (missing.line, missing.column, missing.path) == (1, 2, "x.odd")
    assert (
        missing.text()
        .splitlines()[0]
        .endswith("'odd' needs the extra 'odd', which is not installed; pip install 'ambassador-proxy[odd]'")
    )
    assert wrong.column == 7
