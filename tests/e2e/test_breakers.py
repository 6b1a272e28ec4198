"""Breakers of a running service, from its commands and its admin API."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.e2e.origins import wsgi
from tests.e2e.programs import Ambassador, ambassador, wait_until

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

ROUTES = """\
    upstreams:
      u: {endpoints: ['http://127.0.0.1:9', 'http://127.0.0.1:19'], breaker: {scope: endpoint}}
    routes:
      - {name: billing, match: {path: /billing}, to: 'http://127.0.0.1:9', breaker: {errors: 50%}}
      - {name: other, to: u}
    """


@pytest.fixture(scope="module")
def proxy() -> Iterator[Ambassador]:
    with ambassador(ROUTES, workers=2) as running:
        yield running


def breakers(proxy: Ambassador) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(proxy.admin_get("/api/breakers"))}


def opened_in_all_workers(proxy: Ambassador, name: str) -> bool:
    """As the metrics have it, which are of the workers' last beats."""
    return bool(proxy.samples(f'ambassador_breaker_state{{breaker="{name}"}} 1'))


def test_breakers_are_listed_with_the_names_of_the_reference(proxy: Ambassador) -> None:
    assert sorted(breakers(proxy)) == ["billing", "u/127.0.0.1:19", "u/127.0.0.1:9"]
    listed = proxy.command("breakers", "--json")
    assert listed.returncode == 0
    assert {each["state"] for each in json.loads(listed.stdout)} == {"closed"}
    for name in breakers(proxy):
        assert proxy.samples(f'ambassador_breaker_state{{breaker="{name}"}} 0')


def test_breaker_is_held_open_for_all_workers_until_it_is_let_go(proxy: Ambassador) -> None:
    done = proxy.command("breaker", "billing", "open", "--for", "10m", "--reason", "maintenance")
    assert (done.returncode, done.stdout) == (0, "billing: held open for 10m\n"), done.stderr
    told = breakers(proxy)["billing"]
    assert told["state"] == "open"
    assert told["forced"]["state"] == "open"
    assert told["forced"]["reason"] == "maintenance"
    assert told["epoch"] > 0
    wait_until(lambda: opened_in_all_workers(proxy, "billing"), "the beats of the workers")
    assert "breaker billing: by " in proxy.running.stderr.read_text()
    assert proxy.command("breaker", "billing", "auto", "--reason", "done").returncode == 0
    told = breakers(proxy)["billing"]
    assert (told["state"], told["forced"]) == ("half_open", None)


def test_force_outlives_workers_and_reloads(proxy: Ambassador) -> None:
    name = "u/127.0.0.1:9"
    assert proxy.command("breaker", name, "open", "--reason", "x").returncode == 0
    proxy.config.write_text(proxy.config.read_text().replace("errors: 50%", "errors: 40%"))
    assert proxy.command("reload").returncode == 0
    assert breakers(proxy)[name]["state"] == "open"
    before = {each["pid"] for each in json.loads(proxy.admin_get("/api/status"))["workers"]}
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        workers = json.loads(proxy.admin_get("/api/status"))["workers"]
        return len(workers) == 2 and all(each["ready"] and each["pid"] not in before for each in workers)

    wait_until(replaced, "two other workers")
    wait_until(lambda: breakers(proxy).get(name, {}).get("state") == "open", "the force in the new workers")


def test_unknown_breaker_is_refused_with_a_hint(proxy: Ambassador) -> None:
    done = proxy.command("breaker", "biling", "open", "--reason", "x")
    assert done.returncode == 1
    assert "did you mean 'billing'?" in done.stderr


# ----- with requests --------------------------------------------------------------------------------------------------


class Moody:
    """An upstream that fails while it is told to."""

    def __init__(self) -> None:
        self.failing = False
        self.calls = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.calls += 1
        start_response("500 No" if self.failing else "200 OK", [("Content-Length", "2")])
        return [b"ok"]


def ask(proxy: Ambassador, path: str = "/") -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own, which any worker may take."""
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


class Busy:
    """An upstream that asks for a pause of a minute."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.calls += 1
        start_response("429 Too Many", [("Content-Length", "2"), ("Retry-After", "60")])
        return [b"no"]


class World(NamedTuple):
    """Two workers in front of upstreams that do what a test says, each for one test."""

    proxy: Ambassador
    moody: Moody
    held: Moody
    good: str
    bad: str
    busy: Busy


