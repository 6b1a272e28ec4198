"""Readers of one text: what each takes, and what it says of the rest."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import inspect

from ambassador.config import units, words
from ambassador.config.compose import compose
from ambassador.config.node import Source
from ambassador.config.part import BAD
from ambassador.config.problem import Problem
from ambassador.config.scalars import SCALARS, Reader, formed, integer


def taken(reader: Reader, text: str) -> tuple[Any, list[Problem]]:
    """What a reader makes of a text of YAML, and what it reports."""
    problems: list[Problem] = []
    node = compose(Source("a", text, problems), text)
    assert node is not None
    return reader(node, "key"), problems


def refused(reader: Reader, text: str) -> tuple[str, str | None]:
    """What a reader says of a text that it does not take, and its hint."""
    value, problems = taken(reader, text)
    assert value is BAD
    (problem,) = problems
    assert problem.path == "key"
    return problem.message, problem.hint


@pytest.mark.parametrize(
    ("info", "text", "value"),
    [
        (inspect.StrType(), "off", "off"),
        (inspect.StrType(), '""', ""),
        (inspect.IntType(), "-12", -12),
        (inspect.IntType(ge=1, le=3), "3", 3),
        (inspect.FloatType(), "0.25", 0.25),
        (inspect.BoolType(), "on", True),
        (inspect.BoolType(), "no", False),
        (inspect.LiteralType((301, 302)), "302", 302),
    ],
)
def test_types_take_their_texts(info: inspect.Type, text: str, value: object) -> None:
    assert taken(SCALARS[type(info)](info), text) == (value, [])


@pytest.mark.parametrize(
    ("info", "text", "message", "hint"),
    [
        (inspect.StrType(), "[a]", "must be a text, not a list", None),
        (inspect.StrType(), "{client}", "must be a text, not a mapping", 'quote this: "{client}"'),
        (inspect.IntType(), "'1'", "must be a whole number, not '1'", None),
        (inspect.IntType(), "off", "must be a whole number, not 'off'", "this cannot be switched off"),
        (inspect.IntType(ge=1, le=3), "4", "must be 1 to 3, got 4", None),
        (inspect.IntType(ge=1), "0", "must be at least 1, got 0", None),
        (inspect.FloatType(gt=0), "0.0", "must be more than 0, got 0.0", None),
        (inspect.BoolType(), "No", "must be true or false, not 'No'", None),
        (inspect.BoolType(), "1", "must be true or false, not '1'", None),
        (inspect.LiteralType(("http",)), "htp", "must be http; got 'htp'", "did you mean 'http'?"),
    ],
)
def test_types_refuse_other_texts(info: inspect.Type, text: str, message: str, hint: str | None) -> None:
    assert refused(SCALARS[type(info)](info), text) == (message, hint)


def test_nothing_is_no_text() -> None:
    assert refused(formed(words.name, inspect.StrType()), "~")[0] == "has no value"


def test_a_form_is_held_to_the_bounds_of_its_type() -> None:
    percent = formed(units.parse_percent, inspect.FloatType(ge=0, le=1))
    assert taken(percent, "25%") == (0.25, [])
    assert (
        refused(formed(units.parse_duration, inspect.FloatType(gt=0)), "0s")[0]
        == "must be more than 0, got 0s"
    )


def test_a_text_that_may_be_a_secret_is_not_repeated() -> None:
    value, (problem,) = taken(formed(words.secret, inspect.StrType()), "hunter2")
    assert value is BAD
    assert "hunter2" not in problem.text()


def test_integer_is_a_reader_of_its_own() -> None:
    assert taken(integer(inspect.IntType(ge=1)), "7") == (7, [])
