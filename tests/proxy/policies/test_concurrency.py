"""Concurrency as requests meet it: who goes on, who waits, who is refused, and that every permit comes back."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambassador.errors import Overloaded
from ambassador.messages import Request
from ambassador.proxy.policies.concurrency import HOLD_S, LABEL, Bulkhead, Bulkheads, Config, PermitStatus
from ambassador.state.allotment import PULSE_S
from tests.proxy.harness import GET, config
from tests.proxy.stores import SharedStore
from tests.proxy.two_ways import (
    Setting,
    Step,
    World,
    answers,
    answers_if_asked,
    assert_same,
    at_once,
    cancelled,
    drains,
    passes,
    play,
    reloads,
    resets,
    sends,
    takes,
    upstream_resets,
)


@pytest.mark.parametrize(
    ("settings", "most", "least", "places"),
    [
        (Config(), 100, 0, 100),
        (Config(max=5, queue=0), 5, 0, 0),
        (Config(adaptive=True), 1000, 4, 0),
        (Config(adaptive=True, min=10, max=50, queue=7), 50, 10, 7),
    ],
)
def test_what_is_not_written(settings: Config, most: int, least: int, places: int) -> None:
    assert (settings.most, settings.least, settings.places) == (most, least, places)
    assert list(settings.conflicts()) == []


@pytest.mark.parametrize(
    "settings", [Config(min=3), Config(adaptive=True, min=30, max=20), Config(adaptive=True, max=3)]
)
def test_settings_that_mean_nothing_are_conflicts(settings: Config) -> None:
    assert [key for key, _ in settings.conflicts()] == ["min"]


# Requests without a data plane


class Gone(Exception):
    """The client has left."""


class Rest:
    """One request: its hook's coroutine is driven by hand."""

    def __init__(self, fleet: Fleet, bulkhead: Bulkhead) -> None:
        self.request = Request("GET", b"/", [], 1, waiter=self)
        self.state = "waits"
        self._until = 0.0
        self._woken = False
        self._left = False
        self._fleet = fleet
        self._coro: Coroutine[Any, Any, None] | None = None
        try:
            waiting = bulkhead.hook(adaptive=bulkhead.config.adaptive)(self.request)
        except Overloaded:
            self.state = "refused"
            return
        if waiting is None:
            self.state = "runs"
        else:
            self._coro = waiting  # type: ignore[assignment]
            self.step()

    async def rest(self, until: float) -> None:
        self._until, self._woken = until, False
        await _Pause()
        if self._left:
            raise Gone

    def wake(self) -> None:
        self._woken = True

    def leave(self) -> None:
        self._left = self._woken = True
        self.look()

    def look(self) -> None:
        if self._coro is not None and (self._woken or self._fleet.now >= self._until):
            self.step()

    def step(self) -> None:
        assert self._coro is not None
        try:
            self._coro.send(None)
        except StopIteration:
            self.state, self._coro = "runs", None
        except Overloaded:
            self.state, self._coro = "refused", None
        except Gone:
            self.state, self._coro = "gone", None
            self.request.end(0, 0.0)

    def end(self, status: int = 200) -> None:
        self.request.end(status, 0.0)
        self.state = "ended"


class _Pause:
    def __await__(self) -> Any:
        yield


class Counts:
    def __init__(self) -> None:
        self.refusals = self.waits = 0

    def limited(self) -> None:
        self.refusals += 1

    def waited(self) -> None:
        self.waits += 1


class Fleet:
    """Workers of one replica."""

    def __init__(self, settings: Config, workers: int = 1) -> None:
        self.store = SharedStore(workers)
        self.counts = Counts()
        self.bulkheads = []
        self.all: list[Bulkheads] = []
        self.requests: list[Rest] = []
        for number in range(workers):
            every = Bulkheads(self.store.time, holder=f"w{number}")
            bulkhead = every.get("r", settings, self.store.scopes[number])
            every.install([(bulkhead, settings, self.counts)])
            self.all.append(every)
            self.bulkheads.append(bulkhead)

    @property
    def now(self) -> float:
        return self.store.time.now

    def request(self, worker: int = 0) -> Rest:
        rest = Rest(self, self.bulkheads[worker])
        self.requests.append(rest)
        return rest

    def settle(self) -> None:
        for _ in range(3):
            self.store.deliver()
            for rest in self.requests:
                rest.look()

    def advance(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.01))):
            self.store.advance(0.01)
            self.settle()

    def states(self) -> list[str]:
        return [rest.state for rest in self.requests]


