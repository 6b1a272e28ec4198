"""TLS contexts: made from the files that the config names, and made again when the files have changed.

A context that is in use is never changed: a new one takes its place, for new connections. What cannot be used, a
certificate whose key has not been written yet, say, leaves the old one in its place; if that lasts, it is said once,
and once more when it is well again. A process that starts meanwhile takes what another had (`Keyring.hand_over`), so
that it makes no difference which one serves a client.

One `Keyring` is there for a process's life, and `Material` in it for all listeners and upstreams with the same files,
since a context with the system's authorities takes half a megabyte and 20 ms. Reading and making may block, so
`Keyring.reread` belongs into a thread; what it found is put in force by `Keyring.take`, which only sets references.

- TLS 1.2 with the ciphers of Python's own default: AEAD or SHA-2, with forward secrecy; TLS 1.3 as OpenSSL has it.
- No compression, no renegotiation. An end without good-bye is an error: what it cut off would look complete (the
  option that OpenSSL 3 has for the contrary, and `ssl` sets, is taken back).
- Sessions resume within one context of one worker: tickets are encrypted with keys that it alone has.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct, structs

from ambassador.certificate import Certificate, covers
from ambassador.pem_files import Content, FileError, load_authorities, load_chain, read_file
from ambassador.proxy.key_files import ClientConfig, Pem, ServerConfig, named_files

if TYPE_CHECKING:
    from ambassador.proxy.upstream.endpoint import Endpoint

__all__ = ["ClientTls", "Keyring", "LastGood", "Material", "Reread"]

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"
"""Of TLS 1.2. The same as Python's default, which a build of Python may have changed."""
PROTOCOLS: Final = ("http/1.1",)
"""What is spoken over TLS, for ALPN (RFC 7301)."""
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_IGNORE_CUT: Final = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

Config: TypeAlias = ServerConfig | ClientConfig
Files: TypeAlias = tuple[tuple[str, str], ...]
"""(setting, path) of a section's files, as `named_files` has them."""
LastGood: TypeAlias = Mapping[Files, tuple[bytes, ...]]
"""What sections' files held when they were read last and were good, in their order."""


class _Made(Struct, frozen=True, kw_only=True):
    """A context, the files that it was made of with their digest, and the certificates in these."""

    digest: bytes
    data: tuple[bytes, ...]
    context: ssl.SSLContext
    pems: tuple[Pem, ...]

    def __repr__(self) -> str:
        return f"_Made({self.pems})"


class Material:
    """What comes of one TLS section's files. Raises `FileError` when they cannot be used, and blocks while reading.

    `kept`: what they held when they were good, if that is known: it is used where they are not now.
    """

    __slots__ = ("_failed", "_made", "_wall_s", "config", "context", "problem", "told", "users")

    def __init__(
        self, config: Config, wall_s: Callable[[], float] = time.time, kept: tuple[bytes, ...] | None = None
    ) -> None:
        self._wall_s = wall_s
        self.config = config
        self.users: set[str] = set()
        """Whose it is, for the log: `listener 0.0.0.0:8443`, `upstream billing`."""
        self.problem: str | None = None
        """Why what the files hold now is not in use; None: it is."""
        self.told: str | None = None
        """The problem that was told of last: one that is still there at the second look, since files are often written
        one after the other. None since it was well."""
        self._failed = b""
        self._made = self._first(None if kept is None else _remade(config, kept))
        self.context = self._made.context
        """What new connections are made with. Another one each time the files have changed."""

    def _first(self, before: _Made | None) -> _Made:
        try:
            contents = _read(self.config, {})
            digest = _digest(contents)
            if before is not None and digest == before.digest:
                return before
            self._failed = digest
            made = _make(self.config, contents)
            if before is not None:
                _refuse_expired(made, before, self._wall_s())
        except FileError as error:
            if before is None:
                raise
            self.problem = str(error)
            return before
        self._failed = b""
        return made

    @property
    def pems(self) -> tuple[Pem, ...]:
        """The files of certificates that are in use."""
        return self._made.pems

    @property
    def files(self) -> Files:
        """All files of the section."""
        return tuple(named_files(self.config))

    @property
    def data(self) -> tuple[bytes, ...]:
        """What `files` held when what is in use was made of them."""
        return self._made.data

    def reread(self, known: dict[str, Content | FileError]) -> Reread | None:
        """What has changed since the last time; None: nothing. It blocks. `known`: the files that were read already,
        by path. Changes nothing: see `take`.
        """
        made, failed, problem = None, b"", None
        try:
            contents = _read(self.config, known)
            digest = _digest(contents)
            if digest == self._made.digest:
                if self.problem is None:
                    return None
                made = self._made
            elif digest == self._failed:
                failed, problem = digest, self.problem
            else:
                failed = digest
                made = _make(self.config, contents)
                _refuse_expired(made, self._made, self._wall_s())
        except FileError as error:
            made, problem = None, str(error)
        if problem is not None and problem == self.told:
            return None
        return Reread(self, made, failed, problem)

    def take(self, made: _Made | None, failed: bytes, problem: str | None) -> None:
        """Put in force what was found: a context, or the `problem` that there is none (`failed`: of which content)."""
        if made is not None:
            self._made = made
            self.context = made.context
        if problem is None:
            self.told = None
        elif problem == self.problem:
            self.told = problem
        self._failed = b"" if problem is None else failed
        self.problem = problem


