"""Certificates that change under a running service: real processes, real handshakes. Nothing is timed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from ambassador.proxy.key_files import KeyPair
from loadtest.volume import Volume
from tests.e2e.origins import serving
from tests.e2e.programs import AMBASSADOR, Ambassador, ambassador, start, wait_until
from tests.proxy.clients.tokens import AUDIENCE, ISSUER, jwks, sign
from tests.proxy.pem import Authority

CALLERS = f"""\
clients:
  key: {{{{api_key: 'file:{{key}}'}}}}
  token: {{{{jwt: {{{{issuer: '{ISSUER}', audience: {AUDIENCE}, jwks: 'file:{{jwks}}'}}}}}}}}
routes:
  - {{{{name: callers, match: {{{{path: /callers}}}}, respond: 200, access: [key, token]}}}}
  - {{{{name: r, respond: 200}}}}
"""


class Clients:
    """Threads that ask all the time: half of them over one connection, half over a new one for each request."""

    def __init__(self, port: int, context: ssl.SSLContext, names: tuple[str, ...] = ("a.test",)) -> None:
        self._port = port
        self._context = context
        self._names = names
        self._over = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(keep,)) for keep in (True, False) * 2]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, keep: bool) -> None:
        connection: http.client.HTTPSConnection | None = None
        while not self._over.is_set():
            try:
                connection = connection or connect(self._port, self._context)
                connection.request("GET", "/", headers={"Host": "a.test"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.failures.append(f"status {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection = None
            self.answered += 1
            if connection is not None and not keep:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


def connect(port: int, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    connection.connect()
    return connection


def shown(port: int, context: ssl.SSLContext) -> tuple[str, ...]:
    """The names in the certificate that a new connection gets."""
    with contextlib.closing(connect(port, context)) as connection:
        assert isinstance(connection.sock, ssl.SSLSocket)
        peer: Any = connection.sock.getpeercert()
        return tuple(value for _, value in peer["subjectAltName"])


def certificates(proxy: Ambassador) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(proxy.admin_get("/api/status"))["certificates"]
    return found


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.ca)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_certificate_is_replaced_under_load_and_no_request_fails(
    authority: Authority, tmp_path: Path
) -> None:
    first = authority.issue("127.0.0.1", "first.test", file="first")
    second = authority.issue("127.0.0.1", "second.test", file="second")
    third = authority.issue("127.0.0.1", "third.test", file="third")
    volume = Volume(tmp_path / "tls")
    volume.put_pair(first.cert, first.key)
    listen = f"[{{address: '127.0.0.1:0', tls: {{cert: {volume.cert}, key: {volume.key}}}}}]"
    context = trusting(authority)
    files = {"key": tmp_path / "key", "jwks": tmp_path / "jwks"}
    files["key"].write_text("s3kr3t")
    files["jwks"].write_bytes(jwks("ec"))
    with ambassador(CALLERS.format(**files), workers=2, listen=listen) as proxy:
        assert proxy.url.startswith("https://")
        port = port_of(proxy.url)
        assert shown(port, context) == ("127.0.0.1", "first.test")
        with Clients(port, context) as clients, contextlib.closing(connect(port, context)) as old:
            wait_until(lambda: clients.answered > 100, "the load")
            volume.put_pair(second.cert, second.key)
            wait_until(lambda: all_show(port, context, "second.test"), "the second certificate")
            # Each process reads for itself. What is told comes from the supervisor.
            wait_until(lambda: "second.test" in certificates(proxy)[0]["names"], "the supervisor")
            # Not a pair: nothing changes, and it is said once.
            volume.put_pair(third.cert, second.key)
            wait_until(lambda: certificates(proxy)[0]["problem"], "the problem")
            wait_until(lambda: "does not belong" in proxy.running.stderr.read_text(), "the log")
            seen = clients.answered
            wait_until(lambda: clients.answered > seen + 100, "more load")
            assert all_show(port, context, "second.test")
            volume.put_pair(third.cert, third.key)
            wait_until(lambda: all_show(port, context, "third.test"), "the third certificate")
            wait_until(lambda: certificates(proxy)[0]["problem"] is None, "the supervisor")
            old.request("GET", "/", headers={"Host": "a.test"})
            assert old.getresponse().status == 200
        assert clients.failures == []
        log = proxy.running.stderr.read_text()
        assert log.count("does not belong to the certificate") == 1, log
        assert log.count("the files are well again") == 1, log
        assert log.count("the files are changed") == 1, log
        labels = f'side="client",name="127.0.0.1:0",file="{volume.cert}"'
        assert proxy.samples(f"ambassador_certificate_expiry_seconds{{{labels}}}")
        # Workers that start while the files are no pair have what those had that died.
        volume.put_pair(third.cert, second.key)
        wait_until(lambda: certificates(proxy)[0]["problem"], "the problem")
        files["key"].unlink()
        files["jwks"].write_text("{")
        wait_until(lambda: "is no JSON object" in proxy.running.stderr.read_text(), "the log")
        before = worker_pids(proxy)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(worker_pids(proxy) - before) == len(before), "other workers")
        assert all_show(port, context, "third.test")
        token = sign(time.time(), key="ec", algorithm="ES256").decode()
        for fields in ({"x-api-key": "s3kr3t"}, {"authorization": f"Bearer {token}"}):
            assert {asked_as(port, context, fields) for _ in range(8)} == {200}


def asked_as(port: int, context: ssl.SSLContext, fields: dict[str, str]) -> int:
    """The status that a caller with these fields gets on a new connection."""
    with contextlib.closing(connect(port, context)) as connection:
        connection.request("GET", "/callers", headers=fields)
        return connection.getresponse().status


def worker_pids(proxy: Ambassador) -> set[int]:
    """Of the workers that serve."""
    workers = json.loads(proxy.admin_get("/api/status"))["workers"]
    return {each["pid"] for each in workers if each["ready"]}


def all_show(port: int, context: ssl.SSLContext, name: str) -> bool:
    """Whether new connections get the certificate with this name, of whichever worker."""
    return all(name in shown(port, context) for _ in range(8))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the name in the client's certificate."""
        assert isinstance(self.connection, ssl.SSLSocket)
        peer: Any = self.connection.getpeercert()
        body = ",".join(value for _, value in peer["subjectAltName"]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake is the connection's thread's."""
        with contextlib.suppress(OSError), self._context.wrap_socket(request, server_side=True) as sock:
            _Handler(sock, client_address, self)


@contextlib.contextmanager
def mutual_origin(pair: KeyPair, authority: Authority) -> Iterator[int]:
    """A server that wants a certificate of this authority, and says whose it was; gives its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    server = _Server(context)
    with serving(server):
        yield server.server_port


def asked(proxy: Ambassador) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(proxy.url), timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_clients_certificate_is_renewed_and_old_connections_are_not_used_again(
    authority: Authority, tmp_path: Path
) -> None:
    volume = Volume(tmp_path / "tls")
    pair = authority.issue("first.test")
    volume.put_pair(pair.cert, pair.key)
    with mutual_origin(authority.issue("127.0.0.1", file="origin"), authority) as port:
        body = f"""\
        upstreams:
          u:
            endpoints: ['https://127.0.0.1:{port}']
            tls: {{ca: {authority.ca}, cert: {volume.cert}, key: {volume.key}}}
            health: {{path: /, every: 1s, timeout: 20s}}
        routes: [{{name: r, to: u}}]
        """
        with ambassador(body) as proxy:
            assert asked(proxy) == (200, "first.test")
            assert asked(proxy) == (200, "first.test")
            pair = authority.issue("second.test")
            volume.put_pair(pair.cert, pair.key)
            wait_until(lambda: asked(proxy) == (200, "second.test"), "the second certificate")
            assert [asked(proxy) for _ in range(5)] == [(200, "second.test")] * 5
            wait_until(lambda: checks(proxy, "passed") > 0, "a check")
            assert checks(proxy, "failed") == 0
            assert {each["setting"] for each in certificates(proxy)} == {
                "upstreams.u.tls.cert",
                "upstreams.u.tls.ca",
            }


def checks(proxy: Ambassador, result: str) -> float:
    """How many health checks ended so."""
    (line,) = (line for line in proxy.samples("ambassador_health_checks") if f'result="{result}"' in line)
    return float(line.rpartition(" ")[2])


def test_endpoint_with_a_certificate_for_another_name_is_refused_by_requests_and_checks(
    authority: Authority,
) -> None:
    shown_by_origin = authority.issue("other.test")
    mine = authority.issue("mine.test")
    with mutual_origin(shown_by_origin, authority) as port:
        body = f"""\
        upstreams:
          u:
            endpoints: ['https://127.0.0.1:{port}']
            tls: {{ca: {authority.ca}, cert: {mine.cert}, key: {mine.key}}}
            health: {{path: /, every: 1s, timeout: 20s}}
        routes: [{{name: r, to: u}}]
        """
        with ambassador(body) as proxy:
            status, problem = asked(proxy)
            assert status == 503, problem
            assert json.loads(problem)["code"] == "connect_failed"
            [upstream] = wait_until(lambda: unhealthy(proxy), "the verdict")
            assert upstream["endpoints"][0]["why"].startswith("unhealthy: TLS: IP address mismatch")
            text = proxy.config.read_text()
            proxy.config.write_text(
                text.replace(f"ca: {authority.ca}", f"ca: {authority.ca}, sni: other.test")
            )
            assert proxy.command("reload").returncode == 0
            assert asked(proxy) == (200, "mine.test")


def unhealthy(proxy: Ambassador) -> list[dict[str, Any]] | None:
    found: list[dict[str, Any]] = json.loads(proxy.admin_get("/api/upstreams"))
    return None if found[0]["endpoints"][0]["healthy"] else found


def test_reload_with_a_broken_file_is_refused_and_the_old_certificate_is_shown(authority: Authority) -> None:
    pair = authority.issue("127.0.0.1")
    listen = f"[{{address: '127.0.0.1:0', tls: {{cert: {pair.cert}, key: {pair.key}}}}}]"
    context = trusting(authority)
    with ambassador("routes: [{name: r, respond: 200}]", listen=listen) as proxy:
        Path(pair.key).write_text("nothing")
        done = proxy.command("reload")
        assert done.returncode == 1
        wanted = f"error: listen[0].tls.key: '{pair.key}' holds no private key in PEM form"
        assert f"{proxy.config}:2:" in done.stderr
        assert wanted in done.stderr
        assert shown(port_of(proxy.url), context) == ("127.0.0.1",)


def test_service_does_not_start_with_a_key_of_another_certificate(
    authority: Authority, tmp_path: Path
) -> None:
    one, two = authority.issue("a.test"), authority.issue("b.test")
    config = tmp_path / "ambassador.yaml"
    config.write_text(
        "version: 1\n"
        f"listeners: [{{address: 127.0.0.1:0, tls: {{cert: {one.cert}, key: {two.key}}}}}]\n"
        "routes: [{name: r, respond: 200}]\n"
    )
    running = start([*AMBASSADOR, "run", "-c", str(config)], tmp_path, "ambassador")
    assert running.process.wait(20) == 1
    assert "does not belong to the certificate" in running.stderr.read_text()
