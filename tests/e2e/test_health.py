"""Endpoints that die and return under a running service: real processes, killed.

The figures of the scenarios are printed by `python -m loadtest losses`; here nothing is timed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest import losses
from tests.e2e.origins import Application, free_port, wsgi
from tests.e2e.programs import Ambassador, ambassador, wait_until


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Not tmp_path: the path of a Unix socket may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="amb-") as name:
        yield Path(name)


def test_no_request_fails_when_one_endpoint_of_four_dies_under_load(short_path: Path) -> None:
    found = losses.death(short_path, before_s=1.0, after_s=1.5)
    assert found.requests > 100
    assert found.failed == 0, found.text()


def test_traffic_returns_after_all_endpoints_were_dead(short_path: Path) -> None:
    """It waits until every endpoint counts as dead, and as healthy again; and clients are answered."""
    found = losses.outage(short_path, dead_s=0.5)
    assert found.back_s >= 0


def endpoints(proxy: Ambassador) -> dict[str, dict[str, Any]]:
    return {each["url"]: each for each in json.loads(proxy.admin_get("/api/upstreams"))[0]["endpoints"]}


def test_health_is_known_to_every_worker_and_survives_reload_and_restart() -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with wsgi(Application()) as alive:
        body = f"""\
        upstreams:
          u: {{endpoints: ['{alive}', '{dead}'], health: {{path: /bytes/1, every: 60s}}}}
        routes: [{{name: r, to: u, retry: off}}]
        """
        with ambassador(body, workers=2) as proxy:
            wait_until(lambda: not endpoints(proxy)[dead]["healthy"], "the verdict")
            assert endpoints(proxy)[dead]["why"] == "unhealthy: cannot connect"
            assert endpoints(proxy)[alive]["healthy"]
            assert [httpx.get(f"{proxy.url}/bytes/1").status_code for _ in range(10)] == [200] * 10
            proxy.config.write_text(proxy.config.read_text().replace("retry: off", "timeout: 9s"))
            assert proxy.command("reload").returncode == 0
            assert not endpoints(proxy)[dead]["healthy"]
            assert proxy.command("workers", "3").returncode == 0
            wait_until(
                lambda: sum(w["ready"] for w in json.loads(proxy.admin_get("/api/status"))["workers"]) == 3,
                "the third worker",
            )
            assert not endpoints(proxy)[dead]["healthy"]
            assert proxy.samples('ambassador_endpoints{upstream="u",state="unhealthy"} 1')
            proxy.config.write_text(proxy.config.read_text().replace("every: 60s", "every: 50s"))
            assert proxy.command("reload").returncode == 0  # another check: nothing is known yet
            wait_until(lambda: not endpoints(proxy)[dead]["healthy"], "the verdict of the other check")
            errors = proxy.running.stderr.read_text()
            assert errors.count("is unhealthy: cannot connect (3 checks failed)") == 2, errors


def test_endpoint_that_answers_with_errors_is_ejected_by_all_workers() -> None:
    with wsgi(Application()) as good, wsgi(lambda _environ, start: failing(start)) as bad:
        body = f"""\
        upstreams:
          u: {{endpoints: ['{good}', '{bad}'], balance: round_robin, outlier: {{consecutive: 3}}}}
        routes: [{{name: r, to: u, retry: off}}]
        """
        with ambassador(body, workers=2) as proxy:

            def ejected() -> bool:
                httpx.get(f"{proxy.url}/bytes/1")
                return endpoints(proxy)[bad]["ejected_until"] is not None

            wait_until(ejected, "the ejection")
            assert [httpx.get(f"{proxy.url}/bytes/1").status_code for _ in range(20)] == [200] * 20
            assert "3 failures in a row" in endpoints(proxy)[bad]["why"]
            wait_until(
                lambda: proxy.samples('ambassador_endpoints_ejected{upstream="u"} 1'), "the workers' beats"
            )


def failing(start: Any) -> list[bytes]:
    start("500 No", [("Content-Length", "0")])
    return []