def test_request_goes_on_while_there_are_permits() -> None:
    fleet = Fleet(Config(max=2, queue=0))
    first = fleet.request()
    assert first.state == "waits"  # nothing in hand yet
    fleet.settle()
    fleet.request()
    assert fleet.states() == ["runs", "runs"]
    third = fleet.request()
    fleet.settle()
    assert third.state == "refused"
    assert fleet.request().state == "refused"  # at once
    first.end()
    assert fleet.request().state == "runs"
    assert fleet.counts.refusals == 2


def test_status_tells_what_is_in_progress_and_what_waits() -> None:
    fleet = Fleet(Config(max=2, queue=3))
    for _ in range(3):
        fleet.request()
    fleet.settle()
    (bulkhead,) = fleet.bulkheads
    assert bulkhead.status() == PermitStatus(
        name="r/concurrency", key="r", most=2, limit=2, in_hand=2, in_use=2, queued=1, admitted=2, limited=0
    )


def test_status_counts_what_was_admitted_and_refused_since_the_config_was_loaded() -> None:
    fleet = Fleet(Config(max=2, queue=0))
    requests = [fleet.request() for _ in range(4)]
    fleet.settle()
    (bulkhead,) = fleet.bulkheads
    assert (bulkhead.status().admitted, bulkhead.status().limited) == (2, 2)
    requests[0].end()
    assert (bulkhead.status().admitted, bulkhead.status().limited) == (2, 2)
    bulkhead.configure(bulkhead.config, None, lambda: None)
    assert (bulkhead.status().admitted, bulkhead.status().limited) == (0, 0)
    requests[1].end()
    fleet.request()
    assert (bulkhead.status().admitted, bulkhead.status().limited) == (1, 0)


def test_queue_is_in_order_bounded_and_timed() -> None:
    fleet = Fleet(Config(max=1, queue=2, wait=1.0))
    for _ in range(4):
        fleet.request()
    fleet.settle()
    assert fleet.states() == ["runs", "waits", "waits", "refused"]
    fleet.advance(0.5)
    late = fleet.request()
    assert late.state == "refused"
    fleet.requests[0].end()
    fleet.settle()
    assert fleet.states()[:3] == ["ended", "runs", "waits"]
    fleet.advance(0.55)
    assert fleet.states()[:3] == ["ended", "runs", "refused"]
    assert fleet.bulkheads[0].waiting == 0


def test_client_that_leaves_frees_its_place() -> None:
    fleet = Fleet(Config(max=1, queue=1))
    for _ in range(2):
        fleet.request()
    fleet.settle()
    fleet.requests[1].leave()
    assert fleet.bulkheads[0].waiting == 0
    assert fleet.request().state == "waits"
    fleet.requests[0].end()
    fleet.settle()
    assert fleet.states() == ["ended", "gone", "runs"]


def test_client_that_leaves_as_it_is_let_through_gives_its_permit_back() -> None:
    fleet = Fleet(Config(max=1, queue=5))
    for _ in range(2):
        fleet.request()
    fleet.settle()
    fleet.requests[0].end()
    fleet.requests[1].leave()
    fleet.settle()
    assert fleet.bulkheads[0].hand.used == 0


def test_wait_of_nothing_refuses_at_once() -> None:
    fleet = Fleet(Config(max=1, queue=5, wait=0.0))
    fleet.request()
    fleet.settle()
    assert fleet.request().state == "refused"


def test_request_that_cannot_wait_is_refused() -> None:
    fleet = Fleet(Config(max=1))
    with pytest.raises(Overloaded):
        fleet.bulkheads[0].hook(adaptive=False)(Request("GET", b"/", [], 1))


def test_workers_share_exactly_and_fairly() -> None:
    fleet = Fleet(Config(max=6, queue=10, wait=30.0), workers=2)
    for _ in range(10):
        fleet.request(0)
    fleet.settle()
    for _ in range(5):
        fleet.request(1)
    fleet.advance(0.2)
    assert fleet.states().count("runs") == 6
    for _ in range(8):
        next(rest for rest in fleet.requests[:10] if rest.state == "runs").end()
        fleet.advance(0.2)
    assert [bulkhead.hand.used for bulkhead in fleet.bulkheads] == [2, 4]  # the first has no more that wait


def test_permit_on_its_way_is_waited_for_though_there_is_no_place() -> None:
    fleet = Fleet(Config(max=2, queue=0), workers=2)
    for _ in range(2):
        fleet.request(0)
    fleet.settle()
    for rest in fleet.requests:
        rest.end()
    other = fleet.request(1)
    assert other.state == "waits"
    fleet.settle()
    assert other.state == "runs"


