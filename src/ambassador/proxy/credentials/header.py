"""Header: a secret in a field of any name, as `x-api-key`."""

from __future__ import annotations

from typing import Any

from ambassador.proxy.credentials import Fixed, Means
from ambassador.proxy.framing import refusals
from ambassador.settings import HeaderName, Secret, Section


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A secret in a header of this name."""

    name: HeaderName
    """The header, as `x-api-key`."""

    value: Secret
    """Its whole value: `env:NAME` or `file:/path`."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """A header that is the proxy's own."""
        return next((problem for _, problem in refusals([value])), None) if field == "name" else None


def describe(config: Config) -> str:
    """What it is, for people."""
    return f"the header {config.name}"


def credential(config: Config, upstream: str, means: Means) -> Fixed:
    """The credential that `config` says for the upstream of this name."""
    secret = means.secrets.get(config.value)
    return Fixed(upstream, config.name, [secret], lambda: secret.value)
