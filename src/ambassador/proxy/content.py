"""What an answer says of itself, where its status does not: `200` with `{"status": "error"}`, a SOAP fault.

A *content condition* is `{header: NAME=VALUE}`, `{json: PATH=VALUE}` or `{body: REGEX}` among a breaker's `failures` or
in `retry.when`; after loading it is one text, `json:status=error`. A route's `Contents` are all that its retry and the
breakers on its way name. An answer is looked at once, and each of them goes by those that are its own.

The rules that hold here
- Bodies come from anybody. What is not what a condition looks for does not match; nothing here raises for a body, and
  all of it takes time linear in what is looked at, which is never more than LOOKED_AT bytes.
- What is there is judged: a body that is longer, or late, by its beginning.
- A body in gzip is unpacked, up to LOOKED_AT bytes of what is in it (0.3 ms). One in another coding is not looked
  into.

Paths into JSON are names and indices, `error.code` and `items[0].state`. Only what lies on the path is looked at
closely; the rest is passed by the standard library's scanner, in C (2.3 ms for 64 KiB of small objects, 9 µs
for a body of 200 bytes). So a beginning is enough, if the path ends in it.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Callable, Iterable
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Final, TypeAlias

from ambassador.proxy import path_regex

if TYPE_CHECKING:
    from ambassador.messages import ResponseHead

LOOKED_AT: Final = 65536
"""Bytes of a body that are looked at, at most."""
KINDS: Final = ("header", "json", "body")
"""Of content conditions."""
CONTENT: Final = "content"
"""In `retry.when`: whatever the breakers name. Of an attempt: how it ended."""
NOTHING: Final = frozenset[str]()

Step: TypeAlias = str | int


class Wrong(ValueError):
    """A content condition is malformed. The text says how."""


def is_content(condition: str) -> bool:
    """Whether a condition of `failures` or `when` looks into the answer."""
    return condition.partition(":")[0] in KINDS and ":" in condition


def contents(conditions: Iterable[str]) -> frozenset[str]:
    """The content conditions among these."""
    return frozenset(filter(is_content, conditions))


def condition(kind: str, text: str) -> str:
    """The content condition that is written `{kind: text}`. Raises `Wrong`."""
    made = f"{kind}:{text.strip() if kind != 'body' else text}"
    if kind == "header":
        name, value = _pair(text, "NAME=VALUE")
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise Wrong(f"{name!r} is not the name of a header")
        made = f"header:{name.lower()}={value}"
    elif kind == "json":
        path, value = _pair(text, "PATH=VALUE")
        steps(path)
        made = f"json:{path}={value}"
    else:
        try:
            path_regex.compile(text, inside=True)
        except path_regex.Refused as refused:
            raise Wrong(f"{text!r}: {refused}") from None
    return made


def written(condition: str) -> str | dict[str, str]:
    """A condition as it is written in a config."""
    kind, _, text = condition.partition(":")
    return {kind: text} if is_content(condition) else condition


def _pair(text: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not equals or not left.strip():
        raise Wrong(f"{text!r} is not of the form {form}")
    return left.strip(), right.strip()


def steps(path: str) -> tuple[Step, ...]:
    """The names and indices of a path. Raises `Wrong`.

    Names are whatever holds no dot, bracket or equals sign; `[n]` is the n-th of a list, from 0.
    """
    found: list[Step] = []
    for part in path.split("."):
        whole = re.fullmatch(r"([^\[\]=]*)((?:\[[0-9]{1,6}\])*)", part)
        if whole is None or not (whole[1] or (whole[2] and not found)):
            raise Wrong(
                f"{path!r} is not a path: names with dots between them, and [0] for the first of a list"
            )
        if whole[1]:
            found.append(whole[1])
        found += map(int, re.findall(r"[0-9]+", whole[2]))
    return tuple(found)


class Contents:
    """What a route looks for in answers. `conditions` are those of its retry and its breakers together."""

    __slots__ = ("_bodies", "_headers", "_paths", "looks_inside")

    def __init__(self, conditions: Iterable[str]) -> None:
        self._headers: list[tuple[str, bytes, bytes]] = []
        self._paths: list[tuple[str, tuple[Step, ...], str]] = []
        self._bodies: list[tuple[str, Callable[[str], bool]]] = []
        for each in sorted(set(conditions)):
            kind, _, text = each.partition(":")
            if kind == "body":
                self._bodies.append((each, path_regex.compile(text, inside=True).is_inside))
                continue
            name, _, value = text.partition("=")
            if kind == "header":
                self._headers.append((each, name.encode(), value.encode()))
            else:
                self._paths.append((each, steps(name), value))
        self.looks_inside = bool(self._paths or self._bodies)
        """Bodies are looked at as well."""

    def by_head(self, head: ResponseHead) -> frozenset[str]:
        """The conditions that the head meets: a field with this value, beside others of its name or not."""
        if not self._headers:
            return NOTHING
        there = {(name.lower(), value) for name, value in head.headers}
        return frozenset(each for each, name, value in self._headers if (name, value) in there)

    def by_body(self, head: ResponseHead, body: bytes, *, complete: bool) -> frozenset[str]:
        """The conditions that a body meets, or what is there of it if it is not `complete`."""
        if not body or not self.looks_inside:
            return NOTHING
        data = _unpacked(head, body[:LOOKED_AT])
        if data is None:
            return NOTHING
        whole = complete and len(body) <= LOOKED_AT and data is body
        found: set[str] = set()
        if self._paths:
            text = _json_text(data, whole=whole)
            if text:
                found.update(each for each, path, value in self._paths if value_at(text, path) == value)
        if self._bodies:
            text = data.decode("utf-8", "replace")
            found.update(each for each, is_inside in self._bodies if is_inside(text))
        return frozenset(found)


def _unpacked(head: ResponseHead, body: bytes) -> bytes | None:
    """The body without its content coding, LOOKED_AT bytes at most; None if it has one that is not unpacked."""
    codings = [value.strip().lower() for name, value in head.headers if name.lower() == b"content-encoding"]
    if codings in ([], [b"identity"], [b""]):
        return body
    if codings not in ([b"gzip"], [b"x-gzip"]):
        return None
    try:
        return zlib.decompressobj(wbits=31).decompress(body, LOOKED_AT)
    except zlib.error:
        return None


def _json_text(data: bytes, *, whole: bool) -> str:
    """What is JSON's to read; empty if it is not UTF-8. A character that is cut at the end does not matter."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return decoder.decode(data, final=whole).removeprefix("\ufeff")
    except UnicodeDecodeError:
        return ""


