"""Bearer: a token that somebody else keeps fresh, in `Authorization` (RFC 6750 2.1)."""

from __future__ import annotations

from typing import ClassVar

from ambassador.proxy.credentials import AUTHORIZATION, Fixed, Means
from ambassador.settings import Secret, Section


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token in `Authorization: Bearer`. A bare reference is `token`."""

    shorthand: ClassVar[str | None] = "token"

    token: Secret
    """The token: `env:NAME` or `file:/path`. A file is read again when it changes, as of a sidecar that renews it."""


def describe(config: Config) -> str:  # noqa: ARG001 - as the others
    """What it is, for people."""
    return "a bearer token"


def credential(config: Config, upstream: str, means: Means) -> Fixed:
    """The credential that `config` says for the upstream of this name."""
    token = means.secrets.get(config.token)
    return Fixed(upstream, AUTHORIZATION, [token], lambda: f"Bearer {token.value}")
