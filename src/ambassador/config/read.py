"""Nodes to values, driven by the schema's types: each annotation becomes a function that reads one node.

A reader never raises for what a file holds. It reports each mistake at its place and returns BAD, and its caller goes
on, so that one run finds every mistake. What is read is a tree of `part.py`'s: sections, lists and free mappings are
read here, the texts in them by `scalars.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from msgspec import inspect

from ambassador.config import schema, words
from ambassador.config.node import Node, shortened
from ambassador.config.part import BAD, Bad, Items, Part, fields_of, is_internal, join, reject
from ambassador.config.scalars import FORMS, SCALARS, Reader, formed, integer
from ambassador.config.units import Wrong
from ambassador.proxy import content
from ambassador.proxy.policies import limit
from ambassador.settings import Section

__all__ = ["read", "section_of"]


def read(section: type[Section], node: Node, path: str = "") -> Part | Bad:
    """Reads a mapping of this section; reports what is wrong with it."""
    result: Part | Bad = _section_reader(section)(node, path)
    return result


# Sections


@cache
def _section_reader(section: type[Section]) -> Reader:
    return _SectionReader(section).read


class _SectionReader:
    """Reads the mappings of one section."""

    def __init__(self, section: type[Section]) -> None:
        self._section = section
        self._fields = {field.encode_name: field for field in fields_of(section) if not is_internal(field)}
        self._required = [name for name, field in self._fields.items() if field.required]
        self._readers: dict[str, Reader] = {}

    def read(self, node: Node, path: str) -> Part | Bad:
        if node.kind != "mapping":
            return self._read_short(node, path)
        part = Part(self._section, node, path)
        mistaken: set[str] = set()
        for key_node, value_node in node.pairs:
            self._read_pair(part, key_node, value_node, mistaken)
        for key_node, value_node in node.merged:
            if key_node.text not in part.keys:
                self._read_pair(part, key_node, value_node, mistaken)
        for name in self._required:
            if name not in part.values and name not in mistaken:
                node.report(path, f"missing required key '{name}'")
                part.put(name, BAD, node, node)
        return part

    def _read_short(self, node: Node, path: str) -> Part | Bad:
        short = self._section.shorthand
        if node.empty:
            return reject(node, path, "has no value", "leave the key out, or say what it is")
        if short is None or (node.kind == "sequence" and not self._takes_list(short)):
            return reject(node, path, f"must be a mapping, not {node.what}", _mapping_hint(node))
        part = Part(self._section, node, path)
        value = self._reader(short)(node, path)
        part.put(short, value, node, node)
        return _all_values(part) if self._section is schema.ValueMatch else part

    def _takes_list(self, name: str) -> bool:
        return isinstance(_without_none(self._fields[name].type), inspect.VarTupleType)

    def _reader(self, name: str) -> Reader:
        reader = self._readers.get(name)
        if reader is None:
            # A header may be asked to be `off`: nothing is switched off where values are compared.
            info = self._fields[name].type
            reader = _reader_of(_without_none(info) if self._section is schema.ValueMatch else info)
            self._readers[name] = reader
        return reader

    def _read_pair(self, part: Part, key_node: Node, value_node: Node, mistaken: set[str]) -> None:
        if key_node.kind != "scalar":
            key_node.report(part.path, "a key must be a word")
            return
        # YAML 1.1 reads the key `on` as true, and tools that went through it write `true`.
        written = "on" if key_node.text in ("true", "True", "TRUE") else key_node.text
        name = self._section.aliases.get(written, written)
        if name in part.keys:
            first = part.keys[name].line
            key_node.report(join(part.path, written), f"duplicate key '{written}' (first on line {first})")
            if name in self._fields:
                self._reader(name)(value_node, join(part.path, name))  # for the mistakes in it
        elif name in self._fields:
            value = self._reader(name)(value_node, join(part.path, name))
            part.put(name, value, key_node, value_node)
            self._check_extra(part, name, key_node)
        elif name in self._section.later:
            self._check_later(part, name, key_node, value_node)
        else:
            self._unknown(part, name, key_node, value_node, mistaken)

    def _check_extra(self, part: Part, name: str, key_node: Node) -> None:
        extra = self._section.extras.get(name)
        if extra is None or part.values[name] is None or part.values[name] is BAD:
            return  # what is switched off needs nothing
        try:
            words.need(extra, f"'{name}'")
        except Wrong as wrong:
            key_node.report(join(part.path, name), wrong.problem, wrong.hint)
            part.values[name] = BAD

    def _check_later(self, part: Part, name: str, key_node: Node, value_node: Node) -> None:
        nodes = value_node.items if value_node.kind == "sequence" else [value_node]
        allowed = self._section.later[name]
        part.keys[name] = key_node
        if any(node.kind != "scalar" or node.text not in allowed for node in nodes):
            hint = f"only '{allowed[0]}' is" if allowed and allowed[0] not in ("off", "false") else None
            key_node.report(join(part.path, name), f"'{name}' is {words.NOT_SUPPORTED}", hint)

    def _unknown(self, part: Part, name: str, key_node: Node, value_node: Node, mistaken: set[str]) -> None:
        """Reports an unknown key. What is meant by it is read too, for the mistakes in it."""
        meant = self._meant(name, part)
        hint = f"did you mean '{meant}'?" if meant else f"known are {', '.join(self._fields)}"
        key_node.report(part.path, f"unknown key '{shortened(name)}'", hint)
        if meant in self._fields:
            mistaken.add(meant)
            self._reader(meant)(value_node, join(part.path, name))
            part.put(meant, BAD, key_node, value_node)
        else:
            part.put(f"?{name}", BAD, key_node, value_node)

    def _meant(self, name: str, part: Part) -> str | None:
        words_for = _MEANT.get(self._section, {})
        for said, meant in words_for.items():
            if name == said or (meant not in part.values and _nearest(name, (said,), 0.8)):
                return meant
        missing = [key for key in self._required if key not in part.values]
        free = [key for key in (*self._fields, *self._section.aliases) if key not in part.values]
        near = _nearest(name, missing, 0.5) or _nearest(name, free, 0.6)
        return near or self._inside(name) or _nearest(name, tuple(self._section.later), 0.7)

    def _inside(self, name: str) -> str | None:
        """Where the key would be known one level down: `match.host` for `host`."""
        for field in self._fields.values():
            for inner in _sections_in(field.type):
                if any(name == known.encode_name and not is_internal(known) for known in fields_of(inner)):
                    return f"{field.encode_name}.{name}"
        return None


_MEANT: dict[type[Section], dict[str, str]] = {
    schema.Route: {"upstream": "to", "backend": "to", "url": "to", "service": "to", "proxy_pass": "to"},
    schema.Document: {key: f"defaults.{key}" for key in ("timeout", "retry", "headers")}
    | {"port": "listen", "bind": "listen", "services": "upstreams", "backends": "upstreams"},
    schema.Upstream: {
        "servers": "endpoints",
        "targets": "endpoints",
        "urls": "endpoints",
        "hosts": "endpoints",
    },
    schema.Match: {"hosts": "host", "method": "methods", "prefix": "path", "paths": "path"},
}
"""What other proxies call our keys."""


def _sections_in(info: inspect.Type) -> Iterable[type[Section]]:
    if isinstance(info, inspect.Metadata):
        yield from _sections_in(info.type)
    elif isinstance(info, inspect.UnionType):
        for inner in info.types:
            yield from _sections_in(inner)
    elif isinstance(info, inspect.StructType):
        yield section_of(info)


def section_of(info: inspect.StructType) -> type[Section]:
    """The section that a type of the schema is."""
    assert issubclass(info.cls, Section)
    return info.cls


def _nearest(word: str, known: Sequence[str], cutoff: float) -> str | None:
    rated = [(SequenceMatcher(None, word.lower(), other).ratio(), other) for other in known]
    best = max(rated, default=(0.0, ""))
    return best[1] if best[0] >= cutoff else None


def _all_values(part: Part) -> Part:
    """`x-tenant: "*"` asks that the header is there, whatever it says."""
    exact = part.values.get("exact")
    if isinstance(exact, Items) and exact.values == ["*"]:
        changed = Part(part.section, part.node, part.path)
        changed.put("present", bool(exact.values), part.node, part.node)
        return changed
    return part


# Readers of each type


def _reader_of(info: inspect.Type, form: str | None = None) -> Reader:
    """The reader of a type; `form` is how its text is written, if it is one of the kinds of `settings`."""
    if isinstance(info, inspect.Metadata):
        return _reader_of(info.type, (info.extra or {}).get("form", form))
    if form in _SPECIAL:
        return _SPECIAL[form]
    if isinstance(info, inspect.UnionType):
        return _union(info, form)
    if isinstance(info, inspect.StructType):
        return _section_reader(info.cls)
    if form in FORMS:
        return formed(FORMS[form], info)
    maker = _MAKERS.get(type(info))
    assert maker is not None, f"no reader for {info}"
    return maker(info)


def _union(info: inspect.UnionType, form: str | None) -> Reader:
    others = [inner for inner in info.types if not isinstance(inner, inspect.NoneType)]
    reader = _reader_of(others[0], form) if len(others) == 1 else _either(others)
    has_none = len(others) < len(info.types)
    return _optional(reader) if has_none and not isinstance(others[0], inspect.BoolType) else reader


def _without_none(info: inspect.Type) -> inspect.Type:
    if not isinstance(info, inspect.UnionType):
        return info
    return next(inner for inner in info.types if not isinstance(inner, inspect.NoneType))


def _optional(reader: Reader) -> Reader:
    def read_optional(node: Node, path: str) -> Any:
        return None if node.off else reader(node, path)

    return read_optional


def _either(infos: list[inspect.Type]) -> Reader:
    """A union of which the node's shape tells the member: a mapping, one of a few words, or the rest."""
    mapping = next((_reader_of(info) for info in infos if isinstance(info, inspect.StructType)), None)
    literal = next((info for info in infos if isinstance(info, inspect.LiteralType)), None)
    rest = next(
        _reader_of(info) for info in infos if not isinstance(info, (inspect.StructType, inspect.LiteralType))
    )

    def read_either(node: Node, path: str) -> Any:
        if mapping is not None and node.kind == "mapping" and not node.is_placeholder:
            return mapping(node, path)
        if literal is not None and node.kind == "scalar":
            if node.text in literal.values:
                return node.text
            near = _nearest(node.text, [str(value) for value in literal.values], 0.7)
            if near:
                return reject(node, path, f"{node.quoted} is not known", f"did you mean '{near}'?")
        return rest(node, path)

    return read_either


