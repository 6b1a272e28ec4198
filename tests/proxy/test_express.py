"""The short way and the long way of a request are the same: what both sides see, and what is counted.

`assert_same` plays a script both ways and compares. The scripts are of plain requests and of everything that makes a
request less plain than it began; at the end of each the clients are cancelled, wherever they are, and nothing may be
left behind.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import ambassador.proxy.express
import ambassador.proxy.http1
from ambassador.errors import Limited, ProxyError
from ambassador.messages import Reply, Request
from ambassador.proxy import jose
from ambassador.proxy.exchange import Exchange
from ambassador.proxy.http1 import ClientConnection
from ambassador.proxy.http1_requests import Limits
from ambassador.proxy.listener import ListenerLimits
from tests.proxy.clients import tokens
from tests.proxy.harness import GET, Origin, a_plane, config
from tests.proxy.odd_requests import ACCEPTED, HOSTILE, STREAMS, STRICTNESS
from tests.proxy.two_ways import (
    DATE,
    WALL_S,
    Setting,
    Step,
    World,
    answers,
    answers_if_asked,
    assert_same,
    at_once,
    cancelled,
    connects,
    drains,
    ends,
    leaves,
    passes,
    play,
    reloads,
    resets,
    sends,
    takes,
    upstream_ends,
    upstream_is_gone,
    upstream_is_told,
    upstream_resets,
    upstream_takes,
    upstream_vanishes,
)


def answer(
    body: bytes = b"ok", fields: bytes = b"", *, status: bytes = b"200 OK", date: bytes = DATE
) -> bytes:
    dated = b"Date: %b\r\n" % date if date else b""
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n%b\r\n%b" % (status, dated, len(body), fields, body)


URL = "http://10.0.0.1:81"
OK = answer()
NO = answer(status=b"503 No")
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd"
WARM = (sends(GET), answers(OK), sends(GET), answers(OK))
"""An idle connection and a remembered head."""

TRIES = {
    "retry": "{attempts: 2, when: [connect, reset, 503, timeout], backoff: 20ms..20ms}",
    "timeout": "{total: 15s, per_try: 4s}",
}
ONE = Setting(config(URL))
RETRIED = Setting(config(URL, **TRIES))
TWO = Setting(config(URL, "http://10.0.0.2:81", **TRIES))
CANCELS = Setting(config(URL), cancel_on_half_close=True)
DEBUG = "telemetry: {debug_headers: true}\n" + config("http://10.0.0.7:81")


def test_plain_requests_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else nothing here says anything."""
    learnt: list[bytes] = []
    real = ambassador.proxy.express._learn

    def learn(client: ClientConnection, head: bytes, size: int) -> object:
        learnt.append(head)
        return real(client, head, size)

    monkeypatch.setattr(ambassador.proxy.express, "_learn", learn)
    steps = [*WARM, sends(POST), answers(OK), *WARM, sends(POST, 1), answers(OK)]
    _, rides = play(ONE, steps)
    assert (rides.exchanges, rides.handed_over) == (1, 1)  # the first, which finds no idle connection
    assert learnt == [GET, POST[:-4]]
    _, rides = play(ONE, steps, short=False)
    assert (rides.exchanges, rides.handed_over) == (6, 0)


# What makes a request less plain

ONCE: dict[str, list[Step]] = {
    "idle connection has ended": [upstream_ends(0), sends(GET), answers(OK)],
    "early answer to a request that is blocked": [
        upstream_takes(5), sends(GET), answers(OK), upstream_takes(None), *WARM,
    ],
    "reset of a request that is blocked": [
        upstream_takes(5), sends(POST), upstream_resets(0), answers(OK), *WARM,
    ],
    "timeout of a request that is blocked": [upstream_takes(5), sends(POST), passes(15.1), *WARM],
    "client leaves a request that is blocked": [upstream_takes(5), sends(POST), leaves()],
    "cancelled with a request that is blocked": [upstream_takes(5), sends(POST), cancelled],
    "timeout and answer at once": [sends(GET), at_once(passes(15.1), answers(OK)), *WARM],
    "answer and the end at once": [sends(GET), at_once(answers(OK), upstream_ends()), *WARM],
    "answer and reset at once": [sends(GET), at_once(answers(OK), upstream_resets()), *WARM],
    "malformed answer": [sends(GET), answers(b"SSH-2.0\r\n\r\n"), *WARM],
    "a byte too many": [sends(GET), answers(OK + b"x"), *WARM],
    "a byte too many behind a new head": [sends(GET), answers(answer(b"new") + b"x"), *WARM],
    "an answer too many": [sends(GET), answers(OK + answer(b"poison")), *WARM],
    "an answer unasked": [answers(answer(b"poison"), 0), *WARM],
    "hint, then answer": [sends(GET), answers(HINT), answers(OK), *WARM],
    "hint with answer": [sends(GET), answers(HINT + OK), *WARM],
    "hint with half an answer": [sends(GET), answers(HINT + OK[:30]), answers(OK[30:]), *WARM],
    "hints without end": [sends(GET), answers(HINT * 17 + OK), *WARM],
    "hint to a request that is blocked": [
        upstream_takes(5), sends(GET), answers(HINT), answers(HINT + OK), *WARM,
    ],
    "drain while it waits": [sends(GET), drains, answers(OK)],
    "drain before": [drains, sends(GET), answers(OK)],
    "drain while the client is blocked": [
        takes(10), sends(GET), answers(OK), drains, takes(None), sends(GET), answers(OK),
    ],
    "reload between two requests": [reloads(config("http://10.0.0.7:81")), *WARM],
    "reload while it waits": [
        sends(GET), reloads(DEBUG), answers(b"HTTP/1.1 200 OK\r\n\r\nab"), upstream_ends(), *WARM,
    ],
    "reload while it waits, plain": [sends(GET), reloads(DEBUG), answers(OK), *WARM],
    "cancelled while idle": [cancelled],
    "cancelled while it waits": [sends(GET), cancelled],
    "cancelled as the answer comes": [sends(GET), at_once(cancelled, answers(OK))],
    "answer as it is cancelled": [sends(GET), at_once(answers(OK), cancelled)],
    "cancelled as the client leaves": [sends(GET), at_once(resets(), cancelled)],
    "cancelled as the time is over": [sends(GET), at_once(passes(15.1), cancelled)],
    "cancelled as a request comes": [at_once(sends(GET), cancelled)],
    "cancelled while the client is blocked": [takes(10), sends(GET), answers(OK), cancelled],
    "client takes its time": [takes(10), sends(GET), answers(OK), takes(5), takes(None), *WARM],
    "client asks again while it is blocked": [
        takes(10), sends(GET), answers(OK), sends(GET), takes(None), answers(OK), *WARM,
    ],
    "client takes nothing": [takes(10), sends(GET), answers(OK), passes(30.1)],
    "client that is blocked resets": [takes(10), sends(GET), answers(OK), resets()],
    "client that is blocked leaves": [takes(10), sends(GET), answers(OK), leaves()],
    "client is idle": [passes(76), *WARM],
    "upstream is idle": [passes(31), *WARM],
    "client leaves": [leaves()],
    "client resets": [resets()],
    "client ends": [ends()],
    "health": [
        *[sends(GET.replace(b"/", b"/.well-known/ambassador/health" + end, 1)) for end in (b"", b"?", b"/", b"?a")],
        answers(OK), answers(OK),
    ],
}  # fmt: skip
SCENES: dict[str, tuple[Setting, list[Step]]] = {name: (ONE, steps) for name, steps in ONCE.items()}
for _name, _setting in (("one", ONE), ("retried", RETRIED), ("two", TWO)):
    for _method, _request in (("GET", GET), ("POST", POST), ("PUT", POST.replace(b"POST", b"PUT"))):
        _again = (answers_if_asked(OK), passes(0.1), answers_if_asked(OK), *WARM)
        SCENES |= {
            f"{_name} {_method}: {name}": (_setting, [*steps, *_again])
            for name, steps in {
                "timeout": [sends(_request), passes(4.1), passes(0.1), passes(4.1), answers(OK), passes(11)],
                "503": [sends(_request), answers(NO), passes(0.1)],
                "503, later": [
                    sends(_request), answers(answer(fields=b"Retry-After: 1\r\n", status=b"503 No")), passes(0.1), passes(2),
                ],
                "503, no more": [
                    sends(_request),
                    answers(answer(fields=b"Proxy-Status: x; error=a; attempts=2\r\n", status=b"503 No")),
                ],
                "malformed": [sends(_request), answers(b"SSH-2.0\r\n\r\n")],
                "reset": [sends(_request), upstream_resets()],
                "end": [sends(_request), upstream_ends()],
                "reset with the request": [at_once(sends(_request), upstream_resets(0))],
                "reset before the request": [at_once(upstream_resets(0), sends(_request))],
                "reset by the request": [upstream_is_gone(0), sends(_request)],
                "reset unseen": [upstream_vanishes(0), sends(_request), upstream_is_told(0)],
                "reset unseen for long": [
                    upstream_vanishes(0), sends(_request), passes(4.1), passes(0.1), *_again, passes(4.1), passes(0.1),
                    *_again, passes(11),
                ],
                "reset, then the next as well": [sends(_request), upstream_resets(), upstream_resets(), passes(0.1)],
            }.items()
        }  # fmt: skip
