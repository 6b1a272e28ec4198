"""Basic: a user and a password in `Authorization` (RFC 7617)."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from ambassador.proxy.credentials import AUTHORIZATION, Fixed, Means
from ambassador.settings import HeaderValue, Secret, Section


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user and a password in `Authorization: Basic`, in UTF-8."""

    user: HeaderValue
    """The user, which is not secret; without a colon."""

    password: Secret
    """The password: `env:NAME` or `file:/path`."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """A user of whom the server would read a part as the password."""
        return "must not hold a ':'" if field == "user" and ":" in value else None


def describe(config: Config) -> str:
    """What it is, for people."""
    return f"basic, user {config.user}"


def credential(config: Config, upstream: str, means: Means) -> Fixed:
    """The credential that `config` says for the upstream of this name."""
    password = means.secrets.get(config.password)

    def value() -> str:
        return "Basic " + b64encode(f"{config.user}:{password.value}".encode()).decode()

    return Fixed(upstream, AUTHORIZATION, [password], value)
