"""The counters of all workers, held by the supervisor because they must outlive them.

Each incarnation has a page of its own. At its end the counters are folded into the totals once, and its gauges are
dropped. Where a block lies in a page never changes while the supervisor lives, so a page outlasts reloads.
"""

from __future__ import annotations

from collections.abc import Iterator

from ambassador.config.credentials import fetches
from ambassador.config.schema import Config
from ambassador.control.incarnation import Incarnation
from ambassador.observe import exposition
from ambassador.observe.families import Figures, Reader, Traffic
from ambassador.observe.metrics import (
    ACCESS,
    CLIENT,
    EGRESS,
    NO_NAME,
    TOKENS,
    BlockKey,
    Page,
    Registry,
    Totals,
    encode_blocks,
)
from ambassador.proxy.policies import concurrency
from ambassador.proxy.policies.limit import owner_of_upstream


def block_keys(config: Config) -> Iterator[BlockKey]:
    """What the workers count with this config."""
    for route in config.routes:
        yield BlockKey(route.name, route.to or NO_NAME)
        if route.fallback is not None and route.fallback.to is not None:
            yield BlockKey(route.name, route.fallback.to)
        for limit in route.limit or ():
            yield BlockKey(route.name, NO_NAME, limit.label)
        if route.concurrency is not None:
            yield BlockKey(route.name, NO_NAME, concurrency.LABEL)
        if route.access is not None:
            yield BlockKey(route.name, NO_NAME, ACCESS)
    for name in config.clients:
        yield BlockKey(name, NO_NAME, CLIENT)
    for name, upstream in config.upstreams.items():
        yield BlockKey(name, NO_NAME, EGRESS)
        for limit in upstream.limit or ():
            yield BlockKey(owner_of_upstream(name), NO_NAME, limit.label)
        if upstream.auth is not None and fetches(upstream.auth):
            yield BlockKey(NO_NAME, name, TOKENS)


class Pages:
    """One for the supervisor's life. A page's key is its worker: numbers of processes are used again."""

    def __init__(self) -> None:
        self._registry = Registry()
        self._totals = Totals()
        self._pages: dict[Incarnation, Page] = {}
        self._reader = Reader(self._registry, self._pages.values(), self._totals)

    @property
    def size(self) -> int:
        """Bytes of a page, now."""
        return self._registry.size

    @property
    def state_up(self) -> bool:
        """Whether every worker reaches the fleet's store."""
        return all(page.state_up for page in self._pages.values())

    def place(self, config: Config) -> bytes:
        """Give every route of the config its block, in the pages of workers that live too; where they all lie."""
        blocks = self._registry.place(block_keys(config))
        for route in config.routes:
            key = BlockKey(route.name, route.to or NO_NAME)
            if route.cache is not None:
                self._registry.caching.add(key)
            if route.idempotency is not None:
                self._registry.replaying.add(key)
        for page in self._pages.values():
            page.grow(self._registry.size)
        return encode_blocks(blocks)

    def open(self, worker: Incarnation) -> int:
        """A page for a new worker; its descriptor, which stays ours."""
        page = self._pages[worker] = Page.create(self._registry.size)
        return page.fd

    def settle(self, worker: Incarnation) -> None:
        """Keep the counters of a worker that has ended."""
        page = self._pages.pop(worker)
        self._totals.fold(page)
        page.close()

    def render(self, figures: Figures, accept: str) -> tuple[Iterator[bytes], str]:
        """Everything there is to tell as text, in pieces, and its type: the format that `accept` prefers."""
        return exposition.render(self._reader.families(figures), accept)

    def traffic(self) -> Iterator[Traffic]:
        """What the routes have had to do, in short."""
        return self._reader.traffic()
