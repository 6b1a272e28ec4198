"""Which names and sources the upstreams of a config have. Pure; who looks there is `discovery.directory`."""

from __future__ import annotations

from urllib.parse import urlsplit

from ambassador.config.discover import Discover
from ambassador.config.schema import Config


def host_names(config: Config) -> set[str]:
    """The hosts of all endpoints, as workers know them: addresses without their brackets, unix sockets left out."""
    urls = (endpoint.url for upstream in config.upstreams.values() for endpoint in upstream.endpoints)
    hosts = {urlsplit(url).hostname for url in urls if not url.startswith("unix:")}
    return {host for host in hosts if host is not None}


def sources(config: Config) -> set[Discover]:
    """Where endpoints are found; upstreams may share a source."""
    return {each.discover for each in config.upstreams.values() if each.discover is not None}
