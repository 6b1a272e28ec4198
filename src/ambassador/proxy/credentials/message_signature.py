"""HTTP Message Signatures with a shared secret: RFC 9421, `hmac-sha256`; with the digest of the body, RFC 9530.

What is covered is what the config lists, in its order: derived components (`@method`, RFC 9421 2.2) and header fields,
of which those that the request does not have are left out. It is what is sent, after `rewrite` and all that the proxy
adds; each attempt is signed anew.

A covered `content-digest` is made here, of a body that is waited for, up to `buffer`. A longer one is `body_too_large`:
a signature that silently covers no body would be worse.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta

from ambassador.proxy.credentials import Credential, Means
from ambassador.proxy.fields import never_goes_on
from ambassador.secret import SecretError
from ambassador.settings import Bytes, Component, HeaderValue, Name, Seconds, Section
from ambassador.settings import Secret as SecretReference

if TYPE_CHECKING:
    from ambassador.messages import Request, RequestHead
    from ambassador.proxy.upstream.endpoint import Endpoint

DIGEST: Final = "content-digest"
_NAMES: Final = ("signature", "signature-input")
_DEFAULT_PORTS: Final = {"http": b":80", "https": b":443"}


def _target(head: RequestHead) -> tuple[bytes, bytes]:
    path, mark, query = head.path.partition(b"?")
    return path, (mark or b"?") + query


def _authority(head: RequestHead, scheme: str) -> bytes:
    return head.authority.lower().removesuffix(_DEFAULT_PORTS[scheme])


DERIVED: Final[Mapping[str, Callable[[RequestHead, str], bytes]]] = {
    "@method": lambda head, _: head.method.encode(),
    "@scheme": lambda _, scheme: scheme.encode(),
    "@authority": _authority,
    "@path": lambda head, _: _target(head)[0],
    "@query": lambda head, _: _target(head)[1],
    "@request-target": lambda head, _: head.path,
    "@target-uri": lambda head, scheme: b"%b://%b%b" % (scheme.encode(), _authority(head, scheme), head.path),
}
"""What a component is of the head that is sent, over this scheme (RFC 9421 2.2)."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An HTTP Message Signature (RFC 9421) with a shared secret, `hmac-sha256`."""

    key: SecretReference
    """The secret that both sides have: `env:NAME` or `file:/path`."""

    encoding: Literal["text", "base64"] = "text"
    """Whether the key's bytes are those of the text, or what it says in base64."""

    key_id: HeaderValue | None = None
    """What tells the other side which key it is (`keyid`)."""

    headers: Annotated[tuple[Component, ...], Meta(min_length=1)] = (
        "@method", "@authority", "@path", "@query", "content-type", DIGEST,
    )  # fmt: skip
    """What is covered, in this order: `@method`, `@target-uri`, `@authority`, `@scheme`, `@path`, `@query`,
    `@request-target`, and headers, where the request has them; none that never goes on, as `connection`.
    `content-digest` is made here if there is a body."""

    label: Name = "sig1"
    """The signature's name in `signature` and `signature-input`."""

    expires: Seconds | None = None
    """How long the signature is good for. Unset: it does not say."""

    buffer: Bytes = 1024 * 1024
    """The longest body of which a digest is made. It is held until all of it is here."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """A label that is no key of RFC 8941; a key's id with a sign that no string there can have; a signature that is
        over when it is made.
        """
        if field == "label" and not (value[0].islower() and value == value.lower()):
            return "must begin with a letter, and have no capitals"
        if field == "expires" and value < 1:
            return "must be at least 1s"
        if field == "key_id" and not (value.isascii() and value.isprintable()):
            return "must be of printable ASCII characters"
        return None

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """A component twice, which makes a signature invalid, and one that is never there to be covered."""
        for at, component in enumerate(self.headers):
            if component in self.headers[:at]:
                yield f"headers.{at}", f"is there already: '{component}'"
            elif component in _NAMES or never_goes_on(component):
                yield f"headers.{at}", f"'{component}' does not go on to the upstream, or is not there yet"


def describe(config: Config) -> str:
    """What it is, for people."""
    return f"an HTTP message signature (hmac-sha256) over {', '.join(config.headers)}"


def credential(config: Config, upstream: str, means: Means) -> Signer:
    """The credential that `config` says for the upstream of this name."""
    return Signer(config, upstream, means)


class Signer(Credential):
    """Signs requests to one upstream."""

    __slots__ = ("_config", "_digests", "_key", "_means", "reads")

    def __init__(self, config: Config, upstream: str, means: Means) -> None:
        self._digests = DIGEST in config.headers
        super().__init__(upstream, (*_NAMES, DIGEST) if self._digests else _NAMES)
        self._config = config
        self._means = means
        self._key = means.secrets.get(config.key)
        self.reads = config.buffer if self._digests else 0

    def check(self) -> None:
        """As `Credential.check`."""
        self._secret()

    def in_hand(self, request: Request) -> bool:
        """As `Credential.in_hand`; raises `BodyTooLarge` where the body is known to be."""
        self._secret()
        if self._digests and (request.content_length or 0) > self._config.buffer:
            raise self.too_large()
        return True

    def put(self, request: Request, head: RequestHead, endpoint: Endpoint) -> None:
        """As `Credential.put`; raises `BodyTooLarge` as well."""
        secret = self._secret()
        head.fields = self.others(head.fields)
        if self._digests and (request.content_length or request.chunked):
            if head.body is None or len(head.body) > self._config.buffer:
                raise self.too_large()
            head.fields.append((DIGEST.encode(), content_digest(head.body)))
        lines, covered = self._lines(head, endpoint.scheme)
        parameters = b"(%b)%b" % (b" ".join(b'"%b"' % name for name in covered), self._parameters())
        base = b"".join(lines) + b'"@signature-params": ' + parameters
        signature = b64encode(hmac.new(secret, base, hashlib.sha256).digest())
        label = self._config.label.encode()
        head.fields.append((b"signature-input", b"%b=%b" % (label, parameters)))
        head.fields.append((b"signature", b"%b=:%b:" % (label, signature)))

    def _lines(self, head: RequestHead, scheme: str) -> tuple[list[bytes], list[bytes]]:
        """The lines of the signature base (RFC 9421 2.5) and the names of what they cover."""
        values = {b"host": head.authority}  # which is no field of the head yet
        for name, value in head.fields:
            lower, stripped = name.lower(), value.strip()
            values[lower] = b"%b, %b" % (values[lower], stripped) if lower in values else stripped
        lines, covered = [], []
        for component in self._config.headers:
            derived = DERIVED.get(component)
            found = values.get(component.encode()) if derived is None else derived(head, scheme)
            if found is not None:
                covered.append(component.encode())
                lines.append(b'"%b": %b\n' % (covered[-1], found))
        return lines, covered

    def _parameters(self) -> bytes:
        config, created = self._config, int(self._means.wall_s())
        parts = [f";created={created}"]
        if config.expires is not None:
            parts.append(f";expires={created + int(config.expires)}")
        if config.key_id is not None:
            escaped = config.key_id.replace("\\", "\\\\").replace('"', '\\"')
            parts.append(f';keyid="{escaped}"')
        return "".join(parts).encode()

    def _secret(self) -> bytes:
        try:
            value = self._key.value
            return b64decode(value, validate=True) if self._config.encoding == "base64" else value.encode()
        except SecretError:
            raise self.unavailable() from None
        except BadBase64:
            self._key.unusable(f"is not base64, as upstream {self.upstream} wants it")
            raise self.unavailable("is not base64") from None


def content_digest(body: bytes) -> bytes:
    """The value of `Content-Digest` (RFC 9530 2)."""
    return b"sha-256=:%b:" % b64encode(hashlib.sha256(body).digest())
