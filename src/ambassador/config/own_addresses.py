"""Upstreams that are the ambassador itself, by its own addresses. Pure.

Whoever reaches its admin API reaches it as this host does, which is trusted where there is no token: a route there
would let every client of a listener reload or drain the service. What a name leads to is not known here, but for
`localhost`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Final

from ambassador.config.addresses import split_address
from ambassador.config.part import Part
from ambassador.config.schema import Admin, Listener, Upstream
from ambassador.proxy.loopback import is_loopback, is_this_host

_WIDE: Final = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
"""Bound they are all addresses; dialled, Linux takes them for loopback."""


def check_own(
    admin: Admin | None,
    control: str | None,
    listeners: Sequence[Listener],
    upstreams: Mapping[str, Upstream],
    parts: Mapping[str, Part],
) -> None:
    """Reports endpoints that are the admin API without a token, or the control socket; warns of listeners."""
    for name, upstream in upstreams.items():
        node, path = parts[name].place("endpoints")
        urls = [endpoint.url for endpoint in upstream.endpoints]
        if admin is not None and admin.token is None and any(_is(url, admin.address) for url in urls):
            node.report(
                path,
                f"'{admin.address}' is the ambassador's own admin API, which obeys everybody who gets there",
                "give it a token: 'admin: {address: …, token: env:NAME}'",
            )
        elif control is not None and control in urls:
            node.report(path, "is the ambassador's own control socket, which obeys everybody who gets there")
        elif any(_is(url, listener.address) for url in urls for listener in listeners):
            node.report(
                path,
                "is a listener of this very service, which refuses what it has sent itself",
                level="warning",
            )


def _is(url: str, address: str) -> bool:
    """Whether an endpoint's URL leads to what is bound to an address."""
    if url.startswith("unix:") or address.startswith("unix:"):
        return url == address
    host, port = split_address(url.partition("://")[2])
    bound, own_port = split_address(address)
    if port != own_port or not port:
        return False
    host, bound = _plain(host), _plain(bound)
    if host == bound:
        return True
    anywhere = {host, bound} & {*_WIDE, "localhost"}
    return bool(anywhere) and all(each in _WIDE or is_this_host(each) for each in (host, bound))


def _plain(host: str) -> str:
    """One spelling of a host: without brackets, names of this host as `localhost`, IPv4 out of IPv6."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        found = ipaddress.ip_address(bare)
    except ValueError:
        return "localhost" if is_this_host(bare) and not is_loopback(bare) else bare
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(found if mapped is None else mapped)
