"""The whole service as users run it: real processes, real sockets, real traffic."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.control.service import ROOT, Service, is_alive, until
from tests.e2e.origins import serving


class _Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/sleep":
            time.sleep(1)
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), _Upstream)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


class Running(Service):
    """A service with two workers and a config in a file."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.file = folder / "amb.yaml"
        self.control = folder / "c.sock"
        self.configure(upstream)
        super().__init__(["ambassador", "run", "-c", str(self.file), "--workers", "2"], self.control)

    def configure(self, upstream: str, mark: str = "first") -> None:
        self.file.write_text(
            f"""\
version: 1
listen: 127.0.0.1:0
control: "unix:{self.control}"
drain: {{delay: 300ms, timeout: 3s}}
telemetry: {{access_log: off}}
routes:
  - name: mark
    match: {{path: /mark}}
    respond: {{status: 200, body: '{{"mark": "{mark}"}}'}}
  - name: upstream
    to: {upstream}
    retry: {{attempts: 2, when: [connect, reset]}}
"""
        )


@pytest.fixture
def service(tmp_path: Path, upstream: str) -> Iterator[Running]:
    with Running(tmp_path, upstream) as running:
        running.wait_until_up()
        running.wait_for_workers(2)
        yield running


CLIENTS = 8


@contextmanager
def load(service: Service) -> Iterator[list[Exception]]:
    """Clients that ask again and again, half of them over new connections each time; what went wrong for them."""
    errors: list[Exception] = []
    done = threading.Event()

    def client(*, keep_alive: bool) -> None:
        connection = http.client.HTTPConnection(service.host, service.port, timeout=10)
        while not done.is_set():
            try:
                connection.request("GET", "/a")
                response = connection.getresponse()
                assert response.read()
                assert response.status == 200
            except (OSError, http.client.HTTPException, AssertionError) as error:
                errors.append(error)
                connection.close()
            if not keep_alive:
                connection.close()
        connection.close()

    threads = [
        threading.Thread(target=client, kwargs={"keep_alive": number % 2 == 0}) for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_killed_worker_costs_only_what_it_had_in_hand(service: Running) -> None:
    (first, _) = service.pids().values()
    with load(service) as errors:
        time.sleep(0.2)
        os.kill(first, signal.SIGKILL)
        until(lambda: len(service.pids()) == 2 and first not in service.pids().values())
    assert len(errors) <= CLIENTS, errors


def test_twenty_reloads_lose_nothing(service: Running, upstream: str) -> None:
    with load(service) as errors:
        for number in range(20):
            service.configure(upstream, f"m{number}")
            status, answer = service.admin("POST", "/api/reload")
            assert (status, answer["generation"]) == (200, number + 2), answer
            assert service.get("/mark") == {"mark": f"m{number}"}
    assert not errors


def test_replacing_every_worker_loses_nothing(service: Running) -> None:
    before = set(service.pids().values())
    with load(service) as errors:
        service.signal(signal.SIGUSR2)
        until(lambda: len(service.pids()) == 2 and not before & set(service.pids().values()))
        until(lambda: not any(map(is_alive, before)))
    assert not errors


def test_scaling_up_and_down_loses_nothing(service: Running) -> None:
    with load(service) as errors:
        for number, count in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1)):
            service.signal(number)
            service.wait_for_workers(count)
        until(lambda: len(service.status()["workers"]) == 1)
    assert not errors


def health_status(service: Running) -> int:
    """What the service's own port tells load balancers."""
    probe = service.connect()
    try:
        probe.request("GET", "/.well-known/ambassador/health")
        return probe.getresponse().status
    finally:
        probe.close()


def test_a_drain_finishes_what_is_under_way(service: Running) -> None:
    busy = service.connect()
    busy.request("GET", "/sleep")
    service.signal(signal.SIGTERM)
    until(lambda: service.admin("GET", "/readyz") == (503, "draining\n"))
    # The supervisor says so first; its order reaches the workers a moment later.
    until(lambda: health_status(service) == 503)
    assert service.get("/late") == {"path": "/late"}
    response = busy.getresponse()
    assert (response.status, response.getheader("connection")) == (200, "close")
    busy.close()
    status, errors = service.end()
    assert status == 0, errors


