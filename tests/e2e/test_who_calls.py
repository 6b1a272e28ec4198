"""Who calls, through a whole service: an identity server that publishes keys, tokens good and bad, certificates."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.origins import Application, serving, wsgi
from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.proxy.clients import tokens
from tests.proxy.clients.tokens import ATTACKS
from tests.proxy.pem import Authority


class IdentityServer:
    """Publishes a key set as Keycloak does, under a realm, and can be away."""

    def __init__(self) -> None:
        self.document = tokens.jwks()
        self.status = 200
        self.asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                assert self.path == "/realms/main/protocol/openid-connect/certs"
                self.send_response(server.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(server.document)))
                self.end_headers()
                self.wfile.write(server.document)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.jwks = f"http://127.0.0.1:{self._server.server_port}/realms/main/protocol/openid-connect/certs"

    @contextlib.contextmanager
    def running(self) -> Iterator[IdentityServer]:
        with serving(self._server):
            yield self


@pytest.fixture
def identity() -> Iterator[IdentityServer]:
    with IdentityServer().running() as server:
        yield server


@pytest.fixture
def origin() -> Iterator[str]:
    with wsgi(Application()) as url:
        yield url


def body(identity: IdentityServer, origin: str, key: Path) -> str:
    return f"""\
clients:
  a:
    jwt: {{issuer: '{tokens.ISSUER}', audience: {tokens.AUDIENCE}, jwks: '{identity.jwks}', claims: {{sub: svc-a}}}}
  keyed: {{api_key: 'file:{key}'}}
  other: {{basic: {{user: other, password: 'file:{key}.password'}}}}
routes:
  - {{name: guarded, match: {{path: /echo}}, to: '{origin}', access: [a, keyed], headers: {{request: {{set: {{x-who: '{{client}}'}}}}}}}}
  - {{name: open, to: '{origin}', access: off}}
