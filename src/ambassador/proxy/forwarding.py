"""What the proxy adds to a request on its way: who sent it, through whom it came, and how long it may take.

`X-Forwarded-*` of a client that is not trusted is replaced, never appended to: two copies are a spoof waiting for a
reader. `via` tells of loops.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from ambassador.errors import BadRequest, LoopDetected
from ambassador.proxy.fields import FORWARDED, tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ambassador.messages import Fields, Request

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_GRPC_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_GRPC_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_OWN: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})
_UNIX_SECONDS: Final = re.compile(rb"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_MILLISECONDS: Final = re.compile(rb"[0-9]{1,12}")


class Peer:
    """The other end of a client connection: its address, and whether its `X-Forwarded-*` is believed.

    `ip` is text without zone or port; empty for a unix socket, whose peer counts as trusted if any network is.
    """

    __slots__ = ("_constant", "_trusted", "believed", "ip", "names", "scheme", "validity")

    def __init__(self, ip: str, trusted: Sequence[Network], *, scheme: str = "http") -> None:
        self.ip = ip
        self.scheme = scheme
        self.names: tuple[tuple[str, str], ...] = ()
        """Who it is by its certificate, if it showed one that was verified: `("DNS", name)`, `("URI", uri)`."""
        self.validity: tuple[float, float] | None = None
        """From when until when that certificate is good, in unix seconds."""
        self._trusted = trusted
        self.believed = bool(trusted) and (not ip or self._is_trusted(ip))
        self._constant: Fields = [
            (b"x-forwarded-for", ip.encode() or b"unknown"),
            (b"x-forwarded-proto", scheme.encode()),
        ]

    def identify(self, request: Request) -> None:
        """Set the request's `scheme`, and its `client_ip`: the rightmost address that is not one of the trusted."""
        request.scheme = self.scheme
        request.client_ip = self.ip
        if self.believed:
            chain = [part.strip() for part in request.special.get(b"x-forwarded-for", b"").split(b",")]
            for part in reversed(chain):
                ip = _address(part)
                if ip is None:
                    break
                request.client_ip = ip
                if not self._is_trusted(ip):
                    break

    def fields(self, request: Request) -> Fields:
        """`x-forwarded-for`, `-proto` and `-host` to send with the request, one field each; no host where the request
        names none, as HTTP/1.0's may.
        """
        special = request.special
        if not self.believed:
            if not request.authority:
                return [*self._constant]
            return [*self._constant, (b"x-forwarded-host", request.authority)]
        host = special.get(b"x-forwarded-host") or request.authority
        before = special.get(b"x-forwarded-for")
        ip = self.ip.encode() or b"unknown"
        return [
            (b"x-forwarded-for", before + b", " + ip if before else ip),
            (b"x-forwarded-proto", special.get(b"x-forwarded-proto") or self.scheme.encode()),
            *([(b"x-forwarded-host", host)] if host else ()),
            *(
                (name, value)
                for name, value in special.items()
                if (name.startswith(FORWARDED) and name not in _OWN) or name == b"x-real-ip"
            ),
        ]

    def _is_trusted(self, ip: str) -> bool:
        address = ipaddress.ip_address(ip)
        return any(address in network for network in self._trusted)


def _address(text: bytes) -> str | None:
    """An address as `X-Forwarded-For` holds it (brackets and a port may be there), or None."""
    plain = text.decode("latin-1").strip('"')
    if plain.startswith("["):
        plain = plain[1:].partition("]")[0]
    elif plain.count(":") == 1:
        plain = plain.partition(":")[0]
    try:
        return str(ipaddress.ip_address(plain))
    except ValueError:
        return None


class Via:
    """The instance's own member of `via`."""

    __slots__ = ("_marks", "_members", "_name")

    def __init__(self, pseudonym: str) -> None:
        self._name = pseudonym.encode()
        self._members = (b"1.0 " + self._name, b"1.1 " + self._name)
        self._marks = self._name.lower()

    def check(self, via: bytes) -> None:
        """Raises `LoopDetected` if this instance is already on the way."""
        for member in tokens(via):
            if member.split(None, 2)[1:2] == [self._marks]:
                raise LoopDetected("the request came through this instance before")

    def extend(self, request: Request) -> bytes:
        """The field's value to send."""
        before = request.special.get(b"via")
        member = self._members[request.minor]
        return member if before is None else before + b", " + member


def caller_deadline_s(request: Request, wall_s: float) -> float | None:
    """How many seconds the caller still gives, by any of its three headers; None: it said nothing that can be read.

    `wall_s` is the time of day in unix seconds. Negative or 0: it is past. The shortest of several counts.
    """
    special = request.special
    found: list[float] = []
    value = special.get(b"x-request-deadline")
    if value is not None and _UNIX_SECONDS.fullmatch(value):
        found.append(float(value) - wall_s)
    value = special.get(b"x-envoy-upstream-rq-timeout-ms")
    if value is not None and _MILLISECONDS.fullmatch(value) and int(value):
        found.append(int(value) / 1000)
    value = special.get(b"grpc-timeout")
    if value is not None:
        match = _GRPC_TIMEOUT.fullmatch(value)
        if match is not None:
            found.append(int(match[1]) * _GRPC_UNITS_S[match[2]])
    return min(found) if found else None


def deadline_fields(request: Request, left_s: float, wall_s: float) -> Fields:
    """What is left of the time, for the upstream: our header always, the caller's own kind if it used one."""
    special = request.special
    fields: Fields = [(b"x-request-deadline", b"%.3f" % (wall_s + left_s))]
    if b"grpc-timeout" in special:
        milliseconds = max(1, int(left_s * 1000))
        # At most eight digits.
        fine = milliseconds < 10**8
        fields.append((b"grpc-timeout", b"%dm" % milliseconds if fine else b"%dS" % min(left_s, 10**8 - 1)))
    if b"x-envoy-upstream-rq-timeout-ms" in special:
        fields.append((b"x-envoy-upstream-rq-timeout-ms", b"%d" % max(1, int(left_s * 1000))))
    return fields


def max_forwards(request: Request) -> int | None:
    """`Max-Forwards` of an OPTIONS or TRACE request (RFC 9110 7.6.2), else None. Raises `BadRequest`."""
    value = request.special.get(b"max-forwards")
    if value is None or request.method not in ("OPTIONS", "TRACE"):
        return None
    if not value.isdigit() or len(value) > 9:
        raise BadRequest("Max-Forwards is not a number")
    return int(value)
