"""What a replica read last and was good, of every file and source that the config which is served names.

Workers read certificates, secrets and sets of public keys for themselves, and keep what they have while a file is
broken or away. One that starts then has nothing to keep: it gets what the others have, from here. So it makes no
difference which worker a client meets, and the end of a worker is no outage because a file is being mended.

The supervisor reads secrets each second as workers do, has TLS for its own checks, and is told by workers of the sets
of keys that they have read. All of it is in memory alone, of processes that keep it to themselves
(`host.keep_private`). Nothing is told of here: workers tell the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import trio

from ambassador.config.secrecy import secret_files
from ambassador.control.orders import Kept, KeptFiles, KeptKeys, KeySetName, KeysRead
from ambassador.proxy.clients.key_sets import KEPT_S
from ambassador.secret import Secret, SecretError, Secrets, quiet

if TYPE_CHECKING:
    from ambassador.config.schema import Config
    from ambassador.proxy.tls import Keyring, LastGood

EVERY_S: Final = 1.0
"""Seconds between two looks at secrets: as often as workers have one."""


class KeptByReplica:
    """`keyring` is the supervisor's own. `now` is a monotonic clock, in seconds."""

    def __init__(self, keyring: Keyring, now: Callable[[], float] = trio.current_time) -> None:
        self._keyring = keyring
        self._now = now
        self._secrets = Secrets(quiet())
        self._held: dict[str, Secret] = {}
        self._wanted_sets: set[KeySetName] = set()
        self._documents: dict[KeySetName, tuple[bytes, float]] = {}

    def add(self, config: Config) -> None:
        """Keep what this config names too, from now on. It blocks: secrets that are new are read."""
        self._want(config, self._read(secret_files(config)))

    async def add_soon(self, config: Config) -> None:
        """The same in a thread."""
        self._want(config, await trio.to_thread.run_sync(self._read, secret_files(config)))

    def _read(self, references: Iterable[str]) -> dict[str, Secret]:
        return {reference: self._secrets.get(reference) for reference in references}

    def _want(self, config: Config, held: dict[str, Secret]) -> None:
        self._held.update(held)
        self._wanted_sets |= key_set_names(config)

    def only(self, config: Config) -> None:
        """This config is served, or is served on: forget what others named."""
        references, self._wanted_sets = secret_files(config), key_set_names(config)
        self._held = {name: secret for name, secret in self._held.items() if name in references}
        self._documents = {
            name: document for name, document in self._documents.items() if name in self._wanted_sets
        }

    async def run(self) -> None:
        """Read secrets again, for ever: in a thread, since a mount may hang."""
        while True:
            await trio.sleep(EVERY_S)
            if self._held:
                await trio.to_thread.run_sync(
                    self._secrets.refresh, list(self._held.values()), abandon_on_cancel=True
                )

    def learn(self, read: KeysRead) -> None:
        """A worker has read a set of keys."""
        if read.name in self._wanted_sets:
            self._documents[read.name] = read.document, self._now()

    def kept(self) -> Kept:
        """All of it, for a worker."""
        blobs, files = _pack(self._keyring.last_good())
        return Kept(
            secrets={name: value for name, secret in self._held.items() for value in _values(secret)},
            blobs=blobs,
            tls=files,
            key_sets=tuple(self._key_sets()),
        )

    def _key_sets(self) -> Iterable[KeptKeys]:
        now = self._now()
        for name, (document, read_at) in self._documents.items():
            if now - read_at < KEPT_S:
                yield KeptKeys(name, document, now - read_at)


def key_set_names(config: Config) -> set[KeySetName]:
    """The sets of public keys that a config names."""
    tokens = (client.jwt for client in config.clients.values())
    return {KeySetName(each.jwks, each.ca, each.via) for each in tokens if each is not None}


def unpacked(kept: Kept) -> LastGood:
    """The files of TLS, as a `Keyring` takes them."""
    return {each.files: tuple(kept.blobs[at] for at in each.blobs) for each in kept.tls}


def _pack(files: LastGood) -> tuple[tuple[bytes, ...], tuple[KeptFiles, ...]]:
    """Each content once: a file of authorities, 220 KiB with all public ones, may be that of many upstreams."""
    places: dict[bytes, int] = {}
    packed = tuple(
        KeptFiles(named, tuple(places.setdefault(data, len(places)) for data in contents))
        for named, contents in files.items()
    )
    return tuple(places), packed


def _values(secret: Secret) -> tuple[str, ...]:
    try:
        return (secret.value,)
    except SecretError:
        return ()
