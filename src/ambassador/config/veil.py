"""What of a config's text no problem shows: credentials that stand in it against the rules, in whatever shape.

A config has secrets by reference only; who writes one down gets an error, and that goes to terminals, logs and
`/api/status`. So it is looked for by structure, not by type, since a text in the wrong shape has no type: what stands
before the `@` of anything like a URL, and everything below a key that holds secrets, unless it is a reference. On
lines first, because a file that is not YAML has nothing else; `Veil.learn` adds what only the parsed file tells.

Rather too much is hidden than too little: a line with a secret is hidden from there to its end. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from ambassador.observe.secret_names import names_a_secret

MASK: Final = "***"
"""What stands for a secret; not even where it is kept is shown."""

_OUTER: Final = frozenset(
    ("auth", "basic", "bearer", "api_key", "jwt", "oauth2", "exchange", "hmac", "aws_sigv4")
)
"""Sections in which some keys hold secrets; they hold one themselves when they are written as a text or a list."""
_INNER: Final = frozenset((
    "api-key", "apikey", "authorization", "client_secret", "cookie", "credential", "credentials", "key", "keys",
    "passwd", "password", "private_key", "proxy-authorization", "pwd", "secret", "secret_key", "sentinel_password",
    "set-cookie", "token", "x-api-key",
))  # fmt: skip
_KNOWN: Final = frozenset((
    "user", "name", "header", "value", "forward", "allow_plaintext", "token_url", "client_id", "scopes", "audience",
    "ca", "issuer", "jwks", "algorithms", "algorithm", "claims", "skew", "ttl", "headers", "region", "service",
    "via", "url",
))  # fmt: skip
"""What stands in sections of _OUTER and is no secret, or a section itself."""

_SECRET_KEY: Final = re.compile(
    rf"""(?<![\w./-])["']?(?P<key>{"|".join(sorted(map(re.escape, _OUTER | _INNER), key=len, reverse=True))}|value)"""
    r"""["']?\s*:(?=\s|$|["'\[{{])\s*""",
    re.IGNORECASE,
)
_ONE: Final = r"""["']?(?:env:[\w.-]*|(?:file:)?/[^\s,'"\]{}@]*|off|null|~|\*\*\*)["']?"""
_REFERENCE: Final = re.compile(rf"(?:{_ONE}|\[\s*(?:{_ONE}\s*,?\s*)*\])(?=\s*(?:[,\]}}]|$)|\s+#)")
_BLOCK: Final = re.compile(r"(?:[|>][+-]?\d*|[&!]\S+)?\s*(?:#.*)?$")
_MARK: Final = re.compile(r"[&!](\S+)")
_PARAMETER: Final = re.compile(r"""([?&;#][^\s'"?&;#=]+=)[^\s'"&;#]+""")
_MISTAKEN: Final = re.compile(
    r"""auth["']?\s*:\s*\{\s*["']?header["']?\s*:\s*(?=["']?[^\s{["'&!|>])"""
    r"""|(?<![\w./-])["']?user["']?\s*:(?:\s+|(?=["']))["']?[^\s'":,{}\[\]]+:(?=\S)"""
)
"""What a secret stands behind where a section should be, or only the name of a user."""
_USER: Final = re.compile(r"""//[^\s'"]*@|(?<![^\s'"\[{(,/])[^\s'"\[\]{}(,/:@]+:(?!//)[^\s'"]*@""")
_PIECES: Final = re.compile(r"""[\s,'"\[\]{}:@]+""")
_SHORTEST: Final = 4
"""Characters of a piece of a secret that is looked for in words: shorter ones stand in any sentence."""
_SHOWN: Final = 57
"""Characters of a long text that messages show."""


def without_users(text: str) -> str:
    """The text with `***` in place of the user and password of anything like a URL."""
    if "@" not in text:
        return text
    return _USER.sub(lambda found: "//***@" if found[0].startswith("//") else "***@", text)


def without_parameters(text: str) -> str:
    """The text with `***` for what has the name of a secret in the query of anything like a URL."""
    return _PARAMETER.sub(
        lambda found: found[1] + MASK if names_a_secret(found[1][1:-1].encode()) else found[0], text
    )


def is_reference(text: str) -> bool:
    """Whether a text says where a secret is kept, or that there is none."""
    return _REFERENCE.fullmatch(text) is not None


