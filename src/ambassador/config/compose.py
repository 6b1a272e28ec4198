"""From a file's text to its nodes: over PyYAML's events, so that nothing recurses and nothing is expanded.

Nothing here raises for what a text holds: it is reported to the `Source`. What only lacks its quotes is told, and the
rest of the text is read all the same.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import yaml

from ambassador.config.node import LINE_BREAK, Node, Source

__all__ = ["compose"]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

DEEPEST = 64
"""Levels of nesting; a config needs eight."""
MOST_UNQUOTED = 100
"""Texts without their quotes that are told in one run; the file is read again for each."""
MOST_ALIASED = 100_000
"""Values that aliases may repeat, so that a short file cannot become a gigabyte ("billion laughs")."""

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def compose(source: Source, text: str) -> Node | None:
    """The root node of a text, or None: with the reason reported, or for an empty text."""
    odd = _UNPRINTABLE.search(text)
    if odd is not None:
        line = text.count("\n", 0, odd.start()) + 1
        source.report(
            line, odd.start() - text.rfind("\n", 0, odd.start()), "", f"holds the character {odd[0]!r}"
        )
        return None
    unquoted: _Unquoted = {}
    while True:
        composer = _Composer(source, unquoted)
        try:
            root = composer.compose(text)
            if root is not None:
                source.hide(root)
            return root
        except yaml.MarkedYAMLError as error:
            found = _report_syntax(source, error)
            if found is None or found[0] in unquoted or len(unquoted) >= MOST_UNQUOTED:
                return None
            unquoted.update([found])
            text = _with_stand_in(text, *found)
        except (yaml.YAMLError, ValueError) as error:
            source.report(0, 0, "", f"is not YAML: {error}")
            return None


def _with_stand_in(text: str, place: tuple[int, int], token: str) -> str:
    """The text with something that YAML reads, as long as `token`, in its place, so that the rest can be checked."""
    line, column = place
    breaks = itertools.islice(LINE_BREAK.finditer(text), line - 1)
    start = max((each.end() for each in breaks), default=0) + column - 1
    return text[:start] + "x" * len(token) + text[start + len(token) :]


_Unquoted: TypeAlias = dict[tuple[int, int], str]
"""By line and column: what would be read there if it had the quotes that it lacks."""


class _Composer:
    """Puts events together to nodes."""

    def __init__(self, source: Source, unquoted: _Unquoted) -> None:
        self.root: Node | None = None
        self._source = source
        self._unquoted = unquoted
        self._anchors: dict[str, Node] = {}
        self._open: list[tuple[Node, list[Node]]] = []
        self._aliased = 0
        self._documents = 0

    def compose(self, text: str) -> Node | None:
        """The root node of a text, or None. Raises YAMLError."""
        for event in yaml.parse(text, Loader=_LOADER):
            if not self._take(event):
                return None
        return self.root

    def _take(self, event: Any) -> bool:
        """Takes the next event; False ends it, with the reason reported."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            node = self._node("scalar", event)
            meant = self._unquoted.get((node.line, node.column))
            node.value = event.value if meant is None else meant
            node.plain = not event.style and meant is None
            self._add(node)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            return self._begin(event, "mapping" if kind is yaml.MappingStartEvent else "sequence")
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._end()
        elif kind is yaml.AliasEvent:
            return self._alias(event)
        elif kind is yaml.DocumentStartEvent:
            self._documents += 1
            return self._documents == 1 or self._refuse(event, "a second document; a file holds one")
        return True

    def _node(self, kind: Any, event: Any) -> Node:
        mark = event.start_mark
        node = Node(kind, self._source, mark.line + 1, mark.column + 1)
        if event.tag is not None and event.tag not in ("!", "tag:yaml.org,2002:str"):
            node.report("", f"the tag '{event.tag}' is not supported")
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _refuse(self, event: Any, problem: str) -> bool:
        mark = event.start_mark
        self._source.report(mark.line + 1, mark.column + 1, "", problem)
        return False

    def _add(self, node: Node) -> None:
        if self._open:
            self._open[-1][1].append(node)
        else:
            self.root = node

    def _begin(self, event: Any, kind: Any) -> bool:
        if len(self._open) >= DEEPEST:
            return self._refuse(event, f"nested deeper than {DEEPEST} levels")
        node = self._node(kind, event)
        node.size = 0
        self._add(node)
        self._open.append((node, []))
        return True

    def _end(self) -> None:
        node, inner = self._open.pop()
        node.size = 1 + sum(child.size for child in inner)
        if node.kind == "sequence":
            node.value = inner
            return
        pairs = list(zip(inner[::2], inner[1::2], strict=True))
        node.value = [pair for pair in pairs if not _is_merge(pair[0])]
        if len(node.value) < len(pairs):
            node.merged = list(_merged(pairs))

    def _alias(self, event: Any) -> bool:
        node = self._anchors.get(event.anchor)
        if node is None:
            return self._refuse(event, f"the alias '*{event.anchor}' names nothing")
        if node.size == 0:
            return self._refuse(event, f"the alias '*{event.anchor}' is inside of what it names")
        self._aliased += node.size
        if self._aliased > MOST_ALIASED:
            return self._refuse(event, f"the aliases repeat more than {MOST_ALIASED} values")
        self._add(node)
        return True


def _is_merge(key: Node) -> bool:
    return key.plain and key.value == "<<"


def _merged(pairs: list[tuple[Node, Node]]) -> Iterator[tuple[Node, Node]]:
    """The pairs that `<<` brings and that no pair before overrides."""
    known = {key.text for key, _ in pairs}
    for key, value in pairs:
        if not _is_merge(key):
            continue
        for mapping in value.items or [value]:
            if mapping.kind != "mapping":
                mapping.report("", "'<<' takes a mapping, or a list of them")
            for pair in [*mapping.pairs, *mapping.merged]:
                if pair[0].text not in known:
                    known.add(pair[0].text)
                    yield pair


_BRACED = re.compile(r"[^\s\"',{}\[\]]*(?:\{[A-Za-z_][\w.]*\}[^\s\"',{}\[\]]*)+")
_V6 = re.compile(r"\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\](?::[0-9]*)?")
_STARRED = re.compile(r"\*[^\s,}\]]*")


def _report_syntax(source: Source, error: yaml.MarkedYAMLError) -> tuple[tuple[int, int], str] | None:
    """Reports what the parser could not read, with the hint for the usual causes (contract 7.18).

    Returns the line and column of a text that only lacks its quotes, and that text; None for all else.
    """
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    shown = source.line(line)
    problem = f"is not YAML: {error.problem}" + (f" {error.context}" if error.context else "")
    for pattern, context in ((_STARRED, "alias"), (_V6, "flow node"), (_BRACED, "flow mapping")):
        match = next((m for m in pattern.finditer(shown) if m.start() < column <= m.end() + 1), None)
        if match is not None and context in (error.context or ""):
            source.report(line, match.start() + 1, "", problem, f'quote this: "{match[0]}"')
            return (line, match.start() + 1), match[0]
    source.report(line, column, "", problem, _syntax_hint(error, shown[column - 1 : column]))
    return None


def _syntax_hint(error: yaml.MarkedYAMLError, character: str) -> str | None:
    if "cannot start any token" in (error.problem or ""):
        return (
            "indent with spaces, not tabs" if character == "\t" else f"quote what begins with {character!r}"
        )
    if "mapping values are not allowed" in (error.problem or ""):
        return "quote a text that holds ': ', and check the indentation"
    return None