"""


def ask(
    url: str, path: str, fields: dict[str, str], connection: http.client.HTTPConnection | None = None
) -> tuple[int, bytes]:
    made = connection or http.client.HTTPConnection(url.partition("://")[2], timeout=20)
    try:
        made.request("GET", path, headers=fields)
        answer = made.getresponse()
        return answer.status, answer.read()
    finally:
        if connection is None:
            made.close()


def bearer(token: bytes) -> dict[str, str]:
    return {"Authorization": "Bearer " + token.decode("latin-1")}


def metric(proxy: Ambassador, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in proxy.samples(name + " "))


def test_tokens_of_an_identity_server(identity: IdentityServer, origin: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("canary-key-1\n")
    (tmp_path / "key.password").write_text("canary-password")
    with ambassador(body(identity, origin, key), workers=2) as proxy:
        now = time.time()
        good = tokens.sign(now)
        status, seen = ask(proxy.url, "/echo", bearer(good))
        assert status == 200
        headers = json.loads(seen)["headers"]
        assert (headers["x-who"], "authorization" in headers) == ("a", False)
        for kind, algorithm in (("ec", "ES256"), ("ed", "EdDSA"), ("rsa", "PS256")):
            assert ask(proxy.url, "/echo", bearer(tokens.sign(now, key=kind, algorithm=algorithm)))[0] == 200

        connection = http.client.HTTPConnection(proxy.url.partition("://")[2], timeout=20)
        with contextlib.closing(connection):
            for name, make, _ in ATTACKS:
                token = make(time.time()).replace(b"\0", b"")
                status, said = ask(proxy.url, "/echo", bearer(token), connection)
                assert (name, status) == (name, 401)
                assert json.loads(said)["code"] == "unauthenticated"
            assert ask(proxy.url, "/echo", bearer(good), connection)[0] == 200
        assert ask(proxy.url, "/echo", {"x-api-key": "canary-key-1"})[0] == 200
        assert ask(proxy.url, "/echo", {"x-api-key": "guess"})[0] == 401
        assert ask(proxy.url, "/echo", {})[0] == 401
        other = {"Authorization": "Basic b3RoZXI6Y2FuYXJ5LXBhc3N3b3Jk"}
        assert ask(proxy.url, "/echo", other)[0] == 403
        assert ask(proxy.url, "/bytes/1", other)[0] == 200

        refused = 'ambassador_auth_failures_total{route="guarded",reason="%s"}'
        signatures = sum(doubt == "signature" for _, _, doubt in ATTACKS)
        wait_until(lambda: metric(proxy, refused % "signature") == signatures, "the counters")
        assert metric(proxy, refused % "forbidden") == 1
        assert metric(proxy, 'ambassador_client_requests_total{client="a"}') == 5

        key.write_text("canary-key-2\n")
        wait_until(lambda: ask(proxy.url, "/echo", {"x-api-key": "canary-key-2"})[0] == 200, "the new key")
        told = proxy.command("explain", "GET", "/echo", "-H", "x-api-key: canary-key-2", "--live")
        assert "guarded" in told.stdout, told.stderr

        everything = told.stdout + told.stderr + str(proxy.log())
        for path in (
            "/metrics",
            "/api/status",
            "/api/config",
            "/api/routes",
            "/api/limits",
            "/api/upstreams",
        ):
            everything += proxy.admin_get(path).decode()
        assert {str(line["client"]) for line in proxy.log()} == {"a", "keyed", "other", "None"}
        assert "canary" not in everything
        assert good.decode().rpartition(".")[2] not in everything
        # Each worker asks once, whatever is tried, and again only after half a minute.
        assert 2 <= identity.asked < sum(doubt == "key" for _, _, doubt in ATTACKS)


def test_keys_that_are_away_at_the_start_are_had_when_they_come(
    identity: IdentityServer, origin: str, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("k")
    (tmp_path / "key.password").write_text("p")
    identity.status = 503
    with ambassador(body(identity, origin, key)) as proxy:
        good = bearer(tokens.sign(time.time()))
        status, said = ask(proxy.url, "/echo", good)
        assert (status, json.loads(said)["detail"]) == (401, "the token cannot be verified now")
        assert ask(proxy.url, "/echo", {"x-api-key": "k"})[0] == 200
        up = f'ambassador_jwks_up{{client="a",source="{identity.jwks}"}}'
        wait_until(lambda: proxy.samples(up + " ") == [f"{up} 0"], "the beat that tells of it")
        told = proxy.command("doctor")
        assert f"client a: the keys of {identity.jwks} cannot be read since 20" in told.stdout
        assert "was answered with status 503; tokens are refused" in told.stdout
        identity.status = 200
        wait_until(lambda: ask(proxy.url, "/echo", good)[0] == 200, "the keys")
        wait_until(lambda: proxy.samples(up + " ") == [f"{up} 1"], "the beat without it")
        identity.status = 503
        assert ask(proxy.url, "/echo", good)[0] == 200


def test_certificates_say_who_calls(origin: str, tmp_path: Path) -> None:
    authority, others = Authority(tmp_path), Authority(tmp_path, "others")
    server = authority.issue("127.0.0.1")
    known, unknown = authority.issue("svc-a.internal"), authority.issue("svc.a.internal")
    foreign = others.issue("svc-b.internal")
    listen = f"[{{address: '127.0.0.1:0', tls: {{cert: {server.cert}, key: {server.key}, client_ca: {authority.ca}}}}}]"
    text = f"clients: {{a: {{mtls: {{san: ['*.internal']}}}}}}\nroutes: [{{name: r, to: '{origin}', access: [a]}}]"
    with ambassador(text, listen=listen) as proxy:

        def status(pair: object) -> int:
            context = ssl.create_default_context(cafile=authority.ca)
            if pair is not None:
                context.load_cert_chain(pair.cert, pair.key)  # type: ignore[attr-defined]
            port = int(proxy.url.rpartition(":")[2])
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
            with contextlib.closing(connection):
                for _ in range(2):
                    connection.request("GET", "/echo")
                    answer = connection.getresponse()
                    answer.read()
                return answer.status

        assert status(known) == 200
        assert status(unknown) == 401
        assert status(None) == 401
        with pytest.raises((OSError, http.client.HTTPException)):
            status(foreign)
