"""Upstreams for the end-to-end tests: a WSGI server with chunked bodies, an application to talk to, git, nginx."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from socketserver import BaseServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from tests.e2e.programs import Running, program, start, wait_until

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class Handler(WSGIRequestHandler):
    """wsgiref's, with request bodies that are chunked, which it does not know. Its answers are HTTP/1.0."""

    protocol_version = "HTTP/1.1"
    rfile: io.BufferedReader
    wfile: Any

    def handle(self) -> None:
        """One request, then close, as wsgiref does."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            return
        environ = self.get_environ()
        body: Any = self.rfile
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            whole = b"".join(self._chunks())
            body = io.BytesIO(whole)
            environ["CONTENT_LENGTH"] = str(len(whole))
        handler = ServerHandler(body, self.wfile, self.get_stderr(), environ, multithread=True)
        handler.request_handler = self  # type: ignore[attr-defined]
        handler.run(self.server.get_app())  # type: ignore[attr-defined]

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b"\n", b""):
            pass  # trailers

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
        """Say nothing."""


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each request; ends with the test."""

    daemon_threads = True
    request_queue_size = 128


@contextlib.contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Have a server serve in a thread of its own, and close it at the end."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def wsgi(application: WSGIApplication, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve a WSGI application on a free port, by TLS with this context; gives its URL."""
    server = Server(("127.0.0.1", 0), Handler)
    server.set_app(application)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server):
        yield f"http{'' if tls is None else 's'}://127.0.0.1:{server.server_port}"


def blob(size: int) -> bytes:
    """`size` bytes that compress badly and are the same every time."""
    unit = hashlib.sha512(b"blob").digest() * 1024
    return (unit * (size // len(unit) + 1))[:size]


class Application:
    """Answers in ways that a test asks for by the path; remembers what it saw.

    `/echo` says in JSON what arrived · `/bytes/N` · `/gzip` · `/status/N` · `/flaky` fails every other time · `/hang`
    waits until `release` is set · `/cookies` repeats a header.
    """

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.hanging = threading.Event()
        """Set when somebody hangs."""
        self.release = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        with self._lock:
            self.calls[path] = count = self.calls.get(path, 0) + 1
        first, _, rest = path[1:].partition("/")
        answers: dict[str, Callable[[], tuple[str, list[tuple[str, str]], bytes]]] = {
            "echo": lambda: ("200 OK", [("Content-Type", "application/json")], echo(environ)),
            "bytes": lambda: ("200 OK", [("Content-Type", "application/octet-stream")], blob(int(rest))),
            "gzip": lambda: ("200 OK", [("Content-Encoding", "gzip")], gzip.compress(b"squeezed")),
            "status": lambda: (f"{rest} Asked For", [("X-Status", rest)], b""),
            "flaky": lambda: ("503 No" if count % 2 else "200 OK", [], b"flaky"),
            "hang": self._hang,
            "cookies": lambda: ("200 OK", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")], b""),
        }
        status, headers, body = answers.get(first, lambda: ("404 Not Found", [], b"no such path"))()
        bodiless = status.startswith(("204", "304"))
        start_response(status, headers if bodiless else [*headers, ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" or bodiless else [body]

    def _hang(self) -> tuple[str, list[tuple[str, str]], bytes]:
        self.hanging.set()
        self.release.wait(20)
        return "200 OK", [], b"at last"


def echo(environ: WSGIEnvironment) -> bytes:
    """What arrived, as JSON."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    headers = {
        key[5:].lower().replace("_", "-"): value for key, value in environ.items() if key.startswith("HTTP_")
    }
    return json.dumps(
        {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ["QUERY_STRING"],
            "headers": headers,
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
    ).encode()


def git_application(root: Path) -> WSGIApplication:
    """The repositories below `root` over git's smart HTTP protocol, by CGI to `git http-backend`."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        variables = {
            key: value for key, value in environ.items() if isinstance(value, str) and key.isupper()
        } | {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "tester",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "GATEWAY_INTERFACE": "CGI/1.1",
        }
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=variables, capture_output=True, timeout=20, check=True
        )
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        fields = [
            (name, value.strip())
            for name, _, value in (line.partition(":") for line in head.decode("latin-1").split("\r\n"))
        ]
        status = next((value for name, value in fields if name == "Status"), "200 OK")
        start_response(status, [(name, value) for name, value in fields if name != "Status"])
        return [rest]

    return application


_NGINX = """\
{user}
daemon off;
worker_processes 1;
error_log {directory}/error.log warn;
pid {directory}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    types {{ text/plain txt; }}
    default_type application/octet-stream;
    gzip on;
    gzip_types text/plain;
    gzip_min_length 100;
    gzip_proxied any;
    server {{
        listen 127.0.0.1:{port};
        root {directory}/www;
        location /moved/ {{ return 301 /files/; }}
        location /none {{ return 204; }}
        location /upload {{ client_max_body_size 64m; return 200 "taken\\n"; }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[str]:
    """A real nginx that serves `directory/www`; gives its URL."""
    binary = program("nginx")
    assert binary is not None
    (directory / "www").mkdir(exist_ok=True)
    port = free_port()
    user = "user root;" if os.getuid() == 0 else ""
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, port=port, user=user))
    running = start(
        [binary, "-c", str(config), "-p", str(directory), "-e", str(directory / "error.log")],
        directory,
        "nginx",
    )
    try:
        wait_until(lambda: answers(port, running), "nginx")
        yield f"http://127.0.0.1:{port}"
    finally:
        running.end()


def answers(port: int, running: Running) -> bool:
    """Whether something accepts on the port."""
    assert running.process.poll() is None, running.output()
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port that nobody uses now, nor is given out again soon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
