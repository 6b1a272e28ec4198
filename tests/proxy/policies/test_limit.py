"""Limits as requests meet them: what is admitted, who waits, in which order, and what answers say.

The fleet is that of `limit_world`: real policies, the store's own arithmetic, lines that delay and lose. The properties
hold for whatever hypothesis makes of demands, delays, losses, deaths and wipes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambassador.errors import Limited
from ambassador.messages import Request
from ambassador.proxy.limit_keys import NoCounts
from ambassador.proxy.policies.limit import Config
from ambassador.state.holding import terms
from ambassador.state.protocol import Lease
from tests.proxy.policies.limit_world import (
    BatchLine,
    Line,
    Rest,
    Store,
    Worker,
    World,
    a_request,
    compiled,
    counts,
    excess,
    four_workers,
    one_worker,
)

SLOW = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


# What a limit means


@pytest.mark.parametrize(
    ("rate", "burst", "whole"),
    [
        ((100, 1), None, 100),
        ((0.5, 1), None, 1),
        ((5000, 60), None, 10),
        ((3, 60), None, 3),
        ((20, 3600), None, 10),
        ((1e6, 86400), None, 10),
        ((100, 1), 7, 7),
    ],
)
def test_burst_unset_is_a_second_of_the_rate_or_ten(
    rate: tuple[float, int], burst: int | None, whole: int
) -> None:
    assert Config(rate=rate, burst=burst).whole == whole


def test_quota_is_a_whole_number() -> None:
    assert "whole number" in str(Config.refusal("quota", (1.5, 1)))
    assert Config.refusal("quota", (2.0, 1)) is None


def test_quota_begins_whole() -> None:
    config = Config(quota=(1000.0, 86400))
    assert (config.whole, config.terms.depth, config.terms.window_s) == (1000, 1000, 86400)


@pytest.mark.parametrize(
    ("config", "key", "problem"),
    [
        (Config(), None, "exactly one"),
        (Config(rate=(1, 1), quota=(1, 1)), None, "exactly one"),
        (Config(rate=(1, 1), credit=2), "credit", "mode: bounded"),
        (Config(quota=(1, 1), burst=2), "burst", "no meaning"),
        (Config(rate=(1, 1), burst=10, cost="9"), "cost", "80 % of the burst of 10"),
        (Config(rate=(1, 1), burst=3, cost="4"), "cost", "at once: 3"),
    ],
)
def test_config_refuses_what_cannot_be(config: Config, key: str | None, problem: str) -> None:
    ((found, text),) = config.conflicts()
    assert found == key
    assert problem in text


def test_no_limits_are_no_policy() -> None:
    world = World()
    assert compiled(world, (), Line(Store(world))) is None


# Admitting and refusing


def test_burst_passes_and_the_rest_is_refused() -> None:
    world, _, worker = one_worker(Config(rate=(10, 1)))
    for _ in range(20):
        worker.request()
    world.run(0.01)
    assert counts(worker) == (8, 12)


def test_rate_passes_in_the_long_run() -> None:
    world, _, worker = one_worker(Config(rate=(100, 1)))
    worker.load(300, 20.0, random.Random(1).random)
    world.run(20.0)
    assert 100 * 20 * 0.95 < len(worker.admitted) <= 100 * 20 + 100


def test_refusal_says_when_to_come_again() -> None:
    world, _, worker = one_worker(Config(rate=(6, 60), burst=5, status=503, name="slow"))
    for _ in range(4):
        worker.request()
    world.run(0.1)
    hook = worker.policy.hook()
    worker.request()
    world.run(0.1)
    with pytest.raises(Limited, match="limit 'slow' is reached") as caught:
        hook(a_request())
    assert (caught.value.code, caught.value.status) == ("limited", 503)
    assert caught.value.retry_after_s == pytest.approx(10 - 0.2, abs=0.1)


def test_retry_after_is_never_under_a_second() -> None:
    world, _, worker = one_worker(Config(rate=(100, 1)))
    for _ in range(200):
        worker.request()
    world.run(0.005)
    hook = worker.policy.hook()
    with pytest.raises(Limited) as caught:
        hook(a_request())
    assert caught.value.retry_after_s == 1.0


def test_request_without_waiter_is_decided_at_once() -> None:
    world, _, worker = one_worker(Config(rate=(100, 1)))
    hook = worker.policy.hook()
    with pytest.raises(Limited):
        hook(a_request())
    world.run(0.01)
    assert hook(a_request()) is None


def test_refused_requests_do_not_reach_the_store() -> None:
    world, store, worker = one_worker(Config(rate=(10, 1)))
    worker.load(2000, 5.0, random.Random(1).random)
    world.run(5.0)
    assert len(worker.refused) > 9000
    assert store.operations < 5 * 25


# Whose requests are counted together


# Costs


# Several limits


def test_several_limits_are_charged_all_or_nothing() -> None:
    world, _, worker = one_worker(
        Config(name="wide", rate=(100, 1)), Config(name="narrow", rate=(1, 60), burst=5)
    )
    for _ in range(50):
        worker.request()
        world.run(0.001)
    world.run(0.05)
    assert counts(worker) == (4, 46)
    wide, narrow = (made.account(a_request()) for made in worker.policy.limits)
    assert (wide.spent, narrow.spent) == (4, 4)


def test_refusal_names_the_limit_that_lasts_longest() -> None:
    world, _, worker = one_worker(
        Config(name="second", rate=(5, 1)), Config(name="hour", rate=(5, 3600), burst=5)
    )
    for _ in range(10):
        worker.request()
    world.run(0.01)
    with pytest.raises(Limited, match="'hour'") as caught:
        worker.policy.hook()(a_request())
    assert caught.value.retry_after_s is not None
    assert 700 < caught.value.retry_after_s <= 720


# Waiting


# Modes


def test_bounded_never_waits() -> None:
    world, _, worker = one_worker(Config(rate=(100, 1), mode="bounded", credit=2))
    worker.load(50, 5.0, random.Random(2).random)
    world.run(5.0)
    assert worker.waited == []
    assert len(worker.admitted) > 0.97 * sum(counts(worker))


def test_local_mode_asks_the_replica_only() -> None:
    world = World()
    fleet, replica = Store(world), Store(world)
    worker = Worker(
        world, [Config(rate=(10, 1), mode="local")], fleet=Line(fleet), replica=Line(replica, replicas=4)
    )
    for _ in range(20):
        worker.request()
    world.run(0.01)
    assert counts(worker) == (8, 12)
    assert (fleet.operations, replica.operations > 0) == (0, True)


def test_quota_is_of_the_calendar_window() -> None:
    world, _, worker = one_worker(Config(quota=(20, 60)))
    world.run(60 - (1_700_000_000 + world.now) % 60 + 1)
    for _ in range(30):
        worker.request()
        world.run(0.1)
    assert counts(worker) == (20, 10)
    world.run(60)
    worker.request()
    world.run(0.1)
    assert counts(worker) == (21, 10)


@pytest.mark.parametrize("away", [False, True])
def test_used_up_quota_keeps_nobody_waiting_for_what_comes_too_late(*, away: bool) -> None:
    world, store, worker = one_worker(Config(quota=(5, 3600), wait=2.0))
    world.run(3600 - (1_700_000_000 + world.now) % 3600 + 1)
    for _ in range(6):
        worker.request()
        world.run(0.1)
    assert counts(worker) == (5, 1)
    store.away = away
    for _ in range(50):
        worker.request()
        world.run(0.13)
    assert counts(worker) == (5, 51)
    assert max(worker.waited) < 0.05
    world.run(3600 - (1_700_000_000 + world.now) % 3600 - 1)
    store.away = False
    worker.request()
    world.run(2.0)
    assert counts(worker) == (6, 51)


@pytest.mark.parametrize("wait", [0.0, 2.0])
def test_used_up_quota_serves_what_others_give_back(wait: float) -> None:
    world = World()
    store = Store(world)
    one, other = (Worker(world, [Config(quota=(5, 3600), wait=wait)], fleet=Line(store)) for _ in range(2))
    world.run(3600 - (1_700_000_000 + world.now) % 3600 + 1)
    for _ in range(5):
        one.request()
        world.run(0.01)
    (made,) = one.policy.limits
    other.request()
    world.run(0.1)
    assert counts(other) == (0, 1)
    key = made.account(a_request())
    store.perform(
        Lease(key.key, rate=key.terms.rate, depth=5, want=0, window_s=3600, back=1, back_window=key.window)
    )
    world.run(1.5)
    other.request()
    world.run(0.1)
    assert counts(other) == (1, 1)


@pytest.mark.parametrize("away_s", [0.0, 1.0])
@pytest.mark.parametrize("late", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_quota_is_not_handed_out_again_by_a_store_that_forgot(
    *, away_s: float, late: float, seed: int
) -> None:
    draw = random.Random(seed).random
    world = World()
    store = Store(world)

    def delay() -> float:
        return 0.03 * draw() if draw() < late else 0.0005

    workers = four_workers(
        store,
        Config(quota=(50, 60)),
        draw,
        far=lambda fleet: Line(fleet, delay=delay, replicas=2, workers=4),
        near=lambda replica: Line(replica, delay=delay),
    )
    world.run(60 - (1_700_000_000 + world.now) % 60 + 1)
    for worker in workers:
        worker.load(5, 40.0, draw)
    world.run(10.0)
    assert len(times_of(workers)) == pytest.approx(50, abs=5)
    store.away = away_s > 0
    world.run(away_s)
    store.wipe()
    store.away = False
    world.run(40.0 - away_s)
    assert len(times_of(workers)) <= 55


def test_lower_terms_hold_for_every_key_until_the_own_ones_do_again() -> None:
    world, store, worker = one_worker(Config(rate=(100, 1), burst=100, per="client_ip", cost="30"))
    (limit,) = worker.policy.limits
    request = Request("GET", b"/", [], 1)
    request.client_ip = "a"
    worker.request("a")
    world.run(0.1)
    assert worker.policy.answer_lines(request).startswith(b'ratelimit: "limit";r=50')
    limit.obey(terms(20, 25))
    assert limit.most_cost == 20
    assert worker.policy.answer_lines(request).startswith(b'ratelimit: "limit";r=20')
    (told,) = worker.policy.status()
    assert (told.rate, told.burst) == ("20/s", 25)
    world.run(1.0)
    worker.request("a")  # costs more than there can be: what there can be is taken
    worker.request("b")
    world.run(0.1)
    assert len(worker.admitted) == 3
    assert {key: round(found.tokens) for key, found in store.buckets.items()} == {
        "r/limit:a": 0,
        "r/limit:b": 0,
    }
    limit.obey(limit.configured)
    assert worker.policy.status()[0].rate == "100/s"
    assert limit.most_cost == 80


def test_retired_policy_gives_a_quota_back() -> None:
    world, store, worker = one_worker(Config(quota=(1000, 86400)))
    worker.load(200, 1.0, random.Random(3).random)
    world.run(1.0)
    (found,) = store.buckets.values()
    worker.policy.retire()
    world.run(0.01)
    assert found.tokens == -len(worker.admitted)


# While the store is away


@pytest.mark.parametrize(("on_loss", "admits"), [("open", 50), ("closed", 0)])
def test_on_loss_decides_without_the_store(on_loss: Any, admits: int) -> None:
    world = World()
    store = Store(world)
    worker = Worker(
        world, [Config(rate=(10, 1))], fleet=Line(store), replica=Line(Store(world)), on_loss=on_loss
    )
    store.away = True
    worker.request()
    world.run(0.5)
    before = len(worker.admitted)
    for _ in range(50):
        worker.request()
    world.run(0.01)
    assert len(worker.admitted) - before == admits


def test_share_takes_over_with_this_replicas_part() -> None:
    world = World()
    store = Store(world)
    workers = [
        Worker(world, [Config(rate=(100, 1))], fleet=Line(store, replicas=2), replica=Line(Store(world)))
        for _ in range(2)
    ]
    for worker in workers:
        worker.load(300, 12.0, random.Random(4).random)
    world.run(2.0)
    store.away = True
    world.run(1.0)
    before = [len(worker.admitted) for worker in workers]
    world.run(5.0)
    for worker, count in zip(workers, before, strict=True):
        assert len(worker.admitted) - count == pytest.approx(250, rel=0.1)


def test_late_store_refuses_nobody_far_under_the_limit() -> None:
    world = World()
    store = Store(world)
    worker = Worker(
        world, [Config(rate=(20, 1))], fleet=Line(store, delay=lambda: 0.06), replica=Line(Store(world))
    )
    worker.load(3, 60.0, random.Random(5).random)
    world.run(60.0)
    assert worker.refused == []
    assert max(worker.waited) <= 0.0201


@pytest.mark.parametrize(
    ("rtt_s", "rate", "part"),
    [(0.03, 300, 0.8), (0.03, 1000, 0.8), (0.1, 1000, 0.5), (0.1, 1000, 0.8), (0.1, 1000, 0.95)],
)
def test_far_store_makes_few_wait_and_refuses_nobody(rtt_s: float, rate: int, part: float) -> None:
    """Each way takes 40 % more or less by chance, so of tokens that live 200 ms some end before the next are here."""
    draw = random.Random(3).random
    world = World()
    store = Store(world)
    workers = four_workers(
        store,
        Config(rate=(rate, 1), per="client_ip"),
        draw,
        far=lambda fleet: BatchLine(
            fleet, delay=lambda: rtt_s / 2 * (0.6 + 0.8 * draw()), replicas=2, workers=4
        ),
        near=lambda replica: Line(replica, delay=lambda: 0.001 * draw(), workers=2),
    )
    for worker in workers:
        worker.load(rate * part / 4, 6.0, draw, "loud")
        worker.load(0.25, 6.0, draw, "quiet")
    world.run(7.0)
    assert sum(len(worker.refused) for worker in workers) == 0
    requests = sum(len(worker.admitted) for worker in workers)
    assert sum(len(worker.waited) for worker in workers) < 0.05 * requests
    assert max(max(worker.waited) for worker in workers) <= 0.02
    assert excess(times_of(workers), rate) <= rate


@pytest.mark.parametrize("seed", range(3))
def test_pressed_limit_behind_a_far_store_refuses_no_quiet_client(seed: int) -> None:
    draw = random.Random(seed).random
    world = World()
    store = Store(world)
    workers = four_workers(
        store,
        Config(rate=(1000, 1), per="client_ip"),
        draw,
        far=lambda fleet: BatchLine(fleet, delay=lambda: 0.05 * (0.6 + 0.8 * draw()), replicas=2, workers=4),
        near=lambda replica: Line(replica, delay=lambda: 0.02 * draw(), workers=2),
    )
    for worker, part in zip(workers, (12, 3, 2, 1), strict=True):
        worker.load(2000 * part / 18, 5.0, draw, "loud")
        worker.load(5 * part / 18, 5.0, draw, "quiet")
    world.run(6.0)
    assert [key for worker in workers for _, key in worker.refused if key == "quiet"] == []
    loud = [time for worker in workers for time, key in worker.admitted if key == "loud"]
    assert excess(loud, 1000) <= 1000
    assert sum(1001.5 <= time < 1005.0 for time in loud) > 0.95 * 3500


@pytest.mark.parametrize("seed", range(10))
def test_distant_store_refuses_nobody_far_under_the_limit(seed: int) -> None:
    draw = random.Random(seed).random
    world = World()
    store = Store(world)
    workers = four_workers(
        store,
        Config(rate=(300, 1)),
        draw,
        far=lambda fleet: Line(fleet, delay=lambda: 0.015 + 0.002 * draw(), replicas=2, workers=4),
    )
    for worker in workers:
        worker.load(150 / 4, 5.0, draw)
    world.run(6.0)
    assert sum(len(worker.refused) for worker in workers) == 0
    assert max(max(worker.waited, default=0.0) for worker in workers) <= 0.0201


@pytest.mark.parametrize("rtt_s", [0.012, 0.015, 0.018, 0.03])
def test_store_that_takes_as_long_as_a_request_may_wait_refuses_no_clump_far_under_the_limit(
    rtt_s: float,
) -> None:
    """Requests of one instant wait equally long, and their lease comes about when they give up."""
    draw = random.Random(6).random
    world = World()
    store = Store(world)
    workers = four_workers(
        store,
        Config(rate=(500, 1), burst=100),
        draw,
        far=lambda fleet: BatchLine(fleet, delay=lambda: rtt_s / 2 + 0.001 * draw(), replicas=2, workers=4),
    )
    for worker in workers:
        worker.load(10, 3.0, draw)
        worker.load(30, 3.0, draw, clump=4)
    world.run(4.0)
    assert sum(len(worker.refused) for worker in workers) == 0
    assert excess(times_of(workers), 500) <= 100


def test_distant_store_that_was_heard_of_refuses_no_second_request() -> None:
    world = World()
    store, replica = Store(world), Store(world)
    fleet = [Line(store, delay=lambda: 0.015, replicas=2, workers=4) for _ in range(2)]
    config = Config(rate=(10, 1), burst=10, per="client_ip")
    workers = [Worker(world, [config], fleet=line, replica=Line(replica)) for line in fleet]
    for number in range(6):
        workers[number % 2].request("a")
        world.run(0.25)
    world.run(1.0)
    assert [counts(worker) for worker in workers] == [(3, 0), (3, 0)]
    assert max(wait for worker in workers for wait in worker.waited) <= 0.02 + 1e-9


def test_lease_after_anothers_is_decided_by_the_fallback() -> None:
    """Who comes while another's lease is under way is asked for afterwards, and can wait no longer than the other."""
    world = World()
    worker = Worker(
        world,
        [Config(rate=(10, 1))],
        fleet=Line(Store(world), delay=lambda: 0.0065),
        replica=Line(Store(world)),
    )

    def come() -> None:
        worker.request()

    come()
    world.after(0.001, come)
    world.after(0.002, come)
    world.run(0.05)
    assert counts(worker) == (3, 0)
    (made,) = worker.policy.limits
    world.run(0.05)
    assert made.account(a_request()).debt == 0