for _name, _setting in (("continue", ONE), ("cancel", CANCELS)):
    SCENES |= {
        f"{_name}: client {name}": (_setting, [*steps, answers(OK)])
        for name, steps in {
            "ends": [sends(GET), ends()],
            "ends with the request": [at_once(sends(GET), ends())],
            "ends with two requests": [at_once(sends(GET * 2), ends()), answers(OK)],
            "ends as the answer comes": [sends(GET), at_once(ends(), answers(OK))],
            "leaves": [sends(GET), leaves()],
            "leaves with the request": [at_once(sends(GET), leaves())],
            "resets": [sends(GET), resets()],
            "resets with the request": [at_once(sends(GET), resets())],
            "resets as the answer comes": [sends(GET), at_once(resets(), answers(OK))],
        }.items()
    }
INSTEAD = "{respond: {status: 200, body: sorry}}"
SCENES |= {
    f"fallback, {_name}: {name}": (_setting, [*WARM, *steps, answers_if_asked(OK), passes(0.1), *WARM])
    for _name, _setting in (
        ("one", Setting(config(URL, fallback=INSTEAD))),
        ("retried", Setting(config(URL, fallback=INSTEAD, **TRIES))),
    )
    for name, steps in {
        "503": [
            sends(GET),
            answers(NO),
            passes(0.1),
            answers_if_asked(NO),
            passes(0.1),
            answers_if_asked(NO),
        ],
        "500": [sends(POST), answers(answer(status=b"500 No"))],
        "404": [sends(GET), answers(answer(status=b"404 No"))],
        "reset": [sends(GET), upstream_resets()],
        "timeout": [sends(GET), passes(15.1)],
        "client leaves": [sends(GET), answers(NO), leaves()],
    }.items()
}


@pytest.mark.parametrize("name", SCENES)
def test_hand_over(name: str) -> None:
    setting, steps = SCENES[name]
    assert_same(setting, *WARM, *steps)


def test_drain_closes_after_the_answer_that_was_under_way() -> None:
    seen = assert_same(ONE, *WARM, *ONCE["drain while it waits"])
    assert b"connection: close\r\n" in seen.bytes_of("client 0")
    assert seen.of("client 0")[-1] == "FIN"


def test_stale_connection_is_replaced_once_and_not_counted_as_an_attempt() -> None:
    seen = assert_same(ONE, *WARM, sends(GET), upstream_ends(), answers(OK))
    assert seen.bytes_of("upstream 1").startswith(b"GET / ")
    assert (seen.attempts, seen.retries, seen.lines[-1]["attempts"]) == (["200"] * 3, [], 1)
    seen = assert_same(ONE, *WARM, sends(POST), upstream_ends())
    # Some of it was written, and the upstream may have acted on it.
    assert seen.lines[-1]["code"] == "upstream_reset"
    seen = assert_same(ONE, *WARM, upstream_vanishes(0), sends(POST), upstream_is_told(0), answers(OK))
    assert seen.bytes_of("upstream 1").startswith(b"POST /p ")  # nothing was


def test_hints_are_passed_on_when_they_come() -> None:
    seen, _ = play(ONE, [*WARM, sends(GET), answers(HINT)])
    assert ("client 0", HINT) in seen.steps[5]


def test_endpoint_that_was_picked_is_asked_though_it_has_no_idle_connection() -> None:
    """Else one with connections would get more than its share."""
    seen = assert_same(TWO, *([sends(GET), answers(OK)] * 8))
    assert {line["endpoint"] for line in seen.lines} == {URL, "http://10.0.0.2:81"}


@pytest.mark.parametrize("taken", [0, 1, 10, 220, 290])
@pytest.mark.parametrize("request_", [GET, POST])
@pytest.mark.parametrize("then", [(upstream_takes(3), upstream_takes(None)), (upstream_takes(None),)])
def test_partial_write_upstream(taken: int, request_: bytes, then: tuple[Step, ...]) -> None:
    seen = assert_same(ONE, *WARM, upstream_takes(taken), sends(request_), *then, answers(OK), *WARM)
    assert seen.settlements == [2] * 5


@pytest.mark.parametrize("at", range(1, len(OK)))
def test_answer_in_two_reads(at: int) -> None:
    seen = assert_same(ONE, *WARM, sends(GET), answers(OK[:at]), answers(OK[at:]), *WARM)
    assert seen.bytes_of("upstream 0").count(b"GET ") == 5


@pytest.mark.parametrize("size", [0, 8191, 8192, 65536, 130_991, 130_992, 130_993, 200_000])
def test_answers_of_every_size(size: int) -> None:
    """With 130,992 bytes its read is full to the last byte, and that does not say whether more is there."""
    seen = assert_same(ONE, *WARM, *([sends(GET), answers(answer(b"x" * size))] * 2), *WARM)
    assert seen.settlements == [2] * 6
    assert seen.of("upstream 0").count("FIN") == 1  # at the end of the test


# What policies say


