"""Keeps a process's TLS up to date: loads the files that a config names, and reads them again each second.

Workers have one for what they serve with, the supervisor has one for its health checks, for what is told of when
certificates end, and for the log: it says for all what has changed and what could not be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

import msgspec
import trio

from ambassador.config.certificates import tls_sections
from ambassador.config.schema import Config
from ambassador.observe.families import CertificateFigures
from ambassador.pem_files import FileError
from ambassador.proxy.key_files import ClientConfig, ServerConfig
from ambassador.proxy.tls import Keyring, LastGood, Material

EVERY_S: Final = 1.0
"""Seconds between two looks at the files."""


class CannotLoad(Exception):
    """The files of a TLS section cannot be used: `setting` is the section, `problem` says why."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting = setting
        self.problem = problem


class CertificateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A file of certificates in use. `expires` in unix seconds, of the one in it that ends first; `names` are its."""

    side: str
    name: str
    setting: str
    file: str
    names: tuple[str, ...]
    expires: float
    problem: str | None = None
    """Why what the section's files hold now is not in use."""


class Certificates:
    """The files of one process. Times are trio's."""

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring
        self._config: Config | None = None
        self._now = trio.Event()

    def load(self, config: Config, kept: LastGood = MappingProxyType({})) -> Iterator[None]:
        """Read what a config names and is not in use yet, in steps, each of which may block. `kept`: what another
        process has in use, for files that are not good now. Raises `CannotLoad`.
        """
        self.keyring.hand_over({**kept, **self.keyring.last_good()})
        for each in tls_sections(config):
            try:
                if isinstance(each.section, ServerConfig):
                    self.keyring.server(each.section, each.user)
                else:
                    self.keyring.client(each.section, each.user)
            except FileError as error:
                raise CannotLoad(each.setting, str(error)) from None
            yield

    def use(self, config: Config) -> None:
        """This config is served, or is served on: forget what others named, and look at the files at once."""
        used: dict[ServerConfig | ClientConfig, list[str]] = {}
        for each in tls_sections(config):
            used.setdefault(each.section, []).append(each.user)
        self.keyring.keep(used)
        self._config = config
        self._now.set()

    async def run(self) -> None:
        """Read the files again when they have changed, for ever."""
        while True:
            with trio.move_on_after(EVERY_S):
                await self._now.wait()
            self._now = trio.Event()
            if not self.keyring.is_empty:
                # A thread: the files may be far away. One that hangs holds up nobody's end.
                found = await trio.to_thread.run_sync(self.keyring.reread, abandon_on_cancel=True)
                self.keyring.take(found)

    def status(self) -> list[CertificateStatus]:
        """Every file of certificates that the config which is served names."""
        return [
            CertificateStatus(
                side=side,
                name=name,
                setting=f"{setting}.{pem.label}",
                file=pem.path,
                names=pem.certificate.names,
                expires=pem.certificate.not_after,
                problem=material.problem,
            )
            for setting, side, name, material in self._materials()
            for pem in material.pems
        ]

    def figures(self) -> list[CertificateFigures]:
        """The same in short, for metrics."""
        return [CertificateFigures(each.side, each.name, each.file, each.expires) for each in self.status()]

    def _materials(self) -> Iterator[tuple[str, str, str, Material]]:
        for each in tls_sections(self._config) if self._config is not None else ():
            yield each.setting, each.side, each.name, self.keyring.material(each.section)
