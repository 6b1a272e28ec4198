"""What one bad replica, one bad worker or one killed prober does to the others: nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.service import until
from tests.e2e.pair import Replica, a_pair
from tests.e2e.raw import Message, Wire, answer, upstream
from tests.state.servers import Server, any_binary

BREAKER = "{min_requests: 5, window: 5s, open_for: 300ms, probes: 1, consecutive: 0}"


@pytest.fixture
def redis() -> Iterator[Server]:
    with Server(any_binary()) as server:
        yield server


class Moody:
    """An origin that is well, fails, or hangs for as long as it is told to."""

    def __init__(self) -> None:
        self.fails = False
        self.free = threading.Event()
        self.free.set()
        self.hanging = 0

    def __call__(self, wire: Wire, request: Message) -> None:
        if not self.free.is_set():
            self.hanging += 1
            self.free.wait()
        wire.send(answer(b"ok", "500 No" if self.fails else "200 OK"))


def breaker(replica: Replica) -> dict[str, Any]:
    (found,) = (each for each in replica.admin("GET", "/api/breakers")[1] if each["name"] == "failing")
    assert isinstance(found, dict)
    return found


def local(replica: Replica) -> set[tuple[str, int]]:
    """Who has opened for itself: replica and slot."""
    return {(each["replica"], each["slot"]) for each in breaker(replica)["local"]}


def know_each_other(pair: tuple[Replica, Replica]) -> None:
    """Wait until both count two replicas: each has beaten twice since both were there."""
    until(lambda: all(len(replica.replicas()) == 2 for replica in pair))
    since = {name: each["last_beat"] for name, each in pair[0].replicas().items()}
    until(lambda: all(each["last_beat"] >= since[name] + 2 for name, each in pair[0].replicas().items()))


def test_bad_path_of_one_replica_opens_only_that_replica(tmp_path: Path, redis: Server) -> None:
    with upstream() as origin:
        origin.on("/failing", Moody())
        with a_pair(tmp_path, redis.url, "http://127.0.0.1:1", origin.url) as pair:
            bad, good = pair
            know_each_other(pair)
            seen: set[tuple[str, int]] = set()

            def all_of_the_bad_one() -> bool:
                assert set(good.statuses("/failing", 10)) == {200}
                assert set(bad.statuses("/failing", 10)) <= {502, 503}
                seen.update(local(bad))
                return {slot for _, slot in seen} == {0, 1}

            until(all_of_the_bad_one)
            assert len({replica for replica, _ in seen}) == 1
            assert local(good) == set()
            assert breaker(good)["state"] == breaker(bad)["state"] == "closed"
            assert breaker(good)["epoch"] == 0
            assert set(good.statuses("/failing", 20)) == {200}


def test_killed_prober_blocks_nothing(tmp_path: Path, redis: Server) -> None:
    moody = Moody()
    with upstream() as origin:
        origin.on("/failing", moody)
        with a_pair(tmp_path, redis.url, origin.url, origin.url, breaker=BREAKER) as pair:
            know_each_other(pair)
            moody.fails = True

            def tripped() -> bool:
                for replica in pair:
                    replica.statuses("/failing", 5)
                return bool(breaker(pair[0])["epoch"])

            until(tripped)
            moody.fails = False
            moody.free.clear()
            try:
                asking = [threading.Thread(target=_ask_until, args=(replica, moody)) for replica in pair]
                for thread in asking:
                    thread.start()
                until(lambda: moody.hanging)
                for replica in pair:
                    for pid in replica.pids().values():
                        os.kill(pid, signal.SIGKILL)
                for thread in asking:
                    thread.join()
            finally:
                moody.free.set()
            until(lambda: all(set(_statuses(replica)) == {200} for replica in pair))
            until(lambda: {breaker(replica)["state"] for replica in pair} == {"closed"})


def _ask_until(replica: Replica, moody: Moody) -> None:
    """Have a probe be made."""
    while not moody.hanging:
        _statuses(replica)
        time.sleep(0.02)


def _statuses(replica: Replica) -> list[int]:
    """0 where the worker died."""
    try:
        return replica.statuses("/failing", 5)
    except OSError:
        return [0]
