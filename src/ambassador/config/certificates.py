"""The sections of TLS that a config has, and what is wrong with the files that they name, at these settings.

A file that is missing, holds something else or does not belong to the other is an error: with it nothing could be
served. What works today and not for long, or works for others too, is a warning; so is a file of authorities by which
the ambassador would verify whom it asks by itself, for tokens, keys or endpoints.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from msgspec import Struct

from ambassador.certificate import Certificate
from ambassador.config.credentials import fetches
from ambassador.config.part import Part
from ambassador.config.schema import Config, Upstream
from ambassador.pem_files import (
    Content,
    FileError,
    load_authorities,
    load_chain,
    read_certificates,
    read_file,
    readable_by_all,
)
from ambassador.proxy.key_files import ClientConfig, ServerConfig, named_files
from ambassador.state.redis_url import parse_address

__all__ = [
    "SOON_S",
    "TlsSection",
    "certificate_names",
    "check_files",
    "client_section",
    "ends",
    "tls_sections",
    "user_of",
]

SOON_S: Final = 14 * 86400.0
"""Seconds before a certificate's end that it is warned of. Certificates of 90 days are renewed after 60 (RFC 8555's
implementers), so one that is so near to its end has not been."""


class TlsSection(Struct, frozen=True):
    """A TLS section: where it stands, `listeners[0].tls`, and who has it, `listener 0.0.0.0:8443`."""

    setting: str
    side: Literal["client", "upstream"]
    name: str
    section: ServerConfig | ClientConfig

    @property
    def user(self) -> str:
        """Who has it, for people."""
        return user_of(self.side, self.name)


def user_of(side: str, name: str) -> str:
    """Who has a section, for people: `listener 0.0.0.0:8443`, `upstream billing`."""
    return f"{'listener' if side == 'client' else 'upstream'} {name}"


def tls_sections(config: Config) -> Iterator[TlsSection]:
    """Those of a config, the defaults of upstreams that have none and speak TLS among them."""
    for at, listener in enumerate(config.listeners):
        if listener.tls is not None:
            yield TlsSection(f"listeners[{at}].tls", "client", listener.address, listener.tls)
    for name, upstream in config.upstreams.items():
        section = client_section(upstream)
        if section is not None:
            yield TlsSection(f"upstreams.{name}.tls", "upstream", name, section)


def client_section(upstream: Upstream) -> ClientConfig | None:
    """How an upstream's endpoints are spoken to by TLS; None: none of them is, nor will be."""
    if upstream.tls is not None:
        return upstream.tls
    in_file = upstream.discover is not None and upstream.discover.file is not None
    return ClientConfig() if upstream.has_https or in_file else None


def certificate_names(config: Config) -> dict[str, tuple[str, ...]]:
    """The names in the certificates of listeners, by file, as far as these can be read here. It may block."""
    names = {}
    for listener in config.listeners:
        for pair in listener.tls.pairs if listener.tls is not None else ():
            try:
                names[pair.cert] = read_certificates(read_file("cert", pair.cert))[0].names
            except FileError:
                continue
    return names


class _Finding(Struct, frozen=True):
    """Something about the file that a setting names; `hint` as in a Problem."""

    label: str
    text: str
    level: Literal["error", "warning"] = "error"
    hint: str | None = None


def check_files(
    config: Config,
    listeners: Sequence[Part],
    upstreams: Mapping[str, Part],
    document: Part | None,
    *,
    now: float,
) -> None:
    """Report what is wrong. `listeners` are the parts of `config.listeners`, `document` is the whole; `now` in unix
    seconds. It may block.
    """
    # The config has no listeners at all where one of them is wrong.
    for listener, part in zip(config.listeners, listeners, strict=False):
        if listener.tls is not None:
            _report(part, _findings(listener.tls, now))
    for name, part in upstreams.items():
        tls = config.upstreams[name].tls
        if tls is not None:
            _report(part, _findings(tls, now))
    _check_state(config, document, now)
    for part, ca in _calls(config, upstreams, document):
        for finding in _findings(ClientConfig(ca=ca), now):
            node, path = part.place("ca")
            node.report(path, finding.text, finding.hint, level="warning")


