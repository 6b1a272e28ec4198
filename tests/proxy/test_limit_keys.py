"""How requests find their accounts, what they cost, and what answers and `status` say about them."""

from __future__ import annotations

import itertools
import math

import pytest

from ambassador.errors import Limited
from ambassador.proxy import limit_keys
from ambassador.proxy.policies.limit import Config
from tests.proxy.policies.limit_world import (
    Line,
    Store,
    Worker,
    World,
    a_policy,
    a_request,
    compiled,
    counts,
    one_worker,
)


def test_keys_have_buckets_of_their_own() -> None:
    world, _, worker = one_worker(Config(rate=(10, 1), burst=5, per="client_ip"))
    for key in ("a", "b"):
        for _ in range(10):
            worker.request(key)
    world.run(0.01)
    assert sorted(key for _, key in worker.admitted) == ["a"] * 4 + ["b"] * 4


def test_missing_header_and_one_with_several_values_are_one_common_key() -> None:
    """Else with each further value a client would have another bucket."""
    world, store, worker = one_worker(Config(rate=(10, 1), burst=5, per="header:x-tenant"))
    tenant = (b"X-Tenant", b"t")
    for headers in ([], [tenant], [tenant, tenant], [tenant, (b"X-TENANT", b"u")], []):
        worker.request(headers=headers)
    world.run(0.01)
    assert sorted(store.buckets) == ["r/limit:-", "r/limit:t"]


def test_long_or_odd_values_are_hashed() -> None:
    world, store, worker = one_worker(Config(rate=(10, 1), per="header:x-tenant"))
    for value in (b"\xff\xfe", b"t" * 300, b"t" * 301):
        worker.request(headers=[(b"x-tenant", value)])
    world.run(0.01)
    assert len(store.buckets) == 3
    assert all(key.startswith("r/limit:#") and len(key) < 60 for key in store.buckets)


@pytest.mark.parametrize("name", ["authorization", "Proxy-Authorization", "x-api-key", "cookie"])
def test_credentials_are_hashed(name: str) -> None:
    world, store, worker = one_worker(Config(rate=(10, 1), per=f"header:{name}"))
    for headers in ([], [(name.lower().encode(), b"secret")], [(name.encode(), b"secret")]):
        worker.request(headers=headers)
    world.run(0.01)
    plain, hashed = sorted(store.buckets, key=len)
    assert plain == "r/limit:-"
    assert hashed.startswith("r/limit:#")
    assert "secret" not in hashed
    assert {each.key for each in worker.policy.status()} == {"-", hashed.removeprefix("r/limit:")}


def test_upstreams_limits_are_apart_from_routes() -> None:
    world = World()
    store = Store(world)
    made = compiled(world, [Config(rate=(10, 1))], Line(store), route="u", of_upstream=True)
    assert made is not None
    with pytest.raises(Limited):
        made.hook()(a_request())
    world.run(0.01)
    assert list(store.buckets) == ["@u/limit:u"]


def test_million_clients_do_not_grow_a_worker_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_keys, "MOST_KEYS", 100)
    world, _, worker = one_worker(Config(rate=(10, 1), per="client_ip"))
    for number in range(2000):
        worker.request(f"client {number}")
        worker.request("regular")
        world.run(0.005)
    (made,) = worker.policy.limits
    kept = list(made.all_accounts())
    assert len(kept) <= 101
    assert "r/limit:regular" in {account.key for account in kept}
    assert not [key for _, key in worker.refused if key != "regular"]


