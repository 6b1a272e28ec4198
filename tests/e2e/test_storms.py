"""Retry storms: what arrives at an upstream that fails every time, counted there.

Budgets are small here, so that a share too much would be seen: a fifth of the requests, 10 at once and 1 a second.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from tests.e2e.programs import ambassador
from tests.e2e.raw import Client, Handler, Message, Origin, Wire, answer, upstream
from tests.state.servers import Server, any_binary

REQUESTS = 400
AT_ONCE = 10
"""Retries beyond the share that a budget allows at once;"""
PER_SECOND = 1
"""and later."""
BUSY = answer(b"busy", "503 Service Unavailable")


def cut(wire: Wire, request: Message) -> None:
    """The connection ends instead of an answer."""
    wire.close()


FAILURES = pytest.mark.parametrize("failure", [BUSY, cut], ids=["503", "cut"])


@contextlib.contextmanager
def failing(failure: Handler | bytes) -> Iterator[Origin]:
    """An upstream that fails every time."""
    with upstream() as origin:
        origin.on("/x", failure)
        yield origin


def in_front_of(url: str, *, shared: bool = False, state: str = "local") -> str:
    budget = f"{{percent: 20%, min_per_second: {PER_SECOND}, shared: {str(shared).lower()}}}"
    return f"""\
        state: {state}
        telemetry: {{access_log: off}}
        routes:
          - {{name: r, to: "{url}", retry: {{attempts: 3, backoff: 1ms..2ms, budget: {budget}}}}}
        """


def listener(*, trusts: bool = True) -> str:
    return f"{{address: 127.0.0.1:0, trusted: [{'127.0.0.0/8' if trusts else ''}]}}"


class Storm:
    """Clients that ask all of `urls` alike, each over connections of its own: all have failed at the end."""

    def __init__(self, urls: Sequence[str], requests: int = REQUESTS, clients: int = 8) -> None:
        began = time.monotonic()
        self.statuses: list[int] = []
        threads = [
            threading.Thread(target=self._ask, args=(urls[number % len(urls)], requests // clients))
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.requests = requests // clients * clients
        self.seconds = time.monotonic() - began
        assert len(self.statuses) == self.requests
        assert not {status for status in self.statuses if status < 500}

    def _ask(self, url: str, requests: int) -> None:
        for first in range(0, requests, 5):  # several connections, that every worker has some
            with Client(url) as client:
                for _ in range(first, min(first + 5, requests)):
                    client.ask("/x")
                    self.statuses.append(client.answer().status)

    def most(self, budgets: int = 1) -> float:
        """Attempts that so many budgets allow."""
        return 1.2 * self.requests + budgets * (AT_ONCE + PER_SECOND * self.seconds)

    def check(self, arrived: int, budgets: int = 1) -> None:
        """That they are kept, and used."""
        assert 1.1 * self.requests <= arrived <= self.most(budgets)


class Front(NamedTuple):
    """Ambassadors, and what they have behind them all. Where budgets are not shared each storm leaves them used up, so
    that another may follow.
    """

    origin: Origin
    urls: list[str]

    def storm(self, urls: Sequence[str], failure: Handler | bytes, *, budgets: int = 1) -> None:
        """All requests to these fail at the origin, which then has not got more than the budgets allow."""
        self.origin.on("/x", failure)
        self.origin.seen.clear()
        Storm(urls).check(len(self.origin.seen["/x"]), budgets)


@pytest.fixture(scope="module")
def alone() -> Iterator[Front]:
    """One with two workers."""
    with upstream() as origin, ambassador(in_front_of(origin.url), workers=2) as proxy:
        yield Front(origin, [proxy.url])


@FAILURES
def test_attempts_keep_to_the_budget_of_each_worker(alone: Front, failure: Handler | bytes) -> None:
    alone.storm(alone.urls, failure, budgets=2)


@pytest.fixture
def fleet() -> Iterator[Front]:
    """Two that share a budget, for one storm: what they have in hand of it may be spent later."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(Server(any_binary()))
        origin = stack.enter_context(upstream())
        body = in_front_of(origin.url, shared=True, state=redis.url)
        yield Front(origin, [stack.enter_context(ambassador(body, workers=2)).url for _ in range(2)])


@FAILURES
def test_attempts_of_a_fleet_keep_to_one_budget(fleet: Front, failure: Handler | bytes) -> None:
    fleet.storm(fleet.urls, failure)


@pytest.fixture(scope="module", params=[True, False], ids=["trusted", "untrusted"])
def chain(request: pytest.FixtureRequest) -> Iterator[Front]:
    """Three, one behind another: the innermost first."""
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(upstream())
        urls = [origin.url]
        for _ in range(3):
            body, listen = in_front_of(urls[-1]), listener(trusts=request.param)
            urls.append(stack.enter_context(ambassador(body, listen=listen)).url)
        yield Front(origin, urls[1:])


@FAILURES
@pytest.mark.parametrize("depth", [2, 3])
def test_ambassadors_one_behind_another_do_not_multiply_attempts(
    chain: Front, failure: Handler | bytes, depth: int
) -> None:
    chain.storm([chain.urls[depth - 1]], failure)


def silent(wire: Wire, request: Message) -> None:
    """No answer ever comes."""
    assert wire.is_ended()
    wire.close()


def test_attempts_given_up_for_time_are_not_multiplied_by_those_behind() -> None:
    """What the outermost gives up, the others must not go on with, of whose budgets it knows nothing."""
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(failing(silent))
        url = origin.url
        for _ in range(3):
            body = f"""\
                telemetry: {{access_log: off}}
                routes:
                  - name: r
                    to: "{url}"
                    timeout: {{per_try: 200ms, total: 1s}}
                    retry: {{attempts: 3, when: [connect, reset, timeout, 5xx], budget: {{min_per_second: {PER_SECOND}}}}}
                """
            outermost = stack.enter_context(ambassador(body, listen=listener(trusts=False)))
            url = outermost.url
        storm = Storm([outermost.url], requests=240, clients=24)
        assert storm.requests <= len(origin.seen["/x"]) <= storm.most(budgets=3)