def _list(info: inspect.Type) -> Reader:
    assert isinstance(info, inspect.VarTupleType)
    item = _reader_of(info.item_type)
    is_section = isinstance(info.item_type, inspect.StructType)
    short = (
        isinstance(info.item_type, inspect.StructType) and section_of(info.item_type).shorthand is not None
    )

    def read_list(node: Node, path: str) -> Any:
        if node.kind == "sequence":
            if not node.items and info.min_length:
                return reject(node, path, "must not be empty")
            return Items([item(inner, f"{path}[{at}]") for at, inner in enumerate(node.items)], node.items)
        if node.empty:
            return reject(node, path, "has no value", "leave the key out, or write a list")
        # One is a list of one where that cannot be mistaken.
        if is_section and (node.kind == "mapping" or not short) and not (short and _takes_one(info)):
            return reject(node, path, f"must be a list, not {node.what}", "begin each item with '- '")
        return Items([item(node, path)], [node], is_list=False)

    return read_list


def _takes_one(info: inspect.VarTupleType) -> bool:
    """Whether one mapping may stand where a list of them can."""
    return isinstance(info.item_type, inspect.StructType) and info.item_type.cls in (
        schema.Listener,
        limit.Config,
    )


def _pair(info: inspect.Type) -> Reader:
    assert isinstance(info, inspect.TupleType)
    readers = [_reader_of(inner) for inner in info.item_types]

    def read_pair(node: Node, path: str) -> Any:
        if len(node.items) != len(readers):
            return reject(node, path, f"must be a list of {len(readers)}")
        values = [
            reader(inner, f"{path}[{at}]")
            for at, (reader, inner) in enumerate(zip(readers, node.items, strict=True))
        ]
        return Items(values, node.items)

    return read_pair


