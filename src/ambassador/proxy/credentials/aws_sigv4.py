"""AWS Signature Version 4: a request signed with a key of an AWS account, or of what speaks as AWS does.

Source: "Create a signed AWS API request" of the IAM user guide, and botocore's `auth.py`, which the tests hold this
against. botocore itself is synchronous, and loads 60 MiB of service descriptions' machinery for these lines.

What is signed is what is sent: method, path after `rewrite`, query, host, and of the fields `content-type`,
`content-md5` and `x-amz-*`. Others may be changed by whoever is on the way. Each attempt is signed anew.

The canonical form is that of the server, which decodes what it received: names and values of the query are decoded and
encoded again (`+` is a space, as servers read it; Go's SDK does the same), and sorted. The path is encoded once more
(so `%` becomes `%25`) after dot segments and empty ones were taken out; for S3, whose keys may hold both, it is decoded
and encoded as the query is.

The body's hash is signed too. A longer body than `buffer` is sent to S3 as `UNSIGNED-PAYLOAD`, which needs TLS there;
other services have no such thing, and the request is `body_too_large`.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ambassador.proxy.credentials import NO_VALUE, Credential, Means
from ambassador.secret import SecretError
from ambassador.settings import Bytes, Name, Section
from ambassador.settings import Secret as SecretReference

if TYPE_CHECKING:
    from ambassador.messages import Request, RequestHead
    from ambassador.proxy.upstream.endpoint import Endpoint

UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_S3: Final = frozenset({"s3", "s3-object-lambda", "s3-outposts"})
"""Services with paths that are not normalised, and bodies that need not be signed."""
_NAMES: Final = ("authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256")
_SIGNED: Final = frozenset({b"content-type", b"content-md5"})


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signature of AWS, version 4, with the key of an account."""

    service: Name
    """The service as it signs: `s3`, `execute-api`, `sqs`, `dynamodb`."""

    region: Name
    """The region: `eu-central-1`."""

    access_key: SecretReference
    """The access key's id: `env:NAME` or `file:/path`."""

    secret_key: SecretReference
    """The secret access key."""

    session_token: SecretReference | None = None
    """The session token, where the key is a temporary one. Read again with the keys when the files change."""

    unsigned_payload: bool = False
    """Whether bodies are never signed, for S3 over TLS: then they need not be here before they are sent on."""

    buffer: Bytes = 1024 * 1024
    """The longest body that is signed. It is held until all of it is here."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Bodies that the service wants signed."""
        if self.unsigned_payload and self.service not in _S3:
            yield "unsigned_payload", f"is for S3 only; '{self.service}' wants bodies signed"


def describe(config: Config) -> str:
    """What it is, for people."""
    return f"an AWS signature (v4) for {config.service} in {config.region}"


def credential(config: Config, upstream: str, means: Means) -> Signer:
    """The credential that `config` says for the upstream of this name."""
    return Signer(config, upstream, means)


