from __future__ import annotations

import pytest
import trio

from ambassador.control.turns import TURN_S, Turns


class Work:
    """Steps of which each takes a fifth of a turn, on a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []

    def clock(self) -> float:
        return self.now

    def step(self, name: str) -> str:
        self.now += TURN_S / 5
        self.done.append(name)
        return name


async def test_others_have_their_turn_in_between() -> None:
    work = Work()
    turns = Turns(work.clock)

    async def other() -> None:
        for _ in range(3):
            work.done.append("other")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert await turns.take(work.step("a") for _ in range(12)) == ["a"] * 12
    runs = "".join(name[0] for name in work.done).split("o")
    assert len(runs) == 4
    assert max(map(len, runs)) <= 10  # within one turn trio runs tasks in any order


async def test_one_work_follows_the_other() -> None:
    work = Work()
    turns = Turns(work.clock)

    async def take(name: str) -> None:
        await turns.take(work.step(name) for _ in range(20))

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(take, name)
    order = list(dict.fromkeys(work.done))
    assert work.done == [name for name in order for _ in range(20)]


async def test_what_fails_or_is_cancelled_lets_the_next_begin() -> None:
    work = Work()
    turns = Turns(work.clock)
    with trio.CancelScope() as scope:
        scope.cancel()
        await turns.take(work.step("cancelled") for _ in range(20))
    assert scope.cancelled_caught
    with pytest.RaisesGroup(ZeroDivisionError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.take, (1 // number for number in (1, 0)))
    assert await turns.take([1]) == [1]