class LimitStub:
    """What answers say of a route's limits."""

    take: Callable[[], bool] | None = None

    def answer_fields(self, request: Request) -> list[tuple[bytes, bytes]]:
        return [(b"ratelimit", request.path)]

    def answer_lines(self, request: Request) -> bytes:
        return b"ratelimit: %b\r\n" % request.path


async def _in_a_while(request: Request, then: Reply | ProxyError | None) -> Reply | None:
    assert request.waiter is not None
    await request.waiter.rest(1.0)
    if isinstance(then, ProxyError):
        raise then
    return then


def _verdicts(request: Request) -> Reply | Awaitable[Reply | None] | None:
    """What the path asks for, with its body and its client."""
    kind = request.path.decode()
    if "limited" in kind:
        refused = Limited(retry_after_s=2.0)
        if "slow" in kind:
            return _in_a_while(request, refused)
        raise refused
    reply = Reply(200, [(b"x-ip", request.client_ip.encode())], b"-".join(request.body))
    if "slow" in kind:
        return _in_a_while(request, reply if "reply" in kind else None)
    return reply if "reply" in kind else None


def _with_policies(world: World) -> None:
    plan = world.plane.service.table.locate(Request("GET", b"/", [], 1, authority=b"a"))
    plan.limit = LimitStub()  # type: ignore[assignment]
    plan.admit = (_verdicts,)


def _charged(world: World) -> None:
    for upstream in world.plane.service.table.upstreams.values():
        upstream.charge = _verdicts  # type: ignore[assignment]


@pytest.mark.parametrize("prepare", [_with_policies, _charged])
@pytest.mark.parametrize("retry", [None, TRIES])
@pytest.mark.parametrize("path", ["limited", "slow", "slow-limited", "reply", "slow-reply", "free"])
def test_policies_say_the_same_either_way(prepare: object, retry: dict[str, str] | None, path: str) -> None:
    if prepare is _charged and "reply" in path:
        path = "free"
    setting = Setting(config(URL, **retry or {}), prepare=prepare)  # type: ignore[arg-type]
    get = GET.replace(b"/", b"/%b" % path.encode(), 1)
    post = POST.replace(b"/p", b"/%b" % path.encode())
    for request in (get, post):
        assert_same(
            setting, *WARM, sends(request), passes(0.5), passes(0.6), answers(NO), passes(0.1), passes(1.1),
            answers(OK), sends(request), passes(0.5), at_once(ends(), passes(0.6)), answers(OK),
        )  # fmt: skip
        assert_same(setting, *WARM, sends(request), passes(0.5), resets())
        assert_same(setting, *WARM, sends(request), passes(0.5), upstream_ends(0), passes(0.6), answers(OK))
        assert_same(setting, *WARM, sends(request), passes(0.5), cancelled)


@pytest.mark.parametrize("tokens", range(6))
def test_limit_that_needs_no_look_at_a_request_is_charged_once_for_each(tokens: int) -> None:
    left: list[int] = []

    def prepare(world: World) -> None:
        at = len(left)
        left.append(tokens)

        def take() -> bool:
            left[at] -= 1
            return left[at] >= 0

        def hook(_: Request) -> None:
            if not take():
                raise Limited(retry_after_s=2.0)

        plan = world.plane.service.table.locate(Request("GET", b"/", [], 1, authority=b"a"))
        limit = LimitStub()
        limit.take = take
        plan.limit = limit  # type: ignore[assignment]
        plan.admit = (hook,)

    setting = Setting(config(URL), prepare=prepare)
    seen = assert_same(
        setting, *([sends(GET), answers(OK)] * 2), upstream_ends(0), sends(POST), answers(OK), *WARM
    )
    assert seen.settlements == [2] * min(tokens, 5) + [4] * max(0, 5 - tokens)
    # A refusal looks twice where the first look was without the request.
    assert max(left) == tokens - 5


@pytest.mark.parametrize("short", [True, False])
def test_defect_of_a_policy_costs_one_client_and_nothing_else(short: bool) -> None:
    def broken(request: Request) -> None:
        raise LookupError

    def prepare(world: World) -> None:
        (upstream,) = world.plane.service.table.upstreams.values()
        upstream.charge = broken

    def mend(world: World) -> None:
        (upstream,) = world.plane.service.table.upstreams.values()
        upstream.charge = None

    breaks, mended = Step("breaks", prepare), Step("mended", mend)
    seen, _ = play(ONE, [*WARM, breaks, sends(GET), mended, sends(GET, 1), answers(OK)], short=short)
    assert seen.of("client 0")[-1] == "FIN"
    assert seen.bytes_of("client 1").startswith(b"HTTP/1.1 200 ")
    assert seen.of("upstream 0").count("FIN") == 1  # at the end: its connection was used again


# What policies hold for a request


class Permits:
    """A policy that holds something for each request until its end."""

    def __init__(self) -> None:
        self.out = 0
        self.ends: list[tuple[int, float]] = []

    def admit(self, request: Request) -> None:
        self.out += 1
        request.at_end(self.give_back)
        request.at_end(lambda status, seconds: None)

    def give_back(self, status: int, seconds: float) -> None:
        self.ends.append((status, round(seconds, 2)))


def _held(then: object, *steps: Step) -> list[tuple[int, float]]:
    """What the policy is told of each request of a script, played both ways; `then` is the hook behind it."""
    told: list[list[tuple[int, float]]] = []

    def prepare(world: World) -> None:
        permits = Permits()
        _with_policies(world)
        plan = world.plane.service.table.locate(Request("GET", b"/", [], 1, authority=b"a"))
        plan.admit = (permits.admit, then)  # type: ignore[assignment]
        told.append(permits.ends)
        world.permits = permits  # type: ignore[attr-defined]

    def check(world: World) -> None:
        assert world.permits.out == len(world.permits.ends)  # type: ignore[attr-defined]

    assert_same(Setting(config(URL, **TRIES), prepare=prepare), *steps, Step("check", check))
    assert told[0] == told[1]
    return told[0]


def _path(text: bytes, request: bytes = GET) -> bytes:
    return request.replace(b"/", text, 1)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([sends(GET), answers(OK)], (200, 0.0)),
        ([sends(GET), passes(1), answers(OK[:-1]), passes(1), answers(OK[-1:])], (200, 2.0)),
        ([sends(GET), answers(NO), passes(0.1), answers(OK)], (200, 0.1)),
        ([sends(GET), resets()], (0, 0.0)),
        ([sends(GET), passes(4.1), passes(0.1), passes(4.1), passes(0.1), passes(4.1)], (504, 12.5)),
        ([sends(GET), *[upstream_resets(), passes(0.1)] * 4], (502, 0.3)),
        ([takes(10), sends(GET), answers(OK), passes(1), takes(None)], (200, 1.0)),
        ([takes(10), sends(GET), answers(OK), passes(1), resets()], (200, 1.0)),
        ([sends(GET), answers(answer(b"abc")[:-1]), upstream_ends()], (200, 0.0)),
        ([sends(_path(b"/limited"))], (429, 0.0)),
        ([sends(_path(b"/reply"))], (200, 0.0)),
        ([sends(_path(b"/slow-limited")), passes(1.1)], (429, 1.1)),
        ([sends(_path(b"/slow-reply")), passes(1.1)], (200, 1.1)),
        ([sends(_path(b"/slow")), passes(0.5), resets()], (0, 0.5)),
        ([sends(_path(b"/slow")), passes(1.1), answers(OK)], (200, 1.1)),
        ([sends(GET), drains, answers(OK)], (200, 0.0)),
    ],
)  # fmt: skip
def test_what_a_policy_holds_is_given_back_once(steps: list[Step], told: tuple[int, float]) -> None:
    assert _held(_verdicts, *WARM, *steps)[2:] == [told]


