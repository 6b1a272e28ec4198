"""A token service that answers as Keycloak and Auth0 do, and an API that takes its tokens: for the end-to-end tests."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote_plus

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

CLIENT, SECRET = "shop", "s3cret/of+the:shop"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ALGORITHMS = ("RS256", "PS256", "ES256", "Ed25519")
_LONGEST_S = 300
"""How far ahead the end of a signed question may be; Keycloak takes no more either."""


@dataclass
class Asked:
    """One request to the token endpoint."""

    form: dict[str, str]
    headers: dict[str, str]
    query: str


class NotClient(Exception):
    """Whoever asks did not prove to be the client."""


class Assertion(NamedTuple):
    """A signed question (`private_key_jwt`) that was taken."""

    text: str
    kid: str
    algorithm: str
    jti: str


@dataclass
class Identity:
    """The token service, as a WSGI application. What it does is set by the test."""

    life_s: float = 300.0
    delay_s: float = 0.0
    status: int = 200
    body: bytes | None = None
    """In place of what it would answer."""
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """What is answered in place of that, by the query with which it is asked."""
    asked: list[Asked] = field(default_factory=list)
    valid: dict[str, str] = field(default_factory=dict)
    """Tokens that hold, and whose they are."""
    callers: dict[str, str] = field(default_factory=dict)
    """Tokens of callers that can be exchanged, and whose they are."""
    client_keys: list[dict[str, Any]] = field(default_factory=list)
    """The client's public keys (JWK), if it signs its questions: no secret is taken then."""
    audiences: set[str] = field(default_factory=set)
    """What signed questions may be for, one of these."""
    assertions: list[Assertion] = field(default_factory=list)
    """Those that were taken."""
    go_on: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.go_on.set()

    def revoke(self) -> None:
        """No token that was given out holds any more."""
        self.valid.clear()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raw = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        form = dict(parse_qsl(raw.decode(), strict_parsing=True))
        headers = {name[5:].lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
        headers["content_type"] = environ.get("CONTENT_TYPE", "")
        with self._lock:
            self.asked.append(Asked(form, headers, environ.get("QUERY_STRING", "")))
        self.go_on.wait(30)
        time.sleep(self.delay_s)
        given = self.answers.get(environ.get("QUERY_STRING", ""))
        status, answer = self._answer(form, headers) if given is None else given
        start_response(
            f"{status} Said", [("content-type", "application/json"), ("cache-control", "no-store")]
        )
        return [answer]

    def _answer(self, form: dict[str, str], headers: dict[str, str]) -> tuple[int, bytes]:
        if self.body is not None or self.status != 200:
            return self.status, b"{}" if self.body is None else self.body
        try:
            self._authenticate(form, headers)
        except NotClient:
            refusal = {
                "error": "invalid_client",
                "error_description": f"Invalid client or Invalid client credentials: {form}",
            }
            return 401, json.dumps(refusal).encode()
        who = CLIENT
        if form["grant_type"] == EXCHANGE:
            found = self.callers.get(form["subject_token"])
            if found is None:
                return 400, b'{"error":"invalid_request","error_description":"Invalid token"}'
            who = found
        elif form["grant_type"] != "client_credentials":
            return 400, b'{"error":"unsupported_grant_type","error_description":"Unsupported grant_type"}'
        with self._lock:
            token = f"eyJhbGciOiJSUzI1NiJ9.token-{len(self.asked)}.c2lnbmF0dXJl"
            self.valid[token] = who
        said: dict[str, Any] = {
            "access_token": token,
            "expires_in": self.life_s,
            "refresh_expires_in": 0,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": form.get("scope", "profile email"),
        }
        if form["grant_type"] == EXCHANGE:
            said["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        return 200, json.dumps(said).encode()

    def _authenticate(self, form: dict[str, str], headers: dict[str, str]) -> None:
        """Raises `NotClient`."""
        basic = headers.get("authorization", "").removeprefix("Basic ")
        if self.client_keys:
            if basic or "client_secret" in form or form.get("client_assertion_type") != ASSERTION:
                raise NotClient
            self._take(form)
        elif basic:
            name, _, secret = b64decode(basic).decode().partition(":")
            _expect((unquote_plus(name), unquote_plus(secret)) == (CLIENT, SECRET))
        else:
            _expect((form.get("client_id"), form.get("client_secret")) == (CLIENT, SECRET))

    def _take(self, form: dict[str, str]) -> None:
        """Verify a signed question by RFC 7523 3 and OpenID Connect Core 9; each is taken once."""
        keys = KeySet.import_key_set({"keys": self.client_keys})
        try:
            token = jwt.decode(form["client_assertion"], keys, algorithms=list(_ALGORITHMS))
        except (JoseError, KeyError, ValueError):
            raise NotClient from None
        claims, now = token.claims, time.time()
        _expect("kid" in token.header)
        _expect(form.get("client_id", CLIENT) == claims.get("iss") == claims.get("sub") == CLIENT)
        _expect(claims.get("aud") in self.audiences)
        _expect(isinstance(claims.get("exp"), int) and now < claims["exp"] <= now + _LONGEST_S)
        _expect(claims.get("iat", now) <= now)
        with self._lock:
            _expect(bool(claims.get("jti")) and claims["jti"] not in [each.jti for each in self.assertions])
            self.assertions.append(
                Assertion(form["client_assertion"], token.header["kid"], token.header["alg"], claims["jti"])
            )


def _expect(holds: bool) -> None:
    if not holds:
        raise NotClient


class Api:
    """An upstream that answers whom a token belongs to, and 401 without one that holds."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.refused = 0
        self.seen: list[str] = []
        """`Authorization`, as it came."""
        self.bodies: list[bytes] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        shown = environ.get("HTTP_AUTHORIZATION", "")
        self.seen.append(shown)
        self.bodies.append(body)
        who = self.identity.valid.get(shown.removeprefix("Bearer "))
        if not shown.startswith("Bearer ") or who is None:
            self.refused += 1
            start_response(
                "401 Unauthorized",
                [("www-authenticate", 'Bearer error="invalid_token"'), ("content-length", "7")],
            )
            return [b"refused"]
        said: Any = who.encode()
        start_response(
            "200 OK",
            [
                ("content-type", "text/plain"),
                ("cache-control", "public, max-age=60"),
                ("content-length", str(len(said))),
            ],
        )
        return [said]