class Veil:
    """Hides the secrets of one file in the lines and sentences that are shown of it."""

    def __init__(self) -> None:
        self._hidden: dict[str, None] = {}
        self._learned: dict[str, None] = {}

    def lines(self, lines: Iterable[str]) -> list[str]:
        """The lines as they may be shown. What is hidden of them, `sentence` hides too."""
        shown: list[str] = []
        block: tuple[int, bool] | None = None
        header: int | None = None
        for line in lines:
            body = line.lstrip(" \t-")
            indent = len(line) - len(line.lstrip())
            if body and header is not None and indent <= header:
                header = None
            if block is not None and body and indent <= block[0] and not line.lstrip().startswith("- "):
                block = None
            if block is not None and body and (block[1] or ":" not in body) and not _is_plain(body):
                self._hide(body)
                shown.append(line[: len(line) - len(body)] + MASK)
                continue
            covered, opens = self._line(line, within_header=header is not None)
            if opens is not None:
                block = (indent, opens)
            if re.match(r"header[\"']?\s*:\s*$", body):
                header = indent
            shown.append(without_users(without_parameters(covered)))
        return shown

    def _line(self, line: str, *, within_header: bool) -> tuple[str, bool | None]:
        """A line without its secrets; whether those below it are secrets as a whole (True) or by key (False)."""
        at = 0
        mistaken = _MISTAKEN.search(line)
        if mistaken is not None:
            self._hide(line[mistaken.end() :])
            line = line[: mistaken.end()] + MASK
        while found := _SECRET_KEY.search(line, at):
            at = found.end()
            key, rest = found["key"].lower(), line[at:]
            if key == "value" and not (within_header or "header" in line[: found.start()]):
                continue
            if _BLOCK.match(rest):
                return self._without_mark(line, at), key not in _OUTER
            reference = _REFERENCE.match(rest)
            if reference is not None:
                at += reference.end()
            elif not (key in _OUTER and rest.startswith("{")):
                self._hide(rest)
                return line[:at] + MASK, None
        return line, None

    def _without_mark(self, line: str, at: int) -> str:
        """The line without the name of an anchor or a tag: a secret may begin with `&` or `!`."""
        mark = _MARK.match(line, at)
        if mark is None:
            return line
        self._hide(mark[1])
        return line[: mark.start(1)] + MASK + line[mark.end(1) :]

    def learn(self, texts: Iterable[str]) -> None:
        """Hide these texts as well, wherever they stand."""
        for text in texts:
            self._hide(text)
            if len(text) >= _SHORTEST:
                self._learned[text] = None

    def line(self, shown: str) -> str:
        """One of `lines` without what was learned since."""
        for learned in self._learned:
            shown = shown.replace(learned, MASK)
        return shown

    def _hide(self, text: str) -> None:
        whole = text.strip(" \t\r\n'\"[]{},")
        pieces = [whole, *(piece for piece in _PIECES.split(text) if len(piece) >= _SHORTEST)]
        for piece in pieces:
            for variant in (piece, repr(piece)[1:-1], piece[:_SHOWN], repr(piece[:_SHOWN])[1:-1]):
                if variant and not is_reference(variant):
                    self._hidden[variant] = None

    def sentence(self, text: str) -> str:
        """A message or a hint as it may be shown."""
        text = without_users(without_parameters(text))
        for hidden in sorted(self._hidden, key=len, reverse=True):
            if len(hidden) >= _SHORTEST and not (hidden.isalpha() and hidden.islower()):
                text = text.replace(hidden, MASK)
            else:
                # Such words are in sentences of ours as well: in what is quoted they are another's.
                text = re.sub(
                    rf"""(?<=['"]){re.escape(hidden)}|{re.escape(hidden)}(?=['"])""", lambda _: MASK, text
                )
        return text


def _is_plain(body: str) -> bool:
    return body.startswith("#") or is_reference(body.rstrip())


def users(text: str) -> Iterator[str]:
    """What of a single value is the user and the password of a URL, whole and in parts."""
    before, at, _ = text.rpartition("@")
    _, slashes, user = before.rpartition("//") if before.count("//") == 1 else before.partition("//")
    user = user if slashes else before
    if at and (slashes or ":" in user):
        yield user
        yield from user.split(":", 1)


def kind_of(key: str) -> str:
    """`secret`, `section` (some of what is in it is) or `plain`."""
    lower = key.lower()
    return "section" if lower in _OUTER else "secret" if lower in _INNER else "plain"


def is_known(key: str) -> bool:
    """Whether a key in a section of credentials is one that stands there."""
    return key.lower() in _KNOWN | _OUTER | _INNER