_JSON: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_WORDS: Final = {True: "true", False: "false", None: "null"}
_space: Final = re.compile(r"[ \t\n\r]*").match


def value_at(text: str, path: Iterable[Step]) -> str | None:
    """The text of what is at `path` in a JSON text, or in the beginning of one.

    Strings without their quotes and with their escapes undone, numbers as they are written, `true`, `false`, `null`.
    None: nothing is there, or a list or a mapping, or what comes before it is no JSON. Of a name that is there more
    than once the first counts.
    """
    try:
        at = _skip(text, 0)
        for step in path:
            at = _enter(text, at, step) if isinstance(step, str) else _enter_list(text, at, step)
        value, end = _JSON.raw_decode(text, at)
    except (ValueError, IndexError, RecursionError):
        return None
    if isinstance(value, str):
        # A number that ends where the text is cut may go on.
        return value if text[at] == '"' or end < len(text) else None
    return None if isinstance(value, list | dict) else _WORDS[value]


def _skip(text: str, at: int) -> int:
    found = _space(text, at)
    assert found is not None
    return found.end()


def _enter(text: str, at: int, name: str) -> int:
    """Where the value of `name` begins in the mapping that begins at `at`. ValueError or IndexError if it is none."""
    if text[at] != "{":
        raise ValueError
    while True:
        at = _skip(text, at + 1)
        if text[at] != '"':
            raise ValueError
        key, at = scanstring(text, at + 1)
        at = _skip(text, at)
        if text[at] != ":":
            raise ValueError
        at = _skip(text, at + 1)
        if key == name:
            return at
        at = _next(text, at)


def _enter_list(text: str, at: int, index: int) -> int:
    """Where the item `index` begins in the list that begins at `at`, likewise."""
    if text[at] != "[":
        raise ValueError
    at = _skip(text, at + 1)
    for _ in range(index):
        at = _skip(text, _next(text, at) + 1)
    return at


def _next(text: str, at: int) -> int:
    """Where the comma is after the value that begins at `at`."""
    _, end = _JSON.raw_decode(text, at)
    end = _skip(text, end)
    if text[end] != ",":
        raise ValueError
    return end
