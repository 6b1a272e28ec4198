"""What limits, breakers and retries promise together, through two workers: with requests, reloads and workers that die.

Nothing here depends on how fast anything is: buckets that hardly refill, breakers that stay open for minutes.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.origins import free_port
from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import DEADLINE_S, Client, Cut, Message, Origin, Wire, answer, fetch, upstream

FAILED = answer(b"no", "500 No")
BUSY = answer(b"busy", "503 Busy")
LASTING = "open_for: 10m, min_requests: 6"
"""A breaker that stays open for the whole test."""


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(origin: Origin) -> Iterator[Ambassador]:
    dead = f"http://127.0.0.1:{free_port()}"
    own = f'endpoints: ["{origin.url}"]'
    # max_wait: so that on a busy host the store still decides, and not what stands in for it.
    body = f"""\
        state: {{max_wait: 250ms}}
        upstreams:
          origin: {{{own}}}
          quota: {{{own}, limit: {{rate: 4/h, burst: 5}}}}
          failing: {{{own}, breaker: {{{LASTING}}}}}
          cutting: {{{own}, breaker: {{{LASTING}}}}}
          streaming: {{{own}, breaker: {{{LASTING}, consecutive: 1}}}}
          probed: {{{own}, breaker: {{{LASTING}}}}}
          saying: {{{own}, breaker: {{{LASTING}, failures: [{{json: error.code=E7}}]}}}}
          dead: {{endpoints: ["{dead}"], breaker: {{{LASTING}}}}}
        defaults: {{retry: {{attempts: 0}}}}
        routes:
          - {{name: two, match: {{path: /two}}, to: origin, limit: [{{name: wide, rate: 100/h, burst: 50}}, {{name: few, quota: 3/d}}]}}
          - {{name: kept, match: {{path: /kept}}, to: origin, limit: {{rate: 5/h, burst: 5}}}}
          - {{name: died, match: {{path: /died}}, to: origin, limit: {{rate: 5/h, burst: 5}}}}
          - {{name: tenants, match: {{path: /tenants}}, to: origin, limit: {{rate: 5/h, burst: 5, per: "header:x-tenant"}}}}
          - {{name: quota, match: {{path: /quota}}, to: quota, retry: {{attempts: 3, when: [503], backoff: 1ms..2ms}}}}
          - {{name: failing, match: {{path: /failing}}, to: failing}}
          - {{name: saying, match: {{path: /saying}}, to: saying}}
          - {{name: cutting, match: {{path: /cutting}}, to: cutting}}
          - {{name: streaming, match: {{path: /streaming}}, to: streaming}}
          - {{name: probed, match: {{path: /probed}}, to: probed}}
          - {{name: dead, match: {{path: /dead}}, to: dead}}
          - name: budget
            match: {{path: /budget}}
            to: origin
            retry: {{attempts: 1, when: [503], backoff: 1ms..2ms, budget: {{percent: 0%, min_per_second: 0.4, shared: true}}}}
          - {{name: fallback, respond: {{status: 200, body: first}}}}
        """
    with ambassador(body, workers=2) as running:
        yield running


def ask(proxy: Ambassador, path: str, times: int, *lines: str) -> list[Message]:
    """So many requests on one connection, so to one worker: no token is left in the other's hand."""
    answers = []
    with Client(proxy.url) as client:
        for _ in range(times):
            client.ask(path, *lines)
            answers.append(client.answer())
    return answers


def statuses(answers: list[Message]) -> list[int]:
    return [each.status for each in answers]


def code_of(message: Message) -> str | None:
    """Of an answer that the ambassador made."""
    if message.get("content-type") != "application/problem+json":
        return None
    code: str = json.loads(message.body)["code"]
    return code


def limits(proxy: Ambassador) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["name"], each["key"]): each for each in json.loads(proxy.admin_get("/api/limits"))}


def breaker(proxy: Ambassador, name: str) -> dict[str, Any]:
    """As `/api/breakers` tells of it."""
    told: list[dict[str, Any]] = json.loads(proxy.admin_get("/api/breakers"))
    return next((each for each in told if each["name"] == name), {"state": None, "epoch": None})


def wait_for_fleet(proxy: Ambassador, name: str) -> None:
    """Until the breaker is open for all: requests go on meanwhile, since both workers must have seen enough."""

    def is_open() -> bool:
        fetch(proxy.url, f"/{name}")
        state: str | None = breaker(proxy, name)["state"]
        return state == "open"

    wait_until(is_open, "the fleet's breaker")


def pids(proxy: Ambassador) -> set[int]:
    workers = json.loads(proxy.admin_get("/api/status"))["workers"]
    return {each["pid"] for each in workers if each["ready"]}


def replace_workers(proxy: Ambassador) -> None:
    """Kill both; returns when two others are there."""
    before = pids(proxy)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(pids(proxy)) == 2 and not pids(proxy) & before, "two other workers")


