"""Orders that are repeated at two replicas with a Redis between them: while it dies, and while a worker does."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.control.service import Service, until
from tests.e2e.origins import wsgi
from tests.e2e.pair import two_replicas
from tests.state.servers import Server, any_binary

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment


class Shop:
    """An upstream that numbers the orders it carries out, and holds them up while it is told to."""

    def __init__(self) -> None:
        self.orders: list[bytes] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self._lock:
            self.orders.append(body)
            number = len(self.orders)
        self.go_on.wait(30)
        said = b"order %d" % number
        start_response("201 Created", [("content-length", str(len(said))), ("x-order", str(number))])
        return [said]


class Answer(NamedTuple):
    """What a client got."""

    status: int
    body: bytes
    replayed: bool


class Replica(Service):
    """Two workers that take orders."""

    def __init__(self, folder: Path, state: str, shop: str) -> None:
        folder.mkdir()
        file = folder / "amb.yaml"
        file.write_text(
            f"""\
version: 1
listen: 127.0.0.1:0
control: "unix:{folder}/c.sock"
workers: 2
state: {state}
drain: {{delay: 0s, timeout: 3s}}
telemetry: {{access_log: off}}
defaults: {{timeout: 40s, retry: off}}
upstreams: {{shop: {{endpoints: ["{shop}"]}}}}
routes:
  - {{name: refusing, match: {{path: /refusing}}, to: shop, idempotency: {{on_loss: refuse}}}}
  - {{name: local, match: {{path: /local}}, to: shop, idempotency: {{on_loss: local}}}}
"""
        )
        super().__init__(["ambassador", "run", "-c", str(file)], folder / "c.sock")

    def order(self, key: str, body: bytes = b"book", on_loss: str = "refusing") -> Answer:
        """An order, over a connection of its own: to either worker. `on_loss`: what holds for it without the store."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request("POST", f"/{on_loss}", body, {"idempotency-key": key})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), answer.getheader("idempotent-replayed") == "true")
        finally:
            connection.close()

    @property
    def state_up(self) -> bool:
        up: bool = self.status()["state"]["up"]
        return up


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with Server(any_binary()) as server:
        yield server


@pytest.fixture(scope="module")
def replicas(
    redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shop, tuple[Replica, Replica]]]:
    """For all tests: each has keys of its own."""
    shop, folder = Shop(), tmp_path_factory.mktemp("pair")
    with (
        wsgi(shop) as url,
        two_replicas(lambda name: Replica(folder / name, redis.url, url)) as pair,
    ):
        yield shop, pair


@pytest.fixture
def shop(replicas: tuple[Shop, tuple[Replica, Replica]]) -> Iterator[Shop]:
    shop, _ = replicas
    shop.orders.clear()
    yield shop
    shop.go_on.set()


@pytest.fixture
def pair(replicas: tuple[Shop, tuple[Replica, Replica]]) -> tuple[Replica, Replica]:
    _, pair = replicas
    until(lambda: all(replica.state_up for replica in pair))
    return pair


@pytest.fixture
def aside() -> Iterator[Callable[[Callable[[], Answer]], Future[Answer]]]:
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


Aside = Callable[[Callable[[], Answer]], "Future[Answer]"]


def test_order_is_carried_out_once_over_replicas(
    pair: tuple[Replica, Replica], shop: Shop, aside: Aside
) -> None:
    one, other = pair
    first = one.order("once-a")
    assert first == (201, b"order 1", False)
    until(lambda: other.order("once-a").status == 201)  # the record may be a moment behind the answer
    for replica in (one, other) * 3:
        assert replica.order("once-a") == (201, b"order 1", True)
    assert other.order("once-a", b"pen").status == 422
    shop.go_on.clear()
    pending = aside(lambda: one.order("once-b"))
    until(lambda: len(shop.orders) == 2)
    assert {replica.order("once-b").status for replica in (one, other) * 2} == {409}
    shop.go_on.set()
    assert pending.result() == (201, b"order 2", False)
    until(lambda: other.order("once-b") == (201, b"order 2", True))
    assert len(shop.orders) == 2


def test_many_at_once_carry_out_one(pair: tuple[Replica, Replica], shop: Shop, aside: Aside) -> None:
    for key in range(10):
        asked = [aside(lambda at=at, key=key: pair[at % 2].order(f"m{key}")) for at in range(8)]  # type: ignore[misc]
        statuses = sorted(each.result().status for each in asked)
        assert set(statuses) <= {201, 409}
        assert 201 in statuses
    assert len(shop.orders) == 10


def test_lost_redis_refuses_orders_and_nothing_is_done_twice(
    pair: tuple[Replica, Replica], shop: Shop, redis: Server, aside: Aside
) -> None:
    one, other = pair
    shop.go_on.clear()
    pending = aside(lambda: one.order("lost-a"))
    until(lambda: len(shop.orders) == 1)
    redis.stop_running()
    assert other.order("lost-b").status == 503
    until(lambda: not one.state_up and not other.state_up)
    shop.go_on.set()
    assert pending.result() == (201, b"order 1", False)  # it was under way
    assert [replica.order("lost-a").status for replica in pair] == [503, 503]
    redis.go_on()
    until(lambda: other.order("lost-a") == (201, b"order 1", True))
    assert shop.orders == [b"book"]
    redis.kill()
    until(lambda: one.order("lost-c").status == 503)
    redis.start()
    until(lambda: one.order("lost-c").status == 201)
    assert len(shop.orders) == 2


def test_lost_redis_leaves_each_replica_to_itself(
    pair: tuple[Replica, Replica], shop: Shop, redis: Server
) -> None:
    one, _ = pair
    redis.kill()
    assert one.order("alone", on_loss="local").status == 201
    assert [one.order("alone", on_loss="local").body for _ in range(6)] == [b"order 1"] * 6
    assert shop.orders == [b"book"]
    until(lambda: not any(replica.state_up for replica in pair))
    redis.start()


def test_key_of_a_dead_worker_is_free_again(pair: tuple[Replica, Replica], shop: Shop, aside: Aside) -> None:
    one, other = pair
    shop.go_on.clear()
    pending = aside(lambda: one.order("dead-a"))
    until(lambda: len(shop.orders) == 1)
    for pid in one.pids().values():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        pending.result()
    shop.go_on.set()
    assert other.order("dead-a").status == 409
    until(lambda: other.order("dead-a") == (201, b"order 2", False), timeout_s=30)
