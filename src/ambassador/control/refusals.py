"""Tells the log once of each address that upstreams have and that egress keeps from being dialled.

The workers refuse by themselves (`proxy/egress.py`); only the supervisor tells, since all of them know the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from ambassador.config.discover import Discover
from ambassador.config.schema import Config
from ambassador.proxy.egress import Egress, is_address


class Refusals:
    """One for the supervisor's life."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: frozenset[tuple[str, str, str]] = frozenset()

    def look(
        self,
        config: Config,
        addresses: Mapping[str, Sequence[str]],
        found: Mapping[Discover, Sequence[str]],
    ) -> None:
        """Tell of what is refused and was not before. `addresses`: what names resolve to; `found`: the urls that
        sources have found.
        """
        refused = frozenset(_refused(config, addresses, found))
        for upstream, host, why in sorted(refused - self._told):
            self._log.warning("upstream %s: %s is not connected to: %s", upstream, host, why)
        self._told = refused


def _refused(
    config: Config, addresses: Mapping[str, Sequence[str]], found: Mapping[Discover, Sequence[str]]
) -> Iterator[tuple[str, str, str]]:
    egress = Egress(config.egress)
    for name, upstream in config.upstreams.items():
        source = upstream.discover
        urls = found.get(source, ()) if source else [endpoint.url for endpoint in upstream.endpoints]
        via = upstream.connections.via
        proxy = None if via is None else via.place[0]
        for host in {urlsplit(url).hostname for url in urls if not url.startswith("unix:")}:
            if host is None:
                continue
            refusal = egress.of_endpoint(host, found_by=upstream.own_host, written=source is None, via=proxy)
            dialled = proxy or host
            for address in [dialled] if is_address(dialled) else addresses.get(dialled, ()):
                why = refusal(address)
                if why is not None:
                    yield name, host if proxy is None else f"{host} via {proxy}", why