def _calls(
    config: Config, upstreams: Mapping[str, Part], document: Part | None
) -> Iterator[tuple[Part, str | None]]:
    """The sections that say whom the ambassador's own calls trust, each with its `ca`. What is wrong there stops these
    calls, and not the service.
    """
    for name, part in upstreams.items():
        upstream = config.upstreams[name]
        if upstream.auth is not None and fetches(upstream.auth):
            service = _within(part, "auth", upstream.auth.kind)
            if service is not None:
                yield service, getattr(upstream.auth, upstream.auth.kind).ca
        if upstream.discover is not None and upstream.discover.kubernetes is not None:
            watched = _within(part, "discover", "kubernetes")
            if watched is not None:
                yield watched, upstream.discover.kubernetes.ca
    for name, client in config.clients.items():
        tokens = _within(document, "clients", name, "jwt")
        if client.jwt is not None and tokens is not None:
            yield tokens, client.jwt.ca


def _within(part: Part | None, *keys: str) -> Part | None:
    """The section that is reached by these keys; None: there is none."""
    for key in keys:
        inner = None if part is None else part.values.get(key)
        part = inner if isinstance(inner, Part) else None
    return part


def _check_state(config: Config, document: Part | None, now: float) -> None:
    """The files that the address of the Redis names."""
    state = None if document is None else document.values.get("state")
    if config.state.url == "local" or not isinstance(state, Part):
        return
    address = parse_address(config.state.url)
    node, path = state.place("url")
    for finding in _findings(ClientConfig(ca=address.ca, cert=address.cert, key=address.key), now):
        node.report(path, f"`{finding.label}`: {finding.text}", finding.hint, level=finding.level)


def ends(certificate: Certificate, now: float) -> str | None:
    """What there is to warn of about when a certificate is good; None: nothing."""
    if certificate.not_before > now:
        return f"is not good before {_day(certificate.not_before)}"
    if certificate.not_after <= now:
        return f"expired on {_day(certificate.not_after)}"
    if certificate.not_after <= now + SOON_S:
        return f"expires on {_day(certificate.not_after)}, in {_days(certificate.not_after - now)}"
    return None


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _days(seconds: float) -> str:
    days = int(seconds // 86400)
    return "less than a day" if days == 0 else "1 day" if days == 1 else f"{days} days"


def _report(part: Part, findings: Iterator[_Finding]) -> None:
    for finding in findings:  # of `cert`, or of `certificates[1].key`
        node, path = part.place_within("tls." + finding.label.replace("[", ".").replace("]", ""))
        node.report(path, finding.text, finding.hint, level=finding.level)


def _findings(config: ServerConfig | ClientConfig, now: float) -> Iterator[_Finding]:
    if isinstance(config, ClientConfig) and not config.verify:
        yield _Finding(
            "verify",
            "anybody on the way can pretend to be the endpoint: its certificate is not verified",
            "warning",
            "name its authority with 'ca', or its name with 'sni'",
        )
    cert: Content | None = None
    for label, path in named_files(config):
        try:
            content = read_file(label, path)
        except FileError as error:
            cert = None
            yield _wrong(error)
            continue
        if label.endswith("cert"):
            cert = content
            yield from _certificate(content, now)
        elif label.endswith("key"):
            yield from _key(cert, content)
        else:
            yield from _authorities(content, now)


def _wrong(error: FileError) -> _Finding:
    return _Finding(error.label, f"'{error.path}' {error.problem}")


def _certificate(content: Content, now: float) -> Iterator[_Finding]:
    try:
        found = read_certificates(content)
    except FileError as error:
        yield _wrong(error)
        return
    for certificate in found:
        problem = ends(certificate, now)
        if problem is not None:
            which = "the certificate" if certificate is found[0] else f"the authority '{certificate.subject}'"
            yield _Finding(content.label, f"{which} in '{content.path}' {problem}", "warning")


def _key(cert: Content | None, key: Content) -> Iterator[_Finding]:
    if readable_by_all(key.path):
        yield _Finding(
            key.label, f"everybody on this machine can read '{key.path}'", "warning", "chmod 640, or 600"
        )
    if cert is None:
        return
    try:
        load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, key)
    except FileError as error:
        if error.label != cert.label or _is_certificate(cert):
            yield _wrong(error)


def _is_certificate(content: Content) -> bool:
    """Whether what is wrong with it has not been told yet."""
    try:
        return bool(read_certificates(content))
    except FileError:
        return False


def _authorities(content: Content, now: float) -> Iterator[_Finding]:
    try:
        found = load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), content)
    except FileError as error:
        yield _wrong(error)
        return
    for certificate in found:
        problem = ends(certificate, now)
        if problem is not None:
            name = f" '{certificate.subject}'" if certificate.subject else ""
            yield _Finding(content.label, f"the authority{name} in '{content.path}' {problem}", "warning")
