"""What the ADMIT policies of a route say: who is asked, and whose word holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import TYPE_CHECKING

import pytest

from ambassador.errors import Limited
from ambassador.messages import Reply, Request
from ambassador.proxy.admit import Verdict, admit
from ambassador.proxy.plan import RoutePlan
from tests.proxy.harness import Counts
from tests.proxy.test_plan import TIMEOUTS

if TYPE_CHECKING:
    from ambassador.proxy.plan import AdmitHook

REPLY = Reply(200, [], b"ok")
REFUSAL = Limited("too many")


class Route:
    """A route with policies that say what the test wants, and write down that they were asked."""

    def __init__(self, *policies: tuple[str, Callable[[], Reply | Awaitable[Reply | None] | None]]) -> None:
        self.asked: list[str] = []
        self.request = Request("GET", b"/", [], 1)
        self._hooks = [self._hook(name, say) for name, say in policies]

    def _hook(self, name: str, say: Callable[[], Reply | Awaitable[Reply | None] | None]) -> AdmitHook:
        def hook(request: Request) -> Reply | Awaitable[Reply | None] | None:
            assert request is self.request
            self.asked.append(name)
            return say()

        return hook

    def admit(self) -> Verdict:
        plan = RoutePlan(
            "r", upstream=None, timeouts=TIMEOUTS, retry=None, metrics=Counts(), admit=tuple(self._hooks)
        )
        return admit(plan, self.request)


def passes() -> None:
    return None


def replies() -> Reply:
    return REPLY


def refuses() -> Reply:
    raise REFUSAL


def breaks() -> Reply:
    raise LookupError


async def waits_and_passes() -> Reply | None:
    return None


async def waits_and_replies() -> Reply | None:
    return REPLY


async def waits_and_refuses() -> Reply | None:
    raise REFUSAL


def ran(verdict: Verdict) -> Reply | None:
    """What a verdict that waits comes to; nothing here takes a wait for real."""
    assert isinstance(verdict, CoroutineType)
    with pytest.raises(StopIteration) as end:
        verdict.send(None)
    result: Reply | None = end.value.value
    return result


def test_nobody_stops_a_request_without_policies() -> None:
    assert Route().admit() is None


def test_all_are_asked_in_their_order() -> None:
    route = Route(("a", passes), ("b", passes))
    assert route.admit() is None
    assert route.asked == ["a", "b"]


@pytest.mark.parametrize(("say", "verdict"), [(replies, REPLY), (refuses, REFUSAL)])
def test_the_first_that_has_an_answer_has_the_last_word(say: Callable[[], Reply], verdict: Verdict) -> None:
    route = Route(("a", passes), ("b", say), ("c", breaks))
    assert route.admit() is verdict
    assert route.asked == ["a", "b"]


def test_those_behind_one_that_waits_are_asked_afterwards() -> None:
    route = Route(("a", passes), ("b", waits_and_passes), ("c", waits_and_passes), ("d", passes))
    verdict = route.admit()
    assert route.asked == ["a", "b"]
    assert ran(verdict) is None
    assert route.asked == ["a", "b", "c", "d"]


@pytest.mark.parametrize("first", [waits_and_replies, waits_and_passes])
@pytest.mark.parametrize("second", [replies, waits_and_replies])
def test_an_answer_after_a_wait_is_the_last_word(
    first: Callable[[], Awaitable[Reply | None]], second: Callable[[], Reply | Awaitable[Reply | None]]
) -> None:
    route = Route(("a", first), ("b", second), ("c", breaks))
    assert ran(route.admit()) is REPLY
    assert route.asked == (["a"] if first is waits_and_replies else ["a", "b"])


@pytest.mark.parametrize(("first", "second"), [(waits_and_refuses, breaks), (waits_and_passes, refuses)])
def test_a_refusal_after_a_wait_is_raised(
    first: Callable[[], Awaitable[Reply | None]], second: Callable[[], Reply]
) -> None:
    verdict = Route(("a", first), ("b", second)).admit()
    assert isinstance(verdict, CoroutineType)
    with pytest.raises(Limited):
        verdict.send(None)


def test_a_defect_gives_back_what_policies_hold() -> None:
    ends: list[tuple[int, float]] = []
    route = Route(("a", passes), ("b", breaks))
    route.request.at_end(lambda status, seconds: ends.append((status, seconds)))
    with pytest.raises(LookupError):
        route.admit()
    assert ends == [(0, 0.0)]
