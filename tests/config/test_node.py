"""Nodes and the lines that problems show."""

from __future__ import annotations

from ambassador.config.compose import compose
from ambassador.config.node import Node, Source, shortened
from ambassador.config.problem import Problem


def scalar(text: str, *, plain: bool = True) -> Node:
    node = Node("scalar", Source("a", "", []), 1, 1)
    node.value, node.plain = text, plain
    return node


def test_off_and_false_are_the_same() -> None:
    assert scalar("off").off
    assert scalar("false").off
    assert scalar("off", plain=False).off
    assert not scalar("false", plain=False).off
    assert not scalar("0").off


def test_empty_is_only_without_quotes() -> None:
    assert scalar("").empty
    assert scalar("~").empty
    assert not scalar("", plain=False).empty


def test_mask_takes_a_secret_out_of_every_problem_of_the_line() -> None:
    problems: list[Problem] = []
    source = Source("a", "token: hunter2", problems)
    source.report(1, 1, "", "first")
    source.mask(1, "hunter2")
    source.report(1, 1, "", "second")
    assert [problem.source for problem in problems] == ["token: ***", "token: ***"]


def test_line_beyond_the_end_is_empty() -> None:
    source = Source("a", "one\r\ntwo", [])
    assert [source.line(number) for number in range(4)] == ["", "one", "two", ""]


def test_what_a_node_is_called_in_a_message() -> None:
    assert [scalar("a'b").what, scalar("~").what] == ['"a\'b"', "nothing"]
    assert [Node(kind, Source("a", "", []), 1, 1).what for kind in ("sequence", "mapping")] == [
        "a list",
        "a mapping",
    ]
    assert scalar("http://me:hunter2@a").quoted == "'http://***@a'"
    assert len(shortened("a" * 61)) == len(shortened("a" * 60)) == 60


def test_an_unquoted_placeholder_is_known() -> None:
    found = []
    for text in ("{client}", "{client: x}", "{a, b}", "client"):
        node = compose(Source("a", text, []), text)
        assert node is not None
        found.append(node.is_placeholder)
    assert found == [True, False, False, False]