def _free_mapping(info: inspect.Type) -> Reader:
    assert isinstance(info, inspect.DictType)
    read_key, read_value = _reader_of(info.key_type), _reader_of(info.value_type)

    def read_mapping(node: Node, path: str) -> Any:
        if node.kind != "mapping":
            return reject(node, path, f"must be a mapping, not {node.what}", _mapping_hint(node))
        part = Part(None, node, path)
        seen: dict[str, Node] = {}
        for key_node, value_node in [*node.pairs, *node.merged]:
            inner = join(path, shortened(key_node.text))
            key = read_key(key_node, inner)
            value = read_value(value_node, inner)
            if key is BAD:
                part.put("?", BAD, key_node, value_node)
                continue
            # Header names are the same in any case; nothing else here differs in case only on purpose.
            if key.lower() in seen:
                first = seen[key.lower()].line
                key_node.report(inner, f"duplicate key '{shortened(key)}' (first on line {first})")
                continue
            seen[key.lower()] = key_node
            part.put(key, value, key_node, value_node)
        return part

    return read_mapping


_MAKERS: dict[type[inspect.Type], Callable[[inspect.Type], Reader]] = {
    **SCALARS,
    inspect.VarTupleType: _list,
    inspect.TupleType: _pair,
    inspect.DictType: _free_mapping,
}


