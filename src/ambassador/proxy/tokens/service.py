"""The settings that all who ask a token service have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from msgspec import Meta, field

from ambassador.extras import AUTH, Extra
from ambassador.proxy.jose import Algorithm
from ambassador.proxy.key_files import PemFile
from ambassador.proxy.loopback import is_this_host
from ambassador.proxy.tokens.request import Asker
from ambassador.proxy.upstream import via
from ambassador.settings import HeaderValue, Seconds, Secret, Section

if TYPE_CHECKING:
    from ambassador.secret import Secrets

TokenUrl = Annotated[str, Meta(extra={"form": "token_url"})]
"""`https://host/path`, or `http://`; the port may be left out."""
Text = Annotated[str, Meta(min_length=1, extra={"form": "header_value"})]


class TokenService(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where tokens come from, and who asks for them."""

    extras: ClassVar[Mapping[str, Extra]] = {"private_key": AUTH}

    token_url: TokenUrl
    """The token endpoint: `https://id.example.com/oauth/token`. Its certificate is always verified; redirects are not
    followed."""

    client_id: Text | None = None
    """The name by which the token service knows the ambassador."""

    client_secret: Secret | None = None
    """Its secret: `env:NAME` or `file:/path`. A file is read again when it changes, and counts from the next question
    on."""

    private_key: Secret | None = None
    """In place of a secret: a private key as PEM, with which each question is signed (`private_key_jwt`, RFC 7523)."""

    algorithm: Algorithm = "RS256"
    """How `private_key` signs; it must fit the key. A key of Ed25519 signs as `EdDSA`, or as `Ed25519`, which is the
    same by its newer name (RFC 9864): the one that the token service knows."""

    key_id: Text | None = None
    """The `kid` by which the token service knows `private_key`."""

    assertion_audience: Text | None = None
    """The `aud` of signed questions. Unset: `token_url`; some services want their issuer."""

    auth_style: Literal["basic", "body"] = "basic"
    """Where `client_id` and `client_secret` are: in `Authorization: Basic`, which every service must understand, or in
    the form, for those that do not."""

    scopes: tuple[Text, ...] = ()
    """What the token is to allow, as the token service names it."""

    audience: Text | None = None
    """Whom the token is for, where the token service wants to know (Auth0 does)."""

    params: dict[Text, HeaderValue] = field(default_factory=dict)
    """More fields of the form, as `resource: https://api.example.com`. No place for secrets."""

    ca: PemFile | None = None
    """The authorities that sign the token service's certificate, a PEM file. Unset: the system's."""

    via: via.Config | None = None
    """An egress proxy through which the token service is asked, as `connections.via` of upstreams has it. Unset: it is
    asked directly, also where the upstream has one."""

    timeout: Seconds = 10.0
    """How long a question may take. Requests wait 5 s at most, whatever is set here."""

    allow_plaintext: bool = False
    """Whether `token_url` may be plaintext HTTP to another host than this one: whoever is on the way sees secrets and
    tokens. Without it only loopback addresses are asked over plaintext HTTP, of `localhost` too."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Secrets for everybody to see, two of them, and names that do not go together."""
        if self._is_guarded and not is_this_host(urlsplit(self.token_url).hostname or ""):
            yield (
                "token_url",
                "is plaintext HTTP to another host; 'allow_plaintext: true' beside it lets secrets go there",
            )
        elif self._is_guarded and self.via is not None:
            yield (
                "token_url",
                "is plaintext HTTP to the egress proxy; 'allow_plaintext: true' beside it lets secrets go there",
            )
        if self.client_secret is not None and self.private_key is not None:
            yield "private_key", "is in place of 'client_secret', and both are there"
        if self.client_id is None:
            for name in ("client_secret", "private_key"):
                if getattr(self, name) is not None:
                    yield name, "needs a 'client_id'"
        for name in sorted(self.params.keys() & RESERVED):
            yield f"params.{name}", "is not for 'params': it is said by a key of its own, or by nobody"

    def asker(self, secrets: Secrets) -> Asker:
        """Who asks, where."""
        reference = None if self.via is None else self.via.password
        password = None if reference is None else secrets.get(reference)
        return Asker(
            url=self.token_url,
            client_id=self.client_id,
            secret=None if self.client_secret is None else secrets.get(self.client_secret),
            style=self.auth_style,
            key=None if self.private_key is None else secrets.get(self.private_key),
            algorithm=self.algorithm,
            key_id=self.key_id,
            audience=self.assertion_audience,
            ca=self.ca,
            timeout_s=self.timeout,
            only_loopback=self._is_guarded,
            via=self.via,
            via_password=password,
        )

    def common(self) -> list[tuple[str, str]]:
        """What of the form any grant has."""
        form = []
        if self.scopes:
            form.append(("scope", " ".join(self.scopes)))
        if self.audience is not None:
            form.append(("audience", self.audience))
        return [*form, *self.params.items()]

    @property
    def _is_guarded(self) -> bool:
        """Whether it may only be asked at loopback addresses. Where a name leads is seen when it is dialled."""
        return self.token_url.startswith("http://") and not self.allow_plaintext

    @property
    def place(self) -> str:
        """The token service, for people: its URL without the query, and the way there."""
        url = self.token_url.partition("?")[0]
        return url if self.via is None else f"{url} via {self.via.url}"


RESERVED = frozenset(
    {
        "grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type", "scope", "audience",
        "subject_token", "subject_token_type", "requested_token_type", "actor_token", "actor_token_type",
    }
)  # fmt: skip
