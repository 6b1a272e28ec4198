"""Any order of arrivals, answers, failures, departures and changes: who waits is never forgotten, and never gets what
is not his.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ambassador.messages import Fields, Request, ResponseHead
from ambassador.proxy.freshness import Said
from ambassador.proxy.policies.cache import Cache, Config, Flight, Found, Visit, _State

DATE = b"Fri, 27 Nov 2026 06:44:34 GMT"


class Gone(Exception):
    """The client left."""


class Clock:
    now = 0.0


class Rest:
    """What a coroutine awaits that rests."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Client:
    """A request at the cache: goes on when it is stepped."""

    def __init__(self, number: int, who: bytes, ip: str, accept: bytes, cache: Cache) -> None:
        self.number = number
        self.ip = ip
        self.who = who
        self.accept = accept
        self.cache = cache
        self.arrived = cache.clock.now
        self.woken = False
        self.until = 0.0
        self.leaders = 0
        self.patience_until = cache.clock.now + 3.0
        self.answer: bytes | None = None
        self.state = "new"
        request = Request("GET", b"/", [(b"cookie", who), (b"accept", accept)], 1)
        request.passing = list(request.headers)
        request.path = b"/"
        request.client_ip = ip
        visit = cache.visit(request, [])
        assert visit is not None
        self.visit: Visit = visit
        self.coro = self.run()
        self.step()

    async def rest(self, until: float) -> None:
        self.until, self.woken = until, False
        await Rest()

    def wake(self) -> None:
        self.woken = True

    async def run(self) -> None:
        while True:
            found = self.visit.look()
            if isinstance(found, Flight):
                self.state = "waits"
                self.leaders += 1
                answer = await self.visit.wait(found, self, self.patience_until)
                if answer is None:
                    continue
                found = answer
            if isinstance(found, Found):
                self.answer, self.state = found.kept.body, "served"
                self.visit.withdraw()
            else:
                self.state = "up"
            return

    def step(self) -> None:
        try:
            self.coro.send(None)
        except StopIteration:
            pass

    def leave(self) -> None:
        if self.state == "waits":
            try:
                self.coro.throw(Gone())
            except Gone:
                pass
        self.visit.leave()
        self.visit.withdraw()
        self.state = "gone"


def a_head(fields: Fields, status: int = 200) -> ResponseHead:
    head = ResponseHead(status, fields)
    head.passing = fields
    return head


