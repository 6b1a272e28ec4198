"""What is served now: the committed config, its generation, its sockets, what its upstreams have found.

This is what a worker is given when it starts; `reload.py` is what changes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import msgspec

from ambassador.config.schema import Config
from ambassador.control.discovery.directory import Directory
from ambassador.control.limits import PastCounts
from ambassador.control.listeners import keyed
from ambassador.control.orders import Brief, Kept, SocketRef
from ambassador.control.pages import Pages
from ambassador.control.places import blaming
from ambassador.control.slots import BindError, Binding

_ENCODER = msgspec.msgpack.Encoder()


def encode_config(config: Config) -> bytes:
    """The config as workers get it."""
    return _ENCODER.encode(config)


class Deployment:
    """One for the supervisor's life. `generation` grows by one with each committed reload.

    `started` is in unix seconds.

    `unhealthy`: see `orders.Health`; as it is when a worker is told. `places`: where the config's settings stand, see
    `config.load.Loaded`. `kept` is asked what a worker takes in place of files that are not good.
    """

    def __init__(
        self,
        config: Config,
        instance: str,
        pages: Pages,
        directory: Directory,
        unhealthy: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
        *,
        places: Mapping[str, str] = MappingProxyType({}),
        kept: Callable[[], Kept] = Kept,
    ) -> None:
        self.config = config
        self._places = places
        self._kept = kept
        self.instance = instance
        # Replicas may well have the same config, and the same `name`; among those that share a store each is another.
        self.replica = instance if config.name is None else f"{instance}-{os.urandom(6).hex()}"
        self.started = time.time()
        self.generation = 1
        self.bindings: dict[str, Binding] = {}
        self.pages = pages
        self.past_counts = PastCounts()
        self.directory = directory
        self._unhealthy = unhealthy
        self._encoded = encode_config(config)
        self._blocks = pages.place(config)

    def bind(self, slots: Iterable[int]) -> None:
        """Bind every listener for `slots`. Raises `BindError`, and nothing is bound then."""
        slots = list(slots)
        try:
            for at, (key, listener) in enumerate(keyed(self.config.listeners).items()):
                with blaming(self._places, f"listeners[{at}]", BindError):
                    self.bindings[key] = Binding(listener.address, slots, key=key)
        except BaseException:
            self.close()
            raise

    def brief(self) -> Brief:
        """What a worker needs in order to serve the committed generation."""
        return self.brief_of(self.generation, self._encoded, self._blocks)

    def brief_of(self, generation: int, config: bytes, blocks: bytes) -> Brief:
        """The same for another generation."""
        return Brief(
            generation=generation,
            config=config,
            blocks=blocks,
            page_size=self.pages.size,
            addresses=self.directory.addresses,
            found=self.directory.found(),
            unhealthy=self._unhealthy,
            kept=self._kept(),
        )

    def sockets(self) -> tuple[tuple[SocketRef, ...], list[int]]:
        """All sockets of all slots: their references, and their descriptors in the same order."""
        return pair(each for binding in self.bindings.values() for each in binding.sockets())

    def commit(self, config: Config, encoded: bytes, blocks: bytes, bindings: Mapping[str, Binding]) -> None:
        """Make another config the one that is served, with `bindings` as its sockets."""
        self.config = config
        self.generation += 1
        self.bindings = dict(bindings)
        self._encoded = encoded
        self._blocks = blocks

    def urls(self) -> list[str]:
        """Where clients connect, in the config's order."""
        return [
            self.bindings[key].url(secure=listener.tls is not None)
            for key, listener in keyed(self.config.listeners).items()
        ]

    def close(self) -> None:
        """Close the listening sockets; unix listeners' files go."""
        for binding in self.bindings.values():
            binding.close()
        self.bindings.clear()


def pair(sockets: Iterable[tuple[SocketRef, int]]) -> tuple[tuple[SocketRef, ...], list[int]]:
    """References and descriptors, apart."""
    listed = list(sockets)
    return tuple(ref for ref, _ in listed), [fd for _, fd in listed]


def random_name() -> str:
    """An instance's name when none is configured."""
    return "ambassador-" + os.urandom(4).hex()