def test_workers_finish_and_end_when_the_supervisor_is_killed(service: Running) -> None:
    pids = service.pids().values()
    busy = service.connect()
    busy.request("GET", "/sleep")
    until(lambda: sum(worker["inflight"] for worker in service.status()["workers"]) == 1)
    service.process.kill()
    assert busy.getresponse().status == 200
    busy.close()
    until(lambda: not any(map(is_alive, pids)))


def test_a_config_error_leaves_what_was_and_is_told(service: Running, upstream: str) -> None:
    service.configure(upstream)
    good = service.file.read_text()
    service.file.write_text(good.replace("respond:", "repsond:"))
    done = cli("reload", "--control", str(service.control))
    assert done.returncode == 1
    assert f"{service.file}:9:5: error: routes[0]: unknown key 'repsond'" in done.stderr
    assert service.get("/mark") == {"mark": "first"}
    told = service.status()["last_reload"]
    assert told["ok"] is False
    assert f"{service.file}:9:5" in told["errors"][0]
    service.file.write_text(good.replace("first", "second"))
    service.signal(signal.SIGHUP)
    until(lambda: service.get("/mark") == {"mark": "second"})


def test_counters_outlive_their_worker(service: Running) -> None:
    for _ in range(10):
        service.get("/mark")

    def counted() -> bool:
        line = 'ambassador_requests_total{route="mark",upstream="-",code_class="2xx"} 10'
        return line in service.admin("GET", "/metrics")[1].splitlines()

    until(counted)
    for pid in service.pids().values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: service.status()["worker_restarts"] == 2)
    service.wait_for_workers(2)
    assert counted()


def test_the_api_tells_of_routes_upstreams_and_tasks(service: Running, upstream: str) -> None:
    service.get("/a")
    routes = service.admin("GET", "/api/routes")[1]
    assert [(route["name"], route["to"]) for route in routes] == [
        ("mark", "respond"),
        ("upstream", "upstream"),
    ]
    (told,) = service.admin("GET", "/api/upstreams")[1]
    assert told["name"] == "upstream"
    assert told["endpoints"][0]["url"] == upstream
    assert sum(told["endpoints"][0]["connections"].values()) == 1
    assert len(service.admin("GET", "/api/tasks")[1]) == 2


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ambassador", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=20
    )


def test_commands_reach_the_service(service: Running) -> None:
    where = ("--control", f"unix:{service.control}")
    assert cli("health", *where).stdout == "ok\n"
    assert json.loads(cli("health", "--live", "--json", *where).stdout) == {"ok": True, "reason": None}
    assert cli("workers", "1", *where).stdout == "1 workers\n"
    service.wait_for_workers(1)
    assert "ready" in cli("workers", *where).stdout
    assert cli("reload", *where).stdout == "generation 2 is served\n"
    assert cli("drain", "--wait", *where).stdout == "drained\n"
    assert service.end()[0] == 0
    assert cli("health", *where).returncode == 3


def test_access_log_lines_follow_the_announcement(tmp_path: Path, upstream: str) -> None:
    control = f"unix:{tmp_path}/c.sock"
    command = [
        "ambassador",
        "run",
        "--to",
        upstream,
        "--listen",
        "127.0.0.1:0",
        "--control",
        control,
        "--workers",
        "2",
    ]
    with Service(command, tmp_path / "c.sock") as service:
        service.wait_until_up()
        for number in range(20):
            service.get(f"/{number}")
        assert service.others() == []  # without a file there is nothing to check again
        service.signal(signal.SIGTERM)
        out, _ = service.process.communicate(timeout=20)
    lines = out.decode().splitlines()
    assert lines[:2] == ["state local", f"control {control}"]
    assert sorted(int(json.loads(line)["path"][1:]) for line in lines[2:]) == list(range(20))


def test_every_error_of_a_bad_config_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("version: 1\nlisten: nowhere\nroutes:\n  - {name: a, to: 7}\n")
    done = cli("run", "-c", str(file))
    assert done.returncode == 1
    assert done.stderr.count(": error: ") == 2


def test_the_demo_serves_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = ["ambassador", "demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    with Service(command, tmp_path / "none", TMPDIR=str(tmp_path)) as service:
        service.wait_until_up()
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(service.process.pid)], capture_output=True
        )
        assert service.get("/flaky/x")["upstream"] == "flaky"
        service.signal(signal.SIGINT)
        assert service.end()[0] == 0
    assert not list(tmp_path.iterdir())
    assert not any(is_alive(int(pid)) for pid in children.stdout.split())
