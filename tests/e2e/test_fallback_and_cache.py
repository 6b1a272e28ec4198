"""Fallbacks, the cache and joined requests, as clients and upstreams of a running service meet them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.origins import free_port
from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import OK, Client, Message, Origin, Wire, answer, fetch, upstream


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(origin: Origin) -> Iterator[Ambassador]:
    dead = f"http://127.0.0.1:{free_port()}"
    body = f"""\
        name: tester
        upstreams:
          origin: {{endpoints: ["{origin.url}"]}}
          dead: {{endpoints: ["{dead}"]}}
        routes:
          - {{name: away, match: {{path: "/away/**"}}, to: dead, fallback: {{to: origin}}}}
          - {{name: fixed, match: {{path: "/fixed/**"}}, to: dead, fallback: {{respond: {{status: 203, body: sorry}}}}}}
          - {{name: stale, match: {{path: "/stale/**"}}, to: origin, fallback: {{stale: 10m}}}}
          - {{name: cached, match: {{path: "/cached/**"}}, to: origin, cache: from-response}}
          - {{name: joined, match: {{path: "/joined/**"}}, to: origin, cache: {{coalesce: true}}}}
          - {{name: few, match: {{path: "/few/**"}}, to: origin, concurrency: {{max: 2, queue: 2, wait: 20s}}}}
          - {{name: faulty, match: {{path: "/faulty/**"}}, to: origin, fault: {{abort: {{status: 418}}}}}}
        """
    with ambassador(body) as running:
        yield running


def test_other_upstream_answers_for_one_that_is_dead(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/away/a", OK)
    got = fetch(proxy.url, "/away/a", method="POST", body=b"abc")
    assert (got.status, got.body) == (200, b"ok")
    assert str(got.get("proxy-status")).endswith('details="connect_failed"; attempts=3; fallback=to')
    (request,) = origin.seen["/away/a"]
    assert request.body == b"abc"


def test_fixed_answer_has_the_place_of_one_that_is_dead(proxy: Ambassador) -> None:
    got = fetch(proxy.url, "/fixed/a")
    assert (got.status, got.body) == (203, b"sorry")


def test_last_good_answer_outlives_its_upstream(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/stale/a", answer(b"good"))
    assert fetch(proxy.url, "/stale/a").body == b"good"
    origin.on("/stale/a", answer(b"bad", "503 Service Unavailable"))
    got = fetch(proxy.url, "/stale/a")
    assert (got.status, got.body) == (200, b"good")
    assert got.get("proxy-status") == "tester; received-status=503; fallback=stale"
    assert fetch(proxy.url, "/stale/a", "cookie: a=b").status == 503


def test_cached_answer_is_given_again_until_the_target_changes(proxy: Ambassador, origin: Origin) -> None:
    body = b"x" * 300_000
    origin.on("/cached/a", answer(body, "200 OK", "cache-control: max-age=60"))
    for status in ("tester; fwd=miss", "tester; hit; ttl=59"):
        got = fetch(proxy.url, "/cached/a")
        assert (got.status, got.body == body) == (200, True)
        assert str(got.get("cache-status")).startswith(status[:-2])
    assert len(origin.seen["/cached/a"]) == 1
    assert fetch(proxy.url, "/cached/a", method="DELETE").status == 200
    fetch(proxy.url, "/cached/a")
    assert len(origin.seen["/cached/a"]) == 3


def inflight(proxy: Ambassador) -> int:
    number: int = json.loads(proxy.admin_get("/api/status"))["workers"][0]["inflight"]
    return number


def test_identical_requests_go_up_as_one(proxy: Ambassador, origin: Origin) -> None:
    go_on = threading.Event()

    def slow(wire: Wire, request: Message) -> None:
        go_on.wait(20)
        wire.send(answer(b"once"))

    origin.on("/joined/a", slow)
    clients = [Client(proxy.url) for _ in range(8)]
    for client in clients:
        client.ask("/joined/a", host="test")
    wait_until(lambda: inflight(proxy) == 8 or None, "eight requests in flight")
    go_on.set()
    assert [client.answer().body for client in clients] == [b"once"] * 8
    for client in clients:
        client.close()
    assert len(origin.seen["/joined/a"]) == 1


def test_caches_tell_what_they_did(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/cached/told", answer(b"x", "200 OK", "cache-control: max-age=60"))
    before = {result: cache_requests(proxy, result) for result in ("hit", "miss")}
    for _ in range(3):
        fetch(proxy.url, "/cached/told")
    assert cache_requests(proxy, "miss") == before["miss"] + 1
    assert cache_requests(proxy, "hit") == before["hit"] + 2
    got = fetch(proxy.url, "/cached/nothing", "cache-control: only-if-cached")
    assert (got.status, json.loads(got.body)["code"]) == (504, "not_cached")


def cache_requests(proxy: Ambassador, result: str) -> int:
    name = f'ambassador_cache_requests_total{{route="cached",upstream="origin",result="{result}"}} '
    return sum(int(float(line.rpartition(" ")[2])) for line in proxy.samples(name))


def test_what_is_in_progress_is_listed(proxy: Ambassador, origin: Origin) -> None:
    go_on = threading.Event()

    def slow(wire: Wire, request: Message) -> None:
        go_on.wait(20)
        wire.send(OK)

    def listed() -> dict[str, object]:
        (each,) = json.loads(proxy.admin_get("/api/limits"))
        return dict(each)

    assert listed()["in_use"] == 0
    origin.on("/few/a", slow)
    clients = [Client(proxy.url) for _ in range(3)]
    for client in clients:
        client.ask("/few/a", host="test")
    expected = {
        "name": "few/concurrency", "rate": None, "burst": None, "key": "few", "balance": 0, "admitted": 2, "limited": 0,
        "max": 2, "limit": 2, "in_use": 2, "queued": 1,
    }  # fmt: skip
    wait_until(lambda: listed() == expected or None, "two requests in progress and one that waits")
    assert "few/concurrency" in proxy.command("limits").stdout
    go_on.set()
    assert [client.answer().status for client in clients] == [200] * 3
    for client in clients:
        client.close()


def test_change_ends_what_every_worker_keeps(origin: Origin) -> None:
    body = f"""\
        upstreams: {{origin: {{endpoints: ["{origin.url}"]}}}}
        routes: [{{name: r, to: origin, cache: from-response}}]
        """
    with ambassador(body, workers=2) as two:
        origin.on("/two", answer(b"old", "200 OK", "cache-control: max-age=600"))
        wait_until(
            lambda: fetch(two.url, "/two").body == b"old" and len(origin.seen["/two"]) == 2,
            "an answer in both workers",
        )
        origin.on("/two", answer(b"new", "200 OK", "cache-control: max-age=600"))
        assert fetch(two.url, "/two").body == b"old"
        fetch(two.url, "/two", method="PUT")
        wait_until(
            lambda: all(fetch(two.url, "/two").body == b"new" for _ in range(30)), "both workers to know"
        )


def test_fault_is_told(proxy: Ambassador, origin: Origin) -> None:
    got = fetch(proxy.url, "/faulty/a")
    assert (got.status, b'"fault"' in got.body) == (418, True)
    assert "/faulty/a" not in origin.seen


def test_reload_keeps_answers(proxy: Ambassador, origin: Origin) -> None:
    for kind in ("stale", "cached"):
        origin.on(f"/{kind}/r", answer(b"good", "200 OK", "cache-control: max-age=600"))
        assert fetch(proxy.url, f"/{kind}/r").body == b"good"
    assert proxy.command("reload").returncode == 0
    for kind in ("stale", "cached"):
        origin.on(f"/{kind}/r", answer(b"bad", "500 No"))
        assert fetch(proxy.url, f"/{kind}/r").body == b"good"