def test_request_that_waits_for_tokens_is_not_decided_by_the_fallback() -> None:
    world = World()
    replica = Store(world)
    worker = Worker(
        world,
        [Config(rate=(20, 1), burst=5, wait=3.0)],
        fleet=Line(Store(world), delay=lambda: 0.003),
        replica=Line(replica),
    )
    for _ in range(30):
        worker.request()
    world.run(3.0)
    assert counts(worker) == (30, 0)
    (made,) = worker.policy.limits
    assert made.account(a_request()).otherwise == 0


def test_large_cost_that_waits_holds_up_nobody_before_it() -> None:
    world, _, worker = one_worker(Config(rate=(10, 1), burst=20, cost="header:x-cost", wait=3.0))
    for number, cost in enumerate([16, *[1] * 10, 16, *[1] * 10]):

        def come(number: int = number, cost: int = cost) -> None:
            worker.request(str(number), [(b"x-cost", b"%d" % cost)])

        world.after(number * 0.015, come)
    world.run(1.4)
    assert [int(key) for _, key in worker.admitted] == list(range(11))
    world.run(3.0)
    order = [int(key) for _, key in worker.admitted]
    assert order == sorted(order)
    assert 11 in order
    assert len(order) >= 15


@pytest.mark.parametrize("wait", [0.0, 5.0])
def test_request_that_has_waited_elsewhere_is_not_refused_for_that(wait: float) -> None:
    world = World()
    worker = Worker(
        world,
        [Config(rate=(20, 1), wait=wait)],
        fleet=Line(Store(world), delay=lambda: 0.1),
        replica=Line(Store(world), delay=lambda: 0.1),
    )
    began = world.now
    rest = Rest(world, lambda _: None)
    request = a_request()
    request.waiter, request.held_s = rest, 0.02
    waiting = worker.policy.hook()(request)
    assert waiting is not None
    rest.start(waiting)
    assert worker.policy.waiting == 0
    assert world.now == began
    (made,) = worker.policy.limits
    assert made.account(request).debt == 1


