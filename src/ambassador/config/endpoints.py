"""The endpoints of an upstream, with their pools: those of its config, and those that its source finds later.

The one part of compiling that goes on while the table is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import ref

from ambassador.config import schema
from ambassador.config.certificates import client_section
from ambassador.config.credentials import needs_guard
from ambassador.errors import ConnectFailed
from ambassador.proxy.tls_socket import ClientSide
from ambassador.proxy.upstream import via
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.pool import Pool, SecurePool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ambassador.proxy.egress import Egress, Refusal
    from ambassador.proxy.lane import Lane
    from ambassador.proxy.service import Server
    from ambassador.proxy.tls import Keyring
    from ambassador.proxy.upstream.connect import Address
    from ambassador.proxy.upstream.upstream import Upstream


class _Endpoint(Endpoint):
    """An endpoint whose pool does not hold it.

    The two would be a cycle, and a table that a reload has replaced would stay until the collector looks that far:
    1 MiB for each reload of 500 routes.
    """

    __slots__ = ("__weakref__",)

    def known_addresses(self) -> Callable[[], Sequence[Address]]:
        """What gives the addresses that it has now, as long as there is anybody who asks."""
        endpoint = ref(self)

        def addresses() -> Sequence[Address]:
            held = endpoint()
            if held is None:
                return ()
            if held.refusals:
                if held.count_refusal is not None:
                    held.count_refusal()
                if not held.addresses:
                    raise ConnectFailed("the egress policy refuses all addresses of the endpoint")
            return held.addresses

        return addresses


class EndpointMaker:
    """Makes the endpoints of the upstream `name`. `refused` is called for each connection that egress refuses."""

    def __init__(
        self,
        name: str,
        config: schema.Upstream,
        lane: Lane,
        keyring: Keyring,
        *,
        egress: Egress,
        refused: Callable[[], None],
        proxy: via.Proxy | None,
    ) -> None:
        self.proxy = proxy
        self._egress = egress
        self._refused = refused
        self._connections = config.connections
        self._auth = config.auth
        self._lane = lane
        self._found_url = config.found_url
        self._is_found = config.discover is not None
        self._own_host = config.own_host
        section = client_section(config)
        self._tls = None if section is None else keyring.client(section, f"upstream {name}")

    def make(self, config: schema.Endpoint, addresses: Mapping[str, Sequence[str]]) -> Endpoint:
        """An endpoint with its pool. `addresses`: what names resolve to, as far as it is known."""
        scheme, _, authority = config.url.partition("://")
        secure = scheme == "https"
        path, host, port = None, "", "0"
        if config.url.startswith("unix:"):
            path = config.url.removeprefix("unix:")
        else:
            host, _, port = authority.rpartition(":")
        host = host.strip("[]")
        proxy = self.proxy
        way = None if proxy is None else via.Way(proxy, host, int(port), secure=secure)
        endpoint = _Endpoint(
            config.url,
            host=host,
            port=int(port),
            path=path,
            default_port=443 if secure else 80,
            weight=config.weight,
            zone=config.zone or "",
            priority=config.priority,
            guarded=not secure and needs_guard(self._auth, config.url),
            refusal=None if path is not None else self._refusal_of(host),
            count_refusal=self._refused,
            through=None if proxy is None else (proxy.host, proxy.port),
        )
        if path is None:
            known = addresses.get(endpoint.dialled[0]) or (() if proxy is None else proxy.addresses)
            if known:
                endpoint.resolve(known)
        if self._own_host is not None:
            endpoint.authority = self._own_host.encode("ascii")
        tls = self._tls if secure else None
        assert not secure or tls is not None
        endpoint.pool = (Pool if tls is None else SecurePool)(
            self._lane,
            endpoint.known_addresses(),
            max_open=self._connections.max,
            max_pending=self._connections.max_pending,
            idle_timeout_s=self._connections.idle_timeout,
            tls=None if tls is None else ClientSide(tls, tls.server_name(endpoint)),
            way=way,
        )
        return endpoint

    def give(
        self, upstream: Upstream, servers: Sequence[Server], addresses: Mapping[str, Sequence[str]]
    ) -> None:
        """Have the upstream have these, which its source has found. Only new ones are made: of thousands, a few change
        at a time.
        """
        known = {endpoint.url: endpoint for endpoint in upstream.endpoints}
        endpoints = []
        for server in servers:
            url = self._found_url(server.url)
            endpoint = known.get(url)
            if endpoint is None:
                endpoint = self.make(schema.Endpoint(url=url), addresses)
            endpoint.weight, endpoint.zone, endpoint.priority = server.weight, server.zone, server.priority
            endpoints.append(endpoint)
        upstream.set_endpoints(endpoints)

    def _refusal_of(self, host: str) -> Refusal:
        """What judges the addresses that are dialled for an endpoint, which may be an egress proxy's."""
        via = None if self.proxy is None else self.proxy.host
        return self._egress.of_endpoint(host, found_by=self._own_host, written=not self._is_found, via=via)