def test_what_a_policy_holds_is_given_back_when_the_worker_ends() -> None:
    for steps in ([sends(GET)], [sends(_path(b"/slow"))], [takes(10), sends(GET), answers(OK)]):
        assert len(_held(_verdicts, *WARM, *steps, cancelled)) == 3


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("place", ["admit", "charge"])
def test_what_a_policy_holds_is_given_back_after_a_defect(short: bool, place: str) -> None:
    permits = Permits()

    def broken(*_: object) -> None:
        raise LookupError

    def prepare(world: World) -> None:
        plan = world.plane.service.table.locate(Request("GET", b"/", [], 1, authority=b"a"))
        assert plan.upstream is not None
        plan.admit = (permits.admit,)
        if place == "admit":
            plan.admit = (permits.admit, broken)
        else:
            plan.upstream.charge = broken

    play(ONE, [*WARM, Step("breaks", prepare), sends(GET)], short=short)
    assert (permits.out, len(permits.ends)) == (1, 1)


# Ids of the client's


PARENT = b"00-%b-%b-01" % (b"a" * 32, b"b" * 16)


@pytest.mark.parametrize(
    "fields",
    [
        b"X-Request-Id: mine",
        b"X-Request-Id: ",
        b"X-Request-Id: two words",
        b"X-Request-Id: a\r\nX-Request-Id: b",
        b"X-Request-Id: " + b"a" * 128,
        b"X-Request-Id: " + b"a" * 129,
        b"X-Request-Id: caf\xe9",
        b'X-Request-Id: quote"back\\slash',
        b"x_request_id: mine",
        b"Traceparent: " + PARENT,
        b"Traceparent: " + PARENT.upper(),
        b"Traceparent: " + PARENT[:-1],
        b"Traceparent: " + PARENT + b"-x",
        b"Traceparent: 01" + PARENT[2:] + b"-x",
        b"Traceparent: ff" + PARENT[2:],
        b"Traceparent: 00-%b-%b-01" % (b"0" * 32, b"b" * 16),
        b"Traceparent: " + PARENT + b"\r\nTraceparent: " + PARENT,
        b"Traceparent: " + PARENT + b"\r\nTracestate: a=1,b=2\r\nTracestate: c=3",
        b"Traceparent: " + PARENT + b"\r\nTracestate: a=1,a=2",
        b"Traceparent: " + PARENT + b"\r\nTracestate: ",
        b"Tracestate: a=1",
        b"Traceparent: x\r\nTracestate: a=1",
        b"X-Request-Id: mine\r\nTraceparent: " + PARENT,
        b"Connection: x-request-id, traceparent\r\nX-Request-Id: mine\r\nTraceparent: " + PARENT,
    ],
)  # fmt: skip
def test_ids_of_the_client_are_kept_or_replaced_either_way(fields: bytes) -> None:
    request = GET[:-2] + fields + b"\r\n\r\n"
    setting = Setting(config(URL, **TRIES))
    seen = assert_same(
        setting, *WARM, *([sends(request), answers(OK)] * 2), sends(request), answers(NO), passes(0.1), answers(OK)
    )  # fmt: skip
    assert seen.settlements == [2] * 5
    _, rides = play(ONE, [*WARM, sends(request), answers(OK)])
    assert rides.exchanges == 1


# Heads that look like one that is remembered