def _refuse_expired(made: _Made, before: _Made, now: float) -> None:
    """Raises `FileError` for a certificate that has expired in place of one that is still good."""
    good = {pem.label for pem in before.pems if pem.certificate.not_after > now}
    for pem in made.pems:
        if pem.label.endswith("cert") and pem.label in good and pem.certificate.not_after <= now:
            raise FileError(pem.label, pem.path, "has expired, and the one before has not")


class Reread(Struct, frozen=True):
    """What `Material.reread` found."""

    material: Material
    made: _Made | None
    failed: bytes
    problem: str | None


class ClientTls:
    """How an upstream's `https` endpoints are spoken to. `sni`: the name of all of them; None: each has its own."""

    __slots__ = ("material", "sni")

    def __init__(self, material: Material, sni: str | None) -> None:
        self.material = material
        self.sni = sni

    @property
    def context(self) -> ssl.SSLContext:
        """What the next connection is made with. A connection made with another one is not to be used again."""
        return self.material.context

    def server_name(self, endpoint: Endpoint) -> str:
        """The name, or the IP address, that the endpoint's certificate must be for; a name is asked for too (SNI)."""
        return self.sni or host_of(endpoint.authority.decode("ascii"))


class Keyring:
    """All TLS of one process. `log` None: nothing is said of what changes."""

    def __init__(self, log: logging.Logger | None = None) -> None:
        self._log = log
        self._materials: dict[Config, Material] = {}
        self._handed: LastGood = {}
        self._stood_in: list[Material] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing speaks TLS."""
        return not self._materials

    def server(self, config: ServerConfig, user: str) -> Material:
        """What a listener shows its clients. Raises `FileError`; blocks where these files are not in use yet."""
        return self._get(config, user)

    def client(self, config: ClientConfig, user: str) -> ClientTls:
        """For an upstream. Raises `FileError`; blocks where these files are not in use yet."""
        return ClientTls(self._get(config, user), config.sni)

    def material(self, config: Config) -> Material:
        """What comes of this section's files. Raises KeyError where they are not in use."""
        return self._materials[_shared(config)]

    def hand_over(self, kept: LastGood) -> None:
        """What another process has in use: it takes the place of files that are not good when they are read first."""
        self._handed = kept

    def last_good(self) -> LastGood:
        """What the files in use held when they were good, for `hand_over` elsewhere."""
        return {material.files: material.data for material in self._materials.values() if material.data}

    def stood_in(self) -> list[tuple[str, str]]:
        """(users, problem) of the files in whose place what was handed over is used, of each once."""
        found, self._stood_in = self._stood_in, []
        return [(", ".join(sorted(each.users)), each.problem) for each in found if each.problem is not None]

    def _get(self, config: Config, user: str) -> Material:
        config = _shared(config)
        material = self._materials.get(config)
        if material is None:
            kept = self._handed.get(tuple(named_files(config)))
            material = self._materials[config] = Material(config, kept=kept)
            if material.problem is not None:
                self._stood_in.append(material)
        material.users.add(user)
        return material

    def keep(self, used: Mapping[Config, Iterable[str]]) -> None:
        """Forget all but these, each with its users, and what was handed over."""
        self._handed, self._stood_in = {}, []
        users: dict[Config, set[str]] = {}
        for config, names in used.items():
            users.setdefault(_shared(config), set()).update(names)
        self._materials = {
            config: material for config, material in self._materials.items() if config in users
        }
        for config, material in self._materials.items():
            material.users = users[config]

    def reread(self) -> list[Reread]:
        """What has changed in the files since the last time. It blocks, and changes nothing: it may run in a thread."""
        known: dict[str, Content | FileError] = {}
        found = [material.reread(known) for material in list(self._materials.values())]
        return [each for each in found if each is not None]

    def take(self, found: Iterable[Reread]) -> None:
        """Put in force what `reread` has found."""
        for each in found:
            material = each.material
            told, context = material.told, material.context
            material.take(each.made, each.failed, each.problem)
            if self._log is None:
                continue
            users = ", ".join(sorted(material.users))
            if material.told is not None and material.told != told:
                self._log.error("tls of %s: %s; what was in use stays in use", users, material.problem)
            elif each.made is not None and told is not None:
                self._log.info("tls of %s: the files are well again, and in use for new connections", users)
            elif material.context is not context:
                self._log.info("tls of %s: the files are changed, and in use for new connections", users)


