"""Real clients that speak TLS, through a real ambassador, to a real server that speaks TLS."""

from __future__ import annotations

import hashlib
import os
import selectors
import ssl
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.e2e.origins import serving
from tests.e2e.programs import DEADLINE_S, Ambassador, ambassador, needs
from tests.proxy.pem import Authority

MEBIBYTE = bytes(range(256)) * 4096
REQUEST = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n"


class Handler(BaseHTTPRequestHandler):
    """GET gives a mebibyte or `hello`, POST the digest of what came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = MEBIBYTE if self.path == "/mebibyte" else b"hello"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server wants

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        said = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def origin(authority: Authority) -> Iterator[str]:
    pair = authority.issue("127.0.0.1", file="origin")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield f"https://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="module")
def proxy(authority: Authority, origin: str) -> Iterator[Ambassador]:
    pair = authority.issue("localhost", "127.0.0.1")
    config = f"""\
        upstreams:
          secure:
            endpoints: [{origin}]
            tls: {{ca: {authority.ca}}}
        routes:
          - {{name: everything, to: secure}}
        """
    listen = f"{{address: '127.0.0.1:0', tls: {{cert: {pair.cert}, key: {pair.key}}}}}"
    with ambassador(config, listen=listen) as running:
        yield running


def curl(authority: Authority, url: str, *options: str, stdin: bytes = b"") -> bytes:
    command = ["curl", "-sS", "--fail", "--cacert", authority.ca, *options, url]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@needs("curl")
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl_gets_and_posts(proxy: Ambassador, authority: Authority, version: str) -> None:
    versions = (f"--tlsv{version}", "--tls-max", version)
    assert proxy.url.startswith("https://")
    assert curl(authority, f"{proxy.url}/hello", *versions) == b"hello"
    assert curl(authority, f"{proxy.url}/mebibyte", *versions) == MEBIBYTE
    posted = curl(authority, proxy.url, *versions, "--data-binary", "@-", stdin=MEBIBYTE)
    assert posted.decode() == hashlib.sha256(MEBIBYTE).hexdigest()


@needs("curl")
def test_curl_sees_a_head_and_a_close(proxy: Ambassador, authority: Authority) -> None:
    assert b"content-length: 5" in curl(authority, f"{proxy.url}/hello", "--head").lower()
    assert curl(authority, f"{proxy.url}/mebibyte", "-H", "connection: close") == MEBIBYTE
    assert curl(authority, f"{proxy.url}/hello", "--http1.0") == b"hello"


@needs("curl")
def test_curl_is_told_that_the_port_is_for_https(proxy: Ambassador) -> None:
    url = proxy.url.replace("https://", "http://")
    done = subprocess.run(["curl", "-sS", "-i", url], capture_output=True, timeout=DEADLINE_S)
    assert done.stdout.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"This port is for https" in done.stdout


def test_httpx_goes_on_with_its_connection(proxy: Ambassador, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=authority.ca)
    with httpx.Client(verify=context) as client:
        for _ in range(3):
            assert client.get(f"{proxy.url}/hello").text == "hello"
            assert client.get(f"{proxy.url}/mebibyte").content == MEBIBYTE
            posted = client.post(proxy.url, content=MEBIBYTE)
            assert posted.text == hashlib.sha256(MEBIBYTE).hexdigest()


class OpenSsl:
    """`openssl s_client` on the proxy's port: it can do what libraries do not let one do."""

    def __init__(self, proxy: Ambassador, ca: str, *options: str) -> None:
        command = ["openssl", "s_client", "-connect", proxy.url.removeprefix("https://"), "-CAfile", ca]
        self.process = subprocess.Popen(
            [*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()

    def say(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def until(self, text: bytes, times: int = 1) -> None:
        """Wait until it has shown so much."""
        assert self.process.stdout is not None
        give_up = time.monotonic() + DEADLINE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while self.seen.count(text) < times:
                assert selector.select(give_up - time.monotonic()), self.seen.decode()
                data = os.read(self.process.stdout.fileno(), 65536)
                assert data, self.seen.decode()
                self.seen += data

    def end(self) -> bytes:
        """Everything that it has shown."""
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.seen += self.process.communicate(timeout=DEADLINE_S)[0]
        return self.seen


@needs("openssl")
def test_client_may_change_its_keys_between_requests(proxy: Ambassador, authority: Authority) -> None:
    with OpenSsl(proxy, authority.ca, "-tls1_3") as client:
        client.until(b"Verify return code")
        for times in range(1, 5):
            client.say(REQUEST)
            client.until(b"\r\n\r\nhello", times)
            client.say(b"K\n" if times % 2 else b"k\n")  # with the wish that we change ours too, and without
            client.until(b"KEYUPDATE", times)


@needs("openssl")
def test_client_may_not_negotiate_again(proxy: Ambassador, authority: Authority) -> None:
    with OpenSsl(proxy, authority.ca, "-tls1_2") as client:
        client.until(b"Verify return code")
        client.say(REQUEST)
        client.until(b"\r\n\r\nhello")
        client.say(b"R\n")
        assert b"no renegotiation" in client.end()
    with OpenSsl(proxy, authority.ca, "-tls1_2") as client:
        client.until(b"Verify return code")
        client.say(REQUEST)
        client.until(b"\r\n\r\nhello")


@needs("openssl")
def test_version_that_is_too_old_is_refused(proxy: Ambassador, authority: Authority) -> None:
    with OpenSsl(proxy, authority.ca, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0") as client:
        assert b"alert protocol version" in client.end()


@needs("openssl")
def test_session_is_resumed(proxy: Ambassador, authority: Authority, tmp_path: Path) -> None:
    session = str(tmp_path / "session.pem")
    for option, wanted in (("-sess_out", b"New, TLSv1.3"), ("-sess_in", b"Reused, TLSv1.3")):
        with OpenSsl(proxy, authority.ca, "-tls1_3", option, session) as client:
            client.say(REQUEST)
            client.until(b"\r\n\r\nhello")
            assert wanted in client.seen


@needs("openssl")
def test_http_1_1_is_chosen_of_what_a_client_offers(proxy: Ambassador, authority: Authority) -> None:
    with OpenSsl(proxy, authority.ca, "-alpn", "h2,http/1.1") as client:
        client.until(b"Verify return code")
        assert b"ALPN protocol: http/1.1" in client.seen
