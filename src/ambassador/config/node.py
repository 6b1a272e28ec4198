"""A file as a tree of nodes, each with its place; nothing in it has a type yet.

YAML's own types are not used: `on`, `1:30` and `0o17` are the texts they look like, and become what the schema says
at the place where they stand.
"""

from __future__ import annotations

import re
from typing import Literal

from msgspec import structs

from ambassador.config.problem import Problem

LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""What YAML counts lines by."""


class Source:
    """A file's text, and what was found wrong in it."""

    __slots__ = ("_lines", "name", "problems")

    def __init__(self, name: str, text: str, problems: list[Problem]) -> None:
        """`problems` is where this file's problems go; the files of one config share the list."""
        self.name = name
        self.problems = problems
        self._lines: list[str] | str = text

    def line(self, number: int) -> str:
        """A line of the file, counted from 1; empty if there is none."""
        if isinstance(self._lines, str):
            self._lines = LINE_BREAK.split(self._lines)
        return self._lines[number - 1] if 0 < number <= len(self._lines) else ""

    def mask(self, number: int, secret: str) -> None:
        """Takes a secret out of a line that problems show, those reported before too."""
        shown = self.line(number).replace(secret, "***") if "\n" not in secret else "***"
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
                file=self.name, line=line, column=column, level=level, path=path, message=message, hint=hint,
                source=shown,
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