def fetch_until(proxy: Ambassador, path: str, code: str) -> list[Message]:
    """Requests on connections of their own until eight in a row, which reach both workers, are told `code`."""
    answers: list[Message] = []

    def look() -> bool:
        answers.extend(fetch(proxy.url, path) for _ in range(8))
        return {code_of(each) for each in answers[-8:]} == {code}

    wait_until(look, f"{code} on {path}")
    return answers


# ----- limits ---------------------------------------------------------------------------------------------------------


def test_limits_of_a_route_are_charged_all_or_nothing(proxy: Ambassador) -> None:
    answers = ask(proxy, "/two", 12)
    assert statuses(answers) == [200] * 3 + [429] * 9
    refused = json.loads(answers[-1].body)
    assert (refused["code"], refused["route"]) == ("limited", "two")
    assert "'few'" in refused["detail"]
    assert int(answers[-1].get("retry-after") or 0) >= 1
    told = limits(proxy)
    assert {told["two/wide", "two"]["admitted"], told["two/few", "two"]["admitted"]} == {3}
    assert (told["two/wide", "two"]["limited"], told["two/few", "two"]["limited"]) == (0, 9)
    assert answers[0].get("ratelimit-policy") == '"wide";q=100;w=3600, "few";q=3;w=86400'


def test_headers_value_is_counted_by_itself(proxy: Ambassador) -> None:
    for tenant in ("x-tenant: a", "x-tenant: b", "x: y"):
        assert statuses(ask(proxy, "/tenants", 6, tenant)) == [200] * 4 + [429] * 2, tenant
    keys = {key for name, key in limits(proxy) if name == "tenants/limit"}
    assert keys == {"a", "b", "-"}


def test_limit_keeps_its_bucket_through_a_reload(proxy: Ambassador) -> None:
    assert statuses(ask(proxy, "/kept", 5)) == [200] * 4 + [429]
    proxy.config.write_text(proxy.config.read_text().replace("body: first", "body: second"))
    assert proxy.command("reload").returncode == 0
    wait_until(lambda: fetch(proxy.url, "/").body == b"second", "the reload")
    assert statuses([fetch(proxy.url, "/kept") for _ in range(8)]) == [429] * 8


def test_limit_keeps_its_bucket_when_workers_die(proxy: Ambassador) -> None:
    assert statuses(ask(proxy, "/died", 5)) == [200] * 4 + [429]
    replace_workers(proxy)
    assert statuses([fetch(proxy.url, "/died") for _ in range(8)]) == [429] * 8


def test_counts_of_a_limit_are_kept_when_workers_are_replaced(proxy: Ambassador) -> None:
    assert statuses(ask(proxy, "/died", 4)) == [429] * 4
    before, told = pids(proxy), limits(proxy)["died/limit", "died"]
    proxy.running.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: len(pids(proxy)) == 2 and not pids(proxy) & before, "two other workers")
    assert told["limited"] >= 4

    def are_the_same() -> bool:
        now = limits(proxy).get(("died/limit", "died"), {})
        return all(now.get(count) == told[count] for count in ("admitted", "limited"))

    wait_until(are_the_same, "the same counts as before")


def test_quota_is_charged_for_retries_and_its_refusal_hides_no_answer(
    proxy: Ambassador, origin: Origin
) -> None:
    origin.on("/quota", BUSY)
    first, second = ask(proxy, "/quota", 2)
    assert (first.status, first.body) == (503, b"busy")
    assert (second.status, code_of(second)) == (429, "limited")
    assert len(origin.seen["/quota"]) == 4
    assert [each.get("x-ambassador-attempt") for each in origin.seen["/quota"]] == [None, "2", "3", "4"]


def test_limits_are_listed_by_the_command(proxy: Ambassador) -> None:
    fetch(proxy.url, "/tenants", "x-tenant: listed")
    listed = proxy.command("limits", "--json")
    assert listed.returncode == 0
    told = {(each["name"], each["key"]): each for each in json.loads(listed.stdout)}
    assert set(told["tenants/limit", "listed"]) == {
        "name", "rate", "burst", "key", "balance", "admitted", "limited", "fallback", "credit",
    }  # fmt: skip
    assert told["tenants/limit", "listed"]["balance"] == 3
    assert "listed" in proxy.command("limits").stdout


def test_replicas_are_listed_by_the_command(proxy: Ambassador) -> None:
    (one,) = json.loads(proxy.command("replicas", "--json").stdout)
    (same,) = json.loads(proxy.admin_get("/api/replicas"))
    assert one["id"] == same["id"]
    assert (one["workers"], one["state_up"]) == (2, True)


# ----- breakers -------------------------------------------------------------------------------------------------------


