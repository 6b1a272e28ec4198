"""Overload: how much is refused, what is measured, and what clients and health checks see of it."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.overload import (
    CHECK_S,
    LESS,
    MORE,
    MOST,
    Config,
    Monitor,
    Shedding,
    descriptors_in_use,
    memory_in_use,
)
from tests.proxy.harness import GET, a_plane, config
from tests.proxy.two_ways import (
    Setting,
    Step,
    World,
    answers,
    assert_same,
    at_once,
    cancelled,
    drains,
    ends,
    passes,
    play,
    resets,
    sends,
    takes,
)

URL = "http://10.0.0.1:81"
OK = b"HTTP/1.1 200 OK\r\nDate: Fri, 27 Nov 2026 06:44:34 GMT\r\nContent-Length: 2\r\n\r\nok"
HEALTH = GET.replace(b"/", b"/.well-known/ambassador/health", 1)


def shedding(**settings: float | None) -> Shedding:
    return Shedding(Config(**settings))


def test_lag_adds_and_its_end_takes_off() -> None:
    state = shedding()
    state.update(lag_s=0.05, memory=None, descriptors=0.0)
    assert state.part == 0.0
    for _ in range(10):
        state.update(lag_s=0.2, memory=None, descriptors=0.0)
    assert state.part == MOST
    state.update(lag_s=0.0, memory=None, descriptors=0.0)
    assert state.part == pytest.approx(MOST - LESS)
    assert "come round" in state.why
    for _ in range(60):
        state.update(lag_s=0.0, memory=None, descriptors=0.0)
    assert state.part == 0.0


def test_memory_and_descriptors_count_in_proportion() -> None:
    state = shedding()
    state.update(lag_s=0.0, memory=0.9, descriptors=0.0)
    assert (state.part, state.closes) == (0.0, False)
    state.update(lag_s=0.0, memory=0.925, descriptors=0.0)
    assert state.part == pytest.approx(MOST / 2)
    assert state.closes
    assert "memory" in state.why
    state.update(lag_s=0.0, memory=0.5, descriptors=0.99)
    assert state.part == MOST
    assert "descriptors" in state.why
    state.update(lag_s=0.0, memory=0.5, descriptors=0.5)
    assert (state.part, state.closes) == (0.0, False)


def test_what_is_off_never_counts() -> None:
    state = shedding(loop_lag=None, memory=None, descriptors=None)
    state.update(lag_s=100.0, memory=1.0, descriptors=1.0)
    assert state.part == 0.0


@given(st.lists(st.tuples(st.floats(0, 10), st.none() | st.floats(0, 2), st.floats(0, 2)), max_size=80))
def test_part_is_a_part_and_moves_in_steps(values: list[tuple[float, float | None, float]]) -> None:
    state = shedding(memory=1.0, descriptors=1.0)
    before = 0.0
    for lag_s, _, _ in values:
        state.update(lag_s=lag_s, memory=0.0, descriptors=0.0)
        assert 0.0 <= state.part <= MOST
        assert -LESS - 1e-9 <= state.part - before <= MORE + 1e-9
        before = state.part
    for lag_s, memory, descriptors in values:
        state.update(lag_s=lag_s, memory=memory, descriptors=descriptors)
        assert 0.0 <= state.part <= MOST


# What is measured


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


GROUP = "sys/fs/cgroup/a/b"
MEMINFO = {"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 250 kB\n"}


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", f"{GROUP}/memory.max": "1000\n", f"{GROUP}/memory.current": "600\n",
          f"{GROUP}/memory.stat": "anon 1\ninactive_file 100\n"}, 0.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "600\n",
          "sys/fs/cgroup/memory.stat": "anon 1\n"}, 0.6),
        ({"proc/self/cgroup": "0::/a/b\n", f"{GROUP}/memory.max": "max\n", f"{GROUP}/memory.current": "6\n", **MEMINFO}, 0.75),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "200", "sys/fs/cgroup/memory/memory.usage_in_bytes": "100",
          "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 20\n"}, 0.4),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": str(1 << 62), **MEMINFO}, 0.75),
        (MEMINFO, 0.75),
        ({"proc/meminfo": "nothing\n"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_memory_of_the_control_group_or_the_machine(
    tmp_path: Path, files: dict[str, str], part: float | None
) -> None:
    assert memory_in_use(write(tmp_path, files)) == (None if part is None else pytest.approx(part))


def test_descriptors_of_this_process() -> None:
    assert 0.0 <= descriptors_in_use(3) < 0.5
    assert 0.0 < descriptors_in_use(10**9) < 0.5  # counted


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_descriptors_are_all_in_use_where_none_is_left_to_count_them(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def exhausted(path: str) -> list[str]:
        raise OSError(number, "exhausted", path)

    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_size=0))
    monkeypatch.setattr(os, "listdir", exhausted)
    assert descriptors_in_use(10**9) == 1.0


def test_descriptors_are_counted_by_the_kernel_where_it_does_that(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_size=limit // 2))
    assert descriptors_in_use(limit) == pytest.approx(0.5, abs=0.01)


async def test_monitor_measures_the_lane(autojump_clock: trio.testing.MockClock) -> None:
    memory = 0.0
    async with a_plane(config(URL)) as plane:
        monitor = Monitor(Config(), plane.service, lambda: memory)
        monitor.start()
        await trio.sleep(3 * CHECK_S)
        assert plane.service.shedding == 0.0
        memory = 1.0
        await trio.sleep(1.5)
        assert plane.service.shedding == MOST
        memory = 0.0
        await trio.sleep(1.5)
        assert plane.service.shedding == 0.0
        autojump_clock.jump(1.0)  # the loop stands still
        await trio.sleep(0.3)
        assert 0.0 < plane.service.shedding < MORE
        monitor.stop()
        assert plane.service.shedding == 0.0


# What clients see


def sheds(part: float, *, closes: bool = False) -> Step:
    def act(world: World) -> None:
        world.plane.service.shed(part, "the worker is tired", closes=closes)

    return Step(f"sheds({part}, {closes})", act)


WARM = (sends(GET), answers(OK), sends(GET), answers(OK))
ONE = Setting(config(URL))


def test_requests_are_refused_and_the_connection_stays() -> None:
    seen = assert_same(ONE, *WARM, sheds(1.0), sends(GET), sends(GET), sheds(0.0), *WARM)
    answer = seen.bytes_of("client 0")
    assert answer.count(b'"code":"overloaded"') == 2
    assert answer.count(b"HTTP/1.1 200 ") == 4
    assert b"the worker is tired" in answer
    assert seen.settlements == [2, 2, 5, 5, 2, 2]
    assert [line["code"] for line in seen.lines] == [None, None, "overloaded", "overloaded", None, None]


def test_refusals_take_the_short_way_where_nothing_is_special() -> None:
    _, rides = play(ONE, [*WARM, sheds(1.0), sends(GET), sends(GET), sheds(0.0), sends(GET), answers(OK)])
    assert (rides.exchanges, rides.handed_over) == (1, 1)


GRPC = GET[:-2] + b"content-type: application/grpc\r\n\r\n"
ID = GET[:-2] + b"x-request-id: mine\r\n\r\n"


@pytest.mark.parametrize(
    "steps",
    [
        [takes(10), sheds(1.0), sends(GET), takes(None), sheds(0.0), *WARM],
        [takes(10), sheds(1.0), sends(GET), resets()],
        [takes(10), sheds(1.0), sends(GET), passes(30.1)],
        [takes(10), sheds(1.0), sends(GET), cancelled],
        [sheds(1.0), sends(GET * 2)],
        [sheds(1.0), at_once(sends(GET), ends())],
        [sheds(1.0), sends(GET), drains, sends(GET)],
        [sends(GRPC), answers(OK), sheds(1.0), sends(GRPC), sends(GRPC)],
        [sends(ID), answers(OK), sheds(1.0), sends(ID), sends(ID)],
    ],
)
def test_refusals_are_the_same_either_way(steps: list[Step]) -> None:
    assert_same(ONE, *WARM, *steps)


def test_connection_is_closed_where_there_are_too_many() -> None:
    seen = assert_same(ONE, *WARM, sheds(1.0, closes=True), sends(GET))
    assert b"connection: close" in seen.bytes_of("client 0").lower()
    assert seen.of("client 0")[-1] == "FIN"


def test_health_checks_are_answered_meanwhile() -> None:
    seen = assert_same(ONE, *WARM, sheds(1.0), sends(HEALTH), sends(HEALTH, 1))
    assert seen.bytes_of("client 0").endswith(b"ok\n")
    assert seen.bytes_of("client 1").endswith(b"ok\n")


def test_only_a_part_is_refused() -> None:
    seen = assert_same(ONE, *WARM, sheds(0.5), *([sends(GET), answers(OK)] * 20))
    refused = seen.settlements.count(5)
    assert 3 < refused < 17