def test_wait_for_a_permit_on_its_way_is_short() -> None:
    fleet = Fleet(Config(max=2, queue=0), workers=2)
    for _ in range(2):
        fleet.request(0)
    fleet.settle()
    fleet.request(1)
    fleet.advance(HOLD_S)
    assert fleet.states() == ["runs", "runs", "refused"]


def test_adaptive_limit_follows_latency() -> None:
    fleet = Fleet(Config(adaptive=True, queue=0, max=100))
    hand = fleet.bulkheads[0].hand
    limits = []
    for _ in range(150):
        for _ in range(hand.limit + 2):
            fleet.request()
        fleet.advance(0.02)
        for rest in fleet.requests:
            if rest.state == "runs":
                rest.end()
        fleet.requests.clear()
        limits.append(hand.limit)
    assert limits[0] == 20
    assert max(limits) == 100


def test_refusals_of_the_upstream_shrink_an_adaptive_limit() -> None:
    fleet = Fleet(Config(adaptive=True, queue=0))
    for _ in range(60):
        for _ in range(25):
            fleet.request()
        fleet.advance(0.02)
        for rest in fleet.requests:
            if rest.state == "runs":
                rest.end(503)
        fleet.requests.clear()
    assert fleet.bulkheads[0].hand.limit < 15


def test_permits_outlive_a_reload() -> None:
    fleet = Fleet(Config(max=2, queue=5))
    for _ in range(2):
        fleet.request()
    fleet.settle()
    [every], [bulkhead] = fleet.all, fleet.bulkheads
    other = Config(max=1, queue=5)
    assert every.get("r", other, bulkhead.store) is bulkhead
    every.install([(bulkhead, other, None)])
    fleet.settle()
    fleet.requests[0].end()
    third = fleet.request()
    fleet.settle()
    assert third.state == "waits"
    fleet.requests[1].end()
    fleet.advance(0.1)
    assert third.state == "runs"


def test_route_that_is_gone_is_forgotten_when_its_requests_have_ended() -> None:
    fleet = Fleet(Config(max=2))
    fleet.request()
    fleet.settle()
    [every] = fleet.all
    every.install([])
    assert [bulkhead.name for bulkhead in every] == ["r"]
    fleet.requests[0].end()
    fleet.advance(5.0)
    every.install([])
    assert list(every) == []


def test_store_that_is_back_is_told_what_is_held() -> None:
    fleet = Fleet(Config(max=4), workers=2)
    fleet.request()
    fleet.settle()
    for scope in fleet.store.scopes:
        scope.go_down()
        scope.come_up()
    assert fleet.store.scopes[0].pending
    assert not fleet.store.scopes[1].pending


def test_worker_that_ends_gives_its_permits_back() -> None:
    fleet = Fleet(Config(max=1, queue=0), workers=2)
    fleet.request(0)
    fleet.settle()
    fleet.all[0].leave()
    fleet.request(1)
    fleet.settle()
    assert fleet.requests[1].state == "runs"


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 5), st.integers(0, 4))
def test_never_more_than_the_limit_and_nothing_is_lost(
    seed: int, workers: int, most: int, queue: int
) -> None:
    chance = random.Random(seed)
    fleet = Fleet(Config(max=most, queue=queue, wait=0.3), workers=workers)
    for _ in range(120):
        match chance.randrange(5):
            case 0 | 1:
                fleet.request(chance.randrange(workers))
            case 2:
                running = [rest for rest in fleet.requests if rest.state == "runs"]
                if running:
                    chance.choice(running).end()
            case 3:
                waiting = [rest for rest in fleet.requests if rest.state == "waits"]
                if waiting and chance.random() < 0.3:
                    chance.choice(waiting).leave()
            case _:
                fleet.advance(chance.choice((0.01, 0.05)))
        assert fleet.states().count("runs") <= most
        assert sum(bulkhead.waiting for bulkhead in fleet.bulkheads) <= workers * (queue + most)
    fleet.settle()
    for rest in fleet.requests:
        if rest.state == "runs":
            rest.end()
    fleet.advance(0.5)
    for rest in fleet.requests:
        if rest.state == "runs":
            rest.end()
    fleet.advance(0.5)
    assert not {"runs", "waits"} & set(fleet.states())
    assert [bulkhead.hand.used for bulkhead in fleet.bulkheads] == [0] * workers
    assert [bulkhead.waiting for bulkhead in fleet.bulkheads] == [0] * workers
    last = fleet.request(0)
    fleet.advance(PULSE_S)
    assert last.state == "runs"


# In the data plane, the short way and the long way

