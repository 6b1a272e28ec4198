"""Clients that leave: the upstream's attempt ends with them, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.origins import free_port
from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import DEADLINE_S, Client, Cut, Message, Origin, Wire, answer, black_hole, fetch, upstream

LISTEN = """
  - {{address: "127.0.0.1:{}"}}
  - {{address: "127.0.0.1:{}", half_close: cancel}}
"""


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
              hole: {{endpoints: ["{hole}"]}}
              hole-long: {{endpoints: ["{hole}"]}}
              one: {{endpoints: ["{origin.url}"], connections: {{max: 1}}}}
            routes:
              - {{name: hole, match: {{path: "/hole"}}, to: hole, timeout: {{connect: 300ms}}, retry: {{attempts: 0}}}}
              - {{name: hole-long, match: {{path: "/hole-long"}}, to: hole-long, timeout: {{connect: 50s, total: 55s}}}}
              - {{name: one, match: {{path: "/one/**"}}, to: one, timeout: 55s}}
              - {{name: later, match: {{path: "/later/**"}}, to: origin, retry: {{attempts: 1}}}}
              - {{name: all, to: origin}}
            """
        listen = LISTEN.format(free_port(), free_port())
        with ambassador(body, listen=listen) as running:
            yield running
            wait_until(lambda: not any(in_flight(running).values()), "the end of every attempt")


def in_flight(proxy: Ambassador) -> dict[str, int]:
    upstreams = json.loads(proxy.admin_get("/api/upstreams"))
    return {each["name"]: each["endpoints"][0]["inflight"] for each in upstreams}


def line_of(proxy: Ambassador, request_id: str) -> dict[str, object]:
    def found() -> dict[str, object] | None:
        lines = [line for line in proxy.log() if line["request_id"] == request_id]
        assert len(lines) <= 1
        return lines[0] if lines else None

    return wait_until(found, "the log line")


def hang(wire: Wire, request: Message) -> None:
    assert wire.is_ended()
    raise Cut("the other side left")


def leave(client: Client, how: str) -> None:
    if how == "reset":
        client.reset()
    elif how == "close":
        client.close()
    else:
        client.finish()


@pytest.mark.parametrize("how", ["reset", "half"])
def test_client_that_leaves_while_waiting_ends_the_attempt(
    proxy: Ambassador, origin: Origin, how: str
) -> None:
    path = f"/wait-{how}"
    origin.on(path, hang)
    with Client(proxy.urls[1 if how == "half" else 0]) as client:
        client.ask(path, f"x-request-id: wait-{how}")
        wait_until(lambda: bool(origin.seen[path]), "the attempt")
        leave(client, how)
        origin.wait_for_end(path)
        assert client.sock.fileno() < 0 or client.is_ended()
    line = line_of(proxy, f"wait-{how}")
    assert (line["status"], line["attempts"]) == (499, 1)


@pytest.mark.parametrize("how", ["reset", "half"])
def test_client_that_leaves_before_a_retry_ends_the_wait(proxy: Ambassador, origin: Origin, how: str) -> None:
    path = f"/later/{how}"
    origin.on(path, answer(b"", "503 Later", "Retry-After: 10"))
    with Client(proxy.urls[1 if how == "half" else 0]) as client:
        client.ask(path, f"x-request-id: later-{how}")
        wait_until(lambda: bool(origin.seen[path]), "the attempt")
        leave(client, how)
        line = line_of(proxy, f"later-{how}")
    assert line["status"] == 499
    assert float(str(line["duration_ms"])) < 9000
    assert len(origin.seen[path]) == 1


def test_half_close_after_a_whole_request_goes_on(proxy: Ambassador, origin: Origin) -> None:
    left = threading.Event()

    def later(wire: Wire, request: Message) -> None:
        left.wait(10)
        wire.send(answer(b"still here"))

    origin.on("/half", later)
    with Client(proxy.urls[0]) as client:
        client.ask("/half")
        client.ask("/next")
        wait_until(lambda: bool(origin.seen["/half"]), "the attempt")
        client.finish()
        left.set()
        assert client.answer().body == b"still here"
        assert client.answer().body == b"ok"
        assert client.is_ended()


