"""What clients see when upstreams fail, and when the service ends under them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.origins import Application, free_port, wsgi
from tests.e2e.programs import Ambassador, ambassador, wait_until


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    application = Application()
    yield application
    application.release.set()


@pytest.fixture(scope="module")
def proxy(application: Application) -> Iterator[Ambassador]:
    """A route to each way to fail, and none for what is elsewhere."""
    with wsgi(application) as origin:
        dead = f"http://127.0.0.1:{free_port()}"
        body = f"""\
            upstreams: {{origin: {{endpoints: ['{origin}']}}}}
            routes:
              - {{name: pair, match: {{path: /bytes/1}}, to: ['{dead}', '{origin}']}}
              - {{name: none, match: {{path: /none}}, to: '{dead}'}}
              - {{name: slow, match: {{path: /hang}}, to: origin, timeout: 200ms}}
              - {{name: one, match: {{path: /one}}, respond: {{status: 200, body: hello}}}}
              - {{name: main, match: {{path: /bytes/10}}, to: origin}}
            """
        with ambassador(body, workers=2) as running:
            yield running


def test_dead_endpoint_is_passed_by(proxy: Ambassador) -> None:
    assert [httpx.get(f"{proxy.url}/bytes/1").status_code for _ in range(20)] == [200] * 20


def test_nobody_there_is_said(proxy: Ambassador) -> None:
    answer = httpx.get(f"{proxy.url}/none")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "connect_failed"
    assert answer.json()["route"] == "none"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "connection_refused" in answer.headers["proxy-status"]


def test_slow_upstream_is_a_504(proxy: Ambassador, application: Application) -> None:
    answer = httpx.get(f"{proxy.url}/hang")
    application.release.set()
    assert answer.status_code == 504
    assert answer.json()["code"] in {"upstream_timeout", "deadline_exceeded"}


def test_unknown_route_is_a_404(proxy: Ambassador) -> None:
    assert httpx.get(f"{proxy.url}/one").text == "hello"
    answer = httpx.get(f"{proxy.url}/two")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_route")


def test_each_request_is_counted_and_logged_once(proxy: Ambassador) -> None:
    for _ in range(10):
        httpx.get(f"{proxy.url}/bytes/10")

    def logged() -> list[dict[str, object]] | None:
        lines = [line for line in proxy.log() if line["route"] == "main"]
        return lines if len(lines) >= 10 else None

    lines = wait_until(logged, "the access log")
    assert [line["status"] for line in lines] == [200] * 10
    counted = proxy.samples("ambassador_requests_total{")
    assert any('route="main"' in line and line.split()[-1] in {"10", "10.0"} for line in counted), counted


def test_drain_announces_the_close_to_who_waits() -> None:
    application = Application()
    with wsgi(application) as origin:
        with ambassador(f"routes: [{{name: slow, to: '{origin}'}}]", workers=2) as proxy:
            with ThreadPoolExecutor(1) as thread:
                pending = thread.submit(httpx.get, f"{proxy.url}/hang", timeout=20)
                assert application.hanging.wait(10)
                proxy.running.process.send_signal(signal.SIGTERM)
                wait_until(lambda: is_refused(proxy.url), "the listener's close")
                application.release.set()
                answer = pending.result()
            assert (answer.status_code, answer.text) == (200, "at last")
            assert answer.headers["connection"] == "close"


def is_refused(url: str) -> bool:
    try:
        httpx.get(url, timeout=5)
    except httpx.TransportError:
        return True
    return False