class Signer(Credential):
    """Signs requests to one upstream."""

    __slots__ = ("_access_key", "_config", "_means", "_secret_key", "_session_token", "_signing_key", "reads")

    def __init__(self, config: Config, upstream: str, means: Means) -> None:
        super().__init__(upstream, _NAMES)
        self._config = config
        self._means = means
        self._access_key = means.secrets.get(config.access_key)
        self._secret_key = means.secrets.get(config.secret_key)
        self._session_token = (
            None if config.session_token is None else means.secrets.get(config.session_token)
        )
        self._signing_key: tuple[tuple[str, int], bytes] | None = None
        self.reads = 0 if config.unsigned_payload else config.buffer

    def check(self) -> None:
        """As `Credential.check`."""
        self._keys()

    def in_hand(self, request: Request) -> bool:
        """As `Credential.in_hand`; raises `BodyTooLarge` where the body is known to be."""
        self._keys()
        if self._config.service not in _S3 and (request.content_length or 0) > self._config.buffer:
            raise self.too_large()
        return True

    def put(self, request: Request, head: RequestHead, endpoint: Endpoint) -> None:  # noqa: ARG002
        """As `Credential.put`; raises `BodyTooLarge` as well."""
        config = self._config
        access_key, token = self._keys()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._means.wall_s()))
        digest = self._digest(request, head)
        added = [(b"x-amz-date", stamp.encode())]
        if config.service in _S3:
            added.append((b"x-amz-content-sha256", digest.encode()))
        if token is not None:
            added.append((b"x-amz-security-token", token.encode()))
        self.replace(head, *added)
        names, canonical = canonical_request(head, digest, s3=config.service in _S3)
        scope = f"{stamp[:8]}/{config.region}/{config.service}/aws4_request"
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"
        signature = hmac.new(self._key(stamp[:8]), text.encode(), hashlib.sha256).hexdigest()
        value = f"{_ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        head.fields.append((b"authorization", value.encode()))

    def _keys(self) -> tuple[str, str | None]:
        """Access key and session token; the secret key is there as well then."""
        try:
            _ = self._secret_key.value
            keys = self._access_key.value, None if self._session_token is None else self._session_token.value
        except SecretError:
            raise self.unavailable() from None
        for key, secret in zip(keys, (self._access_key, self._session_token), strict=True):
            if key is not None and not (key.isascii() and key.isprintable()):
                if secret is not None:
                    secret.unusable(f"{NO_VALUE}, as upstream {self.upstream} wants it")
                raise self.unavailable(NO_VALUE)
        return keys

    def _digest(self, request: Request, head: RequestHead) -> str:
        if head.body is not None and len(head.body) <= self._config.buffer and self.reads:
            return hashlib.sha256(head.body).hexdigest()
        if request.complete and not request.content_length and not request.chunked:
            return hashlib.sha256(b"").hexdigest()
        if self._config.service in _S3:
            return UNSIGNED
        raise self.too_large()

    def _key(self, date: str) -> bytes:
        """The key for a day."""
        wanted = (date, self._secret_key.version)
        if self._signing_key is None or self._signing_key[0] != wanted:
            key = b"AWS4" + self._secret_key.value.encode()
            for part in (date, self._config.region, self._config.service, "aws4_request"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            self._signing_key = wanted, key
        return self._signing_key[1]


def canonical_request(head: RequestHead, digest: str, *, s3: bool) -> tuple[str, bytes]:
    """The names of the fields that are signed, and the canonical form of the request that this is the head of."""
    path, _, query = head.path.partition(b"?")
    values: dict[bytes, list[bytes]] = {b"host": [head.authority]}
    for name, value in head.fields:
        lower = name.lower()
        if lower in _SIGNED or lower.startswith(b"x-amz-"):
            values.setdefault(lower, []).append(b" ".join(value.split()))
    ordered = sorted(values)
    names = b";".join(ordered)
    lines = [
        head.method.encode(),
        _canonical_path(path, s3=s3),
        canonical_query(query),
        *(b"%b:%b" % (name, b",".join(values[name])) for name in ordered),
        b"",
        names,
        digest.encode(),
    ]
    return names.decode(), b"\n".join(lines)


def _canonical_path(path: bytes, *, s3: bool) -> bytes:
    if s3:
        return b"/".join(_encoded(unquote_to_bytes(segment)) for segment in path.split(b"/"))
    segments: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    ending = b"/" if path.endswith(b"/") and segments else b""
    return quote_from_bytes(b"/" + b"/".join(segments) + ending, safe="/~").encode()


def canonical_query(query: bytes) -> bytes:
    """Names and values encoded in the one way there is, sorted; `a` is `a=`, and nothing between two `&` is nothing."""
    pairs = []
    for pair in query.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            pairs.append((_encoded(_decoded(name)), _encoded(_decoded(value))))
    return b"&".join(b"%b=%b" % pair for pair in sorted(pairs))


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def _encoded(text: bytes) -> bytes:
    return quote_from_bytes(text, safe="~").encode()
