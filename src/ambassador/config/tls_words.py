"""TLS in words, for `explain`. Pure: what files hold comes as an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ambassador.config.schema import Upstream
from ambassador.proxy.key_files import ClientConfig, ServerConfig
from ambassador.proxy.tls import chosen

__all__ = ["Names", "certificate_text", "verification_text"]

Names = Mapping[str, Sequence[str]]
"""The names in the certificates of files, by the files' paths."""


def certificate_text(config: ServerConfig, host: str, names: Names) -> str:
    """Which certificate of a listener a client gets that asks for `host`, and whether it must show one itself.

    Of files that are not in `names` it is not known.
    """
    pairs = config.pairs
    if not all(pair.cert in names for pair in pairs):
        text = (
            pairs[0].cert if len(pairs) == 1 else f"one of {len(pairs)}, by the name that the client asks for"
        )
    else:
        at = chosen([tuple(names[pair.cert]) for pair in pairs], host)
        cert = pairs[at or 0].cert
        which = f"for {host}" if host else "for a client that asks for no name"
        text = f"{cert} ({', '.join(names[cert]) or 'no names'}) {which}"
        if at is None and host:
            text += ": no certificate has that name, so it is the first one, and clients will refuse it"
    text += f"; TLS {config.min_version} or newer"
    if config.client_ca is not None:
        must = "must show one" if config.require_client_cert else "may show one"
        text += f"; clients {must} of {config.client_ca}"
    return text


def verification_text(config: ClientConfig, upstream: Upstream) -> str:
    """How the endpoints of an upstream are believed, and as whom they are called."""
    if config.verify:
        by = "the system's authorities" if config.ca is None else config.ca
        own = "the source's" if upstream.discover is not None else "the endpoint's own"
        text = f"verified by {by}, as {config.sni or f'{own} name'}"
    else:
        text = "not verified: anybody on the way can pretend to be the endpoint"
        if config.sni is not None:
            text += f"; {config.sni} is asked for"
    text += f"; TLS {config.min_version} or newer"
    if config.cert is not None:
        text += f"; {config.cert} is shown where it is asked for"
    return text
