"""Upstreams through real egress proxies: squid and tinyproxy, with credentials."""

from __future__ import annotations

import contextlib
import json
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.identity import CLIENT, SECRET, Api, Identity
from tests.e2e.origins import answers, free_port, serving, wsgi
from tests.e2e.programs import ambassador, needs, program, start, wait_until
from tests.proxy.clients import tokens
from tests.proxy.pem import Authority

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

LOGIN = ("ambassador", "s3cret")
_TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 30
MaxClients 20
StartServers 2
LogFile "{directory}/tinyproxy.log"
BasicAuth {user} {password}
ConnectPort {secure}
"""
_SQUID = """
http_port 127.0.0.1:{port}
pid_filename none
cache deny all
cache_log /dev/null
access_log none
coredump_dir none
hosts_file {hosts}
acl reached port {plain} {secure}
acl tunnelled port {secure}
http_access deny !reached
http_access deny CONNECT !tunnelled
http_access allow localhost
http_access deny all
shutdown_lifetime 0 seconds
"""


class Origin(BaseHTTPRequestHandler):
    """Says what arrived, and on which connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps(
            {"path": self.path, "headers": dict(self.headers.items()), "from": self.client_address[1]}
        )
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def origin(context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server):
        yield server.server_port


@contextlib.contextmanager
def running(name: str, config: str, port: int, directory: Path) -> Iterator[None]:
    file = directory / f"{name}.conf"
    file.write_text(config)
    binary = program(name)
    assert binary is not None
    arguments = (
        ["-d", "-c", str(file)] if name == "tinyproxy" else ["-N", "-n", f"ambassador{port}", "-f", str(file)]
    )
    process = start([binary, *arguments], directory, name)
    try:
        wait_until(lambda: answers(port, process), name)
        yield
    finally:
        process.end()


def body(ca: str, plain: int, secure: int, via: str) -> str:
    return f"""
        upstreams:
          plain: {{endpoints: ["http://localhost:{plain}"], connections: {{via: {via}}}, health: {{path: /, every: 1s}}}}
          secure:
            endpoints: ["https://localhost:{secure}"]
            tls: {{ca: {ca}}}
            connections: {{via: {via}}}
            health: {{path: /, every: 1s}}
        routes:
          - {{name: plain, match: {{path: /plain/**}}, to: plain}}
          - {{name: secure, to: secure}}
        """


def ask(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=20) as response:
        document: dict[str, object] = json.loads(response.read())
    return document


