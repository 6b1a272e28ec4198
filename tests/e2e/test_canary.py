"""Secrets of every kind, in a service to which everything happens: none of them is seen where it does not belong.

Each secret is a word of its own. All that the service and its commands print, log, answer and count is collected, from
a run with successes, failures, refused input, reloads that fail, a crash. Upstreams write down what they were shown.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.control.service import children
from tests.e2e.origins import wsgi
from tests.e2e.programs import AMBASSADOR, DEADLINE_S, Running, announcement, start, wait_until
from tests.proxy.pem import Authority
from tests.state.servers import Server, any_binary

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

USER = "canary-user"
KINDS = ("bearer", "basic", "header", "aws", "hmac", "jwt", "oauth")
BAD_CONFIG = "version: 1\nlisten: 127.0.0.1:0\nroutes: [{name: r, to: u}]\nupstreams: {u: {endpoints: [http://127.0.0.1:1], auth: "


class Canaries:
    """The secrets by name, each in a file or a variable."""

    def __init__(self, directory: Path, environment: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._environment = environment
        self.words: dict[str, str] = {}

    def word(self, name: str) -> str:
        """The secret of this name, long enough for a key of HS256."""
        return self.words.setdefault(name, f"Canary{hashlib.sha256(name.encode()).hexdigest()}+{name}")

    def file(self, name: str) -> str:
        """A reference to a file that holds it."""
        path = self._directory / f"{name}.secret"
        path.write_text(self.word(name) + "\n")
        return f"file:{path}"

    def variable(self, name: str) -> str:
        """A reference to a variable that holds it."""
        variable = f"SECRET_{name.upper().replace('-', '_')}"
        self._environment.setenv(variable, self.word(name))
        return f"env:{variable}"

    def shapes(self) -> Iterator[tuple[str, bytes]]:
        """All of them as they may be written somewhere."""
        for name, word in self.words.items():
            yield name, word.encode()
            yield f"{name}, quoted", quote(word, safe="").encode()
            yield f"{name}, alone in base64", b64encode(word.encode())
            for user in (USER, "client", "default"):
                yield f"{name}, as basic", b64encode(f"{user}:{word}".encode())


class Upstream:
    """Remembers what it was shown; answers without repeating it. `/status/N` is that status, `/token` a token."""

    def __init__(self, token: str) -> None:
        self.shown: list[str] = []
        self._token = token

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.shown += [str(value) for key, value in environ.items() if key.startswith("HTTP_")]
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"]
        status = f"{path.rpartition('/')[2]} Asked For" if "/status/" in path else "200 OK"
        body = b"{}"
        if path == "/token":
            body = json.dumps(
                {"access_token": self._token, "token_type": "Bearer", "expires_in": 60}
            ).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def config(url: str, redis: str, canaries: Canaries, directory: Path) -> dict[str, Any]:
    pair = Authority(directory).issue("localhost")
    canaries.words["tls-key"] = Path(pair.key).read_text().splitlines()[1]
    auth: dict[str, Any] = {
        "bearer": {"bearer": canaries.file("bearer")},
        "basic": {"basic": {"user": USER, "password": canaries.variable("basic")}},
        "header": {"header": {"name": "x-api-key", "value": canaries.file("header")}},
        "aws": {
            "aws_sigv4": {
                "service": "sqs",
                "region": "r",
                "access_key": canaries.variable("aws-access"),
                "secret_key": canaries.file("aws-secret"),
                "session_token": canaries.file("aws-session"),
            }
        },
        "hmac": {"hmac": {"key": canaries.file("hmac")}},
        "jwt": {"jwt": {"key": canaries.file("jwt"), "algorithm": "HS256"}},
        "oauth": {
            "oauth2": {
                "token_url": f"{url}/token",
                "client_id": "client",
                "client_secret": canaries.file("oauth"),
            }
        },
    }
    upstreams: dict[str, Any] = {kind: {"endpoints": [url], "auth": auth[kind]} for kind in KINDS}
    upstreams["down"] = {
        "endpoints": ["http://127.0.0.1:1"],
        "auth": auth["bearer"],
        "breaker": {"consecutive": 3},
    }
    upstreams["none"] = {"endpoints": [url], "auth": {"bearer": f"file:{directory}/none"}}
    upstreams["tls"] = {
        "endpoints": ["https://127.0.0.1:1"],
        "auth": auth["header"],
        "tls": {"cert": pair.cert, "key": pair.key, "verify": False},
    }
    routes = [
        {
            "name": name,
            "match": {"path": f"/{name}/**"},
            "to": name,
            "retry": {"attempts": 1, "when": ["connect", "503"], "backoff": "1ms"},
        }
        for name in upstreams
    ]
    return {
        "version": 1,
        "listeners": [
            {"address": "127.0.0.1:0"},
            {"address": "127.0.0.1:0", "tls": {"cert": pair.cert, "key": pair.key}},
        ],
        "admin": {"address": "127.0.0.1:0", "token": canaries.file("admin")},
        "control": f"unix:{directory}/control.sock",
        "workers": 2,
        "drain": {"delay": "0s", "timeout": "5s"},
        "state": {
            "url": redis,
            "password": canaries.file("redis"),
            "secret_key": canaries.variable("state-key"),
        },
        "telemetry": {"debug_headers": True},
        "clients": {
            "ann": {"api_key": canaries.file("api-key"), "forward": False},
            "bob": {"basic": {"user": USER, "password": canaries.variable("client-password")}},
        },
        "upstreams": upstreams,
        "routes": routes,
    }


class Scene:
    """A running service, and all that was ever heard of it."""

    def __init__(self, running: Running, said: Any, file: Path, canaries: Canaries, directory: Path) -> None:
        self.running = running
        self.host, _, port = said["listeners"][0].removeprefix("http://").rstrip("/").partition(":")
        self.port = int(port)
        self.admin = said["admin"].rstrip("/")
        self.file = file
        self.canaries = canaries
        self.directory = directory
        self.heard: dict[str, bytes] = {}

    def hears(self, where: str, data: bytes) -> None:
        self.heard[where] = self.heard.get(where, b"") + data

    def raw(self, request: bytes) -> None:
        """Send this, and read to the end, which may be a reset."""
        with (
            suppress(ConnectionResetError),
            socket.create_connection((self.host, self.port), DEADLINE_S) as sock,
        ):
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65536):
                self.hears(f"answer to {request[:40]!r}", data)

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **fields: str) -> int:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, body, fields)
            answer = connection.getresponse()
            self.hears(f"{method} {path}", f"{answer.status} {answer.msg}".encode() + answer.read())
            return answer.status
        finally:
            connection.close()

    def metrics(self) -> bytes:
        self.ask_admin("/metrics")
        return self.heard["admin /metrics"][-20_000:]

    def ask_admin(self, path: str, method: str = "GET", token: str | None = None) -> None:
        request = urllib.request.Request(self.admin + path, method=method)
        if token is not None:
            request.add_header("authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                self.hears(f"admin {path}", str(answer.headers).encode() + answer.read())
        except urllib.error.HTTPError as error:
            self.hears(f"admin {path}", f"{error.status} {error.headers}".encode() + error.read())

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [*AMBASSADOR, *arguments], capture_output=True, timeout=60, stdin=subprocess.DEVNULL
        )
        self.hears(f"ambassador {' '.join(arguments[:2])}", done.stdout + done.stderr)
        return done.stdout.decode()

    def processes(self) -> list[int]:
        supervisor = self.running.process.pid
        return [supervisor, *children(supervisor)]


@contextmanager
def a_store(canaries: Canaries) -> Iterator[Server]:
    redis = Server(any_binary(), "--requirepass", canaries.word("redis"))
    try:
        yield redis.start(wait=False)
    finally:
        redis.close()


@contextmanager
def a_scene(upstream: Upstream, redis: Server, canaries: Canaries, directory: Path) -> Iterator[Scene]:
    with wsgi(upstream) as url:
        file = directory / "ambassador.yaml"
        file.write_text(json.dumps(config(url, redis.url, canaries, directory)))
        running = start([*AMBASSADOR, "run", "-c", str(file), "--json"], directory, "ambassador")
        try:
            said = wait_until(lambda: announcement(running), "the announcement")
            yield Scene(running, said, file, canaries, directory)
        except BaseException as error:
            error.add_note(running.output())
            raise
        finally:
            running.end()


def test_no_secret_is_seen_where_it_does_not_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    with tempfile.TemporaryDirectory(prefix="amb-") as name:
        directory = Path(name)
        canaries = Canaries(directory, monkeypatch)
        upstream = Upstream(canaries.word("access-token"))
        with a_store(canaries) as redis, a_scene(upstream, redis, canaries, directory) as scene:
            wait_until(lambda: scene.ask("/bearer/x") == 200, "an answer")
            requests(scene)
            reloads(scene)
            commands(scene)
            loses_its_store(scene, redis)
            crash(scene)
        for stream in (scene.running.stdout, scene.running.stderr):
            scene.hears(stream.name, stream.read_bytes())
        assert not list(directory.glob("core*"))
        # Not even where they are kept.
        assert not re.search(rb"\.secret|SECRET_", scene.heard["admin /api/config"])
        leaks = [
            f"{secret} in {where}"
            for where, data in scene.heard.items()
            for secret, shape in canaries.shapes()
            if shape in data
        ]
        assert not leaks, leaks
        arrived(upstream, canaries)


def arrived(upstream: Upstream, canaries: Canaries) -> None:
    """Else nothing here says anything."""
    shown = "\n".join(upstream.shown)
    for name in ("bearer", "header", "aws-access", "aws-session", "access-token"):
        assert canaries.word(name) in shown, name
    assert b64encode(f"{USER}:{canaries.word('basic')}".encode()).decode() in shown
    assert 'sig1=("@method"' in shown
    for name in ("aws-secret", "hmac", "jwt", "redis", "admin", "state-key", "api-key"):
        assert canaries.word(name) not in shown, name


def requests(scene: Scene) -> None:
    """Of every kind and to every end, the short way and the long one."""
    for kind in KINDS:
        for path in ("ok", "ok", "status/401", "status/503", "status/404"):
            scene.ask(f"/{kind}/{path}")
        scene.ask(f"/{kind}/ok", "POST", b"body", Authorization="Bearer theirs", Connection="authorization")
        scene.ask(f"/{kind}/ok", "TRACE", None, **{"Max-Forwards": "0"})
        scene.ask(f"/{kind}/ok", "TRACE")
        scene.raw(b"GET /%b/ok HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n" % kind.encode())
        scene.raw(b"POST /%b/ok HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nshort" % kind.encode())
        scene.raw(b"GET /%b/ok HTTP/1.0\r\n\r\n" % kind.encode())
    for name in ("api-key", "bearer"):
        scene.ask("/aws/ok", "GET", None, **{"X-Api-Key": scene.canaries.word(name)})
    for name in ("client-password", "basic"):
        pair = b64encode(f"{USER}:{scene.canaries.word(name)}".encode()).decode()
        scene.ask("/header/ok", Authorization=f"Basic {pair}")
    assert scene.ask("/none/x") == 503
    for _ in range(6):
        assert scene.ask("/down/x") == 503
    scene.ask("/tls/x")
    scene.ask("/nobody")
    for path in (
        *("status", "config", "routes", "upstreams", "breakers", "limits", "replicas", "migrations", "tasks"),
        "nothing",
    ):
        scene.ask_admin(f"/api/{path}")
    for path in ("/", "/metrics", "/livez", "/readyz?verbose"):
        scene.ask_admin(path)
    scene.ask_admin("/api/reload", "POST")
    scene.ask_admin("/api/reload", "POST", "wrong")
    scene.ask_admin("/api/breakers/none", "POST", scene.canaries.word("admin"))


def reloads(scene: Scene) -> None:
    """With secrets in the place of references, a syntax error, a secret that is gone; and a good one."""
    control = ("--control", f"unix:{scene.directory}/control.sock")
    good = scene.file.read_text()
    word = scene.canaries.word("written")
    for bad in (
        f"{BAD_CONFIG}{{bearer: {word}}}}}}}",
        f"{BAD_CONFIG}{{basic: {{user: a, password: {word}}}}}}}}}",
        f"{BAD_CONFIG}{{header: {{name: x, value: '{word}'}}}}}}}}",
        f"{BAD_CONFIG}{{aws_sigv4: {{service: s, region: r, access_key: {word}, secret_key: {word}}}}}}}}}",
        f"version: 1\nadmin: {{address: '127.0.0.1:0', token: {word}}}",
        f"version: 1\nlisten: 127.0.0.1:0\nstate: 'redis://:{quote(word)}@127.0.0.1/0'",
    ):
        scene.file.write_text(bad)
        scene.command("reload", *control)
        scene.ask_admin("/api/status")
    scene.command("check", str(scene.file))
    scene.file.write_text(good)
    admin = scene.directory / "admin.secret"
    held = admin.read_text()
    admin.unlink()
    scene.ask_admin("/api/reload", "POST", held.strip())
    admin.write_text(held)
    (scene.directory / "bearer.secret").unlink()
    scene.command("reload", *control)
    wait_until(lambda: b"bearer.secret: cannot be read" in scene.running.stderr.read_bytes(), "the warning")
    assert scene.ask("/bearer/x") == 200
    scene.canaries.file("bearer")
    scene.command("reload", *control)


def commands(scene: Scene) -> None:
    control = ("--control", f"unix:{scene.directory}/control.sock")
    file = str(scene.file)
    for kind in KINDS:
        told = scene.command("explain", "GET", f"http://a/{kind}/x", "-c", file)
        assert "credential" in told, scene.heard["ambassador explain GET"]
    scene.command("explain", "GET", "http://a/oauth/x", "--live", *control)
    scene.command("check", file, "--format", "json")
    scene.command("diff", "--live", file, *control)
    scene.command("doctor", "-c", file)
    for command in ("routes", "upstreams", "breakers", "limits", "replicas", "doctor"):
        scene.command(command, *control)
    token = scene.directory / "admin.secret"
    for given in (f"file:{token}", "env:NOTHING", scene.canaries.word("on-the-command-line")):
        scene.command("routes", "--admin", scene.admin, "--token", given)
    for pid in scene.processes():
        scene.hears(f"command line of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes())


def loses_its_store(scene: Scene, redis: Server) -> None:
    """The password is another one, and every connection is cut."""
    with redis.client(password=scene.canaries.word("redis")) as client:
        client.config_set("requirepass", "another")
        client.execute_command("client", "kill", "type", "normal", "skipme", "no")
    wait_until(lambda: b"ambassador_state_up 0" in scene.metrics(), "the loss of the store")
    for kind in KINDS:
        assert scene.ask(f"/{kind}/ok") == 200
    scene.ask_admin("/api/status")
    scene.command("doctor", "-c", str(scene.file))


def crash(scene: Scene) -> None:
    """A worker that dies with a dump of its stacks, as `faulthandler` makes it."""
    supervisor = scene.running.process.pid
    for pid in scene.processes():
        limits = Path(f"/proc/{pid}/limits").read_text()
        if b"ambassador.control.worker" in Path(f"/proc/{pid}/cmdline").read_bytes() or pid == supervisor:
            assert "Max core file size        0 " in limits, (pid, limits)
    workers = [
        pid
        for pid in scene.processes()
        if b"ambassador.control.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert workers
    os.kill(workers[0], signal.SIGABRT)
    wait_until(lambda: b"Fatal Python error: Aborted" in scene.running.stderr.read_bytes(), "the dump")
    wait_until(lambda: workers[0] not in scene.processes(), "the worker's end")
    assert scene.ask("/bearer/x") == 200
