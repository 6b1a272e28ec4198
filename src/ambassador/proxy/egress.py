"""Where the ambassador may connect to: what an address that is about to be dialled is judged by.

A name is judged by the addresses that it has, each time that it has others, and only those that pass are ever dialled:
nothing is resolved again between the look and the connect (DNS rebinding). A name is never judged by what it looks like
(`metadata.google.internal`): whoever chooses its addresses chooses names as well.

Rules, the first that says something decides
1. `deny` closes what it names, an address in any of its spellings or a host.
2. An address that is written in the config as an endpoint's, or an egress proxy's, is what somebody wants.
3. `allow` opens the special ranges that it names: by network, or for a host. For link-local addresses and those of
   cloud metadata services a host is not enough: whoever has its name could then have it lead there.
4. Link-local and metadata addresses are closed.
5. The other special ranges (private, loopback and so on) are closed where there is an `egress` section, and for what
   clients choose (`forward`).
6. Everything else is open: `allow` opens, it does not close the rest.

An IPv6 address that carries an IPv4 address leads there, so it is judged by both.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Final, TypeAlias
from urllib.parse import urlsplit

from msgspec import Meta

from ambassador.settings import Section

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

Refusal: TypeAlias = Callable[[str], str | None]
"""(IP address) -> why it must not be dialled, None if it may."""

Place = Annotated[str, Meta(extra={"form": "egress_place"})]
"""A network, `10.0.0.0/8`, an address, a host name, or `*.suffix`."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where connections may go: upstreams and the proxies in front of them, health checks, token services. Endpoints
    and proxies that are written as IP addresses, and unix sockets, are only closed by `deny`.
    """

    allow: tuple[Place, ...] = ()
    """Networks, addresses, hosts and `*.suffix` that may be connected to though the address is private, loopback or
    otherwise special. Public addresses need no mention. Link-local and metadata addresses need their network or
    address: a host does not open them."""

    deny: tuple[Place, ...] = ()
    """Those that may not be, whatever `allow` says. A host means the name as the config has it, not its
    addresses."""


def _networks(*texts: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_NEVER: Final = _networks(
    "169.254.0.0/16", "fe80::/10",  # link-local; most clouds' metadata services
    "100.100.100.200/32",  # Alibaba Cloud's
    "168.63.129.16/32",  # Azure's, of which the address is public
    "fd00:ec2::254/128",  # Amazon's over IPv6
    "fd20:ce::254/128",  # Google's over IPv6
)  # fmt: skip
_SPECIAL: Final = _networks(
    # IANA's registry of special-purpose IPv4 addresses (RFC 6890), multicast, reserved and broadcast
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
    "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
    "240.0.0.0/4",
    # Of IPv6 within global unicast: protocol assignments with Teredo, documentation, 6to4
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)  # fmt: skip
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")


class Egress:
    """The rules of one config. `config` None: it has none, and the defaults hold."""

    __slots__ = ("_allow", "_deny", "_written")

    def __init__(self, config: Config | None = None) -> None:
        self._written = config is not None
        self._allow = _Places(() if config is None else config.allow)
        self._deny = _Places(() if config is None else config.deny)

    def refusal(
        self, host: str, address: str, *, configured: bool = False, forward: bool = False
    ) -> str | None:
        """Why the host must not be connected to at this IP address, in words that name it: for logs and the admin API,
        not for clients. None: it may.

        `host` is the name that has the address, or the address itself. `configured`: the address is written in the
        config. `forward`: a client chose the host.
        """
        try:
            dialled = _bare(address)
        except ValueError:
            return f"{address!r} is no IP address"
        forms = (dialled, *_carried(dialled))
        if self._deny.names_host(host) or any(self._deny.has(form) for form in forms):
            return f"egress.deny closes {address}"
        if configured and not forward:
            return None
        for form in forms:
            if self._allow.has(form) or self._allow.has(dialled):
                continue
            if _is_in(form, _NEVER):
                return f"{address} is link-local, or that of a metadata service"
            if (self._written or forward) and _is_special(form) and not self._allow.names_host(host):
                return f"{address} is not public, and egress.allow does not open it"
        return None

    def of_endpoint(
        self, host: str, *, found_by: str | None = None, written: bool, via: str | None = None
    ) -> Refusal:
        """Why an endpoint must not be dialled at an address. `written`: its URL is in the config. Else it was found by
        asking for the name `found_by`, which may have a port, or for what has no name.

        `via`: the host of an egress proxy, whose addresses then are those that are dialled. It is judged as an endpoint
        that is written. Of the endpoint itself what the config or the source says is judged, and where its name leads
        is up to the proxy.
        """
        literal = is_address(host)
        name = found_by.partition(":")[0] if literal and found_by is not None else host
        own = partial(self.refusal, name, configured=literal and written)
        if via is None:
            return own
        closed = own(host) if literal else self.closed_name(host)
        if closed is not None:
            return lambda _: closed
        return partial(self.refusal, via, configured=is_address(via))

    def of_written(self, url: str) -> str | None:
        """Why an endpoint that the config has must not be connected to, as far as its URL tells; None: it may."""
        if url.startswith("unix:"):
            return None
        return self.of_proxy(urlsplit(url).hostname or "")

    def of_proxy(self, host: str) -> str | None:
        """Why an egress proxy that the config has must not be connected to, as far as that tells; None: it may."""
        return self.refusal(host, host, configured=True) if is_address(host) else self.closed_name(host)

    def closed_name(self, host: str) -> str | None:
        """Why a host is closed by its name, where somebody else resolves it (`connections.via`); None: it is not."""
        return f"egress.deny closes {host}" if self._deny.names_host(host) else None


class _Places:
    """One of the two lists."""

    __slots__ = ("_hosts", "_networks", "_suffixes")

    def __init__(self, places: Sequence[str]) -> None:
        networks: list[_Network] = []
        hosts: set[str] = set()
        suffixes: list[str] = []
        for place in places:
            try:
                networks.append(ipaddress.ip_network(place))
            except ValueError:
                if place.startswith("*."):
                    suffixes.append(place[1:])
                else:
                    hosts.add(place)
        self._networks = _unmapped(networks)
        self._hosts = frozenset(hosts)
        self._suffixes = tuple(suffixes)

    def has(self, address: _Address) -> bool:
        """Whether one of its networks has it."""
        return _is_in(address, self._networks)

    def names_host(self, host: str) -> bool:
        """Whether it has this name, or one of which this is below."""
        name = _canonical(host)
        return name in self._hosts or name.endswith(self._suffixes)


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        _bare(host)
    except ValueError:
        return False
    return True


def _canonical(host: str) -> str:
    return host.lower().removesuffix(".")


def _unmapped(networks: Sequence[_Network]) -> tuple[_Network, ...]:
    """With those of IPv4-mapped addresses as what they stand for, as addresses are judged."""
    found: list[_Network] = []
    for network in networks:
        if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
            inner = network.network_address.ipv4_mapped
            if inner is not None:
                found.append(ipaddress.IPv4Network((inner, network.prefixlen - 96)))
        found.append(network)
    return tuple(found)


def _bare(text: str) -> _Address:
    """The address without brackets and zone; an IPv4-mapped one is the IPv4 address. ValueError: it is none."""
    address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _carried(address: _Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64 or address in _LOCAL_NAT64 or (address in _COMPATIBLE and int(address) > 0xFFFF):
        yield last
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


def _is_special(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return address not in _NAT64  # which is judged by what it carries
    return _is_in(address, _SPECIAL)


def _is_in(address: _Address, networks: Sequence[_Network]) -> bool:
    return any(address in network for network in networks)
