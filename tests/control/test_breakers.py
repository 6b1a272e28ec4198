"""Views of breakers put together, and overrides."""

from __future__ import annotations

import logging
from typing import Literal

import msgspec
import pytest
import trio

from ambassador.config.load import load_text
from ambassador.control.breakers import (
    BreakerViews,
    NobodyObeyed,
    NoBreaker,
    Obeyed,
    Override,
    answer,
    breaker_names,
    override,
)
from ambassador.proxy.breakers import BreakerStatus

CONFIG = load_text("version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: billing, to: 'http://a', breaker: {}}]")
LOG = logging.getLogger("test")


def a_status(
    name: str = "billing",
    *,
    epoch: int = 0,
    as_of: float = 0.0,
    state: str = "closed",
    slot: int | None = None,
) -> BreakerStatus:
    local: dict[str, str | int | float] | None = None if slot is None else {"replica": "r", "slot": slot}
    return BreakerStatus(
        name=name,
        scope="upstream",
        state=state,
        forced=None,
        since=None,
        retry_at=None,
        window={"requests": 0, "failures": 0, "slow": 0},
        epoch=epoch,
        as_of=as_of,
        local=local,
    )


def test_youngest_view_of_each_breaker_counts_and_local_ones_are_gathered() -> None:
    views = BreakerViews()
    answers = [
        answer([a_status(epoch=5, as_of=9.0), a_status("x")]),
        answer([a_status(epoch=7, as_of=3.0, state="open", slot=1)]),
        answer([a_status(epoch=7, as_of=2.0, state="half_open", slot=2)]),
    ]
    assert sum(1 for _ in views.add(answers)) == 4
    billing, other = views.views()
    assert (billing.name, billing.epoch, billing.state) == ("billing", 7, "open")
    assert [each["slot"] for each in billing.local] == [1, 2]
    assert msgspec.json.encode(billing.local[0]) == b'{"replica":"r","slot":1}'
    assert (other.name, other.local) == ("x", [])


def test_names_are_the_configs() -> None:
    assert breaker_names(CONFIG) == ["billing"]


class FakeWorker:
    """Obeys, does not (False), or says nothing (None)."""

    def __init__(self, with_store: bool | None, here: bool | None = True, why: str = "") -> None:
        self.why = why
        self.with_store = with_store
        self.here = here
        self.orders: list[Override] = []

    async def act(self, what: bytes, timeout_s: float) -> bytes | None:
        await trio.lowlevel.checkpoint()
        order = msgspec.msgpack.decode(what, type=Override)
        self.orders.append(order)
        done = self.here if order.here_us else self.with_store
        return None if done is None else msgspec.msgpack.encode(Obeyed(done, self.why))


def an_order(
    name: str = "billing", to: Literal["open", "closed", "auto"] = "open", for_ms: int = 600_000
) -> Override:
    return Override(name=name, to=to, for_ms=for_ms, by="ann", reason="maintenance")


async def unexplained() -> str:
    return ""


async def test_one_worker_asks_the_store_for_all(caplog: pytest.LogCaptureFixture) -> None:
    workers = [FakeWorker(True), FakeWorker(True)]
    outcome = await override(an_order(), CONFIG, workers, LOG, unexplained)
    assert (outcome.fleet, outcome.detail) == (True, "held open for 10m")
    assert [len(worker.orders) for worker in workers] == [1, 0]
    assert caplog.messages == ["breaker billing: by ann: held open for 10m (maintenance)"]


async def test_order_can_draw_nothing_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    order = msgspec.structs.replace(an_order(), by="a\rb", reason="a\nb\0 \x1b[31m")
    await override(order, CONFIG, [FakeWorker(True)], LOG, unexplained)
    assert caplog.messages == [r"breaker billing: by a\x0db: held open for 10m (a\x0ab\x00 \x1b[31m)"]


async def test_worker_that_says_nothing_is_followed_by_the_next() -> None:
    workers = [FakeWorker(None), FakeWorker(True)]
    assert (await override(an_order(), CONFIG, workers, LOG, unexplained)).fleet


async def test_without_the_store_all_workers_obey_under_one_epoch(caplog: pytest.LogCaptureFixture) -> None:
    workers = [FakeWorker(False), FakeWorker(False)]
    outcome = await override(an_order(to="closed", for_ms=0), CONFIG, workers, LOG, unexplained)
    assert not outcome.fleet
    assert outcome.detail.startswith("held closed until further notice, on this replica only")
    epochs = {worker.orders[-1].here_us for worker in workers}
    assert len(epochs) == 1
    assert epochs.pop() > 0
    assert len(caplog.messages) == 1


async def test_order_that_the_store_did_not_get_says_why() -> None:
    async def why() -> str:
        return "OOM command not allowed"

    told = [
        (await override(an_order(to="auto", for_ms=0), CONFIG, [FakeWorker(False)], LOG, each)).detail
        for each in (why, unexplained)
    ]
    assert told == [
        "control is given back, on this replica only: the state store cannot be used: OOM command not allowed",
        "control is given back, on this replica only: the state store does not answer",
    ]


async def test_order_that_the_store_refuses_says_why() -> None:
    worker = FakeWorker(False, why="out of memory")
    outcome = await override(an_order(to="auto", for_ms=0), CONFIG, [worker], LOG, unexplained)
    assert not outcome.fleet
    assert outcome.detail.endswith("on this replica only: the state store refuses it: out of memory")


async def test_auto_gives_control_back() -> None:
    outcome = await override(an_order(to="auto", for_ms=0), CONFIG, [FakeWorker(True)], LOG, unexplained)
    assert outcome.detail == "control is given back"


@pytest.mark.parametrize("workers", [[], [FakeWorker(None, None)], [FakeWorker(False, False)]])
async def test_nobody_obeys(workers: list[FakeWorker]) -> None:
    with pytest.raises(NobodyObeyed):
        await override(an_order(), CONFIG, workers, LOG, unexplained)


async def test_unknown_name_is_refused_with_the_one_that_may_be_meant() -> None:
    with pytest.raises(NoBreaker, match=r"there is no breaker 'biling'; did you mean 'billing'\?"):
        await override(an_order("biling"), CONFIG, [FakeWorker(True)], LOG, unexplained)


@pytest.mark.parametrize(("name", "known"), [("u/10.0.0.1:80", True), ("v/10.0.0.1:80", False), ("u", False)])
async def test_breaker_of_an_endpoint_that_was_found_is_known_to_workers_only(
    name: str, *, known: bool
) -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "upstreams:\n"
        "  u: {discover: {dns: 'a.test:80'}, breaker: {scope: endpoint}}\n"
        "  v: {discover: {dns: 'b.test:80'}}\n"
        "routes: [{name: r, match: {path: /r}, to: u}, {name: s, to: v}]"
    )
    worker = FakeWorker(True)
    if known:
        assert (await override(an_order(name), config, [worker], LOG, unexplained)).fleet
    else:
        with pytest.raises(NoBreaker):
            await override(an_order(name), config, [worker], LOG, unexplained)
    assert len(worker.orders) == known
