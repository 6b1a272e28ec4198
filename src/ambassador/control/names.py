"""Which names and sources the upstreams of a config have. Pure; who looks there is `discovery.directory`."""

from __future__ import annotations

from urllib.parse import urlsplit

from ambassador.config.discover import Discover
from ambassador.config.schema import Config


def host_names(config: Config) -> set[str]:
    """The hosts that are dialled for all endpoints, as workers know them: addresses without their brackets, unix
    sockets left out. Through an egress proxy it is the proxy's, which resolves the names of endpoints itself.
    """
    hosts: set[str | None] = set()
    for upstream in config.upstreams.values():
        via = upstream.connections.via
        if via is not None:
            hosts.add(via.place[0])
        else:
            urls = (endpoint.url for endpoint in upstream.endpoints)
            hosts.update(urlsplit(url).hostname for url in urls if not url.startswith("unix:"))
    return {host for host in hosts if host is not None}


def sources(config: Config) -> set[Discover]:
    """Where endpoints are found; upstreams may share a source."""
    return {each.discover for each in config.upstreams.values() if each.discover is not None}
