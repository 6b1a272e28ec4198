"""What differs between two configs, and what a reload from one to the other does. Pure."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from ambassador.config.display import to_display
from ambassador.config.schema import Config
from ambassador.config.veil import MASK

_OWN_PLACE = ("line", "file")


class KeyChange(Struct, frozen=True, kw_only=True):
    """One key that has another value, as people write it; None: it is not set."""

    key: str
    before: Any
    after: Any


class Change(Struct, frozen=True, kw_only=True):
    """One thing that was added, removed, changed, or moved in the order of routes.

    `what` is its kind and name. `place` is `file:line` in the config that has it, for routes. `effect` is what a
    reload does about it.
    """

    what: str
    kind: Literal["added", "removed", "changed", "moved"]
    place: str | None = None
    keys: tuple[KeyChange, ...] = ()
    effect: str


def diff(before: Config, after: Config) -> list[Change]:
    """All that differs, in the order of a config's keys."""
    old, new = _displayed(before, after)
    return [
        *_settings(old, new),
        *_named("listener", _by(old["listeners"], "address"), _by(new["listeners"], "address"), _LISTENER),
        *_named("upstream", old["upstreams"], new["upstreams"], _UPSTREAM),
        *_named("route", _by(old["routes"], "name"), _by(new["routes"], "name"), _ROUTE),
        *_moved(old["routes"], new["routes"]),
    ]


def _displayed(before: Config, after: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both as people write them, where references to different secrets are told apart by a number behind the mask."""
    numbers: dict[str, int] = {}

    def number(reference: str) -> str:
        return f"{MASK}#{numbers.setdefault(reference, len(numbers))}"

    old, new = to_display(before, number), to_display(after, number)
    if any(MASK in reference for reference in numbers):  # of a running service it is not told which they are
        return to_display(before), to_display(after)
    return old, new


def _unnumbered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unnumbered(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unnumbered(inner) for inner in value]
    return _NUMBERED.sub(MASK, value) if isinstance(value, str) else value


_NUMBERED = re.compile(rf"{re.escape(MASK)}#[0-9]+")
_SETTINGS = {
    "name": "only a restart changes it",
    "zone": "holds for requests that begin after the reload",
    "admin": "holds at once; on an address that it leaves, the API answers for one second more",
    "workers": "workers are started, or finish what they have and end",
    "control": "a reload is refused: only a restart changes it",
    "state": "only a restart changes it",
    "clients": "holds for requests that begin after the reload; connections stay",
    "telemetry": "holds from the next line of the log",
    "drain": "holds for the next drain",
    "egress": "holds for connections that are opened after the reload",
    "overload": "holds at once; what is refused is measured anew",
}
_LISTENER = {
    "added": "it is bound before anything else changes",
    "removed": "it takes no new connections; those that are open go on",
    "changed": "holds for new connections",
}
_UPSTREAM = {
    "added": "its connections are opened when they are needed",
    "removed": "requests under way finish on it",
    "changed": "requests under way finish as they began; connections are opened anew",
}
_ROUTE = {
    "added": "takes requests that begin after the reload; it counts from zero",
    "removed": "requests under way finish as they began",
    "changed": "holds for requests that begin after the reload; its counters go on",
}
_MOVED = "routes are tried in another order"


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name, effect in _SETTINGS.items():
        keys = tuple(_keys(old[name], new[name]))
        if keys:
            yield Change(what=name, kind="changed", keys=keys, effect=effect)


def _by(values: Sequence[Mapping[str, Any]], key: str) -> dict[str, Mapping[str, Any]]:
    """By name; further ones of the same name, as listeners on port 0 can be, by a number too."""
    found: dict[str, Mapping[str, Any]] = {}
    for value in values:
        name, number = value[key], 1
        while name in found:
            number += 1
            name = f"{value[key]} ({number})"
        found[name] = value
    return found


def _named(
    kind: str, old: Mapping[str, Any], new: Mapping[str, Any], effects: Mapping[str, str]
) -> Iterator[Change]:
    for name in old:
        if name not in new:
            yield Change(
                what=f"{kind} {name}", kind="removed", place=_place(old[name]), effect=effects["removed"]
            )
    for name, value in new.items():
        if name not in old:
            yield Change(what=f"{kind} {name}", kind="added", place=_place(value), effect=effects["added"])
            continue
        keys = tuple(_keys(old[name], value))
        if keys:
            yield Change(
                what=f"{kind} {name}",
                kind="changed",
                place=_place(value),
                keys=keys,
                effect=effects["changed"] + _kept(name, old[name], value),
            )


def _kept(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What is said of a breaker that goes on with other settings, or the same."""
    before, after = old.get("breaker"), new.get("breaker")
    if before is None or after is None or before["scope"] != after["scope"]:
        return ""
    of = {
        "upstream": new.get("to") or name,
        "route": f"route:{name}",
        "endpoint": f"{new.get('to') or name}/…",
    }
    return f"; breaker state of {of[after['scope']]} is kept"


def _place(value: Mapping[str, Any]) -> str | None:
    return f"{value['file'] or '-'}:{value['line']}" if value.get("line") else None


def _keys(old: Any, new: Any, path: str = "") -> Iterator[KeyChange]:
    """The innermost keys that differ. A list, and what is a mapping on one side only, is one value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if path or key not in _OWN_PLACE:
                yield from _keys(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield KeyChange(key=path, before=_unnumbered(old), after=_unnumbered(new))


def _moved(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Iterator[Change]:
    """The fewest routes that must move for the old order to become the new one."""
    names = [route["name"] for route in new]
    position = {route["name"]: number for number, route in enumerate(old)}
    known = [route for route in new if route["name"] in position]
    staying = _longest_rising([position[route["name"]] for route in known])
    for number, route in enumerate(known):
        if number not in staying:
            at = names.index(route["name"])
            where = f"after route {names[at - 1]}" if at else "the first"
            yield Change(
                what=f"route {route['name']}",
                kind="moved",
                place=_place(route),
                effect=f"{_MOVED}: it is now {where}",
            )


def _longest_rising(numbers: Sequence[int]) -> set[int]:
    """The positions of a longest subsequence that rises (patience sorting)."""
    ends: list[int] = []  # by length: the smallest number that such a subsequence can end with
    at: list[int] = []  # where that is
    before: list[int | None] = []
    for position, number in enumerate(numbers):
        length = bisect_left(ends, number)
        before.append(at[length - 1] if length else None)
        ends[length : length + 1] = [number]
        at[length : length + 1] = [position]
    found: set[int] = set()
    step = at[-1] if at else None
    while step is not None:
        found.add(step)
        step = before[step]
    return found


_SIGNS = {"added": "+", "removed": "-", "changed": "~", "moved": "^"}


def render(changes: Sequence[Change]) -> str:
    """For people: what changes, key by key, and what a reload does."""
    if not changes:
        return "no difference\n"
    lines: list[str] = []
    for change in changes:
        place = f"   {change.place}" if change.place else ""
        lines.append(f"{_SIGNS[change.kind]} {change.what}{place}")
        for key in change.keys:
            name = f"{key.key}: " if key.key else ""
            lines.append(f"    {name}{_text(key.before)} -> {_text(key.after)}")
        lines.append(f"    ({change.effect})")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(_written(value), ensure_ascii=False)


def _written(value: Any) -> Any:
    """Without what is not set."""
    if isinstance(value, dict):
        return {key: _written(inner) for key, inner in value.items() if inner is not None}
    return [_written(inner) for inner in value] if isinstance(value, list) else value
