"""Who may do what with the admin API. Pure; contract 7.1.

The dangers are a stranger on the network, who has no token, and a web page in a browser on this host, which can send
requests to loopback: the latter cannot choose its `Host` (a rebound name gives itself away) nor hide its `Origin`.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass

from ambassador.control.admin.http import Request, Response, problem

_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[\w.-]+))(?::[0-9]*)?", re.ASCII)
"""A host and maybe a port, and nothing else: what is left over could be read as the host by another."""
_ALWAYS_OPEN = frozenset({"/livez", "/readyz"})


@dataclass(frozen=True, slots=True)
class Door:
    """One address of the API.

    `local` is a loopback address or a unix socket, `host` the configured host, None for a unix socket. `uids` is set
    for the control socket: these users need nothing else, and others get nothing.
    """

    local: bool
    host: str | None = None
    token: str | None = None
    open_metrics: bool = False
    uids: frozenset[int] | None = None


def refusal(door: Door, request: Request) -> Response | None:
    """Why the request is refused, or None if it may pass."""
    if door.uids is not None:
        if request.uid in door.uids:
            return None
        return problem(403, "Forbidden", "the control socket is for the user who runs the service, and root")
    if request.path in _ALWAYS_OPEN or (request.path == "/metrics" and door.open_metrics):
        return None
    authorised = door.token is not None and _has_token(request, door.token)
    if not (_is_our_host(door, request) or (authorised and not door.local)):
        return problem(421, "Misdirected request", "this Host is not the admin API's")
    if not _is_same_origin(request):
        return problem(403, "Forbidden", "requests of other origins are refused")
    if authorised:
        return None
    if door.local and (request.method in ("GET", "HEAD") or door.token is None):
        return None
    return problem(401, "Unauthorized", "a token is needed", {"www-authenticate": "Bearer"})


def _has_token(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())


def _is_our_host(door: Door, request: Request) -> bool:
    """Addresses are no danger: only a name can be made to point here by somebody else."""
    if door.host is None:
        return True
    authority = _AUTHORITY.fullmatch(request.headers.get("host", ""))
    if authority is None:
        return False
    host = (authority["v6"] or authority["host"] or "").lower()
    return host in ("localhost", door.host.lower()) or _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_same_origin(request: Request) -> bool:
    origin = request.headers.get("origin")
    return origin is None or origin.lower() == f"http://{request.headers.get('host', '').lower()}"