class FlightMachine(RuleBasedStateMachine):
    """Requests for one target, by two users from two addresses with two kinds of `Accept`."""

    config = Config()

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = Cache(self.config, self.clock)
        self.clients: list[Client] = []
        self.changes: list[float] = []
        self.born: dict[bytes, tuple[bytes, str, bytes, float]] = {}
        """Bodies: for whom, for which address and `Accept` (empty: any), and when they went up."""
        self.up_since: dict[int, float] = {}

    def settle(self) -> None:
        """Everybody that was woken, or whose time has come, goes on, in turn."""
        while True:
            due = [
                each
                for each in self.clients
                if each.state == "waits" and (each.woken or each.until <= self.clock.now)
            ]
            if not due:
                break
            for each in due:
                each.step()
        for each in self.clients:
            if each.state == "up":
                self.up_since.setdefault(each.number, self.clock.now)
            elif each.state == "served":
                self.check_answer(each)

    def check_answer(self, client: Client) -> None:
        assert client.answer is not None
        who, ip, accept, since = self.born[client.answer]
        assert who == client.who, "another's answer"
        assert ip in ("", client.ip), "an answer that is not for all"
        assert accept in (b"", client.accept), "of another variant"
        assert not any(since <= change < client.arrived for change in self.changes), "from before a change"

    def waiting_for(self, client: Client) -> list[Client]:
        flight = client.visit._flight
        return [] if flight is None else [each for each in self.clients if each in flight.waiting]

    def up(self) -> list[Client]:
        return [each for each in self.clients if each.state == "up"]

    @rule(
        who=st.sampled_from([b"1", b"1", b"1", b"2"]),
        ip=st.sampled_from(["i", "i", "j"]),
        accept=st.sampled_from([b"a", b"a", b"b"]),
    )
    def arrive(self, who: bytes, ip: str, accept: bytes) -> None:
        self.clients.append(Client(len(self.clients), who, ip, accept, self.cache))
        self.settle()

    @precondition(lambda self: self.up())
    @rule(
        data=st.data(),
        fields=st.sampled_from([
            (), (b"vary", b"accept"), (b"cache-control", b"private"), *[(b"cache-control", b"max-age=5")] * 3,
        ]),
        status=st.sampled_from([200, 200, 200, 404, 503]),
        end=st.sampled_from(["whole", "whole", "whole", "too large", "breaks off"]),
    )  # fmt: skip
    def answer(self, data: Any, fields: tuple[bytes, bytes] | tuple[()], status: int, end: str) -> None:
        client = data.draw(st.sampled_from(self.up()))
        head = a_head([fields] if fields else [], status)
        since = self.up_since[client.number]
        waiting = self.waiting_for(client)
        assert client.visit.hear(head, Said(status, head.passing, date=DATE), 0.0) is None
        self.settle()
        if status == 503:
            assert all(each.state != "waits" for each in waiting), "they are tried one after another"
        body = b"%d" % client.number
        ip = "" if fields == (b"cache-control", b"max-age=5") else client.ip
        self.born[body] = (client.who, ip, client.accept if fields[:1] == (b"vary",) else b"", since)
        if end != "breaks off" and client.visit.wants_body():
            client.visit.take(body if end == "whole" else None)
        client.state = "drains"
        if data.draw(st.booleans()):
            self.drained(client)
        self.settle()

    def drained(self, client: Client) -> None:
        """It has all of its answer."""
        client.visit.withdraw()
        client.state = "done"

    @precondition(lambda self: any(each.state == "drains" for each in self.clients))
    @rule(data=st.data())
    def drain(self, data: Any) -> None:
        self.drained(data.draw(st.sampled_from([each for each in self.clients if each.state == "drains"])))
        self.settle()

    @precondition(lambda self: self.up())
    @rule(data=st.data())
    def fail(self, data: Any) -> None:
        client = data.draw(st.sampled_from(self.up()))
        waiting = self.waiting_for(client)
        client.visit.withdraw()
        client.state = "failed"
        self.settle()
        assert all(each.state != "waits" for each in waiting), "they are tried one after another"

    @precondition(lambda self: any(each.state in ("up", "waits") for each in self.clients))
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        data.draw(st.sampled_from([each for each in self.clients if each.state in ("up", "waits")])).leave()
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 1.0, 12.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.settle()

    @rule()
    def change(self) -> None:
        self.cache.forget([b"/"])
        self.changes.append(self.clock.now)
        self.clock.now += 0.001
        self.settle()

    @invariant()
    def who_waits_has_somebody_to_wait_for(self) -> None:
        waiting = [each for each in self.clients if each.state == "waits"]
        able = [each for each in self.clients if each.state in ("up", "drains")]
        leading = [each.visit._flight for each in able if each.visit._flight is not None]
        for client in waiting:
            assert [
                flight for flight in leading if client in flight.waiting and flight.state is _State.UNDER_WAY
            ]
        for flight in leading:
            assert all(waiter in waiting for waiter in flight.waiting)

    @invariant()
    def flights_are_those_of_who_is_up(self) -> None:
        leading = {id(each.visit._flight) for each in self.clients if each.state in ("up", "drains")}
        assert all(id(flight) in leading for flight in self.cache.flights.values())

    @invariant()
    def nobody_waits_beyond_his_time(self) -> None:
        assert not any(
            each.state == "waits" and self.clock.now >= each.patience_until for each in self.clients
        )

    @invariant()
    def nobody_waits_for_many(self) -> None:
        assert all(each.leaders <= 2 for each in self.clients)


class KeepsNothing(FlightMachine):
    """The same where answers are not kept."""

    config = Config(coalesce=True)


TestFlights = FlightMachine.TestCase
TestFlights.settings = settings(max_examples=200)
TestFlightsAlone = KeepsNothing.TestCase
TestFlightsAlone.settings = settings(max_examples=100)
