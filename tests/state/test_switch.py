from __future__ import annotations

from ambassador.state.protocol import Beaten, Event, Get
from ambassador.state.scope import Scope
from ambassador.state.switch import Switch
from tests.state.still import Still

EVENT = Event("circuit", "a", b"")


def as_scope(scope: Scope) -> Scope:
    return scope


def test_switch_is_its_target() -> None:
    here, there = Still(), Still(up=False)
    switch = Switch(here)
    scope = as_scope(switch)
    scope.ask(Get("a"))
    assert scope.up
    there.born_at = 7.0
    switch.point(there)
    assert scope.born_at == 7.0
    scope.ask(Get("b"))
    there.ask(Get("c"))
    there.answer(None)
    there.answer(Beaten(now_us=1, born_us=1, replicas=2, workers=5))
    assert (scope.up, scope.replicas, scope.workers) == (False, 2, 5)
    assert (here.asked, there.asked) == ([Get("a")], [Get("b"), Get("c")])


def test_switch_has_lost_what_another_store_does_not_know() -> None:
    here, there = Still(), Still()
    here.losses, there.losses = 2, 1
    switch = Switch(here)
    assert switch.losses == 2
    switch.point(there)
    assert switch.losses == 4
    there.losses += 1
    assert switch.losses == 5


def test_switch_tells_events_of_its_target_only() -> None:
    here, there = Still(), Still()
    switch = Switch(here)
    heard: list[str] = []
    switch.listen("circuit", lambda event: heard.append(event.name))
    switch.point(there)
    switch.listen("circuit", lambda event: heard.append(event.name.upper()))
    here.publish(EVENT)
    assert heard == []
    there.publish(EVENT)
    assert heard == ["a", "A"]
    switch.point(here)
    here.publish(EVENT)
    there.publish(EVENT)
    assert heard == ["a", "A", "a", "A"]


def test_switch_tells_when_its_target_is_there() -> None:
    here, there = Still(), Still(up=False)
    switch = Switch(here)
    ups: list[str] = []
    switch.on_up(lambda: ups.append("up"))
    switch.point(here)
    switch.point(there)
    here.come_back()
    assert ups == []
    there.come_back()
    assert ups == ["up"]
    switch.point(here)
    assert ups == ["up", "up"]


def test_switch_listens_no_more_to_a_store_that_it_forgets() -> None:
    here, there = Still(), Still()
    switch = Switch(here)
    switch.point(there)
    switch.point(here)
    switch.forget(there)
    heard: list[str] = []
    switch.listen("circuit", lambda event: heard.append(event.name))
    there.publish(EVENT)
    here.publish(EVENT)
    assert heard == ["a"]
