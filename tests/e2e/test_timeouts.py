"""Timeouts and deadlines: which one ended it, what the client is told, and what the upstream sees of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import Client, Cut, Message, Origin, Wire, black_hole, fetch, upstream


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(origin: Origin) -> Iterator[Ambassador]:
    with black_hole() as hole:
        body = f"""\
            upstreams:
              origin: {{endpoints: ["{origin.url}"]}}
              one: {{endpoints: ["{origin.url}"], connections: {{max: 1, max_pending: 1}}}}
            routes:
              - {{name: connect, match: {{path: "/connect/**"}}, to: "{hole}", retry: {{attempts: 0}},
                  timeout: {{connect: 100ms}}}}
              - {{name: again, match: {{path: "/again/**"}}, to: ["{hole}", "{origin.url}"], timeout: {{connect: 100ms}}}}
              - {{name: whole, match: {{path: "/whole/**"}}, to: "{hole}", timeout: 150ms}}
              - {{name: first, match: {{path: "/first/**"}}, to: origin, timeout: {{first_byte: 100ms}}}}
              - {{name: try, match: {{path: "/try/**"}}, to: origin, timeout: {{per_try: 100ms}}}}
              - {{name: total, match: {{path: "/total/**"}}, to: origin, timeout: {{total: 100ms}},
                  retry: {{attempts: 5, when: [503], backoff: 1s..1s}}}}
              - {{name: idle, match: {{path: "/idle/**"}}, to: origin, timeout: {{idle: 100ms}}}}
              - {{name: body, match: {{path: "/body/**"}}, to: origin, timeout: {{total_body: 200ms}}}}
              - {{name: queue, match: {{path: "/queue/**"}}, to: one, timeout: 300ms}}
              - {{name: plain, to: origin}}
            """
        with ambassador(body) as running:
            yield running


def hang(wire: Wire, request: Message) -> None:
    assert wire.is_ended()
    raise Cut("the other side left")


def code(answer: Message) -> tuple[int, str]:
    text = answer.body.decode()
    return answer.status, text.partition('"code":"')[2].partition('"')[0]


def test_connect_timeout_is_a_failed_connection(proxy: Ambassador) -> None:
    assert code(fetch(proxy.url, "/connect/x")) == (503, "connect_failed")


def test_connect_timeout_goes_to_the_other_endpoint(proxy: Ambassador) -> None:
    assert [fetch(proxy.url, "/again/x", method="POST", body=b"x").status for _ in range(4)] == [200] * 4


def test_total_bounds_connecting_too(proxy: Ambassador) -> None:
    assert code(fetch(proxy.url, "/whole/x")) == (504, "upstream_timeout")


@pytest.mark.parametrize("route", ["first", "try", "total"])
def test_timeout_before_the_head_is_a_504(proxy: Ambassador, origin: Origin, route: str) -> None:
    origin.on(f"/{route}/hang", hang)
    with Client(proxy.url) as client:
        client.ask(f"/{route}/hang")
        assert code(client.answer()) == (504, "upstream_timeout")
        origin.wait_for_end(f"/{route}/hang")
        client.ask("/plain")
        assert client.answer().status == 200


@pytest.mark.parametrize("route", ["first", "try", "total"])
def test_timeouts_to_the_head_leave_the_body_alone(proxy: Ambassador, origin: Origin, route: str) -> None:
    def late(wire: Wire, request: Message) -> None:
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nla")
        time.sleep(0.2)  # longer than the timeout: the body has time
        wire.send("te")

    origin.on(f"/{route}/late", late)
    assert fetch(proxy.url, f"/{route}/late").body == b"late"


@pytest.mark.parametrize("route", ["first", "try", "total"])
def test_timeouts_run_from_the_request_s_last_byte(proxy: Ambassador, origin: Origin, route: str) -> None:
    with Client(proxy.url) as client:
        client.ask(f"/{route}/slowly", "content-length: 4", method="POST")
        client.send("sl")
        time.sleep(0.2)  # longer than the timeout
        client.send("ow")
        assert client.answer().status == 200


def test_total_bounds_all_attempts(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/total/busy", b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy")
    assert fetch(proxy.url, "/total/busy").body == b"busy"
    assert len(origin.seen["/total/busy"]) < 6


@pytest.mark.parametrize("route", ["idle", "body"])
@pytest.mark.parametrize("framing", ["content-length: 9", "transfer-encoding: chunked", "x: close"])
def test_timeout_inside_the_body_cuts_it(proxy: Ambassador, origin: Origin, route: str, framing: str) -> None:
    path = f"/{route}/{framing[0]}"

    def stall(wire: Wire, request: Message) -> None:
        wire.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n" + ("1\r\na\r\n" if "chunked" in framing else "a"))
        hang(wire, request)

    origin.on(path, stall)
    with pytest.raises(Cut):
        fetch(proxy.url, path)
    origin.wait_for_end(path)


def test_total_body_cuts_a_body_that_moves(proxy: Ambassador, origin: Origin) -> None:
    def drip(wire: Wire, request: Message) -> None:
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            wire.send("a")
            time.sleep(0.01)

    origin.on("/body/drip", drip)
    with pytest.raises(Cut):
        fetch(proxy.url, "/body/drip")
    origin.wait_for_end("/body/drip")


def test_idle_leaves_a_body_that_moves(proxy: Ambassador, origin: Origin) -> None:
    def drip(wire: Wire, request: Message) -> None:
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n")
        for _ in range(20):
            wire.send("a")
            time.sleep(0.01)

    origin.on("/idle/drip", drip)
    assert fetch(proxy.url, "/idle/drip").body == b"a" * 20


def test_queue_for_a_connection_is_bounded_in_length_and_time(proxy: Ambassador, origin: Origin) -> None:
    with Client(proxy.url) as first, Client(proxy.url) as second:
        started = []

        def begin(wire: Wire, request: Message) -> None:
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na")
            started.append(wire)

        origin.on("/queue/held", begin)
        first.ask("/queue/held")
        assert first.head().status == 200
        second.ask("/queue/second")
        wait_until(lambda: len(started) == 1, "the first")
        answers = [code(fetch(proxy.url, "/queue/third")) for _ in range(1)]
        assert answers[0] in {(503, "overloaded"), (504, "upstream_timeout")}
        assert code(second.answer()) == (504, "upstream_timeout")
        started[0].send("b")
        assert first.exactly(2) == b"ab"
    assert fetch(proxy.url, "/queue/after").status == 200


# Callers' deadlines


def seen(origin: Origin, path: str) -> Message:
    (request,) = origin.seen[path]
    return request


def test_deadline_goes_out_with_every_request(proxy: Ambassador, origin: Origin) -> None:
    before = time.time()
    fetch(proxy.url, "/out")
    told = float(seen(origin, "/out").get("x-request-deadline") or 0)
    assert before + 14 <= told <= time.time() + 15.1


def test_caller_s_deadline_is_passed_on(proxy: Ambassador, origin: Origin) -> None:
    deadline = time.time() + 5
    fetch(proxy.url, "/own", f"x-request-deadline: {deadline:.3f}")
    told = float(seen(origin, "/own").get("x-request-deadline") or 0)
    assert abs(told - deadline) < 0.5


def test_later_deadline_than_our_own_is_shortened(proxy: Ambassador, origin: Origin) -> None:
    fetch(proxy.url, "/later", f"x-request-deadline: {time.time() + 500:.3f}")
    assert float(seen(origin, "/later").get("x-request-deadline") or 0) <= time.time() + 15.1


@pytest.mark.parametrize(
    ("name", "value"), [("grpc-timeout", "4S"), ("x-envoy-upstream-rq-timeout-ms", "4000")]
)
def test_other_spellings_shorten_too(proxy: Ambassador, origin: Origin, name: str, value: str) -> None:
    fetch(proxy.url, f"/{name}", f"{name}: {value}")
    request = seen(origin, f"/{name}")
    assert float(request.get("x-request-deadline") or 0) <= time.time() + 4.1
    left = request.get(name) or ""
    assert 0 < int(left.rstrip("m")) <= 4000


@pytest.mark.parametrize(
    "line",
    ["x-request-deadline: {soon}", "grpc-timeout: 100m", "x-envoy-upstream-rq-timeout-ms: 100"],
)
def test_deadline_that_passes_is_said(proxy: Ambassador, origin: Origin, line: str) -> None:
    path = f"/passes-{line[:4]}"
    origin.on(path, hang)
    got = fetch(proxy.url, path, line.format(soon=f"{time.time() + 0.15:.3f}"))
    assert (got.status, got.get("grpc-status")) == (504, None)
    assert code(got) == (504, "deadline_exceeded")
    origin.wait_for_end(path)


def test_deadline_in_the_past_reaches_nobody(proxy: Ambassador, origin: Origin) -> None:
    assert code(fetch(proxy.url, "/past", "x-request-deadline: 1000000000")) == (504, "deadline_exceeded")
    assert not origin.seen["/past"]


@pytest.mark.parametrize(
    "line",
    [
        "x-request-deadline: tomorrow",
        "x-request-deadline: -5",
        "x-request-deadline: nan",
        "x-request-deadline: inf",
        "x-request-deadline: 1e3",
        "x-request-deadline:",
        "grpc-timeout: 5",
        "grpc-timeout: 123456789m",
        "x-envoy-upstream-rq-timeout-ms: soon",
        "x-envoy-upstream-rq-timeout-ms: 0",
    ],
)
def test_malformed_deadline_is_ignored(proxy: Ambassador, origin: Origin, line: str) -> None:
    assert fetch(proxy.url, "/malformed", line).body == b"ok"
    last = origin.seen["/malformed"][-1]
    assert float(last.get("x-request-deadline") or 0) > time.time() + 10


def test_deadline_bounds_a_body_s_upload(proxy: Ambassador, origin: Origin) -> None:
    with Client(proxy.url) as client:
        client.ask(
            "/upload", "content-length: 5", f"x-request-deadline: {time.time() + 0.15:.3f}", method="POST"
        )
        client.send("a")
        assert code(client.answer()) == (504, "deadline_exceeded")
