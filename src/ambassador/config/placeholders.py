"""Parameters of the path in a route's templates: `{param.id}` needs an `{id}` in `match.path`.

Which placeholders there are at all, each template's reader knows (`words.template`); this takes two places of a route.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from ambassador.config import words
from ambassador.config.node import Node
from ambassador.config.part import BAD, Part

__all__ = ["check_placeholders"]

_TEMPLATED: Final = frozenset(("set", "add", "headers", "location", "path"))
"""Keys that stand above templates, or beside them."""


def check_placeholders(route: Part) -> None:
    """Report what a route's templates name of its path that is not there."""
    match = route.values.get("match")
    path = match.values.get("path") if isinstance(match, Part) else None
    if path is BAD or match is BAD:
        return
    known = _parameters(path)
    for key in ("headers", "redirect", "respond", "fallback"):
        for template, node, place in _templates(route.values.get(key)):
            for name in words.placeholders(template):
                parameter = name.removeprefix("param.")
                if parameter != name and parameter not in known:
                    who = route.values.get("name")
                    hint = words.did_you_mean(parameter, sorted(known))
                    node.report(place, f"the path of route '{who}' has no parameter '{parameter}'", hint)


def _parameters(path: Any) -> frozenset[str]:
    if isinstance(path, str):
        return words.path_parameters(path)
    if isinstance(path, Part) and isinstance(path.values.get("regex"), str):
        return frozenset(re.findall(r"\(\?P<(\w+)>", path.values["regex"]))
    return frozenset()


def _templates(value: Any, key: str = "") -> Iterator[tuple[str, Node, str]]:
    """Every value with placeholders below a part, with its place."""
    if not isinstance(value, Part):
        return
    for name, inner in value.values.items():
        if isinstance(inner, str) and (key in _TEMPLATED or (key == "" and name in _TEMPLATED)):
            yield inner, *value.place(name)
        else:
            yield from _templates(inner, name)