EXTRAS = {
    "next": GET,
    "half a next": GET[:20],
    "byte": b"x",
    "space": b" ",
    "cr": b"\r",
    "lf": b"\n",
    "crlf": b"\r\n",
    "nul": b"\0",
    "garbage": b"garbage\r\n\r\n",
    "chunk": b"0\r\n\r\n",
    "upgrade": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "hidden": b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
}
KNOWN = {
    "get": GET,
    "post": POST,
    "post of nothing": POST.replace(b": 4", b": 0")[:-4],
    "post of a request": b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(GET) + GET,
    "get with a body": GET[:-2] + b"Content-Length: 2\r\n\r\n\r\n",
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("known", KNOWN)
def test_what_follows_a_remembered_head_is_not_taken_for_it(known: str, extra: str) -> None:
    """Behind it, before it, and cut off from it, on the connection that is remembered and on another."""
    request, more = KNOWN[known], EXTRAS[extra]
    learn = (sends(request), answers(OK)) * 2
    finish = (answers(OK), answers(OK), sends(GET), answers(OK))
    for client in (0, 1):
        assert_same(ONE, *learn, sends(request + more, client), *finish)
        assert_same(ONE, *learn, sends(more + request, client), *finish)
        assert_same(ONE, *learn, sends(more, client), sends(request, client), *finish)
        assert_same(ONE, *learn, sends(request, client), sends(more, client), *finish)
        assert_same(ONE, *learn, sends(request + more, client), sends(request, client), *finish)
        assert_same(ONE, *learn, sends(request + request + more, client), *finish)


@pytest.mark.parametrize("known", KNOWN)
def test_remembered_head_with_another_body(known: str) -> None:
    request = KNOWN[known]
    learn = (sends(request), answers(OK)) * 2
    for cut in range(1, min(len(request), 8)):
        assert_same(ONE, *learn, sends(request[:-cut]), sends(request[-cut:]), answers(OK), *learn)
        assert_same(ONE, *learn, sends(request[:-cut]), sends(request), answers(OK), answers(OK))
        assert_same(ONE, *learn, sends(request[:-cut]), ends(), answers(OK))
        assert_same(ONE, *learn, sends(request[:-cut]), passes(31.0), sends(GET), answers(OK))


def test_remembered_head_inside_a_body() -> None:
    """Each piece is, to the byte, a request that is remembered; nothing but the first is one."""
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    seen = assert_same(
        ONE, *WARM, sends(chunked), sends(b"%x\r\n" % len(GET)), sends(GET), sends(b"\r\n0\r\n\r\n"), answers(OK), *WARM
    )  # fmt: skip
    assert len(seen.settlements) == 5
    seen = assert_same(
        ONE, *WARM, sends(chunked + b"%x\r\n" % (2 * len(GET))), sends(GET), sends(GET), sends(b"\r\n0\r\nX: "), sends(GET),
        sends(b"\r\n"), answers(OK), *WARM,
    )  # fmt: skip
    sized = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (3 * len(GET))
    seen = assert_same(ONE, *WARM, sends(sized), sends(GET), sends(GET), sends(GET), answers(OK), *WARM)
    assert len(seen.settlements) == 5
    large = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (70_000 + 2 * len(GET))
    seen = assert_same(
        ONE, *WARM, sends(large + b"x" * 70_000), sends(GET), sends(GET), answers(OK), *WARM
    )  # past the parser
    assert len(seen.settlements) == 5
    expecting = sized.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    seen = assert_same(ONE, *WARM, sends(expecting), sends(GET), sends(GET), sends(GET), answers(OK), *WARM)
    assert len(seen.settlements) == 5
    upgrade = sized.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
    seen = assert_same(ONE, *WARM, sends(upgrade), sends(GET), sends(GET), sends(GET), answers(OK), *WARM)
    assert len(seen.settlements) == 5
    early = assert_same(ONE, *WARM, sends(sized), answers(OK), sends(GET), sends(GET), sends(GET), *WARM)
    assert len(early.settlements) == 5


def test_remembered_head_after_a_head_that_is_not_complete() -> None:
    for cut in range(1, len(GET)):
        assert_same(ONE, *WARM, sends(GET[:cut]), sends(GET), answers(OK), sends(GET), answers(OK))
        assert_same(ONE, *WARM, sends(GET[:cut]), sends(GET[cut:]), answers(OK), sends(GET), answers(OK))
        assert_same(ONE, *WARM, sends(GET[:cut]), ends(), passes(11.0))


ODD = [
    *HOSTILE.values(),
    *(data for data, _ in ACCEPTED.values()),
    *(data for data, _ in STRICTNESS.values()),
]


@pytest.mark.parametrize("data", ODD)
def test_odd_requests_are_the_same_before_between_and_behind_plain_ones(data: bytes) -> None:
    assert_same(ONE, *WARM, sends(data), answers(OK), sends(GET), answers(OK), passes(11.0))
    assert_same(
        ONE, *WARM, sends(data + GET), answers(OK), answers(OK), answers(OK), sends(data), answers(OK)
    )
    assert_same(
        ONE, *WARM, sends(GET + data), answers(OK), answers(OK), answers(OK), sends(data), answers(OK)
    )
    assert_same(ONE, *WARM, sends(data[:-1]), sends(data[-1:]), answers(OK), sends(GET), answers(OK))


def _limits(limits: Limits) -> Step:
    """What a reload does to the listener."""

    def act(world: World) -> None:
        world.plane.listener.configure(
            limits=world.setting.limits, head_limits=limits, trusted=(), cancel_on_half_close=False
        )

    return Step(f"limits({limits})", act)


@pytest.mark.parametrize(
    ("limits", "request_", "status"),
    [
        (Limits(uri=8), GET.replace(b"/", b"/longer-than-that", 1), 414),
        (Limits(headers=2), GET[:-2] + b"A: b\r\nC: d\r\n\r\n", 431),
        (Limits(header_bytes=64), GET[:-2] + b"A: " + b"b" * 64 + b"\r\n\r\n", 431),
        (Limits(body=3), POST, 413),
    ],
)
def test_head_remembered_under_other_limits(limits: Limits, request_: bytes, status: int) -> None:
    """A connection keeps the limits that it began with; what it remembers is nothing to those with others."""
    learn = (sends(request_), answers(OK)) * 3
    seen = assert_same(
        ONE, *learn, _limits(limits), *learn, sends(request_, 1), answers(OK), *learn, sends(request_, 2), answers(OK)
    )  # fmt: skip
    assert [line["status"] for line in seen.lines] == [200] * 6 + [status] + [200] * 3 + [status]


def test_block_of_fields_remembered_with_a_short_target_says_nothing_of_a_long_one() -> None:
    long = GET.replace(b"/", b"/" + b"a" * 100, 1)
    seen = assert_same(ONE, _limits(Limits(header_bytes=64)), *WARM, sends(long), answers(OK))
    assert seen.lines[-1]["status"] == 431


def test_head_is_remembered_for_its_table_only() -> None:
    elsewhere = config("http://10.0.0.7:81")
    seen = assert_same(ONE, *WARM, reloads(elsewhere), *WARM, reloads(), *WARM)
    assert [line["endpoint"] for line in seen.lines] == [
        URL,
        URL,
        "http://10.0.0.7:81",
        "http://10.0.0.7:81",
        URL,
        URL,
    ]
    gone = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, respond: 204}]"
    seen = assert_same(ONE, *WARM, reloads(gone), *WARM, reloads(DEBUG), *WARM)
    assert [line["status"] for line in seen.lines] == [200, 200, 204, 204, 200, 200]


def test_table_that_was_replaced_is_not_kept_alive_by_heads() -> None:
    tables: list[set[object]] = []

    def look(world: World) -> None:
        tables.append({known.table for known in world.plane.listener.known_heads.values()})
        assert tables[-1] <= {world.plane.service.table}

    other = (sends(GET.replace(b"/", b"/other", 1)), answers(OK))
    play(
        ONE,
        [*WARM, *other, Step("look", look), reloads(), *WARM, Step("look", look), *other, Step("look", look)],
    )
    assert [len(each) for each in tables] == [1, 1, 1]


def test_head_is_remembered_with_all_that_a_route_may_go_by() -> None:
    choosy = (
        "version: 1\nlisten: 127.0.0.1:80\nroutes:\n"
        "- {name: q, match: {query: {a: b}}, to: 'http://10.0.0.2:81'}\n"
        "- {name: h, match: {headers: {x-to: h}}, to: 'http://10.0.0.3:81'}\n"
        f"- {{name: r, to: '{URL}'}}"
    )
    by_query, by_header = GET.replace(b"/", b"/?a=b", 1), GET[:-2] + b"X-To: h\r\n\r\n"
    steps = [step for request in (GET, by_query, by_header) for step in (sends(request), answers(OK))]
    seen = assert_same(Setting(choosy), *steps, *steps, *steps)
    assert [line["route"] for line in seen.lines] == ["r", "q", "h"] * 3


AUTHED = (
    "version: 1\nlisten: 127.0.0.1:80\nupstreams:\n"
    f"  u: {{endpoints: ['{URL}'], auth: {{allow_plaintext: true, KIND}}}}\n"
    "routes: [{name: r, to: u}]"
)


