from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from ambassador.config.schema import State
from ambassador.control.pages import Pages
from ambassador.control.state_watch import StateWatch

LOG = logging.getLogger("test.state_watch")


class FakePages(Pages):
    up = True

    @property
    def state_up(self) -> bool:
        return self.up


class Examiner:
    """`findings` None: the Redis is not there."""

    def __init__(self) -> None:
        self.findings: list[str] | None = None
        self.asked: list[str] = []

    def examine(self, state: State) -> list[str] | None:
        self.asked.append(state.url)
        return self.findings


async def test_loss_and_return_are_logged_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    pages = FakePages()
    nursery.start_soon(StateWatch(pages, State, LOG, Examiner().examine).run)
    with caplog.at_level(logging.INFO, "test.state_watch"):
        await trio.sleep(2.0)
        assert caplog.messages == []
        pages.up = False
        await trio.sleep(2.0)
        pages.up = True
        await trio.sleep(2.0)
    assert caplog.messages == [
        "state: local does not answer; limits go on as 'on_loss: share' says",
        "state: every worker reaches local again",
    ]


async def test_what_is_wrong_with_a_redis_is_logged_once_it_is_there(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    examiner = Examiner()
    state = State(url="redis://host")

    async def pass_time(times: int) -> None:
        while len(examiner.asked) < times:
            mock_clock.jump(5.0)
            await trio.testing.wait_all_tasks_blocked()

    watch = StateWatch(FakePages(), lambda: state, LOG, examiner.examine)
    nursery.start_soon(watch.run)
    with caplog.at_level(logging.INFO, "test.state_watch"):
        await pass_time(2)
        assert caplog.messages == []
        examiner.findings = ["the policy is wrong"]
        await pass_time(3)
        while not caplog.messages:
            await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(60.0)
        await trio.testing.wait_all_tasks_blocked()
    assert caplog.messages == ["state: the policy is wrong"]
    assert list(watch.findings) == ["the policy is wrong"]
    state = State()
    while watch.findings:
        mock_clock.jump(5.0)
        await trio.testing.wait_all_tasks_blocked()
    assert set(examiner.asked) == {"redis://host"}


async def test_store_of_the_supervisor_is_not_examined(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    examiner = Examiner()
    nursery.start_soon(StateWatch(FakePages(), State, LOG, examiner.examine).run)
    await trio.sleep(30.0)
    assert examiner.asked == []
