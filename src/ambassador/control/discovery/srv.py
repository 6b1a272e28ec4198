"""Endpoints from SRV records (RFC 2782): every record is one, with its weight and priority."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from ambassador.config.addresses import endpoint_url
from ambassador.config.discover import Server
from ambassador.config.units import Wrong
from ambassador.control.backoff import retry_s
from ambassador.control.discovery.dns import LookUpFailed, Service, Services, again_s

HEAVIEST: Final = 1000
"""Weights of endpoints go so far; those of records to 65535."""

LOWEST: Final = 127
"""The last priority that an endpoint can have."""


def servers_of(records: Iterable[Service]) -> tuple[Server, ...]:
    """The records' servers in order of their URLs. Pure.

    Priorities become ranks, 0 for the first. Weights keep their proportions within `HEAVIEST`, and 0, which RFC 2782
    gives "a very small chance" beside others, becomes the least there is.
    """
    by_url = {}
    for record in records:
        with contextlib.suppress(Wrong):  # a name that no host can have
            by_url[endpoint_url(f"http://{record.host}:{record.port}")] = record
    ranks = {
        priority: rank for rank, priority in enumerate(sorted({each.priority for each in by_url.values()}))
    }
    heaviest = max((record.weight for record in by_url.values()), default=0)
    has_zero = any(not record.weight for record in by_url.values())
    scale = HEAVIEST / heaviest if heaviest > HEAVIEST or (heaviest and has_zero) else 1.0
    return tuple(
        Server(url, max(1, round(record.weight * scale)), "", min(LOWEST, ranks[record.priority]))
        for url, record in sorted(by_url.items())
    )


class SrvWatch:
    """Keeps the servers of a name's SRV records up to date.

    `tell` is awaited with what each answer has, nothing included; `trouble` is told why there is none, and None once
    there is again. `chance` is uniform in [0, 1).
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[str], Awaitable[Services]],
        tell: Callable[[tuple[Server, ...]], Awaitable[None]],
        trouble: Callable[[str | None], None],
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._name = name
        self._ask = ask
        self._tell = tell
        self._trouble = trouble
        self._chance = chance

    async def run(self) -> None:
        """Look up, for ever."""
        failures = 0
        while True:
            try:
                found = await self._ask(self._name)
            except LookUpFailed as error:
                failures += 1
                self._trouble(str(error))
                await trio.sleep(retry_s(failures, self._chance()))
                continue
            failures = 0
            self._trouble(None)
            await self._tell(servers_of(found.records))
            await trio.sleep(again_s(found.ttl_s, self._chance()))
