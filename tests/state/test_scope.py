"""The fake scope that policies are tested with keeps the rules of `scope.Scope`."""

from __future__ import annotations

from ambassador.state.protocol import Answer, Event, Get, Named, Operation
from ambassador.state.scope import Scope
from tests.state.fakes import DirectScope, StoreClock


class Store:
    def __init__(self) -> None:
        self.done: list[str] = []

    def perform(self, operation: Operation, now_us: int) -> Answer:
        assert isinstance(operation, Get)
        self.done.append(operation.name)
        return Named(now_us=now_us, version=0, value=b"", ttl_ms=0)


def as_scope(scope: Scope) -> Scope:
    return scope


def test_direct_scope_answers_in_order_and_never_inside_ask() -> None:
    store, answers = Store(), list[Answer | None]()
    scope = DirectScope(store.perform, StoreClock(5))
    asking = as_scope(scope)
    asking.ask(Get("a"), answers.append)
    asking.ask(Get("b"))
    assert answers == []
    assert store.done == []
    assert scope.deliver() == 2
    assert store.done == ["a", "b"]
    assert answers == [Named(now_us=5, version=0, value=b"", ttl_ms=0)]


def test_direct_scope_loses_answers_and_drops_operations() -> None:
    store, answers = Store(), list[Answer | None]()
    scope = DirectScope(store.perform)
    scope.drop()
    scope.ask(Get("never"), answers.append)
    scope.deliver()
    scope.lose()
    scope.ask(Get("done"), answers.append)
    scope.deliver()
    assert answers == [None, None]
    assert store.done == ["done"]


def test_direct_scope_answers_none_while_down_and_tells_when_it_is_back() -> None:
    store, answers, ups = Store(), list[Answer | None](), list[bool]()
    scope = DirectScope(store.perform)
    scope.on_up(lambda: ups.append(scope.up))
    scope.ask(Get("a"), answers.append)
    scope.go_down()
    scope.deliver()
    scope.ask(Get("b"), answers.append)
    scope.come_up()
    assert answers == [None, None]
    assert store.done == []
    assert ups == [True]


def test_direct_scope_tells_events_by_kind() -> None:
    heard: list[str] = []
    scope = DirectScope(Store().perform)
    scope.listen("circuit", lambda event: heard.append(event.name))
    scope.publish(Event("circuit", "billing", b""))
    scope.publish(Event("value", "pause", b""))
    assert heard == []
    scope.deliver()
    assert heard == ["billing"]
