"""What a route has of `defaults`: each section that it does not write, and the keys left out in those that it does.

A route's own word holds against the default's. Where two keys stand for the same thing (a rate and a quota, a header
that is set and one that is removed), the one that the route writes takes the other's place too.
"""

from __future__ import annotations

from typing import Any

from ambassador.config.part import Items, Part
from ambassador.config.schema import ON_THE_WAY
from ambassador.proxy.policies import headers

__all__ = ["inherit", "merge"]


def inherit(route: Part, defaults: Any) -> None:
    """Give a route what it does not say itself. `defaults` is the part of that section, if it could be read."""
    if not isinstance(defaults, Part):
        return
    for key, default in defaults.values.items():
        if key in ON_THE_WAY and "to" not in route.keys:
            continue
        own = route.values.get(key)
        if key not in route.values:
            # `keys` stays as it is: it says what the route itself wrote.
            route.values[key] = default
            route.nodes[key] = defaults.nodes[key]
        elif isinstance(own, Part):
            route.values[key] = merge(_without_removed(default, own), own)
        elif isinstance(own, Items) and isinstance(default, Items):
            route.values[key] = _merged_limits(default, own)


def merge(default: Any, own: Any) -> Any:
    """What a route has that says `own` where the default is `default`: mappings key by key, else its own."""
    if not (isinstance(default, Part) and isinstance(own, Part) and default.section is own.section):
        return own
    merged = Part(own.section, own.node, own.path)
    overridden = {key.lower() for key in own.values} if own.section is None else set()
    for key, value in default.values.items():
        if key.lower() not in overridden:
            merged.put(key, value, default.keys[key], default.nodes[key])
    for key, value in own.values.items():
        merged.put(key, merge(default.values.get(key), value), own.keys[key], own.nodes[key])
    return merged


def _without_removed(default: Any, own: Part) -> Any:
    """Default headers without those that the route removes, and with its own `remove` added to the default's."""
    if not (isinstance(default, Part) and default.section is headers.Config):
        return default
    kept = Part(default.section, default.node, default.path)
    for side, changes in default.values.items():
        kept.put(side, _less(changes, own.values.get(side)), default.keys[side], default.nodes[side])
    return kept


def _less(changes: Any, own: Any) -> Any:
    if not (isinstance(changes, Part) and isinstance(own, Part)):
        return changes
    removed = own.values.get("remove")
    if not isinstance(removed, Items):
        return changes
    names = {name.lower() for name in removed.values if isinstance(name, str)}
    kept = Part(changes.section, changes.node, changes.path)
    for key, value in changes.values.items():
        if isinstance(value, Items):
            removed.values += [name for name in value.values if name not in removed.values]
        left = _without_keys(value, names) if isinstance(value, Part) else value
        kept.put(key, left, changes.keys[key], changes.nodes[key])
    return kept


def _without_keys(part: Part, names: set[str]) -> Part:
    kept = Part(part.section, part.node, part.path)
    for key, value in part.values.items():
        if key.lower() not in names:
            kept.put(key, value, part.keys[key], part.nodes[key])
    return kept


def _merged_limits(default: Items, own: Items) -> Items:
    """A route's limit with what it does not say taken from the default's, where each is one and not a list."""
    if own.is_list or default.is_list:
        return own
    (above,), (part,) = default.values, own.values
    if not (isinstance(above, Part) and isinstance(part, Part)):
        return own
    kept = Part(above.section, above.node, above.path)
    # A rate is in place of a quota, and the other way round; a burst belongs to its rate.
    replaced = {"rate", "quota", "burst"} if {"rate", "quota"} & part.values.keys() else set()
    for key, value in above.values.items():
        if key not in replaced:
            kept.put(key, value, above.keys[key], above.nodes[key])
    return Items([merge(kept, part)], own.nodes, is_list=False)
