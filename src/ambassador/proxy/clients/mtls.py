"""The client's certificate as a proof of who asks, by its subject alternative names (RFC 5280 4.2.1.6).

Only names of a certificate that the listener has verified come here. The subject's common name is not looked at (RFC
9525). A DNS name is compared in any case, and `*` in a pattern stands for one whole label; a URI is compared byte for
byte, and a pattern that ends in `/*` takes every path below (`spiffe://prod/ns/*`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from ambassador.settings import SanPattern, Section

_REMEMBERED: Final = 1024
"""Certificates whose client is known without a search: a connection has many requests."""

Names: TypeAlias = "tuple[tuple[str, str], ...]"
"""Kind (`DNS`, `URI`, `email`, `IP Address`) and value, as `ssl.SSLSocket.getpeercert` has them."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certificates that a client may show, to a listener with `tls.client_ca`."""

    san: Annotated[tuple[SanPattern, ...], Meta(min_length=1)]
    """Names, one of which must be in the certificate: a DNS name (`*` for one label), a URI (`spiffe://trust/ns/*`
    takes every path below), an e-mail address or an IP address. Its common name is not looked at."""


class San:
    """One name, compiled."""

    __slots__ = ("_kind", "_labels", "_prefix", "_value")

    def __init__(self, pattern: str) -> None:
        self._kind = kind_of(pattern)
        self._value = _address(pattern) if self._kind == "IP Address" else pattern
        self._labels = tuple(pattern.lower().split(".")) if self._kind == "DNS" else ()
        self._prefix = pattern[:-1] if self._kind == "URI" and pattern.endswith("/*") else None

    def takes(self, kind: str, value: str) -> bool:
        """Whether this is the name."""
        if kind != self._kind:
            return False
        if kind == "DNS":
            labels = value.lower().split(".")
            return len(labels) == len(self._labels) and all(
                mine in (theirs, "*") and theirs != ""
                for mine, theirs in zip(self._labels, labels, strict=True)
            )
        if self._prefix is not None:
            return _is_below(value, self._prefix)
        return (_address(value) if kind == "IP Address" else value) == self._value


def kind_of(pattern: str) -> str:
    """What kind of name a pattern is of, as `Names` call it."""
    if "://" in pattern:
        return "URI"
    if "@" in pattern:
        return "email"
    return "IP Address" if ":" in pattern or pattern.replace(".", "").isdecimal() else "DNS"


def _address(text: str) -> str:
    """An address in its usual form: OpenSSL writes IPv6 long, and in capitals."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return text


def _is_below(value: str, prefix: str) -> bool:
    """Whether a URI is under the prefix, by a path that goes nowhere else: dot segments could."""
    rest = value.removeprefix(prefix)
    return rest not in ("", value) and not {".", ".."} & set(rest.split("/")) and "%" not in rest


class Sans:
    """Patterns, each with whose it is (its place in the file), in the order of the file."""

    __slots__ = ("_known", "_patterns")

    def __init__(self, patterns: Iterable[tuple[str, int]]) -> None:
        self._patterns = tuple((San(pattern), client) for pattern, client in patterns)
        self._known: dict[Names, int | None] = {}

    def find(self, names: Names) -> int | None:
        """Whose certificate has these names: the first in the file of those that one of them is of."""
        try:
            return self._known[names]
        except KeyError:
            found = self._search(names)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[names] = found
        return found

    def _search(self, names: Names) -> int | None:
        for pattern, client in self._patterns:
            if any(pattern.takes(kind, value) for kind, value in names):
                return client
        return None
