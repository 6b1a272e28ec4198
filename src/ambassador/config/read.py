"""Nodes to values, driven by the schema's types: each annotation becomes a function that reads one node.

A reader never raises for what a file holds. It reports each mistake at its place and returns BAD, and its caller goes
on, so that one run finds every mistake. What is read is a tree of `Part` and `Items`, which still know their nodes
(for the checks over several places that follow); `build` makes the Structs of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any, Final, TypeAlias

from msgspec import inspect

from ambassador.config import schema, units, words
from ambassador.config.node import Node
from ambassador.config.units import Wrong
from ambassador.config.veil import without_users
from ambassador.proxy import content
from ambassador.proxy.policies import limit
from ambassador.settings import Section

__all__ = ["BAD", "Items", "Part", "build", "merge", "read", "section_of"]


class _Bad:
    """The type of BAD."""

    def __repr__(self) -> str:
        return "BAD"


BAD: Final = _Bad()
"""In place of a value whose mistake is reported already."""

Reader: TypeAlias = Callable[[Node, str], Any]
"""Reads the node that stands at a path."""


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
        return self.nodes[key], _join(self.path, key)


class Items:
    """A list as read, with the node of each item. `is_list` False: one item was written where a list may be."""

    __slots__ = ("is_list", "nodes", "values")

    def __init__(self, values: list[Any], nodes: list[Node], *, is_list: bool = True) -> None:
        self.values = values
        self.nodes = nodes
        self.is_list = is_list


def read(section: type[Section], node: Node, path: str = "") -> Part | _Bad:
    """Reads a mapping of this section; reports what is wrong with it."""
    result: Part | _Bad = _section_reader(section)(node, path)
    return result


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
        node, path = _place_within(part, key)
        node.report(path, problem)
    return built if good else BAD


def _place_within(part: Part, key: str | None) -> tuple[Node, str]:
    """`Part.place`, and of `KEY.INNER` that of the inner key, or of the inner item with this number."""
    outer, _, inner = (key or "").partition(".")
    within = part.values.get(outer)
    path = _join(part.path, outer)
    if inner and isinstance(within, Part) and inner in within.keys:
        return within.keys[inner], _join(path, inner)
    if inner and isinstance(within, Items) and int(inner) < len(within.nodes):
        return within.nodes[int(inner)], f"{path}[{inner}]"
    return part.place(outer or None)


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


@cache
def _required(section: type[Section]) -> frozenset[str]:
    return frozenset(field.encode_name for field in _fields(section) if field.required)


@cache
def _names(section: type[Section]) -> dict[str, str]:
    """The fields of a section by the keys that are written."""
    return {field.encode_name: field.name for field in _fields(section)}


@cache
def _fields(section: type[Section]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    return info.fields


def _is_internal(field: inspect.Field) -> bool:
    return isinstance(field.type, inspect.Metadata) and bool((field.type.extra or {}).get("internal"))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


# Sections


@cache
def _section_reader(section: type[Section]) -> Reader:
    return _SectionReader(section).read


class _SectionReader:
    """Reads the mappings of one section."""

    def __init__(self, section: type[Section]) -> None:
        self._section = section
        self._fields = {field.encode_name: field for field in _fields(section) if not _is_internal(field)}
        self._required = [name for name, field in self._fields.items() if field.required]
        self._readers: dict[str, Reader] = {}

    def read(self, node: Node, path: str) -> Part | _Bad:
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

    def _read_short(self, node: Node, path: str) -> Part | _Bad:
        short = self._section.shorthand
        if node.empty:
            return _report(node, path, "has no value", "leave the key out, or say what it is")
        if short is None or (node.kind == "sequence" and not self._takes_list(short)):
            return _report(node, path, f"must be a mapping, not {_what(node)}", _mapping_hint(node))
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
            key_node.report(_join(part.path, written), f"duplicate key '{written}' (first on line {first})")
            if name in self._fields:
                self._reader(name)(value_node, _join(part.path, name))  # for the mistakes in it
        elif name in self._fields:
            value = self._reader(name)(value_node, _join(part.path, name))
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
            key_node.report(_join(part.path, name), wrong.problem, wrong.hint)
            part.values[name] = BAD

    def _check_later(self, part: Part, name: str, key_node: Node, value_node: Node) -> None:
        nodes = value_node.items if value_node.kind == "sequence" else [value_node]
        allowed = self._section.later[name]
        part.keys[name] = key_node
        if any(node.kind != "scalar" or node.text not in allowed for node in nodes):
            hint = f"only '{allowed[0]}' is" if allowed and allowed[0] not in ("off", "false") else None
            key_node.report(_join(part.path, name), f"'{name}' is {words.NOT_SUPPORTED}", hint)

    def _unknown(self, part: Part, name: str, key_node: Node, value_node: Node, mistaken: set[str]) -> None:
        """Reports an unknown key. What is meant by it is read too, for the mistakes in it."""
        meant = self._meant(name, part)
        hint = f"did you mean '{meant}'?" if meant else f"known are {', '.join(self._fields)}"
        key_node.report(part.path, f"unknown key '{_short(name)}'", hint)
        if meant in self._fields:
            mistaken.add(meant)
            self._reader(meant)(value_node, _join(part.path, name))
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
                if any(name == known.encode_name and not _is_internal(known) for known in _fields(inner)):
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
    if form in _FORMS:
        return _formed(_FORMS[form], info)
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
        if mapping is not None and node.kind == "mapping" and not _is_bare_placeholder(node):
            return mapping(node, path)
        if literal is not None and node.kind == "scalar":
            if node.text in literal.values:
                return node.text
            near = _nearest(node.text, [str(value) for value in literal.values], 0.7)
            if near:
                return _report(node, path, f"{_quoted(node)} is not known", f"did you mean '{near}'?")
        return rest(node, path)

    return read_either


def _text_of(node: Node, path: str) -> str | None:
    """The text of a scalar, or None with the mistake reported."""
    if node.kind != "scalar":
        _report(node, path, f"must be a text, not {_what(node)}", _quote_hint(node))
        return None
    if node.empty:
        _report(node, path, "has no value", 'leave the key out, or say what it is; "" is an empty text')
        return None
    return node.text


def _formed(parse: Callable[[str], Any], info: inspect.Type) -> Reader:
    """The reader of one of the forms: its parser, and the bounds of its type."""
    bounds = _bounds(info)
    may_be_secret = parse in (words.secret, words.state_url, words.proxy_url)

    def read_formed(node: Node, path: str) -> Any:
        text = _text_of(node, path)
        if text is None:
            return BAD
        try:
            value = parse(text)
        except Wrong as wrong:
            if may_be_secret:
                node.source.mask(node.line, text)
                node.report(path, wrong.problem, wrong.hint)
                return BAD
            return _report(node, path, wrong.problem, _not_off(node) or wrong.hint)
        problem = bounds(value, text)
        return value if problem is None else _report(node, path, problem)

    return read_formed


def _not_off(node: Node) -> str | None:
    return "this cannot be switched off" if node.off else None


def _bounds(info: inspect.Type) -> Callable[[Any, str], str | None]:
    """What says whether a number is out of its type's bounds; None if it is within."""
    if not isinstance(info, (inspect.IntType, inspect.FloatType)):
        return _no_bounds
    above, least, most = info.gt, info.ge, info.le

    def check(value: float, text: str) -> str | None:
        if above is not None and value <= above:
            return f"must be more than 0, got {text}"
        if (least is not None and value < least) or (most is not None and value > most):
            return f"must be {_range(least, most, text)}, got {text}"
        return None

    return check


