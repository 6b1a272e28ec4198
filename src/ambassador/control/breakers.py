"""Breakers as the supervisor tells of them and holds them open or closed (contract 7.2).

Its workers know the circuits; it asks them. An override is given to one worker, which asks the store: every other
worker of every replica hears of it from there. When the store does not answer, all workers of this replica are told
to obey by themselves, under one epoch, and put it into the store once that answers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Final, Literal, Protocol

import msgspec
import trio

from ambassador.config.breakers import breakers_of, upstream_breakers
from ambassador.config.schema import Config
from ambassador.config.units import format_duration
from ambassador.printable import printable
from ambassador.proxy.breakers import BreakerStatus

_ENCODER: Final = msgspec.json.Encoder()
_LINE: Final = msgspec.json.Decoder(BreakerStatus)
_TOLD_WITHIN_S: Final = 0.5
"""A worker's answer to an order; the store has 250 ms of it."""


class BreakerView(msgspec.Struct, frozen=True, kw_only=True):
    """`/api/breakers`: one breaker. Times are unix seconds of the store's clock, of which `now` is the present (None:
    it was not heard yet). `local` are workers that have opened for themselves.
    """

    name: str
    scope: str
    state: str
    forced: dict[str, str | float | None] | None
    since: float | None
    retry_at: float | None
    window: dict[str, int]
    epoch: int
    local: list[dict[str, str | int | float]]
    now: float | None = None


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """An order to a worker: hold `name` `open` or `closed`, or let go of it (`auto`).

    `here_us` above 0: without the store, under this epoch.
    """

    name: str
    to: Literal["open", "closed", "auto"]
    for_ms: int
    by: str
    reason: str
    here_us: int = 0


class Obeyed(msgspec.Struct, frozen=True):
    """A worker's answer to it."""

    done: bool
    why: str = ""
    """What the store said that refused it; empty if it did not answer."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an override. `fleet`: every replica obeys; else this one only, until the store is back."""

    name: str
    state: Literal["open", "closed", "auto"]
    fleet: bool
    detail: str


class NoBreaker(Exception):
    """There is none of that name; its text says which one may be meant."""


class NobodyObeyed(Exception):
    """No worker has done it."""


def answer(statuses: list[BreakerStatus]) -> bytes:
    """What a worker answers: a line of JSON for each breaker, so that they can be read one by one."""
    return _ENCODER.encode_lines(statuses)


class BreakerViews:
    """Puts together what workers answer: of each breaker the youngest view, and who has opened for itself."""

    def __init__(self) -> None:
        self._youngest: dict[str, BreakerStatus] = {}
        self._local: dict[str, list[dict[str, str | int | float]]] = {}

    def add(self, answers: Iterable[bytes]) -> Iterator[None]:
        """Add all workers' answers, a step for each breaker."""
        for answer in answers:
            for line in answer.splitlines():
                self._add(_LINE.decode(line))
                yield

    def _add(self, status: BreakerStatus) -> None:
        known = self._youngest.get(status.name)
        if known is None or (status.epoch, status.as_of) > (known.epoch, known.as_of):
            self._youngest[status.name] = status
        if status.local is not None:
            self._local.setdefault(status.name, []).append(status.local)

    def views(self) -> Iterator[BreakerView]:
        """Each breaker, by name."""
        for name, status in sorted(self._youngest.items()):
            yield BreakerView(
                name=name,
                scope=status.scope,
                state=status.state,
                forced=status.forced,
                since=status.since,
                retry_at=status.retry_at,
                window=status.window,
                epoch=status.epoch,
                local=self._local.get(name, []),
                now=status.now,
            )


class Worker(Protocol):
    """One worker, as an override needs it."""

    async def act(self, what: bytes, timeout_s: float) -> bytes | None:
        """Its answer to an order; None if none came."""


def breaker_names(config: Config) -> list[str]:
    """The names of a config's breakers."""
    return [made.name for made in breakers_of(config)]


def _may_be_found(name: str, config: Config) -> bool:
    """It would be that of an endpoint which only the workers know."""
    upstream, slash, _ = name.partition("/")
    known = config.upstreams.get(upstream)
    return bool(
        slash and known and known.discover is not None and "endpoint" in upstream_breakers(config, upstream)
    )


async def override(
    order: Override,
    config: Config,
    workers: Sequence[Worker],
    log: logging.Logger,
    why_lost: Callable[[], Awaitable[str]],
) -> Outcome:
    """Carry out an override, and write it down. `why_lost` tells why the store cannot be used, if it knows.

    Raises `NoBreaker`, and `NobodyObeyed` when not even one worker of this replica does.
    """
    names = breaker_names(config)
    if order.name not in names and not _may_be_found(order.name, config):
        close = get_close_matches(order.name, names, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise NoBreaker(f"there is no breaker '{order.name}'{hint}")
    obeyed = await _ask_the_store(order, workers)
    fleet = obeyed.done
    if not fleet:
        await _tell_all(msgspec.structs.replace(order, here_us=time.time_ns() // 1000), workers)
    detail = _detail(order)
    if not fleet:
        if obeyed.why:
            trouble = f"refuses it: {printable(obeyed.why)}"
        else:
            why = await why_lost()
            trouble = f"cannot be used: {why}" if why else "does not answer"
        detail += f", on this replica only: the state store {trouble}"
    outcome = Outcome(name=order.name, state=order.to, fleet=fleet, detail=detail)
    by, reason = printable(order.by), printable(order.reason)
    log.warning("breaker %s: by %s: %s (%s)", order.name, by, outcome.detail, reason)
    return outcome


async def _ask_the_store(order: Override, workers: Sequence[Worker]) -> Obeyed:
    """Have a worker do it for all; the next one if a worker says nothing."""
    for worker in workers:
        obeyed = await _tell(order, worker)
        if obeyed is not None:
            return obeyed
    return Obeyed(done=False)


async def _tell_all(order: Override, workers: Sequence[Worker]) -> None:
    obeyed: list[bool] = []

    async def tell(worker: Worker) -> None:
        told = await _tell(order, worker)
        obeyed.append(told is not None and told.done)

    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(tell, worker)
    if not any(obeyed):
        raise NobodyObeyed("no worker of this replica has obeyed")


async def _tell(order: Override, worker: Worker) -> Obeyed | None:
    """What it says; None: nothing."""
    told = await worker.act(msgspec.msgpack.encode(order), _TOLD_WITHIN_S)
    return None if told is None else msgspec.msgpack.decode(told, type=Obeyed)


def _detail(order: Override) -> str:
    what = "control is given back" if order.to == "auto" else f"held {order.to}"
    if order.to != "auto":
        what += f" for {format_duration(order.for_ms / 1000)}" if order.for_ms else " until further notice"
    return what
