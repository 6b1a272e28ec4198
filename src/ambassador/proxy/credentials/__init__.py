"""Credentials: what the ambassador proves to an upstream, put on each attempt last of all.

One kind, one file: its settings as a `Config` Struct, and the `Credential` that is made of them. `upstreams.X.auth`
names the kind (`config/schema.py`: `Auth`).

The rules that hold here
- A credential belongs to its upstream: a fallback, another upstream, has its own or none. Nobody follows redirects.
- It replaces what the client, or the route's `headers`, wrote under the same names, after `Connection` had its say: a
  client can neither send it nor make it vanish.
- It is never in an error, a log or a `repr`.
- Over plaintext HTTP it only goes to loopback addresses and unix sockets, unless `allow_plaintext` is written: an
  endpoint of such an upstream has no other addresses (`Endpoint.guarded`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from ambassador.errors import BodyTooLarge, CredentialUnavailable
from ambassador.proxy.fields import folded
from ambassador.secret import Secret, SecretError, Secrets

if TYPE_CHECKING:
    from ambassador.messages import Field, Fields, Request, RequestHead
    from ambassador.proxy.tokens.keeper import Place, Standing, TokenCounts
    from ambassador.proxy.tokens.register import Tokens
    from ambassador.proxy.upstream.endpoint import Endpoint

AUTHORIZATION: Final = "authorization"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
NO_VALUE: Final = "cannot be the value of a header"


class Means(msgspec.Struct, frozen=True):
    """What credentials are made with; the worker has it."""

    secrets: Secrets
    wall_s: Callable[[], float]
    """The time of day, in seconds since 1970."""
    tokens: Tokens | None = None
    """Keeps the tokens that are fetched; None where none can be."""
    places: tuple[Place, ...] = ()
    """The stores that such tokens are shared by."""
    token_counts: Callable[[str], TokenCounts] | None = None
    """Where it is counted what became of requests for an upstream's tokens."""

    @property
    def kept_tokens(self) -> Tokens:
        """`tokens`. Raises ValueError where there are none."""
        if self.tokens is None:
            raise ValueError("tokens cannot be fetched here")
        return self.tokens

    def counts_of(self, upstream: str) -> TokenCounts:
        """Where it is counted what became of this upstream's tokens. Raises ValueError likewise."""
        if self.token_counts is None:
            raise ValueError("tokens cannot be fetched here")
        return self.token_counts(upstream)


class Credential:
    """What one upstream is shown. `upstream` is its name, `names` are those of the fields that it writes."""

    __slots__ = ("_names", "upstream")

    renewable: bool = False
    """An upstream that answers 401 is asked again where `refused` says so."""
    reads: int = 0
    """Bytes of the request's body that it looks at: `RequestHead.body` has it where it is no longer."""
    of_caller: bool = False
    """It is made of what the caller sends in `Authorization`: answers are for whom sent the same alone, also where that
    does not go on since it has told who calls."""
    varies: bool = True
    """It is another one for each request; else `line` has it."""

    def __init__(self, upstream: str, names: Sequence[str]) -> None:
        self.upstream = upstream
        self._names = frozenset(map(folded, map(str.encode, names)))

    def check(self) -> None:
        """Raises `CredentialUnavailable` where a secret that it is made of cannot be read, or used. Asks nobody."""

    def in_hand(self, request: Request) -> bool:  # noqa: ARG002 - of those that must fetch something
        """Whether an attempt can be made with it at once. Else it is being fetched from now on: see `fetched`.

        Raises `CredentialUnavailable`, and what says that this request can have none.
        """
        self.check()
        return True

    async def fetched(self, request: Request) -> None:
        """Rest, by the request's waiter, until it is in hand. Raises as `in_hand`."""

    def put(self, request: Request, head: RequestHead, endpoint: Endpoint) -> None:
        """Write it into the head of an attempt, in place of all fields of its names; the last thing that shapes the
        head. Raises `CredentialUnavailable` where `in_hand` would, and what says that this request can have none.
        """
        raise NotImplementedError

    def refused(self, request: Request, began: float) -> bool:  # noqa: ARG002 - likewise
        """The upstream answered 401 to an attempt that began then (the lane's clock). Whether one more attempt, with
        another credential, is worth it: asked once for a request. `in_hand` tells of that one.
        """
        return False

    def accepted(self, request: Request) -> None:
        """The attempt that followed a refused one was not refused."""

    def standing(self) -> Standing | None:
        """How the token stands that is fetched for it; None: none is, or none was."""
        return None

    def line(self) -> bytes | None:
        """What it adds to every request that begins now: its field, with CRLF before it. None: it is not in hand, or
        there is none for all requests alike.
        """
        return None

    def problem(self) -> str | None:
        """Why no request can have it now, for people; None: nothing is known against it."""
        try:
            self.check()
        except CredentialUnavailable as error:
            return error.detail
        return None

    def unavailable(self, why: str = "cannot be read") -> CredentialUnavailable:
        """The error for whoever asks; `why` must not hold anything secret."""
        return CredentialUnavailable(f"the credential for upstream {self.upstream} {why}")

    def told_apart(self, request: Request) -> Fields:  # noqa: ARG002 - by those of a caller
        """By which of the request's credentials the upstream knows its callers apart: by none, since it is shown this
        one, for all of them.
        """
        return []

    def too_large(self) -> BodyTooLarge:
        """The error for a body that is longer than what it can look at to sign it."""
        return BodyTooLarge(f"the body is longer than what can be signed for upstream {self.upstream}")

    def replace(self, head: RequestHead, *fields: Field) -> None:
        """Write `fields` into the head, in place of all of this credential's names."""
        head.fields = [*self.others(head.fields), *fields]

    def others(self, fields: Iterable[Field]) -> list[Field]:
        """Those of `fields` that do not have its names, `folded`."""
        names = self._names
        return [field for field in fields if folded(field[0]) not in names]


class Fixed(Credential):
    """One field, the same for all requests until a secret that it is made of changes.

    `make` gives its value; it may raise `SecretError`.
    """

    __slots__ = ("_field", "_line", "_made_of", "_make", "_name", "_secrets")

    varies = False

    def __init__(self, upstream: str, name: str, secrets: Sequence[Secret], make: Callable[[], str]) -> None:
        super().__init__(upstream, [name])
        self._name = name.encode()
        self._secrets = secrets
        self._make = make
        self._made_of = -1
        self._field: Field | None = None
        self._line = b""

    def check(self) -> None:
        """As `Credential.check`."""
        self._current()

    def put(self, request: Request, head: RequestHead, endpoint: Endpoint) -> None:  # noqa: ARG002
        """As `Credential.put`."""
        self.replace(head, self._current())

    def line(self) -> bytes | None:
        """As `Credential.line`."""
        try:
            self._current()
        except CredentialUnavailable:
            return None
        return self._line

    def _current(self) -> Field:
        made_of = sum(secret.version for secret in self._secrets)  # none of them ever falls
        if made_of == self._made_of and self._field is not None:
            return self._field
        try:
            value = self._make()
        except SecretError:
            raise self.unavailable() from None
        if _CONTROL.search(value) is not None:
            for secret in self._secrets:
                if _CONTROL.search(secret.value) is not None:
                    secret.unusable(f"{NO_VALUE}, as upstream {self.upstream} wants it")
            raise self.unavailable(NO_VALUE)
        self._made_of = made_of
        self._field = (self._name, value.encode())
        self._line = b"\r\n%b: %b" % self._field
        return self._field