def check_both_ways(ca: str, plain: int, secure: int, via: str) -> None:
    with ambassador(body(ca, plain, secure, via)) as service:
        for path in ("/plain/a?b=c", "/secure/a?b=c"):
            seen = [ask(f"{service.url}{path}") for _ in range(3)]
            assert [each["path"] for each in seen] == [path] * 3
            assert "s3cret" not in json.dumps(seen)
            assert not any("proxy-authorization" in str(each).lower() for each in seen)
            port = plain if path.startswith("/plain") else secure
            assert all(f"localhost:{port}" in str(each) for each in seen)
            if port == secure:
                assert len({each["from"] for each in seen}) == 1, "the tunnel is used again"
        upstreams = json.loads(service.admin_get("/api/upstreams"))
        assert all(endpoint["healthy"] for upstream in upstreams for endpoint in upstream["endpoints"])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def server_side(authority: Authority, name: str = "localhost") -> ssl.SSLContext:
    pair = authority.issue(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    return context


@needs("tinyproxy")
def test_tinyproxy_with_credentials(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "password").write_text(LOGIN[1])
    port = free_port()
    with origin() as plain, origin(server_side(authority)) as secure:
        config = _TINYPROXY.format(
            port=port, directory=tmp_path, user=LOGIN[0], password=LOGIN[1], secure=secure
        )
        with running("tinyproxy", config, port, tmp_path):
            via = (
                f"{{url: 'http://127.0.0.1:{port}', user: {LOGIN[0]}, password: 'file:{tmp_path}/password'}}"
            )
            check_both_ways(authority.ca, plain, secure, via)
            (tmp_path / "password").write_text("another")
            with ambassador(body(authority.ca, plain, secure, via)) as service:
                with pytest.raises(urllib.error.HTTPError) as failed:
                    ask(service.url + "/secure/")
                assert failed.value.code == 503
                with failed.value as refused:
                    assert b'"connect_failed"' in refused.read()
                with pytest.raises(urllib.error.HTTPError) as failed:
                    ask(service.url + "/plain/")
                assert failed.value.code in (
                    401,
                    503,
                )  # tinyproxy means 407 and says 401, as the origin might
                failed.value.close()


@needs("squid")
def test_squid_leads_on(tmp_path: Path, authority: Authority) -> None:
    port = free_port()
    with origin() as plain, origin(server_side(authority)) as secure:
        config = _SQUID.format(port=port, plain=plain, secure=secure, hosts="/etc/hosts")
        with running("squid", config, port, tmp_path):
            check_both_ways(authority.ca, plain, secure, f"'http://127.0.0.1:{port}'")


class Issuer:
    """A token service that has a set of keys too; says what it was asked through which name."""

    def __init__(self) -> None:
        self.identity = Identity()
        self.hosts: set[str] = set()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.hosts.add(environ["HTTP_HOST"])
        if environ["PATH_INFO"] != "/jwks":
            return self.identity(environ, start_response)
        start_response("200 OK", [("content-type", "application/jwk-set+json")])
        return [tokens.jwks("rsa")]


def own_calls(directory: Path, issuer: str, ca: str, api: str, via: str) -> str:
    """Both kinds of the ambassador's own calls go through the proxy, and requests to the upstream do not."""
    (directory / "secret").write_text(SECRET)
    return f"""
        egress: {{}}
        clients:
          app: {{jwt: {{issuer: '{tokens.ISSUER}', audience: {tokens.AUDIENCE}, jwks: '{issuer}/jwks', ca: {ca}, via: {via}}}}}
        upstreams:
          api:
            endpoints: ["{api}"]
            auth:
              oauth2:
                token_url: {issuer}/token
                client_id: {CLIENT}
                client_secret: file:{directory}/secret
                ca: {ca}
                via: {via}
        routes: [{{name: api, access: [app], to: api}}]
        """


def call(url: str) -> int:
    """What somebody is answered who shows a token that holds."""
    shown = {"authorization": f"Bearer {tokens.sign(time.time()).decode()}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=shown), timeout=20) as response:
            status: int = response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return status


@needs("squid")
def test_tokens_and_keys_come_through_squid_which_alone_knows_where_they_are(
    tmp_path: Path, authority: Authority
) -> None:
    port = free_port()
    issuer = Issuer()
    api = Api(issuer.identity)
    with (
        wsgi(issuer, server_side(authority, "id.test")) as url,
        wsgi(api) as api_url,
        tempfile.NamedTemporaryFile("w") as file,
    ):
        secure = url.rpartition(":")[2]
        hosts = Path(file.name)  # not below tmp_path: squid reads it as another user
        hosts.write_text("127.0.0.1 id.test\n")
        hosts.chmod(0o644)
        config = _SQUID.format(port=port, plain=1, secure=secure, hosts=hosts)
        body = own_calls(
            tmp_path, f"https://id.test:{secure}", authority.ca, api_url, f"'http://127.0.0.1:{port}'"
        )
        with ambassador(body) as service:
            assert call(service.url) == 401, "the proxy is not there, and so are no keys"
            with running("squid", config, port, tmp_path):
                wait_until(lambda: call(service.url) == 200, "keys and a token")
    assert issuer.hosts == {f"id.test:{secure}"}
    assert len(issuer.identity.asked) == 1
    assert api.seen == [f"Bearer {token}" for token in issuer.identity.valid]


@needs("tinyproxy")
def test_tokens_and_keys_come_through_tinyproxy_with_credentials(
    tmp_path: Path, authority: Authority
) -> None:
    port = free_port()
    password = tmp_path / "password"
    password.write_text("another")
    issuer = Issuer()
    api = Api(issuer.identity)
    with wsgi(issuer, server_side(authority)) as url, wsgi(api) as api_url:
        secure = url.rpartition(":")[2]
        config = _TINYPROXY.format(
            port=port, directory=tmp_path, user=LOGIN[0], password=LOGIN[1], secure=secure
        )
        via = f"{{url: 'http://127.0.0.1:{port}', user: {LOGIN[0]}, password: 'file:{password}'}}"
        body = own_calls(tmp_path, f"https://localhost:{secure}", authority.ca, api_url, via)
        with running("tinyproxy", config, port, tmp_path), ambassador(body) as service:
            assert call(service.url) == 401
            assert not issuer.hosts
            password.write_text(LOGIN[1])
            wait_until(lambda: call(service.url) == 200, "keys and a token")
            log = service.running.output()
            assert not any(secret in log for secret in (*LOGIN[1:], "another", SECRET))
    assert "egress proxy" in log
    assert f"localhost:{secure}" in (tmp_path / "tinyproxy.log").read_text()


def test_request_to_oneself_is_a_loop() -> None:
    """Whatever leads there: an upstream that is one of the ambassador's own listeners."""
    port = free_port()
    body = f"routes: [{{name: self, to: 'http://localhost:{port}', retry: {{attempts: 0}}}}]"
    with ambassador(body, listen=f"127.0.0.1:{port}") as service:
        with pytest.raises(urllib.error.HTTPError) as failed:
            ask(service.url + "/")
        assert failed.value.code == 508
        assert b'"loop_detected"' in failed.value.read()