def _no_bounds(_value: Any, _text: str) -> str | None:
    return None


def _range(least: float | None, most: float | None, text: str) -> str:
    if text.endswith("%"):
        return "0% to 100%"
    return f"at least {least}" if most is None else f"{least} to {most}"


def _string(_info: inspect.Type) -> Reader:
    def read_string(node: Node, path: str) -> Any:
        text = _text_of(node, path)
        return BAD if text is None else text

    return read_string


_INTEGER = re.compile(r"-?(?:0|[1-9][0-9_]{0,18})", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?", re.ASCII)


def _integer(info: inspect.Type) -> Reader:
    bounds = _bounds(info)

    def read_integer(node: Node, path: str) -> Any:
        if not (node.plain and _INTEGER.fullmatch(node.text)):
            return _report(node, path, f"must be a whole number, not {_what(node)}", _not_off(node))
        value = int(node.text)
        problem = bounds(value, node.text)
        return value if problem is None else _report(node, path, problem)

    return read_integer


def _number(info: inspect.Type) -> Reader:
    bounds = _bounds(info)

    def read_number(node: Node, path: str) -> Any:
        if not (node.plain and _DECIMAL.fullmatch(node.text)):
            return _report(node, path, f"must be a number, not {_what(node)}")
        value = float(node.text)
        problem = bounds(value, node.text)
        return value if problem is None else _report(node, path, problem)

    return read_number


_TRUE = frozenset(("true", "True", "TRUE", "on", "yes"))
_FALSE = frozenset(("false", "False", "FALSE", "off", "no"))


def _boolean(_info: inspect.Type) -> Reader:
    def read_boolean(node: Node, path: str) -> Any:
        if node.plain and node.text in _TRUE:
            return True
        if node.plain and node.text in _FALSE:
            return False
        return _report(node, path, f"must be true or false, not {_what(node)}")

    return read_boolean


def _literal(info: inspect.Type) -> Reader:
    assert isinstance(info, inspect.LiteralType)
    values = {str(value): value for value in info.values}

    def read_literal(node: Node, path: str) -> Any:
        text = _text_of(node, path)
        if text is None:
            return BAD
        if text in values:
            return values[text]
        known = ", ".join(values)
        problem = f"must be {known}" if len(values) == 1 else f"must be one of {known}"
        return _report(node, path, f"{problem}; got {_quoted(node)}", words.did_you_mean(text, list(values)))

    return read_literal


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
                return _report(node, path, "must not be empty")
            return Items([item(inner, f"{path}[{at}]") for at, inner in enumerate(node.items)], node.items)
        if node.empty:
            return _report(node, path, "has no value", "leave the key out, or write a list")
        # One is a list of one where that cannot be mistaken.
        if is_section and (node.kind == "mapping" or not short) and not (short and _takes_one(info)):
            return _report(node, path, f"must be a list, not {_what(node)}", "begin each item with '- '")
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
            return _report(node, path, f"must be a list of {len(readers)}")
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
            return _report(node, path, f"must be a mapping, not {_what(node)}", _mapping_hint(node))
        part = Part(None, node, path)
        seen: dict[str, Node] = {}
        for key_node, value_node in [*node.pairs, *node.merged]:
            inner = _join(path, _short(key_node.text))
            key = read_key(key_node, inner)
            value = read_value(value_node, inner)
            if key is BAD:
                part.put("?", BAD, key_node, value_node)
                continue
            # Header names are the same in any case; nothing else here differs in case only on purpose.
            if key.lower() in seen:
                first = seen[key.lower()].line
                key_node.report(inner, f"duplicate key '{_short(key)}' (first on line {first})")
                continue
            seen[key.lower()] = key_node
            part.put(key, value, key_node, value_node)
        return part

    return read_mapping


_MAKERS: dict[type[inspect.Type], Callable[[inspect.Type], Reader]] = {
    inspect.StrType: _string,
    inspect.IntType: _integer,
    inspect.FloatType: _number,
    inspect.BoolType: _boolean,
    inspect.LiteralType: _literal,
    inspect.VarTupleType: _list,
    inspect.TupleType: _pair,
    inspect.DictType: _free_mapping,
}


# Forms


def _target(node: Node, path: str) -> Any:
    """`to`: the name of an upstream (a str), or URLs, which become the endpoints of one (Items)."""
    if (
        node.kind == "scalar"
        and not node.empty
        and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|unix:", node.text)
    ):
        if re.fullmatch(r"[^:/]+:[0-9]+/?|.*/.*", node.text):
            return _report(
                node,
                path,
                f"{_quoted(node)} is neither a URL nor a name",
                f"did you mean 'http://{node.text}'?",
            )
        return _FORM_READERS["name"](node, path)
    return _reader_of(next(field.type for field in _fields(schema.Upstream) if field.name == "endpoints"))(
        node, path
    )


def _endpoints(node: Node, path: str) -> Any:
    """At least one endpoint: none is what a file that is read while the service runs may say, not a config."""
    return _list(inspect.VarTupleType(item_type=inspect.type_info(schema.Endpoint), min_length=1))(node, path)


def _workers(node: Node, path: str) -> Any:
    if node.text == "auto":
        return None
    return _integer(inspect.IntType(ge=1, le=1024))(node, path)


def _outcome(words_of: Callable[[str], str]) -> Reader:
    """How an attempt ended: a word or a status, or a mapping with one key for what the answer says."""
    read_word = _formed(words_of, inspect.StrType())

    def read(node: Node, path: str) -> Any:
        if node.kind != "mapping":
            return read_word(node, path)
        kinds = ", ".join(content.KINDS)
        if len(node.pairs) != 1:
            return _report(node, path, f"needs exactly one of {kinds}")
        ((key, value),) = node.pairs
        if key.text not in content.KINDS:
            return _report(key, path, f"{_quoted(key)} is not one of {kinds}")
        if value.kind != "scalar" or value.empty:
            return _report(value, f"{path}.{key.text}", f"{_what(value)} is not a text")
        try:
            return words.content_condition(key.text, value.text)
        except Wrong as wrong:
            return _report(value, f"{path}.{key.text}", wrong.problem)

    return read


_SPECIAL: dict[str | None, Reader] = {
    "target": _target,
    "endpoints": _endpoints,
    "workers": _workers,
    "failure_condition": _outcome(words.failure_condition),
    "retry_condition": _outcome(words.retry_condition),
}

_FORMS: dict[str | None, Callable[[str], Any]] = {
    "duration": units.parse_duration,
    "duration_range": units.parse_duration_range,
    "hedge_after": units.parse_hedge_after,
    "size": units.parse_size,
    "byte_rate": units.parse_byte_rate,
    "percent": units.parse_percent,
    "name": words.name,
    "secret": words.secret,
    "state_url": words.state_url,
    "listen_address": words.listen_address,
    "control": words.control,
    "endpoint_url": words.endpoint_url,
    "host_port": words.host_port,
    "proxy_url": words.proxy_url,
    "srv_name": words.srv_name,
    "file_path": words.file_path,
    "pem_file": words.pem_file,
    "tls_version": words.tls_version,
    "server_name": words.server_name,
    "kubernetes_name": words.kubernetes_name,
    "kubernetes_port": words.kubernetes_port,
    "api_server": words.api_server,
    "token_url": words.token_url,
    "san_pattern": words.san_pattern,
    "jwks_source": words.jwks_source,
    "client_name": words.client_name,
    "cidr": words.cidr,
    "host_pattern": words.host_pattern,
    "egress_place": words.egress_place,
    "host": words.host,
    "path_pattern": words.path_pattern,
    "path": words.path,
    "regex": words.regex,
    "method": words.method,
    "header_name": words.header_name,
    "component": words.component,
    "match_header": lambda text: words.header_name(text).lower(),
    "header_value": words.header_value,
    "template": words.template,
    "rate": units.parse_rate,
    "limit_per": words.limit_per,
    "balance_key": words.balance_key,
    "zone": words.zone,
    "limit_cost": words.limit_cost,
    "status_range": words.status_span,
    "log_target": words.log_target,
}

_FORM_READERS = {"name": _formed(words.name, inspect.StrType())}


# Words for problems


def _report(node: Node, path: str, message: str, hint: str | None = None) -> _Bad:
    node.report(path, message, hint)
    return BAD


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _quoted(node: Node) -> str:
    return repr(_short(without_users(node.text)))


def _what(node: Node) -> str:
    if node.kind == "scalar":
        return "nothing" if node.empty else _quoted(node)
    return "a list" if node.kind == "sequence" else "a mapping"


def _is_bare_placeholder(node: Node) -> bool:
    """Whether it is what YAML makes of an unquoted `{client}`: a mapping with one key and no value."""
    return len(node.pairs) == 1 and node.pairs[0][1].empty and node.pairs[0][0].kind == "scalar"


def _quote_hint(node: Node) -> str | None:
    if _is_bare_placeholder(node):
        return f'quote this: "{{{_short(node.pairs[0][0].text)}}}"'
    return None


def _mapping_hint(node: Node) -> str | None:
    if node.kind == "scalar" and ":" in node.text:
        return "a space is needed after the colon of a key"
    return "leave out the '- '" if node.kind == "sequence" else None