def test_breaker_opens_on_statuses_and_stays_open_when_workers_die(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/failing", FAILED)
    answers = fetch_until(proxy, "/failing", "breaker_open")
    assert {each.status for each in answers} == {500, 503}
    assert 1 <= int(answers[-1].get("retry-after") or 0) <= 660
    wait_for_fleet(proxy, "failing")
    epoch = breaker(proxy, "failing")["epoch"]
    replace_workers(proxy)
    wait_until(lambda: breaker(proxy, "failing")["epoch"] == epoch, "the breaker in the new workers")
    fetch_until(proxy, "/failing", "breaker_open")
    seen = len(origin.seen["/failing"])
    assert {code_of(fetch(proxy.url, "/failing")) for _ in range(8)} == {"breaker_open"}
    assert len(origin.seen["/failing"]) == seen


def test_breaker_opens_on_what_answers_say(proxy: Ambassador, origin: Origin) -> None:
    said = answer(b'{"error": {"code": "E7"}}')
    origin.on("/saying", said)
    answers = fetch_until(proxy, "/saying", "breaker_open")
    assert {each.status for each in answers} == {200, 503}
    assert {each.body for each in answers if each.status == 200} == {b'{"error": {"code": "E7"}}'}
    wait_for_fleet(proxy, "saying")
    attempts = proxy.samples("ambassador_attempts_total{")
    (line,) = [line for line in attempts if 'result="content"' in line and '"saying"' in line]
    assert int(line.rpartition(" ")[2]) == len([each for each in answers if each.status == 200])


def test_breaker_opens_when_nobody_is_there(proxy: Ambassador) -> None:
    answers = fetch_until(proxy, "/dead", "breaker_open")
    assert {code_of(each) for each in answers} == {"connect_failed", "breaker_open"}
    wait_for_fleet(proxy, "dead")


def test_answer_that_is_cut_is_a_failure(proxy: Ambassador, origin: Origin) -> None:
    def cut(wire: Wire, request: Message) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        wire.close()

    origin.on("/cutting", cut)

    def refused() -> bool:
        try:
            return code_of(fetch(proxy.url, "/cutting")) == "breaker_open"
        except Cut:
            return False

    wait_until(refused, "the breaker's opening")


def test_stream_that_is_cut_is_none(proxy: Ambassador, origin: Origin) -> None:
    def stream(wire: Wire, request: Message) -> None:
        wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"9\r\ndata: a\n\n\r\n"
        )
        wire.close()

    origin.on("/streaming", stream)
    for _ in range(16):
        with pytest.raises(Cut):
            fetch(proxy.url, "/streaming")
    wait_until(lambda: breaker(proxy, "streaming")["window"]["requests"] >= 16, "the workers' reports")
    told = breaker(proxy, "streaming")
    assert (told["state"], told["window"]["failures"], told["local"]) == ("closed", 0, [])


def test_half_open_breaker_has_so_many_probes_over_both_workers(proxy: Ambassador, origin: Origin) -> None:
    release, arrived = threading.Event(), threading.Semaphore(0)

    def hang(wire: Wire, request: Message) -> None:
        arrived.release()
        release.wait(DEADLINE_S)
        wire.send(answer())

    origin.on("/probed", hang)
    for order in ("open", "auto"):
        assert proxy.command("breaker", "probed", order, "--reason", "a test").returncode == 0
    with ThreadPoolExecutor(24) as pool:
        asked = []

        def three_arrived() -> bool:
            asked.append(pool.submit(fetch, proxy.url, "/probed"))
            return len(origin.seen["/probed"]) >= 3

        wait_until(three_arrived, "three probes")
        asked += [pool.submit(fetch, proxy.url, "/probed") for _ in range(16)]
        wait_until(lambda: sum(each.done() for each in asked) == len(asked) - 3, "the refusals")
        assert len(origin.seen["/probed"]) == 3
        release.set()
        answers = [each.result() for each in asked]
    assert [each.status for each in answers].count(200) == 3
    assert {code_of(each) for each in answers if each.status != 200} == {"breaker_open"}
    wait_until(lambda: breaker(proxy, "probed")["state"] == "closed", "the closing")


# ----- retries --------------------------------------------------------------------------------------------------------


def test_retry_budget_is_shared(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/budget", BUSY)
    began = time.monotonic()
    asked = 0

    def retried() -> int:
        return sum(each.get("x-ambassador-attempt") is not None for each in origin.seen["/budget"])

    def enough() -> bool:
        nonlocal asked
        for _ in range(8):
            assert fetch(proxy.url, "/budget").status == 503
        asked += 8
        return asked >= 64 and retried() > 0

    wait_until(enough, "a retry")
    took_s = time.monotonic() - began
    # 0.4 a second and as many as come in 10 s, for both workers together.
    assert 1 <= retried() <= 0.4 * (10 + took_s)