def test_old_accounts_are_dropped_a_few_with_each_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands at once would stop the worker for as long as many requests take."""
    monkeypatch.setattr(limit_keys, "MOST_KEYS", 100)
    world, _, worker = one_worker(Config(quota=(10, 86400), per="client_ip"))
    (made,) = worker.policy.limits
    sizes = []
    for number in range(400):
        worker.request(f"client {number}")
        world.run(0.005)
        sizes.append(made.size)
    assert max(sizes) <= 102
    assert all(before - after <= 2 for before, after in itertools.pairwise(sizes))


def test_account_that_is_about_to_be_dropped_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_keys, "MOST_KEYS", 100)
    world, _, worker = one_worker(Config(rate=(10, 1), per="client_ip"))
    (made,) = worker.policy.limits
    for number in range(103):
        worker.request(f"client {number}")
        world.run(0.005)
    dropping = [account for account in made.all_accounts() if account.key == "r/limit:client 20"]
    worker.request("client 20")
    assert [account for account in made.all_accounts() if account.key == "r/limit:client 20"] == dropping


def test_cost_is_taken_from_a_header() -> None:
    world, _, worker = one_worker(Config(rate=(1, 1), burst=10, cost="header:x-cost"))
    for cost in (b"3", b"5", b"1"):
        worker.request(headers=[(b"X-Cost", cost)])
        world.run(0.01)
    assert counts(worker) == (2, 1)


def test_cost_is_clamped_to_what_can_be_there() -> None:
    world, _, worker = one_worker(Config(rate=(1, 1), burst=10, cost="header:x-cost"))
    worker.request(headers=[(b"x-cost", b"0")])
    world.run(2.0)
    worker.request(headers=[(b"x-cost", b"1000000")])
    world.run(0.01)
    worker.request()
    world.run(0.01)
    assert counts(worker) == (2, 1)


@pytest.mark.parametrize("value", [b"1.5", b"", b"-", b"many", b"1, 2", b"1_0", "²".encode()])
def test_cost_that_is_no_number_is_refused(value: bytes) -> None:
    hook = a_policy(Config(rate=(1, 1), burst=10, cost="header:x-cost")).hook()
    with pytest.raises(Limited, match="no number") as caught:
        hook(a_request([(b"x-cost", value)]))
    assert caught.value.retry_after_s == 1.0


def test_refused_cost_is_counted() -> None:
    counted = Counted()
    world = World()
    made = compiled(
        world,
        [Config(rate=(1, 1), burst=10, cost="header:x-cost")],
        Line(Store(world)),
        counts=lambda _: counted,
    )
    assert made is not None
    with pytest.raises(Limited):
        made.hook()(a_request([(b"x-cost", b"many")]))
    assert counted.refusals == 1


class Counted(limit_keys.NoCounts):
    refusals = 0

    def limited(self) -> None:
        self.refusals += 1


@pytest.mark.parametrize(
    ("value", "cost"),
    [
        (b"-5", 1),
        (b"-" + b"9" * 30, 1),
        (b"0", 1),
        (b"+3", 3),
        (b"0" * 30 + b"3", 3),
        (b"9" * 30, 8),
        (b"9" * 15, 8),
    ],
)
def test_integer_cost_is_clamped(value: bytes, cost: float) -> None:
    (made,) = a_policy(Config(rate=(1, 1), burst=10, cost="header:x-cost")).limits
    assert made.cost_of(a_request([(b"x-cost", value)])) == cost


def test_answers_tell_what_is_left() -> None:
    world, _, worker = one_worker(Config(rate=(100, 1), burst=200), Config(name="day", quota=(1e6, 86400)))
    for _ in range(10):
        worker.request()
    world.run(0.01)
    ((name, value), (policy_name, policy)) = worker.policy.answer_fields(a_request())
    assert (name, policy_name) == (b"ratelimit", b"ratelimit-policy")
    assert value.startswith(b'"limit";r=150;t=1, "day";r=999990;t=')
    assert policy == b'"limit";q=100;w=1, "day";q=1000000;w=86400'
    lines = worker.policy.answer_lines(a_request())
    assert lines == b"ratelimit: %b\r\nratelimit-policy: %b\r\n" % (value, policy)


def test_remaining_is_never_negative() -> None:
    world, _, worker = one_worker(Config(rate=(10, 1), burst=10, mode="bounded", credit=5))
    for _ in range(40):
        worker.request()
        world.run(0.002)
    assert worker.policy.answer_fields(a_request())[0][1] == b'"limit";r=0;t=1'


@pytest.mark.parametrize(
    ("written", "policy"),
    [((0.5, 1), b"q=1;w=2"), ((5000.0, 60), b"q=5000;w=60"), ((2.5, 3600), b"q=5;w=7200")],
)
def test_policy_field_has_whole_numbers(written: tuple[float, int], policy: bytes) -> None:
    fields = a_policy(Config(rate=written)).answer_fields(a_request())
    assert fields[1][1] == b'"limit";' + policy


def test_lines_follow_the_balance() -> None:
    world, _, worker = one_worker(Config(rate=(100, 1)))
    seen = []
    for _ in range(5):
        worker.request()
        world.run(0.001)
        seen.append(worker.policy.answer_lines(a_request()))
    assert [line.split(b";")[1] for line in seen] == [b"r=79", b"r=78", b"r=77", b"r=76", b"r=75"]


def test_what_a_credit_admits_is_counted_apart_from_the_fallback() -> None:
    world, _, worker = one_worker(Config(rate=(10, 1), burst=10, mode="bounded", credit=5))
    for _ in range(3):  # before the store's first answer
        assert worker.request() is None
    world.run(0.01)
    (status,) = worker.policy.status()
    assert (status.admitted, status.credit, status.fallback) == (3, 3, 0)


def test_status_tells_the_busiest_keys() -> None:
    world, _, worker = one_worker(Config(rate=(10, 1), burst=5, per="client_ip"))
    for number in range(30):
        for _ in range(1 + 9 * (number == 7)):
            worker.request(f"c{number}")
    world.run(0.01)
    status = worker.policy.status()
    assert len(status) == 20
    first = status[0]
    assert (first.name, first.rate, first.burst, first.key) == ("r/limit", "10/s", 5, "c7")
    assert (first.admitted, first.fallback, first.limited) == (4, 0, 6)
    assert (first.held, first.left < 1, first.age_s is not None) == (0.0, True, True)


def reloaded(
    world: World, line: Line, before: Config, after: Config, key: str = "a"
) -> tuple[Worker, Worker]:
    """A worker whose config has changed after it took 5 tokens, and the same with the new config."""
    old = Worker(world, [before], fleet=line)
    world.run(3600 - (1_700_000_000 + world.now) % 3600 + 1)
    for _ in range(6):
        old.request(key)
        world.run(0.01)
    new = Worker(world, [after], fleet=line)
    new.policy.limits[0].inherit(old.policy.limits[0])
    old.policy.retire()
    world.run(0.01)
    return old, new


@pytest.mark.parametrize("per", ["route", "client_ip"])
@pytest.mark.parametrize(("quota", "further"), [(5.0, 0), (4.0, 0), (8.0, 3)])
def test_late_store_hands_out_nothing_of_a_quota_again_after_a_reload(
    *, per: str, quota: float, further: int
) -> None:
    world = World()
    store = Store(world)
    delays = [0.0005]
    line = Line(store, delay=lambda: delays[0])
    old, new = reloaded(world, line, Config(quota=(5.0, 3600), per=per), Config(quota=(quota, 3600), per=per))
    assert counts(old) == (5, 1)
    delays[0] = 0.05
    for _ in range(10):
        new.request("a")
        world.run(0.3)
    assert counts(new) == (further, 10 - further)
    world.run(3600)
    delays[0] = 0.0005
    new.request("a")
    world.run(0.1)
    assert counts(new) == (further + 1, 10 - further)


def test_store_that_forgot_is_told_what_was_taken_before_a_reload() -> None:
    world = World()
    store = Store(world)
    line = Line(store)
    _, new = reloaded(world, line, Config(quota=(8.0, 3600)), Config(quota=(10.0, 3600)))
    store.wipe()
    for _ in range(12):
        new.request()
        world.run(1.2)
    assert counts(new) == (4, 8)


@pytest.mark.parametrize(
    "after",
    [
        Config(quota=(5.0, 60)),
        Config(quota=(5.0, 3600), per="client_ip"),
        Config(rate=(5, 1), burst=6),
    ],
)
def test_another_limit_inherits_nothing(after: Config) -> None:
    world = World()
    _, new = reloaded(world, Line(Store(world)), Config(quota=(5.0, 3600)), after)
    assert new.policy.limits[0].account(a_request()).seen_at == -math.inf