def _shared(config: Config) -> Config:
    """What the context depends on."""
    return structs.replace(config, sni=None) if isinstance(config, ClientConfig) else config


def host_of(authority: str) -> str:
    """The host of `host`, `host:port` or `[v6]:port`, without brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def chosen(names: Iterable[tuple[str, ...]], host: str) -> int | None:
    """Which of several certificates, each with its names, a client gets that asks for `host` (lower case): the first
    that has the whole name, else the first with a wildcard for it; None: none of them is for it.
    """
    wild = None
    for at, each in enumerate(names):
        if host in each:
            return at
        if wild is None and covers(each, host):
            wild = at
    return wild


# Contexts


def _read(config: Config, known: dict[str, Content | FileError]) -> list[Content]:
    """The files of a config, of which each is read once. Raises `FileError`."""
    contents = []
    for label, path in named_files(config):
        held = known.get(path)
        if held is None:
            try:
                held = read_file(label, path)
            except FileError as error:
                held = error
            known[path] = held
        if isinstance(held, FileError):
            raise FileError(label, path, held.problem)
        contents.append(structs.replace(held, label=label))
    return contents


def _remade(config: Config, kept: tuple[bytes, ...]) -> _Made | None:
    """What comes of files that were good; None: another version of OpenSSL, or of this, does not find them so."""
    named = named_files(config)
    try:
        return _make(
            config,
            [
                Content(label=label, path=path, data=data)
                for (label, path), data in zip(named, kept, strict=True)
            ],
        )
    except FileError:
        return None


def _digest(contents: Iterable[Content]) -> bytes:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(b"%d:" % len(content.data))
        digest.update(content.data)
    return digest.digest()


def _make(config: Config, contents: list[Content]) -> _Made:
    """Raises `FileError`."""
    if isinstance(config, ServerConfig):
        context, pems = server_context(config, contents)
    else:
        context, pems = client_context(config, contents)
    return _Made(
        digest=_digest(contents),
        data=tuple(content.data for content in contents),
        context=context,
        pems=tuple(pems),
    )


def server_context(config: ServerConfig, contents: list[Content]) -> tuple[ssl.SSLContext, list[Pem]]:
    """A context for clients, from the files in the order of `named_files`. Raises `FileError`."""
    ca = contents[-1] if config.client_ca is not None else None
    pairs = contents[:-1] if ca is not None else contents
    found: list[tuple[Certificate, ssl.SSLContext]] = []
    pems: list[Pem] = []
    authorities: list[Certificate] = []
    for cert, key in zip(pairs[::2], pairs[1::2], strict=True):
        context = _context(ssl.PROTOCOL_TLS_SERVER, config.min_version)
        certificate = load_chain(context, cert, key)
        found.append((certificate, context))
        pems.append(_pem(cert, certificate))
        if ca is not None:
            authorities = load_authorities(context, ca)
            context.verify_mode = ssl.CERT_REQUIRED if config.require_client_cert else ssl.CERT_OPTIONAL
    if ca is not None:
        pems.append(_pem(ca, *authorities))
    (_, first), *others = found
    if others:
        first.sni_callback = _Choice([each.names for each, _ in found], [each for _, each in others])
    return first, pems


class _Choice:
    """Chooses the context by the name that a client asks for. Holds only `others`: the first one holds it."""

    def __init__(self, names: list[tuple[str, ...]], others: list[ssl.SSLContext]) -> None:
        self._names = names
        self._others = others

    def __call__(self, sock: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        at = None if name is None else chosen(self._names, name.lower())
        if at:
            sock.context = self._others[at - 1]


def client_context(config: ClientConfig, contents: list[Content]) -> tuple[ssl.SSLContext, list[Pem]]:
    """A context for an upstream, from the files in the order of `named_files`. Raises `FileError`."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, config.min_version)
    pems: list[Pem] = []
    authorities: list[Certificate] = []
    if config.ca is not None:
        authorities = load_authorities(context, contents[-1])
    elif config.verify:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if config.cert is not None:
        pems.append(_pem(contents[0], load_chain(context, contents[0], contents[1])))
    if config.ca is not None:
        pems.append(_pem(contents[-1], *authorities))
    context.hostname_checks_common_name = False
    if not config.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context, pems


def _context(protocol: int, min_version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = _VERSIONS[min_version]
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(PROTOCOLS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options &= ~_IGNORE_CUT
    # An authority below the root may be the one that is trusted.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _pem(content: Content, *certificates: Certificate) -> Pem:
    return Pem(
        label=content.label,
        path=content.path,
        certificate=min(certificates, key=lambda each: each.not_after),
    )
