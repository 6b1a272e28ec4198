"""What was read of a file, before it becomes Structs: values that still know where they stand.

`read.py` makes a tree of `Part` and `Items` of a file's nodes. The checks over several places that follow
(`load.py`, `check.py`) look into it and report at its nodes, `defaults.py` merges two of them, and `build` makes the
Structs.
BAD stands wherever a mistake was reported, so that nobody reports it again.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from msgspec import inspect

from ambassador.config.node import Node
from ambassador.settings import Section

__all__ = ["BAD", "Bad", "Items", "Part", "build", "fields_of", "is_internal", "join", "reject"]


class Bad:
    """The type of BAD."""

    def __repr__(self) -> str:
        return "BAD"


BAD: Final = Bad()
"""In place of a value whose mistake is reported already."""


def reject(node: Node, path: str, message: str, hint: str | None = None) -> Bad:
    """Report what is wrong with a node; BAD, to stand in the place of its value."""
    node.report(path, message, hint)
    return BAD


class Part:
    """A mapping as read: of a Section (`section`), or of free keys (None)."""

    __slots__ = ("keys", "node", "nodes", "path", "section", "values")

    def __init__(self, section: type[Section] | None, node: Node, path: str) -> None:
        self.section = section
        self.node = node
        self.path = path
        self.values: dict[str, Any] = {}
        """What was read for each key: a plain value, a Part, Items or BAD."""
        self.keys: dict[str, Node] = {}
        self.nodes: dict[str, Node] = {}

    def put(self, key: str, value: object, key_node: Node, node: Node) -> None:
        """Adds a value with its places."""
        self.values[key] = value
        self.keys[key] = key_node
        self.nodes[key] = node

    def place(self, key: str | None) -> tuple[Node, str]:
        """The node and the path at which to report about a key (None, or one that is not there: the whole)."""
        if key is None or key not in self.nodes:
            return self.node, self.path
        return self.nodes[key], join(self.path, key)

    def place_within(self, key: str | None) -> tuple[Node, str]:
        """`place`, and of `KEY.INNER` that of what stands inside: a key of a section, a free key itself, or the item
        with this number, from 0. Where there is no such thing, the place of the next around it.
        """
        outer, _, inner = (key or "").partition(".")
        within = self.values.get(outer)
        if isinstance(within, Part) and inner in within.keys and within.section is None:
            return within.keys[inner], join(within.path, inner)
        if isinstance(within, Part) and inner:
            return within.place_within(inner)
        found = within.place_within(inner, join(self.path, outer)) if isinstance(within, Items) else None
        return found or self.place(outer or None)


class Items:
    """A list as read, with the node of each item. `is_list` False: one item was written where a list may be."""

    __slots__ = ("is_list", "nodes", "values")

    def __init__(self, values: list[Any], nodes: list[Node], *, is_list: bool = True) -> None:
        self.values = values
        self.nodes = nodes
        self.is_list = is_list

    def place_within(self, key: str, path: str) -> tuple[Node, str] | None:
        """The place of `NUMBER` or `NUMBER.INNER`, as `Part.place_within`; the list itself is at `path`. None: there is
        no such item.
        """
        written, _, inner = key.partition(".")
        if not written.isdecimal() or int(written) >= len(self.nodes):
            return None
        number = int(written)
        item = self.values[number]
        if inner and isinstance(item, Part):
            return item.place_within(inner)
        return self.nodes[number], f"{path}[{number}]"


def build(value: Any) -> Any:
    """The Structs, tuples and dicts of what was read, or BAD; reports combinations that cannot be."""
    if isinstance(value, Part):
        built = {key: build(inner) for key, inner in value.values.items()}
        if value.section is not None:
            _refuse(value.section, built, value)
        if any(inner is BAD for inner in built.values()):
            return BAD
        return built if value.section is None else _build_section(value.section, built, value)
    if isinstance(value, Items):
        values = tuple(build(inner) for inner in value.values)
        return BAD if any(inner is BAD for inner in values) else values
    return value


def _refuse(section: type[Section], values: dict[str, Any], part: Part) -> None:
    """Report the values that are wrong by themselves, and put BAD in their place."""
    names = _names(section)
    for key, value in values.items():
        problem = None if value is BAD else section.refusal(names[key], value)
        if problem is not None:
            node, path = part.place(key)
            node.report(path, problem)
            values[key] = BAD


def _build_section(section: type[Section], values: dict[str, Any], part: Part) -> Any:
    if not _required(section) <= values.keys():
        return BAD
    names = _names(section)
    built = section(**{names[key]: value for key, value in values.items()})
    good = True
    for key, problem in built.conflicts():
        good = False
        node, path = part.place_within(key)
        node.report(path, problem)
    return built if good else BAD


@cache
def _required(section: type[Section]) -> frozenset[str]:
    return frozenset(field.encode_name for field in fields_of(section) if field.required)


@cache
def _names(section: type[Section]) -> dict[str, str]:
    """The fields of a section by the keys that are written."""
    return {field.encode_name: field.name for field in fields_of(section)}


@cache
def fields_of(section: type[Section]) -> tuple[inspect.Field, ...]:
    """The fields of a section, in the order of the schema."""
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    return info.fields


def is_internal(field: inspect.Field) -> bool:
    """Whether no file may write it."""
    return isinstance(field.type, inspect.Metadata) and bool((field.type.extra or {}).get("internal"))


def join(path: str, key: str) -> str:
    """The path of a key below one."""
    return f"{path}.{key}" if path else key
