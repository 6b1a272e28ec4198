"""A hundred thousand requests of every kind through two workers: every answer is right, and nothing is left behind."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e.mixture import FATES, PLAIN, Report, call_from, upstreams
from tests.e2e.programs import Ambassador, ambassador, wait_until

WARM_UP, COUNT = 40_000, 60_000
"""The first fill what a process fills once: memories of heads, arenas of memory, pipes. What comes after may add
nothing."""
KEPT_PIPES = 16
"""Pipes that a worker keeps for the next large body (`proxy/splice.py`), with two descriptors each."""
GROWTH_BYTES = 4 << 20
"""Of one process over the whole `COUNT`. Its share of the answers' bodies alone is a hundred times as much; of a
leak it would see 70 bytes a request."""


def told(proxy: Ambassador, path: str) -> Any:
    return json.loads(proxy.admin_get(path))


def pids(proxy: Ambassador) -> list[int]:
    """The supervisor and its workers."""
    status = told(proxy, "/api/status")
    return [status["pid"], *(worker["pid"] for worker in status["workers"])]


def descriptors(pid: int) -> Counter[str]:
    """A process's open descriptors by kind; of files, by name."""
    kinds: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            kinds[os.readlink(f"/proc/{pid}/fd/{name}").partition("[")[0]] += 1
        except FileNotFoundError:
            pass  # closed meanwhile
    return kinds


def has_no_more(pid: int, before: Counter[str]) -> bool:
    """No descriptors but pipes, and those that it had before."""
    return set(descriptors(pid) - before) <= {"pipe:"}


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def are_ready(proxy: Ambassador) -> bool:
    """All workers, not only the first."""
    return all(worker["ready"] for worker in told(proxy, "/api/status")["workers"])


def is_at_rest(proxy: Ambassador) -> bool:
    """Nobody is connected, on either side; connections that wait for another request included."""
    workers = told(proxy, "/api/status")["workers"]
    endpoints = told(proxy, "/api/upstreams")[0]["endpoints"]
    return not any(
        [worker["connections"] or worker["inflight"] for worker in workers]
        + [endpoint["inflight"] or any(endpoint["connections"].values()) for endpoint in endpoints]
    )


def requests_counted(proxy: Ambassador) -> int:
    return sum(int(line.split()[-1]) for line in proxy.samples("ambassador_requests_total{"))


def test_mixture_is_answered_right_and_leaves_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with upstreams(2) as urls:
        body = f"""\
            upstreams: {{origin: {{endpoints: [{", ".join(urls)}], connections: {{idle_timeout: 500ms}}}}}}
            routes: [{{name: all, to: origin, timeout: 60s}}]
            telemetry: {{access_log: {log}}}
            """
        with ambassador(body, workers=2) as proxy:
            wait_until(lambda: are_ready(proxy), "both workers")
            processes = pids(proxy)
            before = {pid: descriptors(pid) for pid in processes}
            tasks = told(proxy, "/api/tasks")

            report = call_from(2, proxy.url, 1, WARM_UP)
            wait_until(lambda: is_at_rest(proxy), "rest after the first part")
            warm = {pid: resident_bytes(pid) for pid in processes}
            report.add(call_from(2, proxy.url, 3, COUNT))
            wait_until(lambda: is_at_rest(proxy), "rest")

            assert_right(report)
            assert pids(proxy) == processes
            assert told(proxy, "/api/tasks") == tasks
            for pid in processes:
                # The supervisor closes a little later what it was asked by just now.
                wait_until(partial(has_no_more, pid, before[pid]), f"no more sockets in {pid}")
                assert (descriptors(pid) - before[pid])["pipe:"] <= 2 * KEPT_PIPES
                assert resident_bytes(pid) - warm[pid] < GROWTH_BYTES
            assert_counted_and_logged_once(proxy, report, log)


def assert_right(report: Report) -> None:
    assert report.wrong == []
    assert report.outcomes.total() == WARM_UP + COUNT
    assert {fate for fate, _ in report.outcomes} == {PLAIN, *FATES}


def assert_counted_and_logged_once(proxy: Ambassador, report: Report, log: Path) -> None:
    """Every request of which the head came; of a client that left in the middle it may not have."""
    counted = requests_counted(proxy)
    sent = report.outcomes.total()
    assert sent - report.outcomes["client-leaves-request", "left"] <= counted <= sent
    wait_until(lambda: log.read_bytes().count(b"\n") >= counted, "the last log line")
    ids = {json.loads(line)["request_id"] for line in log.read_text().splitlines()}
    assert len(ids) == counted