def test_quiet_client_waits_for_what_a_wiped_store_will_soon_have() -> None:
    world, store, worker = one_worker(Config(rate=(1000, 1), burst=1000, per="client_ip"))
    worker.request("a")
    world.run(1.0)
    store.wipe()
    worker.request("b")
    worker.request("b")
    world.run(1.0)
    assert counts(worker) == (3, 0)
    assert 0.001 < max(worker.waited) <= 0.02


def test_quiet_client_does_not_wait_for_what_comes_later() -> None:
    world, store, worker = one_worker(Config(rate=(10, 1), burst=10, per="client_ip"))
    store.wipe()
    worker.request("a")
    world.run(0.002)
    assert counts(worker) == (0, 1)


@pytest.mark.parametrize(("rate", "burst"), [(10, 20), (2, 10), (1, 10)])
def test_store_that_is_wiped_refuses_no_client_that_is_far_under_the_limit(rate: int, burst: int) -> None:
    """It goes on answering, so nobody has been told yet."""
    draw = random.Random(8).random
    world = World()
    store = Store(world)
    config = Config(rate=(rate, 1), burst=burst, per="client_ip")
    workers = four_workers(store, config, draw, far=lambda fleet: Line(fleet, replicas=2, workers=4))
    for number in range(20 * 8):
        at, key = number / 8 * 4 / rate, str(number % 4)
        world.after(at, lambda number=number, key=key: workers[number // 4 % 4].request(key))  # type: ignore[misc]
    world.after(10.0 * 4 / rate, store.wipe)
    world.run(22.0 * 4 / rate)
    assert sum(len(worker.refused) for worker in workers) == 0


@pytest.mark.parametrize("over", [0.1, 2.0])
def test_burst_around_a_wipe_is_no_second_one(over: float) -> None:
    draw = random.Random(9).random
    world = World()
    store = Store(world)
    workers = four_workers(
        store, Config(rate=(100, 1)), draw, far=lambda fleet: Line(fleet, replicas=2, workers=4)
    )
    for worker in workers:
        worker.load(100 * over / 4, 4.0, draw)
    world.run(3.9)
    for worker in workers:
        worker.load(800 / 4, 2.0, draw)
    world.after(0.1, store.wipe)
    world.run(3.0)
    assert excess(times_of(workers), 100) <= 100


def test_worker_without_any_store_has_a_share_of_its_own() -> None:
    world = World()
    store = Store(world)
    worker = Worker(world, [Config(rate=(100, 1))], fleet=Line(store, workers=4))
    worker.load(200, 12.0, random.Random(6).random)
    world.run(1.0)
    store.away = True
    world.run(1.0)
    before = len(worker.admitted)
    world.run(10.0)
    assert len(worker.admitted) - before == pytest.approx(250, rel=0.1)


# What answers say


# Properties


class Trouble:
    """What hypothesis decides about a fleet."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def fleet(
        self, configs: list[Config], demands: list[float], delay_s: float, lost: float, **options: Any
    ) -> tuple[World, Store, list[Worker]]:
        world = World()
        store = Store(world)
        draw = self.random.random
        replicas = [Store(world) for _ in demands]
        workers = [
            Worker(
                world,
                configs,
                fleet=Line(
                    store,
                    delay=lambda: delay_s * draw(),
                    loses=lambda: draw() < lost,
                    replicas=len(demands),
                    workers=len(demands),
                ),
                replica=Line(replica),
                random=draw,
                **options,
            )
            for replica in replicas
        ]
        return world, store, workers


def times_of(workers: list[Worker]) -> list[float]:
    return [time for worker in workers for time, _ in worker.admitted]


RATES = st.sampled_from([5.0, 20.0, 100.0, 700.0])


@SLOW
@given(
    rate=RATES,
    seconds_of_burst=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    demands=st.lists(st.sampled_from([0.05, 0.3, 1.0, 4.0]), min_size=1, max_size=5),
    delay_s=st.sampled_from([0.0004, 0.003, 0.03, 0.2]),
    lost=st.sampled_from([0.0, 0.02, 0.3]),
    events=st.lists(
        st.tuples(st.sampled_from(["wipe", "die", "away", "back"]), st.floats(0.0, 4.0)), max_size=4
    ),
    wait=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**16),
)
def test_strict_limit_is_never_exceeded(
    *,
    rate: float,
    seconds_of_burst: float,
    demands: list[float],
    delay_s: float,
    lost: float,
    events: list[tuple[str, float]],
    wait: float,
    seed: int,
) -> None:
    """Without a fallback nothing but tokens that the store has debited is spent, so the promise holds to the letter."""
    burst = max(5, int(rate * seconds_of_burst))
    trouble = Trouble(seed)
    world, store, workers = trouble.fleet(
        [Config(rate=(rate, 1), burst=burst, wait=wait)], demands, delay_s, lost, on_loss="closed"
    )
    for worker, demand in zip(workers, demands, strict=True):
        worker.load(rate * demand, 4.0, trouble.random.random)
    for kind, at in events:
        world.after(at, event(kind, store, workers[seed % len(workers)]))
    world.run(5.0)
    slack = 1e-6 if burst >= rate * 0.05 else rate * 0.01
    assert excess(times_of(workers), rate) <= burst + slack


def event(kind: str, store: Store, worker: Worker) -> Callable[[], None]:
    def happen() -> None:
        if kind == "wipe":
            store.wipe()
        elif kind == "die":
            worker.dead = True
        else:
            store.away = kind == "away"

    return happen


@SLOW
@given(
    rate=RATES,
    demands=st.lists(st.sampled_from([0.05, 0.3, 1.0, 4.0]), min_size=1, max_size=4),
    away_s=st.sampled_from([0.1, 0.6, 3.0]),
    seed=st.integers(0, 2**16),
)
def test_store_away_and_back_admits_little_more(
    rate: float, demands: list[float], away_s: float, seed: int
) -> None:
    trouble = Trouble(seed)
    world, store, workers = trouble.fleet([Config(rate=(rate, 1), burst=int(rate))], demands, 0.002, 0.0)
    for worker, demand in zip(workers, demands, strict=True):
        worker.load(rate * demand, 6.0 + away_s, trouble.random.random)
    world.after(3.0, lambda: setattr(store, "away", True))
    world.after(3.0 + away_s, lambda: setattr(store, "away", False))
    world.run(7.0 + away_s)
    # Each replica admits one at least of what it never heard of.
    assert excess(times_of(workers), rate) <= rate + 0.1 * rate * (6.0 + away_s) + len(workers)


@settings(SLOW, derandomize=True)
@given(
    over=st.sampled_from([1.5, 2.0, 4.0]),
    late=st.sampled_from([0.0, 0.05, 0.3]),
    away_s=st.sampled_from([0.0, 0.4, 3.0]),
    wiped=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_loss_in_steady_overload_brings_no_second_burst(
    *, over: float, late: float, away_s: float, wiped: bool, seed: int
) -> None:
    """The bucket is empty, and shares that a late answer once opened have long been full again."""
    rate = 200.0
    draw = random.Random(seed).random
    world = World()
    store = Store(world)

    def delay() -> float:
        return 0.03 * draw() if draw() < late else 0.0005

    workers = four_workers(
        store,
        Config(rate=(rate, 1)),
        draw,
        far=lambda fleet: Line(fleet, delay=delay, replicas=2, workers=4),
        near=lambda replica: Line(replica, delay=delay),
    )
    for worker in workers:
        worker.load(rate * over / 4, 7.0 + away_s, draw)
    world.after(5.0, lambda: setattr(store, "away", away_s > 0))
    world.after(5.0 + away_s, event("wipe" if wiped else "back", store, workers[0]))
    world.after(5.0 + away_s, event("back", store, workers[0]))
    world.run(2.0)
    begun = world.now
    world.run(6.0 + away_s)
    steady = excess([time for time in times_of(workers) if begun < time <= begun + 3.0], rate)
    through = excess([time for time in times_of(workers) if time > begun], rate)
    assert through <= steady + 0.1 * rate


@pytest.mark.parametrize("wiped", [False, True])
@pytest.mark.parametrize("away_s", [0.6, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_rate_is_admitted_at_once_when_the_store_is_back(*, wiped: bool, away_s: float, seed: int) -> None:
    """With its data or without: what the shares admitted meanwhile is no debt, where it had not come in."""
    rate = 600.0
    draw = random.Random(seed).random
    world = World()
    store = Store(world)
    workers = four_workers(
        store,
        Config(rate=(rate, 1)),
        draw,
        far=lambda fleet: Line(fleet, replicas=2, workers=4),
        near=lambda replica: Line(replica, workers=2),
    )
    for worker in workers:
        worker.load(rate * 1.5 / 4, 6.0 + away_s, draw)
    world.after(3.0, lambda: setattr(store, "away", True))
    world.after(3.0 + away_s, event("wipe" if wiped else "back", store, workers[0]))
    world.after(3.0 + away_s, event("back", store, workers[0]))
    back = world.now + 3.0 + away_s
    world.run(6.0 + away_s)
    times = times_of(workers)
    assert sum(back <= time < back + 2.0 for time in times) > 0.95 * rate * 2.0
    for begin in (back + 0.25 * part for part in range(8)):
        assert sum(begin <= time < begin + 0.25 for time in times) > 0.6 * rate * 0.25
    assert excess(times, rate) <= rate


@SLOW
@given(
    rate=RATES,
    demands=st.lists(st.sampled_from([0.05, 0.3, 1.0, 4.0]), min_size=1, max_size=4),
    delay_s=st.sampled_from([0.003, 0.03, 0.12]),
    lost=st.sampled_from([0.0, 0.01, 0.05]),
    seed=st.integers(0, 2**16),
)
def test_late_or_swallowed_answers_admit_little_more(
    *, rate: float, demands: list[float], delay_s: float, lost: float, seed: int
) -> None:
    trouble = Trouble(seed)
    world, _, workers = trouble.fleet([Config(rate=(rate, 1), burst=int(rate))], demands, delay_s, lost)
    for worker, demand in zip(workers, demands, strict=True):
        worker.load(rate * demand, 6.0, trouble.random.random)
    world.run(7.0)
    # Each replica admits one at least of what it never heard of.
    assert excess(times_of(workers), rate) <= rate + 0.1 * rate * 6.0 + len(workers)


@SLOW
@given(
    rate=RATES,
    shares=st.lists(st.sampled_from([0.02, 0.1, 0.3]), min_size=1, max_size=4),
    delay_s=st.sampled_from([0.0004, 0.003, 0.008]),
    seed=st.integers(0, 2**16),
)
def test_nobody_far_under_the_limit_is_refused(
    rate: float, shares: list[float], delay_s: float, seed: int
) -> None:
    whole = sum(shares)
    trouble = Trouble(seed)
    world, _, workers = trouble.fleet([Config(rate=(rate, 1), burst=int(2 * rate))], shares, delay_s, 0.0)
    for worker, share in zip(workers, shares, strict=True):
        worker.load(rate * 0.5 * share / whole, 10.0, trouble.random.random)
    world.run(11.0)
    assert sum(len(worker.refused) for worker in workers) == 0


@SLOW
@given(
    credit=st.integers(1, 5),
    demands=st.lists(st.sampled_from([0.2, 1.0, 4.0]), min_size=1, max_size=5),
    lost=st.sampled_from([0.0, 0.02]),
    seed=st.integers(0, 2**16),
)
def test_bounded_exceeds_by_its_credit_at_most(
    credit: int, demands: list[float], lost: float, seed: int
) -> None:
    rate, burst = 100.0, 100
    trouble = Trouble(seed)
    config = Config(rate=(rate, 1), burst=burst, mode="bounded", credit=credit)
    world, _, workers = trouble.fleet([config], demands, 0.002, lost, on_loss="closed")
    for worker, demand in zip(workers, demands, strict=True):
        worker.load(rate * demand, 5.0, trouble.random.random)
    world.run(6.0)
    assert excess(times_of(workers), rate) <= burst + len(workers) * credit + 1e-6


@pytest.mark.parametrize("skew", [[1.0, 1.0, 1.0, 1.0], [8.0, 4.0, 2.0, 1.0], [20.0, 1.0, 1.0, 1.0]])
def test_overload_is_shared_in_proportion_to_demand(skew: list[float]) -> None:
    rate = 1000.0
    trouble = Trouble(7)
    world, _, workers = trouble.fleet([Config(rate=(rate, 1))], skew, 0.001, 0.0)
    for worker, part in zip(workers, skew, strict=True):
        worker.load(3 * rate * part / sum(skew), 10.0, trouble.random.random)
    world.run(10.0)
    served = [len(worker.admitted) / sum(counts(worker)) for worker in workers]
    assert sum(served) ** 2 / (len(served) * sum(part**2 for part in served)) > 0.95


class Counted(NoCounts):
    """Counts refusals."""

    def __init__(self) -> None:
        self.refused = 0

    def limited(self) -> None:
        self.refused += 1


@pytest.mark.parametrize("wait", [0.0, 0.5])
def test_only_limits_that_have_too_little_count_a_refusal(wait: float) -> None:
    """Another one of which there is merely nothing in this worker's hand would have let it pass."""
    world = World()
    line = Line(Store(world))
    counted = {"wide": Counted(), "narrow": Counted()}
    configs = [
        Config(name="wide", rate=(1000, 1), burst=1000, per="client_ip"),
        Config(name="narrow", rate=(1, 60), burst=3, per="route", wait=wait),
    ]
    worker = Worker(world, configs, fleet=line, counts=lambda name: counted[name])
    for number in range(20):
        worker.request(f"10.0.0.{number % 4}")
        world.run(0.3)
    refused = len(worker.refused)
    assert refused > 10
    assert (counted["wide"].refused, counted["narrow"].refused) == (0, refused)
    assert [sum(key.limited for key in limit.all_accounts()) for limit in worker.policy.limits] == [
        0,
        refused,
    ]