URL = "http://10.0.0.1:81"
OK = b"HTTP/1.1 200 OK\r\nDate: Fri, 27 Nov 2026 06:44:34 GMT\r\nContent-Length: 2\r\n\r\nok"
ONE = Setting(config(URL, concurrency="{max: 1, queue: 1, wait: 2s}"))
WARM = (sends(GET), answers(OK), sends(GET), answers(OK))


def after(*steps: Step) -> tuple[Step, ...]:
    """These steps; then the permit must be there for another client."""
    return (*WARM, *steps, sends(GET, 5), answers(OK, None))


def permits(count: int) -> Step:
    def check(world: World) -> None:
        assert sum(bulkhead.hand.used for bulkhead in world.plane.bulkheads) == count

    return Step(f"permits({count})", check)


@pytest.mark.parametrize(
    "steps",
    [
        [sends(GET), permits(1), answers(OK), permits(0)],
        [sends(GET), answers(OK[:-1]), permits(1), answers(OK[-1:]), permits(0)],
        [sends(GET), resets(), permits(0)],
        [sends(GET), upstream_resets(), upstream_resets(), permits(0)],
        [sends(GET), passes(15.1), permits(0)],
        [takes(10), sends(GET), answers(OK), permits(1), takes(None), permits(0)],
        [takes(10), sends(GET), answers(OK), permits(1), resets(), permits(0)],
        [sends(GET), sends(GET, 1), permits(1), answers(OK), permits(1), answers(OK), permits(0)],
        [sends(GET), sends(GET, 1), resets(1), permits(1), answers(OK), permits(0)],
        [sends(GET), sends(GET, 1), passes(2.1), permits(1), answers(OK), permits(0)],
        [sends(GET), sends(GET, 1), sends(GET, 2), permits(1), answers(OK), answers(OK), permits(0)],
        [sends(GET), sends(GET, 1), at_once(answers(OK), resets(1)), permits(0)],
        [sends(GET), reloads(), permits(1), answers(OK), permits(0)],
    ],
)  # fmt: skip
def test_permit_is_held_to_the_end_and_comes_back(steps: list[Step]) -> None:
    seen = assert_same(ONE, *after(*steps))
    assert seen.bytes_of("client 5").startswith(b"HTTP/1.1 200 ")


def test_excess_is_overloaded_and_the_connection_stays() -> None:
    seen = assert_same(
        ONE, *WARM, sends(GET), sends(GET, 1), sends(GET, 2), answers(OK), answers(OK), sends(GET, 2)
    )
    answer = seen.bytes_of("client 2")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"overloaded"' in answer
    assert b"connection: close" not in answer.lower()
    assert [line["code"] for line in seen.lines if line["status"] == 503] == ["overloaded"]


@pytest.mark.parametrize("steps", [[sends(GET)], [sends(GET), sends(GET, 1)], [sends(GET), drains]])
def test_permits_come_back_when_the_worker_ends(steps: list[Step]) -> None:
    assert_same(ONE, *WARM, *steps, cancelled, permits(0))


SHORT = Setting(config(URL, concurrency="{max: 1, queue: 1, wait: 5s}", timeout="1s"))
HELD = (*WARM, sends(GET), answers(OK[:-1]))  # by an answer whose body lasts
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na"


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([sends(GET, 1), passes(1.1), permits(1), answers(OK[-1:])], b"deadline_exceeded"),
        ([sends(GET, 1), passes(0.6), answers(OK[-1:]), passes(0.5)], b"upstream_timeout"),
    ],
    ids=["waiting", "sent"],
)
def test_total_runs_while_a_request_waits_for_its_turn(steps: list[Step], code: bytes) -> None:
    """It runs from the request's last byte, not from the first attempt."""
    seen = assert_same(SHORT, *HELD, *steps, permits(0))
    answer = seen.bytes_of("client 1")
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b'"code":"%b"' % code in answer


def test_total_does_not_run_while_a_request_that_waits_is_not_all_here() -> None:
    seen = assert_same(
        SHORT, *HELD, sends(POST, 1), passes(1.1), answers(OK[-1:]), sends(b"b", 1), answers_if_asked(OK)
    )
    assert seen.bytes_of("client 1").startswith(b"HTTP/1.1 200 ")


def test_plain_requests_with_a_permit_take_the_short_way() -> None:
    _, rides = play(ONE, [*WARM, sends(GET), answers(OK), sends(GET), answers(OK)])
    assert (rides.exchanges, rides.handed_over) == (1, 1)


def test_label_does_not_depend_on_the_settings() -> None:
    assert LABEL == "concurrency"
