r"""Regular expressions of the config, matched in time linear in the text, or refused when the config is read.

A pattern that backtracks lets one request hold a worker for hours (`(a+)+$` and 40 letters). So a pattern is either
matched by Python's `re`, when its *structure* proves that there is never a choice to come back to, or given to RE2,
which has no backtracking (the extra `re2`). Nothing is timed: what is accepted is linear for every text.

The proof for `re`: the pattern must be strongly one-unambiguous (Brueggemann-Klein and Wood, "One-unambiguous regular
languages", 1998). After each character that can be matched, and at the start, the characters that each possible
continuation begins with must be pairwise disjoint, and no continuation may be reached in two ways. Then the next
character alone says how to go on; a choice that proves wrong has failed on its first character, and backtracking does
a constant amount of work per character. This refuses nested quantifiers (`(a+)+`), alternatives that overlap
(`(ab|[a-c]x)`), and neighbours that compete (`.*a.*b`, `\d+\d+`); lookarounds, backreferences and inline flags are
refused as well, as RE2 does. `/v1/(?P<id>[^/]+)/items/\d+` and `/(a|b)/.*` pass.

Both engines see ASCII classes (`\d`, `\w`, `\s`) only. Patterns are written by the operator, texts by anybody.
`re` comes first because it is the faster: a full match of a 21 byte path takes 0.14 µs with `re` and 2.7 µs with
google-re2 1.1 (0.5 and 4.7 with a group; CPython 3.11). `re._parser` is not public Python, but stable since 2.x.
"""

from __future__ import annotations

import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as sre_parse  # type: ignore[import-not-found]
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

try:
    import re2  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:  # the extra `re2` is not installed
    re2 = None

__all__ = ["LONGEST_PATTERN", "Matcher", "Refused", "compile", "substitution"]

LONGEST_PATTERN = 1000
"""Characters of a pattern: no person writes more, and RE2's memory and the check's time grow with it."""

# Characters that a pattern without `^` may take when `re` seeks it: 10 ms for 64 KiB at the worst (`[ab]{31}c`).
_SHORT = 32

# Positions of an unrolled pattern ("x{9}" is nine).
_MOST_POSITIONS = 1000
# Nodes visited while unrolling: the bound for what has no positions, "((^){999}){999}".
_MOST_STEPS = 20_000


class Refused(ValueError):
    """A pattern or substitution is malformed, or might be slow. The text says which, and what to do."""


class NeedsRe2(Refused):
    """Python's engine cannot be trusted with it; RE2 may do it."""


class Found(Protocol):
    """A match, of either engine."""

    def group(self, which: int, /) -> str | None: ...

    def groupdict(self) -> dict[str, str | None]: ...

    def start(self) -> int: ...

    def end(self) -> int: ...


class Matcher:
    """A compiled pattern: `engine` is `re` or `re2`."""

    __slots__ = ("_compiled", "_fullmatch", "engine", "groupindex", "groups", "pattern")

    def __init__(self, pattern: str, compiled: Any, engine: str) -> None:
        self.pattern = pattern
        self.engine = engine
        self.groups: int = compiled.groups
        self.groupindex: Mapping[str, int] = compiled.groupindex
        self._compiled = compiled
        self._fullmatch = compiled.fullmatch

    def matches(self, text: str) -> bool:
        """Whether the whole of `text` matches."""
        return self._fullmatch(text) is not None

    def is_inside(self, text: str) -> bool:
        """Whether it matches somewhere in `text`. Compile it with `inside`."""
        return self._compiled.search(text) is not None

    def parameters(self, text: str) -> dict[str, str] | None:
        """What the named groups that took part hold when the whole of `text` matches; None when it does not match."""
        found: Found | None = self._fullmatch(text)
        if found is None:
            return None
        if not self.groupindex:
            return {}
        return {name: value for name, value in found.groupdict().items() if value is not None}

    def replace(self, text: str, parts: Sequence[str | int]) -> str:
        """`text` with every match replaced by `parts`, as `substitution` made them."""
        pieces: list[str] = []
        end = 0
        for found in self._compiled.finditer(text):
            pieces.append(text[end : found.start()])
            pieces.extend(part if isinstance(part, str) else found.group(part) or "" for part in parts)
            end = found.end()
        pieces.append(text[end:])
        return "".join(pieces)


