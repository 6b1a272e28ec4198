from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from ambassador.config.schema import State
from ambassador.control.pages import Pages
from ambassador.control.state_watch import StateWatch, examine_fleet
from ambassador.state.protocol import StoreLost
from tests.state.servers import Server, any_binary

LOG = logging.getLogger("test.state_watch")


class FakePages(Pages):
    up = True

    @property
    def state_up(self) -> bool:
        return self.up


class Examiner:
    """`findings` None: the Redis cannot be used, because of `why`."""

    def __init__(self) -> None:
        self.findings: list[str] | None = None
        self.why = "no answer in time"
        self.asked: list[str] = []

    def examine(self, state: State) -> list[str]:
        self.asked.append(state.url)
        if self.findings is None:
            raise StoreLost(self.why)
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


class Watched:
    """A watch over a Redis, whose time the test moves."""

    def __init__(self, nursery: trio.Nursery, clock: trio.testing.MockClock) -> None:
        self.pages = FakePages()
        self.examiner = Examiner()
        self.watch = StateWatch(self.pages, lambda: State(url="redis://host"), LOG, self.examiner.examine)
        self._clock = clock
        nursery.start_soon(self.watch.run)

    async def pass_until(self, holds: Callable[[], bool]) -> None:
        """Half seconds, each with what comes of it in other threads."""
        while not holds():
            self._clock.jump(0.5)
            await trio.testing.wait_all_tasks_blocked()


async def test_loss_of_a_redis_is_logged_with_its_reason_and_each_other_reason_once(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(nursery, mock_clock)
    examiner, watch = watched.examiner, watched.watch
    with caplog.at_level(logging.INFO, "test.state_watch"):
        examiner.why = "the server refused the user or password"
        watched.pages.up = False
        await watched.pass_until(lambda: bool(caplog.messages))
        assert watch.findings == ("the store cannot be used: the server refused the user or password",)
        asked = len(examiner.asked)
        await watched.pass_until(lambda: len(examiner.asked) > asked + 4)
        examiner.why = "LOADING\n\x1b[31m"
        await watched.pass_until(lambda: len(caplog.messages) > 1)
        assert watch.findings == (r"the store cannot be used: LOADING\x0a\x1b[31m",)
        watched.pages.up = True
        await watched.pass_until(lambda: len(caplog.messages) > 2)
        assert not watched.watch.findings
    assert caplog.messages == [
        "state: redis://host cannot be used: the server refused the user or password; limits go on as 'on_loss: share' says",
        r"state: redis://host cannot be used: LOADING\x0a\x1b[31m; limits go on as 'on_loss: share' says",
        "state: every worker reaches redis://host again",
    ]


async def test_redis_that_serves_the_supervisor_but_not_a_worker_does_not_answer(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(nursery, mock_clock)
    watched.examiner.findings = []
    watched.pages.up = False
    await watched.pass_until(lambda: bool(caplog.messages))
    assert caplog.messages == ["state: redis://host does not answer; limits go on as 'on_loss: share' says"]
    assert watched.watch.findings == ()


async def test_redis_that_has_become_a_replica_is_lost_because_of_that(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(nursery, mock_clock)
    watched.examiner.findings = ["it may evict"]
    await watched.pass_until(lambda: watched.watch.findings != ())
    watched.examiner.findings = ["it may evict", "it is a replica"]
    watched.pages.up = False
    caplog.clear()
    await watched.pass_until(lambda: bool(caplog.messages))
    assert caplog.messages == [
        "state: redis://host cannot be used: it is a replica; limits go on as 'on_loss: share' says"
    ]
    assert watched.watch.findings == ("the store cannot be used: it is a replica", "it may evict")


def test_real_server_that_refuses_is_lost_with_the_reason_and_no_secret(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not-the-password")
    with Server(any_binary()) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "me", "on", ">right", "~*", "&*", "+ping")
        state = State(url=f"redis://me@127.0.0.1:{server.port}", password=f"file:{secret}")
        with pytest.raises(StoreLost, match=r"^the server refused the user or password$"):
            examine_fleet(state)
        secret.write_text("right")
        with pytest.raises(StoreLost, match=r"NOPERM|permissions") as lost:
            examine_fleet(state)
        assert "right" not in str(lost.value)
        secret.write_text("right")
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "me", "+@all")
            assert examine_fleet(state) == []
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreLost, match="READONLY"):
            examine_fleet(state)


def test_real_server_that_answers_and_refuses_writes_is_lost_with_the_reason() -> None:
    with Server(any_binary()) as server, server.client() as client:
        state = State(url=server.url)
        assert examine_fleet(state) == []
        client.config_set("maxmemory", "1mb")
        with pytest.raises(StoreLost, match="OOM"):
            examine_fleet(state)
        client.config_set("maxmemory", 0)
        client.config_set("min-replicas-to-write", 1)
        with pytest.raises(StoreLost, match="NOREPLICAS"):
            examine_fleet(state)
        client.config_set("min-replicas-to-write", 0)
        assert examine_fleet(state) == []
        assert all(client.pttl(key) > 0 for key in client.keys("amb:*try-*"))


async def test_who_has_just_found_the_store_away_hears_why(mock_clock: trio.testing.MockClock) -> None:
    examiner = Examiner()
    examiner.why = "OOM"
    watch = StateWatch(FakePages(), lambda: State(url="redis://host"), LOG, examiner.examine)
    assert await watch.why_lost() == "OOM"
    assert await StateWatch(FakePages(), State, LOG, examiner.examine).why_lost() == ""


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


async def test_what_the_own_store_says_of_itself_is_logged_once_and_told(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    own: list[str] = []
    watch = StateWatch(FakePages(), State, LOG, Examiner().examine, own=lambda: tuple(own))
    nursery.start_soon(watch.run)
    await trio.sleep(2.0)
    assert list(watch.findings) == []
    own.append("it is full")
    await trio.sleep(5.0)
    assert list(watch.findings) == ["it is full"]
    assert caplog.messages == ["state: it is full"]
    own.clear()
    await trio.sleep(2.0)
    assert list(watch.findings) == []


async def test_redis_is_examined_again_each_minute_and_what_is_new_is_logged(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(nursery, mock_clock)
    watched.examiner.findings = ["it may evict"]
    await watched.pass_until(lambda: watched.watch.findings == ("it may evict",))
    watched.examiner.findings = ["it may evict", "no right to subscribe"]
    await watched.pass_until(lambda: len(watched.watch.findings) > 1)
    assert len(watched.examiner.asked) == 2
    watched.examiner.findings = []
    await watched.pass_until(lambda: not watched.watch.findings)
    assert caplog.messages == ["state: it may evict", "state: no right to subscribe"]