SCOPES = ("upstream", "route", "endpoint")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    moody, held, good, bad, busy = Moody(), Moody(), Moody(), Moody(), Busy()
    bad.failing = True
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(wsgi(each))
            for name, each in (("moody", moody), ("held", held), ("good", good), ("bad", bad), ("busy", busy))
        }
        setting = "min_requests: 6, window: 5s, open_for: 500ms, probes: 2"
        body = f"""\
            upstreams:
              passed:
                endpoints: ['{urls["good"]}', '{urls["bad"]}']
                balance: round_robin  # p2c would pass over it before the breaker has seen enough
                breaker: {{min_requests: 5, open_for: 60s, scope: endpoint}}
              paused: {{endpoints: ['{urls["busy"]}'], cooldown: upstream}}
            routes:
              - {{name: held, match: {{path: /held}}, to: '{urls["held"]}', breaker: 50%}}
              - {{name: passed, match: {{path: /passed}}, to: passed}}
              - {{name: paused, match: {{path: /paused}}, to: paused, retry: off}}
              - {{name: upstream, match: {{path: /upstream}}, to: '{urls["moody"]}', breaker: {{{setting}}}}}
              - {{name: route, match: {{path: /route}}, to: '{urls["moody"]}', breaker: {{{setting}, scope: route}}}}
              - {{name: endpoint, match: {{path: /endpoint}}, to: '{urls["moody"]}', breaker: {{{setting}, scope: endpoint}}}}
            """
        proxy = stack.enter_context(ambassador(body, workers=2))
        yield World(proxy, moody, held, urls["good"], urls["bad"], busy)


def states(proxy: Ambassador, *beginnings: str) -> dict[str, str]:
    """The states of breakers whose names begin so."""
    return {name: each["state"] for name, each in breakers(proxy).items() if name.startswith(beginnings)}


def test_breaker_of_each_scope_opens_for_all_workers_and_closes_after_probes(world: World) -> None:
    proxy = world.proxy
    assert {ask(proxy, f"/{scope}")[0] for scope in SCOPES for _ in range(10)} == {200}
    world.moody.failing = True

    def refused(scope: str) -> bool:
        status, headers, body = ask(proxy, f"/{scope}")
        if status != 503:
            return False
        assert json.loads(body)["code"] == "breaker_open"
        assert int(headers["retry-after"]) >= 1
        return True

    for scope in SCOPES:
        wait_until(partial(refused, scope), f"the opening of the breaker of the {scope}")
    named = ("upstream", "route:route", "endpoint/")

    def opened_for_all() -> bool:
        for scope in SCOPES:
            ask(proxy, f"/{scope}")  # one worker may have seen enough before the other
        return set(states(proxy, *named).values()) <= {"open", "half_open"}

    wait_until(opened_for_all, "their opening for both workers")
    world.moody.failing = False
    wait_until(
        lambda: all(ask(proxy, f"/{scope}")[0] == 200 for _ in range(20) for scope in SCOPES),
        "probes, and the end of the ramps",
    )
    assert list(states(proxy, *named).values()) == ["closed"] * len(SCOPES)
    assert proxy.running.stderr.read_text().count("closed to open") >= len(SCOPES)


def test_breaker_held_open_sends_nothing(world: World) -> None:
    proxy = world.proxy
    assert proxy.command("breaker", "held", "open", "--reason", "x").returncode == 0
    wait_until(lambda: opened_in_all_workers(proxy, "held"), "the beats of the workers")
    assert {ask(proxy, "/held")[0] for _ in range(20)} == {503}
    assert world.held.calls == 0
    assert proxy.command("breaker", "held", "close", "--reason", "x").returncode == 0
    wait_until(lambda: all(ask(proxy, "/held")[0] == 200 for _ in range(20)), "its closing everywhere")


def test_endpoint_that_fails_is_passed_over(world: World) -> None:
    proxy = world.proxy
    wait_until(lambda: all(ask(proxy, "/passed")[0] == 200 for _ in range(20)), "the breaker's opening")
    assert states(proxy, "passed/") == {
        f"passed/{urlsplit(world.good).netloc}": "closed",
        f"passed/{urlsplit(world.bad).netloc}": "open",
    }


def test_pause_that_an_upstream_asks_for_is_obeyed_by_all_workers(world: World) -> None:
    proxy = world.proxy
    assert ask(proxy, "/paused")[0] == 429
    wait_until(lambda: all(ask(proxy, "/paused")[0] == 503 for _ in range(20)), "the pause in both workers")
    seen = world.busy.calls
    _, headers, body = ask(proxy, "/paused")
    assert json.loads(body)["code"] == "breaker_open"
    assert 1 <= int(headers["retry-after"]) <= 60
    assert world.busy.calls == seen
