"""Retries, as upstreams meet them: what is sent again, where to, how often, and what is not."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.origins import free_port
from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import OK, Client, Cut, Handler, Message, Origin, Wire, answer, fetch, upstream


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def other() -> Iterator[Origin]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(origin: Origin, other: Origin) -> Iterator[Ambassador]:
    dead = f"http://127.0.0.1:{free_port()}"
    quick = "backoff: 1ms..2ms"
    body = f"""\
        name: tester
        telemetry: {{debug_headers: true}}
        upstreams:
          origin: {{endpoints: ["{origin.url}"]}}
          single: {{endpoints: ["{origin.url}"], connections: {{max: 1}}}}
          pair: {{endpoints: ["{origin.url}", "{other.url}"]}}
          half: {{endpoints: ["{dead}", "{origin.url}"]}}
          dead: {{endpoints: ["{dead}"]}}
        routes:
          - {{name: standard, match: {{path: "/standard/**"}}, to: origin, retry: {{attempts: 2, {quick}}}}}
          - {{name: codes, match: {{path: "/codes/**"}}, to: origin, retry: {{attempts: 2, when: [429, 5xx], {quick}}}}}
          - {{name: reset, match: {{path: "/reset/**"}}, to: origin, retry: {{attempts: 1, when: [reset], {quick}}}}}
          - {{name: timeout, match: {{path: "/timeout/**"}}, to: origin, timeout: {{per_try: 100ms}},
              retry: {{attempts: 1, when: [timeout], {quick}}}}}
          - {{name: first, match: {{path: "/first/**"}}, to: origin, timeout: {{first_byte: 100ms}},
              retry: {{attempts: 1, when: [timeout], {quick}}}}}
          - {{name: every, match: {{path: "/every/**"}}, to: origin, retry: {{methods: all, {quick}}}}}
          - {{name: listed, match: {{path: "/listed/**"}}, to: origin, retry: {{methods: [PATCH], {quick}}}}}
          - {{name: capped, match: {{path: "/capped/**"}}, to: origin, retry: {{retry_after: 2s, {quick}}}}}
          - {{name: budget, match: {{path: "/budget/**"}}, to: origin,
              retry: {{attempts: 1, budget: {{percent: 0%, min_per_second: 0.3}}, {quick}}}}}
          - {{name: pair, match: {{path: "/pair/**"}}, to: pair, retry: {{attempts: 3, {quick}}}}}
          - {{name: half, match: {{path: "/half/**"}}, to: half}}
          - {{name: dead, match: {{path: "/dead/**"}}, to: dead, retry: {{attempts: 2, when: [connect], {quick}}}}}
          - {{name: none, match: {{path: "/none/**"}}, to: single, retry: {{attempts: 0}}}}
          - {{name: one, match: {{path: "/one/**"}}, to: single}}
          - {{name: unset, to: origin}}
        """
    with ambassador(body) as running:
        yield running


def in_turn(*handlers: Handler | bytes) -> Handler:
    """Each request has the next one; the last stays."""
    left = list(handlers)

    def handle(wire: Wire, request: Message) -> None:
        handler = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(handler, bytes):
            wire.send(handler)
        else:
            handler(wire, request)

    return handle


def close(wire: Wire, request: Message) -> None:
    wire.close()


def reset(wire: Wire, request: Message) -> None:
    wire.reset()


def hang(wire: Wire, request: Message) -> None:
    assert wire.is_ended()
    raise Cut("the other side left")


BUSY = answer(b"busy", "503 Service Unavailable")


@pytest.mark.parametrize("status", [502, 503, 504])
def test_standard_conditions_cover_bad_gateways(proxy: Ambassador, origin: Origin, status: int) -> None:
    path = f"/standard/{status}"
    origin.on(path, in_turn(answer(b"", f"{status} No"), answer(b"", f"{status} No"), OK))
    got = fetch(proxy.url, path)
    assert (got.status, got.body, got.get("x-ambassador-attempts")) == (200, b"ok", "3")
    assert [request.get("x-ambassador-attempt") for request in origin.seen[path]] == [None, "2", "3"]
    assert len({request.get("x-request-id") for request in origin.seen[path]}) == 1


def test_standard_conditions_leave_500_alone(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/standard/500", answer(b"bug", "500 Internal Server Error"))
    assert fetch(proxy.url, "/standard/500").body == b"bug"
    assert len(origin.seen["/standard/500"]) == 1


@pytest.mark.parametrize("failure", [close, reset])
def test_standard_conditions_cover_a_cut_connection(
    proxy: Ambassador, origin: Origin, failure: Handler
) -> None:
    path = f"/standard/{failure.__name__}"
    origin.on(path, in_turn(failure, OK))
    assert fetch(proxy.url, path).body == b"ok"


def test_written_conditions_are_the_only_ones(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/codes/429", in_turn(answer(b"", "429 Slow Down"), OK))
    origin.on("/codes/500", in_turn(answer(b"", "500 Bug"), OK))
    origin.on("/codes/close", close)
    assert fetch(proxy.url, "/codes/429").status == 200
    assert fetch(proxy.url, "/codes/500").status == 200
    got = fetch(proxy.url, "/codes/close")
    assert (got.status, '"code":"upstream_reset"' in got.body.decode()) == (502, True)
    assert len({request.get("x-request-id") for request in origin.seen["/codes/close"]}) == 1


def test_last_failure_is_what_the_client_sees(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/standard/busy", BUSY)
    got = fetch(proxy.url, "/standard/busy")
    assert (got.status, got.body) == (503, b"busy")
    assert len(origin.seen["/standard/busy"]) == 3
    assert "attempts=3" in (got.get("proxy-status") or "")


@pytest.mark.parametrize("condition", ["timeout", "first"])
def test_timeout_of_an_attempt_is_retried(proxy: Ambassador, origin: Origin, condition: str) -> None:
    path = f"/{condition}/slow"
    origin.on(path, in_turn(hang, OK))
    assert fetch(proxy.url, path).body == b"ok"
    origin.wait_for_end(path)


def test_timeout_of_every_attempt_is_said(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/timeout/always", hang)
    got = fetch(proxy.url, "/timeout/always")
    assert (got.status, b'"upstream_timeout"' in got.body) == (504, True)
    assert len(origin.seen["/timeout/always"]) == 2


def test_connect_is_retried_for_every_method(proxy: Ambassador, origin: Origin) -> None:
    for _ in range(8):
        assert fetch(proxy.url, "/half/x", method="POST", body=b"data").body == b"ok"
    assert [request.body for request in origin.seen["/half/x"]] == [b"data"] * 8


def test_connect_failures_are_counted_and_leave_nothing(proxy: Ambassador) -> None:
    got = fetch(proxy.url, "/dead/x", method="POST", body=b"data")
    assert (got.status, b'"connect_failed"' in got.body) == (503, True)
    assert "attempts=3" in (got.get("proxy-status") or "")
    (dead,) = [each for each in json.loads(proxy.admin_get("/api/upstreams")) if each["name"] == "dead"]
    assert dead["endpoints"][0]["inflight"] == 0
    assert dead["endpoints"][0]["connections"] == {"idle": 0, "active": 0}


@pytest.mark.parametrize(
    ("method", "lines", "attempts"),
    [
        ("GET", (), 3),
        ("HEAD", (), 3),
        ("PUT", (), 3),
        ("DELETE", (), 3),
        ("OPTIONS", (), 3),
        ("POST", (), 1),
        ("PATCH", (), 1),
        ("POST", ("Idempotency-Key: k1",), 3),
    ],
)
def test_idempotent_methods_are_retried(
    proxy: Ambassador, origin: Origin, method: str, lines: tuple[str, ...], attempts: int
) -> None:
    path = f"/standard/{method}{len(lines)}"
    origin.on(path, lambda wire, request: wire.send(BUSY if request.method != "HEAD" else BUSY[:-4]))
    assert fetch(proxy.url, path, *lines, method=method).status == 503
    assert len(origin.seen[path]) == attempts


def test_methods_can_be_chosen(proxy: Ambassador, origin: Origin) -> None:
    for path, method, attempts in [
        ("/every/post", "POST", 3),
        ("/listed/patch", "PATCH", 3),
        ("/listed/get", "GET", 1),
    ]:
        origin.on(path, BUSY)
        assert fetch(proxy.url, path, method=method).status == 503
        assert len(origin.seen[path]) == attempts


def test_unset_retries_only_what_was_never_sent(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/unset/503", BUSY)
    origin.on("/unset/close", close)
    assert fetch(proxy.url, "/unset/503").status == 503
    assert fetch(proxy.url, "/none/503").status == 200
    assert fetch(proxy.url, "/unset/close", method="POST").status == 502
    assert [len(origin.seen[path]) for path in ("/unset/503", "/unset/close")] == [1, 1]


def test_retry_after_over_the_cap_forbids(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/capped/long", answer(b"", "503 Later", "Retry-After: 3"))
    got = fetch(proxy.url, "/capped/long")
    assert (got.status, got.get("retry-after")) == (503, "3")
    assert len(origin.seen["/capped/long"]) == 1


def test_retry_after_zero_and_unreadable_are_no_wait(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/capped/zero", in_turn(answer(b"", "503 Later", "Retry-After: 0"), OK))
    origin.on("/capped/odd", in_turn(answer(b"", "503 Later", "Retry-After: soon"), OK))
    assert fetch(proxy.url, "/capped/zero").status == 200
    assert fetch(proxy.url, "/capped/odd").status == 200


def test_retry_after_is_not_waited_for_beyond_the_deadline(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/standard/later", answer(b"", "503 Later", "Retry-After: 60"))
    assert fetch(proxy.url, "/standard/later").status == 503
    assert len(origin.seen["/standard/later"]) == 1


def test_budget_bounds_retries(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/budget/x", BUSY)
    for _ in range(8):
        assert fetch(proxy.url, "/budget/x").status == 503
    assert len(origin.seen["/budget/x"]) == 8 + 3


def test_other_endpoint_is_tried_first(proxy: Ambassador, origin: Origin, other: Origin) -> None:
    for number in range(6):
        path = f"/pair/{number}"
        turn: Handler = in_turn(BUSY, OK)
        origin.on(path, turn)
        other.on(path, turn)
        assert fetch(proxy.url, path).status == 200
        assert [len(origin.seen[path]), len(other.seen[path])] == [1, 1]


@pytest.mark.parametrize("mark", ["attempts=2", 'details="limited"', 'details="breaker_open"'])
def test_answer_of_an_ambassador_that_retried_is_not_retried(
    proxy: Ambassador, origin: Origin, mark: str
) -> None:
    path = f"/standard/nested-{len(mark)}"
    origin.on(path, answer(b"", "503 No", f"Proxy-Status: inner; error=connection_refused; {mark}"))
    assert fetch(proxy.url, path).status == 503
    assert len(origin.seen[path]) == 1


def test_request_marked_as_a_retry_is_not_retried(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/standard/marked", BUSY)
    assert fetch(proxy.url, "/standard/marked", "x-ambassador-attempt: 2").status == 503
    assert len(origin.seen["/standard/marked"]) == 1


@pytest.mark.parametrize(("size", "attempts"), [(65536, 3), (65537, 1), (1_000_000, 1)])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_is_replayed_up_to_the_buffer(
    proxy: Ambassador, origin: Origin, size: int, attempts: int, chunked: bool
) -> None:
    path = f"/standard/body-{size}-{chunked}"
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    origin.on(path, BUSY)
    with Client(proxy.url) as client:
        if chunked:
            client.ask(path, "transfer-encoding: chunked", method="PUT")
            for at in range(0, size, 50_000):
                piece = body[at : at + 50_000]
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
        else:
            client.ask(path, method="PUT", body=body)
        assert client.answer().status == 503
    assert [request.body == body for request in origin.seen[path]] == [True] * attempts


def test_body_that_arrives_late_is_replayed_too(proxy: Ambassador, origin: Origin) -> None:
    def refuse_early(wire: Wire, request: Message) -> None:
        assert wire.exactly(3) == b"abc"
        wire.close()
        client.send(b"def")

    def take(wire: Wire, request: Message) -> None:
        wire.body_of(request, to_close=False)
        wire.send(OK)

    origin.on("/standard/late", in_turn(refuse_early, take), raw=True)
    with Client(proxy.url) as client:
        client.ask("/standard/late", "content-length: 6", method="PUT")
        client.send(b"abc")
        assert client.answer().body == b"ok"
    assert origin.seen["/standard/late"][1].body == b"abcdef"


def test_client_that_leaves_ends_the_retries(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/capped/gone", answer(b"", "503 Later", "Retry-After: 1"))
    with Client(proxy.url) as client:
        client.ask("/capped/gone", "x-request-id: gone")
        wait_until(lambda: bool(origin.seen["/capped/gone"]), "the first attempt")
        client.reset()
    wait_until(lambda: any(line["request_id"] == "gone" for line in proxy.log()), "the log line")
    assert len(origin.seen["/capped/gone"]) == 1


class Stale:
    """A connection that the upstream closes when the second request on it comes."""

    def __init__(self) -> None:
        self.connections: list[Wire] = []

    def __call__(self, wire: Wire, request: Message) -> None:
        if wire in self.connections:
            wire.close()
        else:
            self.connections.append(wire)
            wire.send(OK)


@pytest.mark.parametrize("route", ["one", "none"])
@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PUT", b"data")])
def test_connection_closed_while_idle_costs_no_attempt(
    proxy: Ambassador, origin: Origin, route: str, method: str, body: bytes | None
) -> None:
    path = f"/{route}/stale-{method}"
    origin.on(path, Stale())
    first = fetch(proxy.url, path, method=method, body=body)
    second = fetch(proxy.url, path, method=method, body=body)
    assert (first.status, second.status) == (200, 200)
    assert second.get("x-ambassador-attempts") == "1"
    assert [request.get("x-ambassador-attempt") for request in origin.seen[path]] == [None] * 3


def test_non_idempotent_request_is_not_repeated_on_a_stale_connection(
    proxy: Ambassador, origin: Origin
) -> None:
    origin.on("/one/stale-post", Stale())
    assert fetch(proxy.url, "/one/stale-post", method="POST", body=b"pay").status == 200
    assert fetch(proxy.url, "/one/stale-post", method="POST", body=b"pay").status == 502
    assert len(origin.seen["/one/stale-post"]) == 2


def test_close_seen_before_the_first_byte_is_never_met(proxy: Ambassador, origin: Origin) -> None:
    def answer_and_close(wire: Wire, request: Message) -> None:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # the FIN comes with the answer
        wire.send(OK)
        wire.close()

    origin.on("/one/closed", answer_and_close)
    for _ in range(10):
        assert fetch(proxy.url, "/one/closed", method="POST", body=b"pay").status == 200
    assert len(origin.seen["/one/closed"]) == 10
