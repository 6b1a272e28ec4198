"""Breakers of a running service, from its commands and its admin API."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.programs import Ambassador, ambassador, wait_until

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
    return f'ambassador_breaker_state{{breaker="{name}"}} 1' in proxy.admin_get("/metrics").decode()


def test_breakers_are_listed_with_the_names_of_the_reference(proxy: Ambassador) -> None:
    assert sorted(breakers(proxy)) == ["billing", "u/127.0.0.1:19", "u/127.0.0.1:9"]
    listed = proxy.command("breakers", "--json")
    assert listed.returncode == 0
    assert {each["state"] for each in json.loads(listed.stdout)} == {"closed"}
    for name in breakers(proxy):
        assert f'ambassador_breaker_state{{breaker="{name}"}} 0' in proxy.admin_get("/metrics").decode()


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