def compile(  # noqa: A001 - the verb of `re`, read as `path_regex.compile`
    pattern: str, *, whole: bool = True, inside: bool = False, engine: str | None = None
) -> Matcher:
    """A matcher for `pattern` that needs time linear in the text.

    `whole`: the pattern is only ever matched against the whole text; False when matches are sought inside it
    (`Matcher.replace`), for which `re` must have a pattern that begins with `^`: seeking elsewhere is quadratic.
    `inside`: it is only asked whether the text has a match somewhere (`Matcher.is_inside`); for that `re` does as well
    with a pattern that takes no more than _SHORT characters, since each place costs no more than these.
    `engine`: `re` or `re2`; None takes `re` where that is proved linear, else RE2 where it is installed.
    Raises Refused.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise Refused(f"it is longer than {LONGEST_PATTERN} characters")
    if engine == "re2":
        return Matcher(pattern, _compile_re2(pattern), "re2")
    try:
        return Matcher(pattern, _compile_re(pattern, whole=whole and not inside, inside=inside), "re")
    except NeedsRe2:
        if engine == "re" or re2 is None:
            raise
    return Matcher(pattern, _compile_re2(pattern), "re2")


def _compile_re2(pattern: str) -> Any:
    if re2 is None:
        raise NeedsRe2("the extra re2 is not installed")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0] if error.args else "malformed"
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise Refused(f"RE2 cannot match it in linear time: {text}") from None


def _compile_re(pattern: str, *, whole: bool, inside: bool) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern, re.ASCII)
        parsed = sre_parse.parse(pattern, re.ASCII)
    except re.error as error:
        raise NeedsRe2(f"it is malformed: {error.msg}") from None
    except (RecursionError, OverflowError):
        raise NeedsRe2("it is nested too deeply, or a count is too large") from None
    if compiled.flags & ~re.ASCII:
        raise NeedsRe2("inline flags such as (?i) need the extra re2")
    if not whole and list(parsed)[:1] != [(sre.AT, sre.AT_BEGINNING)]:
        if not inside:
            raise NeedsRe2("without the extra re2 the pattern of a rewrite must begin with ^")
        if parsed.getwidth()[1] > _SHORT:
            raise NeedsRe2(
                f"without the extra re2 a pattern that is sought must begin with ^, or take {_SHORT} characters at most"
            )
    _Structure().check(parsed)
    return compiled


def substitution(template: str, matcher: Matcher) -> tuple[str | int, ...]:
    r"""The parts of a substitution: text, and numbers of groups (`\1`, `\g<name>`, `\g<1>`; `\\` is a backslash).

    Raises Refused for a group that `matcher` does not have, and for any other escape.
    """
    parts: list[str | int] = []
    for text, reference in re.findall(r"([^\\]+)|\\(g<\w+>|\d{1,2}|.|$)", template, re.DOTALL):
        parts.append(text or _reference(reference, matcher))
    return tuple(parts)


def _reference(reference: str, matcher: Matcher) -> str | int:
    if reference == "\\":
        return "\\"
    name = reference[2:-1] if reference.startswith("g<") else reference
    number = int(name) if name.isdecimal() else matcher.groupindex.get(name)
    if number is None:
        raise Refused(f"the substitution refers to \\{reference}, which is no group of the pattern")
    if number > matcher.groups:
        raise Refused(f"the substitution refers to group {number}; the pattern has {matcher.groups}")
    return number


# What a character can be: an ASCII code, or 128 for all the others together.
_EVERYTHING = frozenset(range(129))
_CATEGORIES = {
    sre.CATEGORY_DIGIT: frozenset(b"0123456789"),
    sre.CATEGORY_SPACE: frozenset(b" \t\n\r\f\v"),
    sre.CATEGORY_WORD: frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"),
}
_NEGATED_CATEGORIES = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
}
_NAMES = {
    sre.ASSERT: "a lookaround",
    sre.ASSERT_NOT: "a lookaround",
    sre.GROUPREF: "a backreference",
    sre.GROUPREF_EXISTS: "a conditional group",
    sre.POSSESSIVE_REPEAT: "a possessive quantifier",
    sre.ATOMIC_GROUP: "an atomic group",
}


class _Part:
    """A piece of a pattern as the position automaton sees it: its first and last positions, and whether it may be
    empty. A position is listed once for each way to reach it.
    """

    __slots__ = ("first", "last", "nullable")

    def __init__(self, first: list[int], last: list[int], *, nullable: bool) -> None:
        self.first = first
        self.last = last
        self.nullable = nullable


class _Structure:
    """Glushkov's automaton of a pattern, checked for ambiguity while it is built, so that a huge one is not built."""

    __slots__ = ("follow", "steps", "symbols")

    def __init__(self) -> None:
        self.symbols: list[frozenset[int]] = []  # of each position, the characters that it takes
        self.follow: list[frozenset[int]] = []  # of each position, the characters that may come next
        self.steps = 0

    def check(self, parsed: Iterable[tuple[Any, Any]]) -> None:
        """Raise Refused unless the pattern is strongly one-unambiguous."""
        self.together(frozenset(), self.sequence(parsed).first)

    def together(self, taken: frozenset[int], positions: list[int]) -> frozenset[int]:
        """The characters of `taken` and of all `positions`, no two of which may have one in common."""
        for position in positions:
            if taken & self.symbols[position]:
                raise NeedsRe2(
                    "two parts of it compete for the same characters, so matching could take more than linear time; "
                    "make them differ in their first character, or install the extra re2"
                )
            taken |= self.symbols[position]
        return taken

    def sequence(self, items: Iterable[tuple[Any, Any]]) -> _Part:
        result = _Part([], [], nullable=True)
        for op, value in items:
            result = self.concatenation(result, self.part(op, value))
        return result

    def concatenation(self, left: _Part, right: _Part) -> _Part:
        self.connect(left.last, right.first)
        return _Part(
            left.first + right.first if left.nullable else left.first,
            left.last + right.last if right.nullable else right.last,
            nullable=left.nullable and right.nullable,
        )

    def connect(self, last: list[int], first: list[int]) -> None:
        for position in last:
            self.follow[position] = self.together(self.follow[position], first)

    def part(self, op: Any, value: Any) -> _Part:
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise NeedsRe2("it is too large")
        if op in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            return self.position(_symbols(op, value))
        if op is sre.AT:  # an anchor or \b only takes matches away
            return _Part([], [], nullable=True)
        if op is sre.SUBPATTERN:
            _, flags_on, flags_off, items = value
            if flags_on or flags_off:  # they change what a character takes
                raise NeedsRe2("inline flags such as (?i:a) need the extra re2")
            return self.sequence(items)
        if op is sre.BRANCH:
            return self.branch([self.sequence(items) for items in value[1]])
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self.repeat(*value)
        raise Refused(f"{_NAMES.get(op, str(op).lower())} cannot be matched in linear time")

    def position(self, symbols: frozenset[int]) -> _Part:
        if len(self.symbols) >= _MOST_POSITIONS:
            raise NeedsRe2("it is too large")
        self.symbols.append(symbols)
        self.follow.append(frozenset())
        here = [len(self.symbols) - 1]
        return _Part(here, here, nullable=False)

    def branch(self, branches: list[_Part]) -> _Part:
        if sum(branch.nullable for branch in branches) > 1:
            raise NeedsRe2("two alternatives may both be empty")
        return _Part(
            [position for branch in branches for position in branch.first],
            [position for branch in branches for position in branch.last],
            nullable=any(branch.nullable for branch in branches),
        )

    def repeat(self, least: int, most: Any, items: Sequence[tuple[Any, Any]]) -> _Part:
        """A repetition with a fixed count is unrolled; any other is a loop, which has more choices than the repetition
        and so never hides one.
        """
        if least == most:
            result = _Part([], [], nullable=True)
            for _ in range(least if len(items) else 0):
                result = self.concatenation(result, self.sequence(items))
            return result
        body = self.sequence(items)
        if body.nullable:
            raise NeedsRe2("it repeats something that may be empty")
        if most != 1:
            self.connect(body.last, body.first)
        return _Part(body.first, body.last, nullable=least == 0)


def _symbols(op: Any, value: Any) -> frozenset[int]:
    """The characters that a node for one character takes. 128 is taken whenever any of those it stands for may be."""
    if op is sre.LITERAL:
        return frozenset([min(value, 128)])
    if op is sre.NOT_LITERAL:
        return (_EVERYTHING - {value}) | {128}
    if op is sre.ANY:
        return _EVERYTHING - {ord("\n")}
    if value[0][0] is sre.NEGATE:
        return _EVERYTHING.difference(*map(_members, value[1:])) | {128}
    return frozenset().union(*map(_members, value))


def _members(item: tuple[Any, Any]) -> frozenset[int]:
    op, value = item
    if op is sre.LITERAL:
        return frozenset([min(value, 128)])
    if op is sre.RANGE:
        return frozenset(range(min(value[0], 128), min(value[1], 128) + 1))
    if value in _NEGATED_CATEGORIES:
        return _EVERYTHING - _CATEGORIES[_NEGATED_CATEGORIES[value]]
    return _CATEGORIES[value]