def test_half_close_before_the_answer_is_written_goes_on(proxy: Ambassador, origin: Origin) -> None:
    large = b"a" * 4_000_000
    origin.on("/half-large", answer(large))
    with Client(proxy.urls[0]) as client:
        client.ask("/half-large")
        client.finish()
        assert client.answer().body == large


@pytest.mark.parametrize("listener", [0, 1])
@pytest.mark.parametrize("how", ["reset", "close", "half"])
@pytest.mark.parametrize(
    "framing", ["content-length: 10", "content-length: 1000000", "transfer-encoding: chunked"]
)
def test_client_that_leaves_inside_its_request_ends_the_attempt(
    proxy: Ambassador, origin: Origin, how: str, framing: str, listener: int
) -> None:
    path = f"/inside-{how}-{len(framing)}-{listener}"
    cut = threading.Event()

    def take(wire: Wire, request: Message) -> None:
        try:
            wire.body_of(request, to_close=False)
        except Cut:
            cut.set()
            raise

    origin.on(path, take, raw=True)
    with Client(proxy.urls[listener]) as client:
        client.ask(path, framing, method="POST")
        client.send("3\r\nabc\r\n")
        wait_until(lambda: bool(origin.seen[path]), "the attempt")
        leave(client, how)
        assert cut.wait(10)


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("framing", ["Content-Length: 90000000", "Transfer-Encoding: chunked", "X: close"])
def test_client_that_leaves_inside_its_answer_ends_the_attempt(
    proxy: Ambassador, origin: Origin, how: str, framing: str
) -> None:
    path = f"/answer-{how}-{framing[0]}"

    def pour(wire: Wire, request: Message) -> None:
        wire.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n")
        while True:
            wire.send(b"10000\r\n" + b"a" * 65_536 + b"\r\n")

    origin.on(path, pour)
    with Client(proxy.url) as client:
        client.ask(path, f"x-request-id: {path[1:]}")
        assert client.head().status == 200
        client.exactly(100_000)
        leave(client, how)
        origin.wait_for_end(path)
    line = line_of(proxy, path[1:])
    assert (line["status"], line["flags"]) == (200, ["client_gone"])


def test_client_that_leaves_a_silent_stream_ends_it(proxy: Ambassador, origin: Origin) -> None:
    def events(wire: Wire, request: Message) -> None:
        wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        hang(wire, request)

    origin.on("/events", events)
    with Client(proxy.url) as client:
        client.ask("/events")
        client.head()
        assert client.chunk() == b"data: 1\n\n"
        client.reset()
    origin.wait_for_end("/events")


@pytest.mark.parametrize("how", ["reset", "inside"])
@pytest.mark.parametrize("path", ["/hole-long", "/one"])
def test_client_that_leaves_while_it_waits_for_a_connection_is_let_go_at_once(
    proxy: Ambassador, origin: Origin, path: str, how: str
) -> None:
    """While connecting, and behind a connection that another request holds: both last longer than this test may."""
    name, held = path[1:], threading.Event()

    def hold(wire: Wire, request: Message) -> None:
        held.set()
        hang(wire, request)

    origin.on("/one", hold)
    with Client(proxy.url) as first, Client(proxy.url) as client:
        if path == "/one":
            first.ask("/one")
            assert held.wait(DEADLINE_S)
        before = in_flight(proxy)[name]
        if how == "inside":
            client.ask(path, f"x-request-id: {name}-{how}", "content-length: 10", method="POST")
            client.send("abc")
        else:
            client.ask(path, f"x-request-id: {name}-{how}")
        wait_until(lambda: in_flight(proxy)[name] == before + 1, "the attempt")
        leave(client, "reset" if how == "reset" else "half")
        line = line_of(proxy, f"{name}-{how}")
        assert (line["status"], line["flags"]) == (499, ["client_gone"])
        assert in_flight(proxy)[name] == before
        if path == "/one":
            first.reset()  # a close would leave the connection taken
            origin.wait_for_end("/one")