@pytest.mark.parametrize(
    "kind",
    ["bearer: env:KEY", "basic: {user: a, password: env:KEY}", "header: {name: X-Key, value: env:KEY}"],
)
def test_credential_is_put_in_both_ways(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("KEY", "k3y")
    setting = Setting(AUTHED.replace("KIND", kind))
    fields = (b"", b"Authorization: theirs\r\n", b"A: b\r\nX_KEY: theirs\r\nx-key: theirs\r\nC: d\r\n")
    requests = [GET[:-2] + field + b"\r\n" for field in fields] + [POST]
    steps = [step for request in requests for _ in range(2) for step in (sends(request), answers(OK))]
    assert_same(setting, *WARM, *steps, passes(1.0), *steps)
    _, rides = play(setting, [*WARM, *steps])
    assert (rides.exchanges, rides.handed_over) == (1, 1)


def test_credential_that_is_not_there_is_missed_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEY", raising=False)
    setting = Setting(AUTHED.replace("KIND", "bearer: env:KEY"))
    seen = assert_same(setting, sends(GET), sends(GET), passes(1.0), sends(POST))
    assert [line["code"] for line in seen.lines] == ["credential_unavailable"] * 3


CALLERS = (
    "version: 1\nlisten: 127.0.0.1:80\n"
    "clients:\n  a: {api_key: 'env:CALLER_A'}\n  b: {api_key: {header: x-b, keys: 'env:CALLER_B'}, forward: true}\n"
    f"  t: {{jwt: {{issuer: '{tokens.ISSUER}', jwks: 'https://id.test/jwks'}}}}\n  n: {{network: [127.0.0.9]}}\n"
    "routes:\n"
    f"- {{name: some, match: {{path: /s}}, to: '{URL}', access: [a, t]}}\n"
    f"- {{name: mine, match: {{client: b}}, to: '{URL}', limit: {{rate: 1/h, burst: 1, per: client}}}}\n"
    f"- {{name: r, to: '{URL}'}}"
)
PROOFS = (
    b"", b"X-Api-Key: one\r\n", b"X-Api-Key: guess\r\n", b"X-B: two\r\n", b"x-api-key: one\r\nX-B: two\r\n",
    b"X-Api-Key: one\r\nx-api-key: one\r\n", b"Authorization: Bearer x.y.z\r\n", b"X-Api-Key: one\r\nA: b\r\n",
    b"Authorization: Basic YTpi\r\nX-Api-Key: one\r\n",
)  # fmt: skip


def feed_keys(world: World) -> None:
    for key_set in world._lasting.key_sets:
        key_set.begin()
        key_set.feed(jose.read_keys(tokens.jwks()))


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("CALLER_A", "one")
    monkeypatch.setenv("CALLER_B", "two")
    return Setting(CALLERS, prepare=feed_keys)


@pytest.mark.parametrize("path", [b"/s", b"/"])
def test_clients_are_the_same_both_ways(callers: Setting, path: bytes) -> None:
    requests = [GET.replace(b"/", path, 1)[:-2] + proof + b"\r\n" for proof in PROOFS]
    steps = [step for request in requests for _ in range(2) for step in (sends(request), answers(OK))]
    seen = assert_same(callers, *WARM, *steps, *reversed(steps[::2]), *steps)
    assert {line["client"] for line in seen.lines} == {"a", "b", "n", None}


def test_plain_requests_of_known_clients_take_the_short_way(callers: Setting) -> None:
    key = GET.replace(b"/", b"/s", 1)[:-2] + b"X-Api-Key: one\r\n\r\n"
    token = key.replace(b"X-Api-Key: one", b"Authorization: Bearer " + tokens.sign(WALL_S))
    steps = [step for _ in range(3) for request in (key, token) for step in (sends(request), answers(OK))]
    seen, rides = play(callers, steps)
    assert (rides.exchanges, rides.handed_over) == (1, 1)
    assert [line["client"] for line in seen.lines] == ["a", "t"] * 3


def test_token_that_ends_is_noticed_on_a_remembered_head(callers: Setting) -> None:
    token = tokens.sign(WALL_S, exp=int(WALL_S) + 40)
    request = GET.replace(b"/", b"/s", 1)[:-2] + b"Authorization: Bearer %b\r\n\r\n" % token
    twice = (sends(request), answers(OK)) * 2
    seen = assert_same(callers, *twice, passes(60.0), *twice, passes(45.0), *twice)
    assert [(line["client"], line["status"]) for line in seen.lines] == [
        ("t", 200), ("t", 200), ("t", 200), ("t", 200), ("n", 403), ("n", 403),
    ]  # fmt: skip


def test_memory_of_heads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ambassador.proxy.express, "_REMEMBERED", 16)
    sizes: list[int] = []
    held: list[int] = []

    def look(world: World) -> None:
        known = world.plane.listener.known_heads
        sizes.append(len(known))
        held.append(max(len(head) + sum(map(len, each.request.body)) for head, each in known.items()))

    body = b"y" * 10_000
    looked = Step("look", look)
    steps: list[Step] = [*WARM]
    for number in range(40):
        head = b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX: %d\r\n\r\n" % (
            number,
            len(body),
            number,
        )
        steps += [at_once(sends(head + body), looked), answers(OK)]
    long = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"
    for size in (1900, 2100, 3000):
        steps += [sends(long % (b"z" * size)), answers(OK), looked]
    for number in range(5):
        steps += [sends(GET.replace(b"/", b"/?%d" % number, 1)), answers(OK), looked]
        steps += [sends(GET[:-2] + b"X-Request-Id: %d\r\n\r\n" % number), answers(OK), looked]
    seen, rides = play(ONE, steps)
    assert len(seen.lines) == 55
    assert rides.exchanges == 3  # the first, and the heads that are too long
    assert max(sizes) == 16
    assert sizes[-11:] == sizes[-11:-10] * 11
    assert max(held) < 2048  # no body is held, and no long head


# All of it, at random

