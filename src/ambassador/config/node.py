"""A file as a tree of nodes, each with its place; nothing in it has a type yet.

YAML's own types are not used: `on`, `1:30` and `0o17` are the texts they look like, and become what the schema says
at the place where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from msgspec import structs

from ambassador.config.problem import Problem
from ambassador.config.veil import MASK, Veil, is_known, is_reference, kind_of, users, without_users

LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""What YAML counts lines by."""


class Source:
    """A file's text, and what was found wrong in it."""

    __slots__ = ("_lines", "_veil", "name", "problems")

    def __init__(self, name: str, text: str, problems: list[Problem]) -> None:
        """`problems` is where this file's problems go; the files of one config share the list."""
        self.name = name
        self.problems = problems
        self._lines: list[str] | str = text
        self._veil = Veil()

    def line(self, number: int) -> str:
        """A line of the file as it may be shown, counted from 1; empty if there is none."""
        if isinstance(self._lines, str):
            self._lines = self._veil.lines(LINE_BREAK.split(self._lines))
        return self._lines[number - 1] if 0 < number <= len(self._lines) else ""

    def hide(self, root: Node) -> None:
        """Keeps what the file holds of secrets, as its nodes tell, out of all problems from here on."""
        self._veil.learn(secrets_in(root))

    def mask(self, number: int, secret: str) -> None:
        """Takes a secret out of a line that problems show, those reported before too."""
        shown = self.line(number).replace(secret, MASK) if "\n" not in secret else MASK
        if isinstance(self._lines, list) and number <= len(self._lines):
            self._lines[number - 1] = shown
        for at, problem in enumerate(self.problems):
            if problem.file == self.name and problem.line == number:
                self.problems[at] = structs.replace(problem, source=shown)

    def report(
        self,
        line: int,
        column: int,
        path: str,
        message: str,
        hint: str | None = None,
        *,
        level: Literal["error", "warning"] = "error",
    ) -> None:
        """Adds a problem at a place."""
        shown = self.line(line)
        self.problems.append(
            Problem(
                file=self.name, line=line, column=column, level=level, path=without_users(path),
                message=self._veil.sentence(message), hint=hint and self._veil.sentence(hint), source=self._veil.line(shown),
            )
        )  # fmt: skip


class Node:
    """One value of a file. `value` is a text, a list of nodes, or a list of pairs of nodes, as `kind` says."""

    __slots__ = ("column", "kind", "line", "merged", "plain", "size", "source", "value")

    value: str | list[Node] | list[tuple[Node, Node]]

    def __init__(
        self, kind: Literal["scalar", "sequence", "mapping"], source: Source, line: int, column: int
    ) -> None:
        self.kind = kind
        self.source = source
        self.line = line
        """From 1."""
        self.column = column
        """From 1."""
        self.plain = False
        """Whether a scalar stands without quotes, so that `off` is a word and not a text."""
        self.size = 1
        """Nodes in the tree from here, those behind aliases counted each time."""
        self.merged: list[tuple[Node, Node]] = []
        """A mapping's pairs that come from a merge (`<<`) and that it does not override."""
        self.value = ""

    @property
    def text(self) -> str:
        """The text of a scalar; empty for the others."""
        return self.value if isinstance(self.value, str) else ""

    @property
    def items(self) -> list[Node]:
        """The nodes of a sequence; none for the others."""
        return self.value if self.kind == "sequence" else []  # type: ignore[return-value]

    @property
    def pairs(self) -> list[tuple[Node, Node]]:
        """The keys and values of a mapping, as written; none for the others."""
        return self.value if self.kind == "mapping" else []  # type: ignore[return-value]

    @property
    def empty(self) -> bool:
        """Whether it is a scalar that says nothing: `key:`, `key: ~`, `key: null`."""
        return self.plain and self.kind == "scalar" and self.value in ("", "~", "null", "Null", "NULL")

    @property
    def off(self) -> bool:
        """Whether it says `off`, or `false`, which is the same."""
        return self.kind == "scalar" and (
            self.value == "off"
            or (self.plain and self.value in ("false", "False", "FALSE", "Off", "OFF", "no"))
        )

    @property
    def is_placeholder(self) -> bool:
        """Whether it is what YAML makes of an unquoted `{client}`: a mapping with one key and no value."""
        return len(self.pairs) == 1 and self.pairs[0][1].empty and self.pairs[0][0].kind == "scalar"

    @property
    def quoted(self) -> str:
        """The text of a scalar, as a message quotes it."""
        return repr(shortened(without_users(self.text)))

    @property
    def what(self) -> str:
        """What it is, for a message that something else is due there."""
        if self.kind == "scalar":
            return "nothing" if self.empty else self.quoted
        return "a list" if self.kind == "sequence" else "a mapping"

    def report(
        self,
        path: str,
        message: str,
        hint: str | None = None,
        *,
        level: Literal["error", "warning"] = "error",
    ) -> None:
        """Adds a problem at this node's place."""
        self.source.report(self.line, self.column, path, message, hint, level=level)


def shortened(text: str) -> str:
    """As much of a text of the file as a message repeats."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def secrets_in(root: Node) -> Iterator[str]:
    """The texts that are secrets, or hold one, by the keys that they stand below or by their form."""
    left = [(root, "plain")]
    seen: set[int] = set()
    while left:
        node, kind = left.pop()
        if node.kind == "scalar":
            if kind != "plain" and not node.empty and not is_reference(node.text):
                yield node.text
            yield from users(node.text)
        elif id(node) not in seen:  # an alias may repeat it
            seen.add(id(node))
            left += [(item, kind) for item in node.items]
            left += [
                each
                for key, value in (*node.pairs, *node.merged)
                for each in (
                    (key, "secret" if kind == "secret" else "plain"),
                    (value, _kind(kind, key.text, value)),
                )
            ]


def _is_mistaken(outer: str, key: str, value: Node) -> bool:
    """Whether it is a secret in a place where there should be a section, or only the name of a user."""
    return value.kind == "scalar" and (
        (outer, key) == ("auth", "header") or (key == "user" and ":" in value.text)
    )


def _kind(outer: str, key: str, value: Node) -> str:
    if outer == "secret" or _is_mistaken(outer, key, value):
        return "secret"
    own = kind_of(key)
    if key == "auth":
        return "auth"  # a section as well
    if outer == "auth":
        outer = "section"
    if outer == "section" and (own == "secret" or key == "value" or not is_known(key)):
        return "secret"
    return "section" if outer == "section" and key == "header" and value.kind == "mapping" else own