def test_half_close_goes_on_waiting_for_a_connection(proxy: Ambassador, origin: Origin) -> None:
    held, let_go = threading.Event(), threading.Event()

    def hold(wire: Wire, request: Message) -> None:
        held.set()
        assert let_go.wait(DEADLINE_S)
        wire.send(answer(b"let go"))

    origin.on("/one", hold)
    with Client(proxy.urls[0]) as first, Client(proxy.urls[0]) as client:
        first.ask("/one")
        assert held.wait(DEADLINE_S)
        client.ask("/one/next", method="POST", body=b"a" * 1000)
        wait_until(lambda: in_flight(proxy)["one"] == 2, "the second attempt")
        client.finish()
        let_go.set()
        assert first.answer().body == b"let go"
        assert client.answer().body == b"ok"
    assert origin.seen["/one/next"][0].body == b"a" * 1000


def test_failed_connections_leave_nothing(proxy: Ambassador) -> None:
    assert fetch(proxy.url, "/hole").status == 503
    assert in_flight(proxy)["hole"] == 0


def test_many_clients_that_leave_at_once(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/many", hang)
    clients = [Client(proxy.url) for _ in range(40)]
    for client in clients:
        client.ask("/many")
    wait_until(lambda: len(origin.seen["/many"]) == 40, "every attempt")
    for client in clients:
        client.reset()
    for _ in clients:
        origin.wait_for_end("/many")
    assert fetch(proxy.url, "/after").status == 200


IMPATIENT = """\
    telemetry: {{access_log: off}}
    upstreams:
      next: {{endpoints: ["{url}", "{url}"]}}
    routes:
      - {{name: hedged, match: {{path: "/hedged/**"}}, to: next, hedge: {{after: 100ms, max: 100%}}, retry: {retry}, timeout: 50s}}
      - {{name: short, match: {{path: "/short"}}, to: next, timeout: {{per_try: 300ms, total: 50s}}, retry: {retry}}}
      - {{name: all, to: next, retry: {retry}, timeout: 50s}}
    """
PATIENT = """\
    telemetry: {{access_log: off}}
    routes:
      - {{name: all, to: "{url}", retry: {retry}, timeout: 50s}}
    """
EAGER = (
    "{attempts: 3, when: [connect, reset, timeout, 5xx], backoff: 1ms..2ms, budget: {min_per_second: 100}}"
)


@pytest.fixture(scope="module")
def chain(origin: Origin) -> Iterator[Ambassador]:
    """Three ambassadors one behind another: the outermost gives attempts up, those behind it would wait for long."""
    with contextlib.ExitStack() as stack:
        url = origin.url
        for body in (PATIENT, PATIENT, IMPATIENT):
            text = body.format(url=url, retry=EAGER)
            outermost = stack.enter_context(ambassador(text, listen=TRUSTING))
            url = outermost.url
        yield outermost


TRUSTING = "{address: 127.0.0.1:0, trusted: [127.0.0.0/8]}"


def test_client_that_resets_ends_the_attempt_of_the_third_ambassador(
    chain: Ambassador, origin: Origin
) -> None:
    origin.on("/three", hang)
    with Client(chain.url) as client:
        client.ask("/three")
        wait_until(lambda: bool(origin.seen["/three"]), "the attempt")
        client.reset()
    origin.wait_for_end("/three")
    assert len(origin.seen["/three"]) == 1


def test_attempt_that_took_too_long_ends_at_the_third_ambassador(chain: Ambassador, origin: Origin) -> None:
    ended = threading.Event()

    def first_hangs(wire: Wire, request: Message) -> None:
        if len(origin.seen["/short"]) > 1:
            return wire.send(answer(b"second"))
        assert wire.is_ended()
        ended.set()
        wire.close()

    origin.on("/short", first_hangs)
    assert fetch(chain.url, "/short").body == b"second"
    assert ended.wait(DEADLINE_S)
    assert len(origin.seen["/short"]) == 2


def test_loser_of_a_race_ends_at_the_third_ambassador(chain: Ambassador, origin: Origin) -> None:
    ended = threading.Event()

    def first_hangs(wire: Wire, request: Message) -> None:
        if len(origin.seen["/hedged/slow"]) > 1:
            return wire.send(answer(b"second"))
        assert wire.is_ended()
        ended.set()
        wire.close()

    origin.on("/hedged/slow", first_hangs)
    for _ in range(2):  # which earn it
        assert fetch(chain.url, "/hedged/quick").status == 200
    assert fetch(chain.url, "/hedged/slow").body == b"second"
    assert ended.wait(DEADLINE_S)
    assert len(origin.seen["/hedged/slow"]) == 2