TABLE = """
version: 1
listen: 127.0.0.1:80
telemetry: {debug_headers: %s}
upstreams:
  one: {endpoints: ['http://10.0.0.1:81']}
  two: {endpoints: ['http://10.0.0.2:81', {url: 'http://10.0.0.3:81', weight: 3}]}
  few: {endpoints: ['http://10.0.0.4:81'], connections: {max: 1, max_pending: 1}}
  none: {endpoints: ['http://10.0.0.9:81']}
  frail: {endpoints: ['http://10.0.0.5:81'], breaker: {min_requests: 3, consecutive: 2, open_for: 5s}}
  frails: {endpoints: ['http://10.0.0.5:81', 'http://10.0.0.6:81'], breaker: {scope: endpoint, consecutive: 2, open_for: 5s}}
  paid: {endpoints: ['http://10.0.0.1:81'], limit: {rate: 4/s, burst: 10}}
  tired: {endpoints: ['http://10.0.0.1:81', 'http://10.0.0.2:81'], cooldown: {scope: endpoint}}
  some: {endpoints: ['http://10.0.0.9:81', 'http://10.0.0.1:81']}
  turns: {endpoints: ['http://10.0.0.1:81', 'http://10.0.0.2:81'], balance: round_robin}
  ring: {endpoints: ['http://10.0.0.1:81', 'http://10.0.0.2:81'], balance: ring_hash, hash: header:x-request-id}
  near: {endpoints: ['http://10.0.0.1:81', 'http://10.0.0.2:81'], balance: ring_hash, hash: client_ip}
routes:
- {name: old, match: {path: '/old/**'}, redirect: {path: /new}}
- {name: said, match: {path: /said}, respond: {status: 200, body: said, headers: {x-id: '{request_id}'}}}
- {name: retried, match: {path: '/r/**'}, to: two, timeout: {total: 15s, per_try: 4s, first_byte: 3s},
   retry: {attempts: 2, when: [connect, reset, timeout, 5xx], backoff: 20ms..40ms, buffer: 1KiB}}
- {name: moved, match: {path: '/w/**'}, to: one, rewrite: {prefix: /x, host: other.test}}
- {name: kept, match: {path: '/k/{id}'}, to: one, rewrite: {host: keep}}
- {name: shaped, match: {path: /h}, to: one, headers: {request: {set: {x-a: '{request_id}'}}}}
- {name: shaping, match: {path: /i}, to: one, headers: {response: {remove: [x-b]}}}
- {name: few, match: {path: /few}, to: few}
- {name: none, match: {path: /none}, to: none, retry: {attempts: 1, when: [connect]}}
- {name: some, match: {path: /some}, to: some}
- {name: body, match: {path: /b}, to: one, timeout: {total: 8s, total_body: 5s, idle: 2s}}
- {name: frail, match: {path: '/f/**'}, to: frail, retry: {attempts: 1, when: [reset, 503], backoff: 20ms..40ms}}
- {name: frails, match: {path: /frails}, to: frails}
- {name: paid, match: {path: /paid}, to: paid, retry: {attempts: 1, when: [503], backoff: 20ms..40ms}}
- {name: limited, match: {path: /limited}, to: one, limit: {rate: 4/s, burst: 10}}
- {name: tired, match: {path: /tired}, to: tired}
- {name: turns, match: {path: /turns}, to: turns}
- {name: ring, match: {path: /ring}, to: ring}
- {name: near, match: {path: /near}, to: near}
- {name: rest, match: {host: a}, to: one}
"""
PATHS = [
    b"/", b"/", b"/", b"/a/../b", b"/%61", b"/?q=1", b"/old/a", b"/said", b"/r/a", b"/r/b", b"/w/a?q", b"/w", b"/k/1", b"/h", b"/i",
    b"/few", b"/none", b"/f/a", b"/f/a", b"/frails", b"/paid", b"/limited", b"/tired", b"/some", b"/turns", b"/ring", b"/near", b"/b", b"/.well-known/ambassador/health", b"/../x", b"http://a/", b"http://b/", b"*",
]  # fmt: skip
METHODS = [*[b"GET"] * 6, b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"]
HOSTS = [*[b"Host: a"] * 8, b"Host: a:81", b"Host: b", b"Host:", b"X: no host"]
MORE_FIELDS = [
    b"Accept: */*", b"X-Two: 1\r\nx-two: 2", b"X-Request-Id: mine", b"X-Request-Id: not one", b"Traceparent: " + PARENT,
    b"Traceparent: x", b"Tracestate: a=1", b"Connection: keep-alive", b"Connection: close", b"Connection: x-gone\r\nX-Gone: 1",
    b"Connection: content-length", b"X-Forwarded-For: 10.1.1.1", b"Via: 1.1 other", b"Via: 1.1 test", b"TE: trailers",
    b"Expect: 100-continue", b"Upgrade: h2c\r\nConnection: upgrade", b"X-Request-Deadline: 1795761876", b"grpc-timeout: 3S",
    b"Idempotency-Key: k", b"X-Ambassador-Attempt: 2", b"X_Forwarded_For: 1", b"Max-Forwards: 0", b"Max-Forwards: 3",
    b"Content-Type: application/grpc", b"Host: b", b"X: a\0b", b"X: " + b"l" * 2000, b"Content-Length: 1",
]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(METHODS))
    version = draw(st.sampled_from([*[b"HTTP/1.1"] * 9, b"HTTP/1.0"]))
    lines = [b"%b %b %b" % (method, draw(st.sampled_from(PATHS)), version)]
    lines.append(draw(st.sampled_from(HOSTS)))
    if not draw(st.integers(0, 2)):
        lines += draw(st.lists(st.sampled_from(MORE_FIELDS), max_size=2))
    body = b""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        lines[0] = lines[0].replace(b"GET", b"POST")
        body = draw(
            st.sampled_from([b"", b"abcd", GET, b"\r\n\r\n", b"x" * 2000, b"y" * 20_000, b"z" * 100_000])
        )
        lines.append(b"Content-Length: %d" % len(body))
    elif kind == 1:
        lines[0] = lines[0].replace(b"GET", b"POST")
        body = draw(
            st.sampled_from(
                [b"0\r\n\r\n", b"2\r\nab\r\n0\r\n\r\n", b"2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n", b"x\r\n"]
            )
        )
        lines.append(b"Transfer-Encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


ANSWERS = [
    *[OK] * 6, answer(b""), answer(b"other"), answer(date=b""), answer(fields=b"Location: http://10.0.0.1:81/x/y\r\n"),
    answer(fields=b"Location: /x/y\r\n", status=b"201 Made"), answer(status=b"404 No"), answer(status=b"500 No"), NO,
    answer(fields=b"Retry-After: 1\r\n", status=b"503 No"), answer(fields=b"X-Request-Id: theirs\r\nX-B: c\r\n"),
    b"HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n", b"HTTP/1.1 204 No Content\r\nDate: x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nDate: x\r\nContent-Length: 5\r\n\r\n", HINT + OK,
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK, answer(fields=b"Connection: close\r\n"), OK.replace(b"1.1", b"1.0", 1),
    answer(fields=b"Connection: keep-alive\r\n").replace(b"1.1", b"1.0", 1), answer(b"v" * 9000), answer(b"w" * 70_000),
    b"HTTP/1.1 200 OK\r\nDate: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n",
    OK + b"x", OK + OK, answer(b"new") + b"x", b"SSH-2.0\r\n\r\n",
    OK.replace(b"\r\n", b"\n"), answer(fields=b"Transfer-Encoding: chunked\r\n"), answer(fields=b"Content-Length: 2\r\n"),
    answer(fields=b"Proxy-Status: x; error=a; attempts=2\r\n", status=b"502 No"), answer(status=b"600 Odd"),
]  # fmt: skip
UNFINISHED = [b"HTTP/1.1 200 OK\r\nDate: x\r\n\r\nuntil the end", HINT, OK[:-1], OK[:40], b"\r\n\r\n"]


@st.composite
def pieces(draw: st.DrawFn, data: bytes, say: type[object] | None = None) -> list[bytes]:
    """All of it, or most often so, or cut in two."""
    if draw(st.integers(0, 3)) or len(data) < 2:
        return [data]
    at = draw(st.integers(1, len(data) - 1))
    return [data[:at], data[at:]]


SETTINGS = [
    Setting(TABLE % "false", refused=frozenset({"10.0.0.9"})),
    Setting(
        TABLE % "false", refused=frozenset({"10.0.0.9"}), trusted=("127.0.0.0/8",), cancel_on_half_close=True,
        logged=False,
    ),
    Setting(TABLE % "true", refused=frozenset({"10.0.0.9"}), limits=ListenerLimits(idle=20.0, body_timeout=4.0)),
]  # fmt: skip


@pytest.mark.parametrize(
    "request_",
    [
        *[b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in dict.fromkeys(PATHS)],
        *[b"%b / HTTP/1.1\r\nHost: a\r\n\r\n" % method for method in dict.fromkeys(METHODS)],
        *[b"GET / HTTP/1.1\r\n%b\r\n\r\n" % host for host in dict.fromkeys(HOSTS)],
        *[GET[:-2] + field + b"\r\n\r\n" for field in MORE_FIELDS],
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        GET.replace(b"1.1", b"1.0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("setting", SETTINGS, ids=["plain", "trusted", "debug"])
def test_every_kind_of_request(setting: Setting, request_: bytes) -> None:
    for said in (OK, NO):
        again = (sends(request_), answers(said), passes(0.05), answers_if_asked(OK))
        assert_same(
            setting,
            *WARM,
            *again,
            *again,
            sends(request_, 1),
            answers(said),
            passes(0.05),
            answers_if_asked(OK),
        )


@pytest.mark.parametrize("said", [*ANSWERS, *UNFINISHED])
@pytest.mark.parametrize("path", [b"/", b"/r/a", b"/w/a", b"/h", b"/i", b"/?q", b"/f/a"])
def test_every_kind_of_answer(path: bytes, said: bytes) -> None:
    get = GET.replace(b"/", path, 1)
    steps: list[Step] = []
    for request in (get, POST.replace(b"/p", path), b"HEAD" + get[3:], get):
        steps += [sends(get), answers(OK), sends(request), answers(said), passes(0.05), answers_if_asked(OK)]
        steps += [upstream_ends()] * (said in UNFINISHED)
    assert_same(SETTINGS[0], *steps, *steps)


LATER = answers_if_asked(answer(fields=b"Retry-After: 2\r\n", status=b"503 No"))


@pytest.mark.parametrize(
    ("path", "fails", "codes"),
    [
        (b"/f/a", upstream_resets(), {"upstream_reset", "breaker_open"}),
        (b"/f/a", LATER, set()),
        (b"/frails", upstream_resets(), {"upstream_reset"}),
        (b"/frails", LATER, set()),
        (b"/paid", upstream_resets(), {"upstream_reset", "limited"}),
        (b"/paid", LATER, {"limited"}),
        (b"/limited", upstream_resets(), {"upstream_reset", "limited"}),
        (b"/limited", LATER, {"limited"}),
        (b"/tired", upstream_resets(), {"upstream_reset"}),
        (b"/tired", LATER, {"breaker_open"}),
    ],
)
def test_breakers_limits_and_pauses_from_closed_to_open_and_back(
    path: bytes, fails: Step, codes: set[str]
) -> None:
    request = GET.replace(b"/", path, 1)
    good = (sends(request), answers(OK), passes(0.05), answers_if_asked(OK))
    bad = (sends(request), fails, passes(0.05), fails)
    seen = assert_same(
        SETTINGS[0], connects(0), connects(1), *good, *good, passes(2.0), *good, *(bad * 5), *good, sends(request, 1),
        passes(1.0), *good, passes(6.0), *good, *bad, passes(6.0), at_once(sends(request), sends(request, 1)),
        answers(OK), answers(OK, 0), passes(9.0), *(good * 14), sends(request), cancelled,
    )  # fmt: skip
    assert {line["code"] for line in seen.lines} >= codes


def test_answer_that_one_route_passes_on_is_retried_by_another() -> None:
    """Its head is remembered for both."""
    steps: list[Step] = []
    for path in (b"/", b"/r/a") * 3:
        steps += [sends(GET.replace(b"/", path, 1)), answers(NO), passes(0.05), answers_if_asked(OK)]
    seen = assert_same(SETTINGS[0], *steps)
    assert [line["status"] for line in seen.lines] == [503, 200] * 3


DISTURBANCES = st.one_of(
    st.sampled_from([
        ends(), leaves(), resets(), upstream_ends(), upstream_resets(), upstream_ends(0), upstream_resets(0),
        upstream_is_gone(0), upstream_vanishes(0), upstream_is_told(0), takes(0), takes(50), takes(None),
        upstream_takes(0), upstream_takes(100), upstream_takes(None), drains, reloads(), reloads(TABLE % "true"),
        answers(OK, 0), answers(b"x", 0),
    ]),
    st.sampled_from([0.021, 1.0, 2.1, 3.1, 5.1, 8.1, 16.0, 31.0, 76.0]).map(passes),
)  # fmt: skip


@st.composite
def scripts(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = [connects(0), connects(1)]
    few = draw(st.lists(requests(), min_size=1, max_size=2))
    for _ in range(draw(st.integers(2, 6))):
        client = draw(st.sampled_from([0, 0, 0, 1]))
        data = draw(st.one_of(st.sampled_from([GET, *few]), requests()))
        if not draw(st.integers(0, 7)):
            data = draw(STREAMS)
        if not draw(st.integers(0, 7)):
            data += draw(st.one_of(st.sampled_from([GET, GET[:9], b"\r\n", b"x"]), requests()))
        round_ = [sends(piece, client) for piece in draw(pieces(data))]
        round_ += [answers(piece) for piece in draw(pieces(draw(st.sampled_from([*ANSWERS, *UNFINISHED]))))]
        if not draw(st.integers(0, 2)):
            round_ += [passes(0.05), draw(st.sampled_from([answers, answers_if_asked]))(OK)]
        if not draw(st.integers(0, 1)):
            round_.insert(draw(st.integers(0, len(round_))), draw(DISTURBANCES))
        if not draw(st.integers(0, 4)):
            at = draw(st.integers(0, len(round_) - 2))
            round_[at : at + 2] = [at_once(*round_[at : at + 2])]
        steps += round_
    return steps


@seed(1)
@settings(max_examples=200, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SETTINGS), scripts())
def test_both_ways_are_the_same_whatever_happens(setting: Setting, steps: list[Step]) -> None:
    assert_same(setting, *steps)


# Over real sockets

_NEW_EACH_TIME = re.compile(rb"(x-request-id|traceparent|x-request-deadline): [^\r]*")


async def _no_ride(client: ClientConnection) -> Exchange | None:
    return None


async def _talk(origin: Origin, request: bytes, said: bytes) -> tuple[bytes, bytes, list[int], list[str]]:
    """What the upstream and the client see of the third of three equal requests, and what was counted of all."""
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        upstream = None
        got = heard = b""
        for _ in range(3):
            await client.send(request)
            upstream = upstream or await origin.accept()
            got = await upstream.head()
            length = re.search(rb"(?i)content-length: (\d+)", got)
            got += await upstream.exactly(int(length[1])) if length else b""
            await upstream.send(said)
            heard = await client.head()
            length = re.search(rb"(?i)content-length: (\d+)", heard)
            heard += await client.exactly(int(length[1])) if length else b""
        assert upstream is not None
        client.close()
        upstream.close()
        return (
            _NEW_EACH_TIME.sub(rb"\1", got), _NEW_EACH_TIME.sub(rb"\1", heard), plane.counts.settlements,
            plane.counts.attempts,
        )  # fmt: skip


@pytest.mark.parametrize(
    "request_", [GET, b"GET /a/../b?q=1 HTTP/1.1\r\nhost: a:8080\r\nX-Two: 1\r\nx-two: 2\r\n\r\n", POST]
)
@pytest.mark.parametrize("said", [answer(b""), OK, answer(b"x" * 66_000)])
async def test_both_ways_are_the_same_over_real_sockets(
    monkeypatch: pytest.MonkeyPatch, origin: Origin, request_: bytes, said: bytes
) -> None:
    short = await _talk(origin, request_, said)
    monkeypatch.setattr(ambassador.proxy.http1, "ride", _no_ride)
    assert await _talk(origin, request_, said) == short
