from __future__ import annotations

from collections.abc import Callable

from ambassador.state.hearers import Hearers


class Generation:
    def __init__(self, heard: list[str]) -> None:
        self._heard = heard

    def hear(self) -> None:
        self._heard.append("method")


def call_all(hearers: Hearers[Callable[[], None]]) -> None:
    for hearer in hearers:
        hearer()


def test_hearers_are_called_in_order() -> None:
    heard: list[str] = []
    hearers: Hearers[Callable[[], None]] = Hearers()
    generation = Generation(heard)
    hearers.add(lambda: heard.append("function"))
    hearers.add(generation.hear)
    call_all(hearers)
    assert heard == ["function", "method"]


def test_bound_method_goes_with_its_object() -> None:
    heard: list[str] = []
    hearers: Hearers[Callable[[], None]] = Hearers()
    hearers.add(Generation(heard).hear)
    hearers.add(lambda: heard.append("function"))
    call_all(hearers)
    assert heard == ["function"]


def test_many_generations_leave_nothing_behind() -> None:
    hearers: Hearers[Callable[[], None]] = Hearers()
    for _ in range(1_000):
        hearers.add(Generation([]).hear)
    assert len(hearers) <= 16


def test_who_is_added_by_a_hearer_is_not_called_in_the_same_round() -> None:
    heard: list[str] = []
    hearers: Hearers[Callable[[], None]] = Hearers()

    def hear() -> None:
        heard.append("once")
        hearers.add(lambda: heard.append("later"))

    hearers.add(hear)
    call_all(hearers)
    assert heard == ["once"]
