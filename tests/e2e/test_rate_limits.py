"""Rate limits of real services: exact over workers and over replicas, and what remains of that when Redis goes.

What was admitted is held against what may be admitted between the first request's sending and the last answer, so a
slow machine cannot make a test fail.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from urllib.parse import urlsplit

import pytest

from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import Origin, upstream
from tests.state.servers import Server, any_binary

RATE, BURST = 100, 100
ROUTES = f"""\
routes:
  - {{name: all, match: {{path: /all}}, respond: 200, limit: {{rate: {RATE}/s, burst: {BURST}}}}}
  - {{name: each, match: {{path: /each}}, respond: 200, limit: {{rate: 5/m, burst: 5, per: 'header:x-tenant'}}}}
  - {{name: queue, match: {{path: /queue}}, respond: 200, limit: {{rate: 40/s, burst: 5, wait: 10s}}}}
"""


def ask(url: str, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


class Flood:
    """Clients that ask without a pause for so long; `statuses` and the time between first request and last answer."""

    def __init__(
        self, urls: list[str], path: str, seconds: float, meanwhile: Callable[[], None] | None = None
    ) -> None:
        self.statuses: Counter[int] = Counter()
        self._path = path
        self._end = time.monotonic() + seconds
        clients = [threading.Thread(target=self._ask, args=[url]) for url in urls for _ in range(3)]
        began = time.monotonic()
        for client in clients:
            client.start()
        if meanwhile is not None:
            meanwhile()
        for client in clients:
            client.join()
        self.seconds = time.monotonic() - began

    def _ask(self, url: str) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        while time.monotonic() < self._end:
            try:
                connection.request("GET", self._path)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()  # its worker was killed by the test
                continue
            self.statuses[answer.status] += 1
        connection.close()

    @property
    def most(self) -> float:
        """What may be admitted in its time."""
        return BURST + RATE * self.seconds


@pytest.fixture(scope="module")
def service() -> Iterator[Ambassador]:
    with ambassador(ROUTES, workers=2) as running:
        yield running


def test_limit_is_exact_over_the_workers(service: Ambassador) -> None:
    flood = Flood([service.url] * 2, "/all", 3.0)
    assert set(flood.statuses) == {200, 429}
    assert 0.5 * flood.most < flood.statuses[200] <= flood.most


def test_limit_outlives_a_worker_that_dies(service: Ambassador) -> None:
    def kill_one() -> None:
        time.sleep(0.5)
        os.kill(workers(service)[0], signal.SIGKILL)

    flood = Flood([service.url] * 2, "/all", 2.0, kill_one)
    assert flood.statuses[200] <= flood.most
    wait_until(lambda: len(workers(service)) == 2, "another worker")


def workers(service: Ambassador) -> list[int]:
    status = json.loads(service.admin_get("/api/status"))
    return [worker["pid"] for worker in status["workers"] if worker["ready"]]


def test_refusal_says_what_clients_need(service: Ambassador) -> None:
    headers = {"x-tenant": "refused"}
    for left in (3, 2, 1, 0):
        answer = ask(service.url, "/each", headers)
        assert answer.status == 200
        shown = answer.headers["ratelimit"]
        assert shown.startswith(f'"limit";r={left};t=')
        assert answer.headers["ratelimit-policy"] == '"limit";q=5;w=60'
    answer = ask(service.url, "/each", headers)
    assert answer.status == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 12
    assert answer.headers["content-type"] == "application/problem+json"
    assert 'details="limited"' in answer.headers["proxy-status"]
    assert ask(service.url, "/each", {"x-tenant": "another"}).status == 200


def test_requests_queue_for_tokens(service: Ambassador) -> None:
    statuses: list[int] = []
    clients = [
        threading.Thread(target=lambda: statuses.append(ask(service.url, "/queue").status)) for _ in range(30)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert statuses == [200] * 30


def test_refusals_are_counted(service: Ambassador) -> None:
    (line,) = service.samples('ambassador_limited_total{route="all",limit="limit"}')
    assert float(line.rpartition(" ")[2]) > 0


def test_upstreams_quota_is_charged_for_each_attempt() -> None:
    with upstream() as origin, ambassador(quota_of(origin)) as service:
        statuses = [ask(service.url, "/").status for _ in range(8)]
        assert statuses == [200] * 4 + [429] * 4
        assert len(origin.seen["/"]) == 4


def quota_of(origin: Origin) -> str:
    return f"""\
upstreams: {{u: {{endpoints: ["{origin.url}"], limit: {{rate: 4/m, burst: 5}}}}}}
routes: [{{name: r, to: u}}]
"""


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with Server(any_binary()) as server:
        yield server


@pytest.fixture(scope="module")
def replicas(redis: Server) -> Iterator[list[Ambassador]]:
    """Two, with two workers each."""
    body = f"state: {redis.url}\n{ROUTES}"
    with ExitStack() as stack:
        both = [stack.enter_context(ambassador(body, workers=2)) for _ in range(2)]
        for each in both:
            wait_until(partial(state_is_up, each), "the store")
        yield both


def state_is_up(service: Ambassador) -> bool:
    return service.samples("ambassador_state_up ") == ["ambassador_state_up 1"]


def test_limit_is_exact_over_replicas(replicas: list[Ambassador]) -> None:
    flood = Flood([replica.url for replica in replicas], "/all", 3.0)
    assert set(flood.statuses) == {200, 429}
    assert 0.5 * flood.most < flood.statuses[200] <= flood.most


def test_redis_that_dies_costs_no_request_and_little_exactness(
    replicas: list[Ambassador], redis: Server
) -> None:
    def kill_and_start() -> None:
        time.sleep(1.0)
        redis.kill()
        time.sleep(2.0)
        redis.start()

    flood = Flood([replica.url for replica in replicas], "/all", 5.0, kill_and_start)
    assert set(flood.statuses) == {200, 429}
    assert 0.4 * flood.most < flood.statuses[200] <= flood.most + 0.1 * RATE * flood.seconds


def test_wiped_redis_gives_no_burst(replicas: list[Ambassador], redis: Server) -> None:
    def wipe() -> None:
        time.sleep(1.0)
        redis.client().flushall()

    flood = Flood([replica.url for replica in replicas], "/all", 3.0, wipe)
    assert flood.statuses[200] <= flood.most