# Forms that are more than a text

_read_name = formed(words.name, inspect.StrType())


def _target(node: Node, path: str) -> Any:
    """`to`: the name of an upstream (a str), or URLs, which become the endpoints of one (Items)."""
    if (
        node.kind == "scalar"
        and not node.empty
        and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|unix:", node.text)
    ):
        if re.fullmatch(r"[^:/]+:[0-9]+/?|.*/.*", node.text):
            return reject(
                node,
                path,
                f"{node.quoted} is neither a URL nor a name",
                f"did you mean 'http://{node.text}'?",
            )
        return _read_name(node, path)
    return _reader_of(next(field.type for field in fields_of(schema.Upstream) if field.name == "endpoints"))(
        node, path
    )


def _endpoints(node: Node, path: str) -> Any:
    """At least one endpoint: none is what a file that is read while the service runs may say, not a config."""
    return _list(inspect.VarTupleType(item_type=inspect.type_info(schema.Endpoint), min_length=1))(node, path)


def _workers(node: Node, path: str) -> Any:
    if node.text == "auto":
        return None
    return integer(inspect.IntType(ge=1, le=1024))(node, path)


def _outcome(words_of: Callable[[str], str]) -> Reader:
    """How an attempt ended: a word or a status, or a mapping with one key for what the answer says."""
    read_word = formed(words_of, inspect.StrType())

    def read(node: Node, path: str) -> Any:
        if node.kind != "mapping":
            return read_word(node, path)
        kinds = ", ".join(content.KINDS)
        if len(node.pairs) != 1:
            return reject(node, path, f"needs exactly one of {kinds}")
        ((key, value),) = node.pairs
        if key.text not in content.KINDS:
            return reject(key, path, f"{key.quoted} is not one of {kinds}")
        if value.kind != "scalar" or value.empty:
            return reject(value, f"{path}.{key.text}", f"{value.what} is not a text")
        try:
            return words.content_condition(key.text, value.text)
        except Wrong as wrong:
            return reject(value, f"{path}.{key.text}", wrong.problem)

    return read


_SPECIAL: dict[str | None, Reader] = {
    "target": _target,
    "endpoints": _endpoints,
    "workers": _workers,
    "failure_condition": _outcome(words.failure_condition),
    "retry_condition": _outcome(words.retry_condition),
}


def _mapping_hint(node: Node) -> str | None:
    if node.kind == "scalar" and ":" in node.text:
        return "a space is needed after the colon of a key"
    return "leave out the '- '" if node.kind == "sequence" else None
