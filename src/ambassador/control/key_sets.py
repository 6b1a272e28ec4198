"""Feeds the sets of public keys that clients' tokens are verified with (`proxy/clients/key_sets.py`).

A task for each source, in every worker: a URL is fetched when it is new, before it counts as old, and when a request
wants a key that is not at hand; a file is read each second. What is fetched is bounded in size and time, redirects are
not followed, and what is no set changes nothing: the keys at hand stay. A set without keys is one, and ends them. The
supervisor is told what is read, so that a worker that starts begins with what others had (`last_good.py`), whether or
not the source answers then. Parsing is done in a thread, since the library for it takes its time to import.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from ambassador.control.backoff import retry_s
from ambassador.control.http_client import CallFailed, get
from ambassador.files import UnfitFile, read_regular
from ambassador.pem_files import FileError, trusting
from ambassador.proxy.clients.key_sets import EARLY, FRESH_S, KeySet, KeySets
from ambassador.proxy.egress import Egress
from ambassador.proxy.jose import MOST_SET_BYTES, NO_KEYS, BadKey, PublicKey, read_keys
from ambassador.proxy.upstream.passage import Passage
from ambassador.proxy.upstream.via import Config as Via
from ambassador.secret import SecretError, read_secret

Fetch: TypeAlias = Callable[[str, str | None, Via | None], Awaitable[bytes]]
"""(URL, file with authorities, egress proxy) -> the document. Raises `CallFailed`."""
Known: TypeAlias = Callable[[KeySet], tuple[bytes, float] | None]
"""What the source of a set is known to have had, and when, by the set's clock; None: nothing."""

_FILE_EVERY_S: Final = 1.0
_TOLD_EVERY_S: Final = 60.0
"""What has not changed is told again after this: the age of keys that are handed over is wrong by so much at most."""
_TIMEOUT_S: Final = 5.0


async def feed(
    key_sets: KeySets,
    *,
    log: logging.Logger,
    fetch: Fetch,
    known: Known = lambda _: None,
    tell: Callable[[KeySet, bytes], None] = lambda *_: None,
) -> None:
    """Feed all sets there are, and those that come, for ever. `log` is told once of a source that fails, `tell` is
    given what was read.
    """
    async with trio.open_nursery() as nursery:

        def begin(key_set: KeySet) -> None:
            nursery.start_soon(_Feeder(key_set, fetch, log, known(key_set), tell).run)

        key_sets.feed_by(begin)
        await trio.sleep_forever()


class _Feeder:
    """Feeds one set until it is retired."""

    def __init__(
        self,
        key_set: KeySet,
        fetch: Fetch,
        log: logging.Logger,
        known: tuple[bytes, float] | None,
        tell: Callable[[KeySet, bytes], None],
    ) -> None:
        self._key_set = key_set
        self._fetch = fetch
        self._log = log
        self._known = known
        self._tell = tell
        self._told_at = -math.inf
        self._document: bytes | None = None
        self._failures = 0
        self._rung = trio.Event()
        key_set.ring = self._ring

    def _ring(self) -> None:
        self._rung.set()

    async def run(self) -> None:
        key_set = self._key_set
        if self._known is not None:
            await self._resume(*self._known)
        while not key_set.retired:
            self._rung = trio.Event()
            await self._feed()
            with trio.move_on_after(self._pause_s()):
                await self._rung.wait()

    def _pause_s(self) -> float:
        if self._key_set.source.startswith("file:"):
            return _FILE_EVERY_S
        if self._failures:
            return retry_s(self._failures, random.random())  # noqa: S311 - spreads retries
        return FRESH_S * EARLY

    async def _resume(self, document: bytes, read_at: float) -> None:
        try:
            keys = await trio.to_thread.run_sync(read_keys, document)
        except BadKey:
            return  # another version of this took it for good
        self._document = document
        self._key_set.resume(keys, read_at)

    async def _feed(self) -> None:
        key_set = self._key_set
        key_set.begin()
        try:
            document = await self._read()
            if document == self._document:
                key_set.confirm()
            else:
                self._take(await trio.to_thread.run_sync(read_keys, document))
                self._document, self._told_at = document, -math.inf
            self._tell_of(document)
        except (CallFailed, BadKey, UnfitFile) as error:
            self._failed(error)
        else:
            self._failures = 0

    def _tell_of(self, document: bytes) -> None:
        now = trio.current_time()
        if now >= self._told_at + _TOLD_EVERY_S:
            self._told_at = now
            self._tell(self._key_set, document)

    async def _read(self) -> bytes:
        source = self._key_set.source
        if source.startswith("file:"):
            return await trio.to_thread.run_sync(read_regular, source.removeprefix("file:"), MOST_SET_BYTES)
        return await self._fetch(source, self._key_set.ca, self._key_set.via)

    def _take(self, keys: tuple[PublicKey, ...]) -> None:
        if not keys:
            self._complain(NO_KEYS, ", tokens are refused")
        self._key_set.feed(keys)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._complain(str(error), ", the keys at hand are used" if self._key_set.keys else "")
        self._key_set.fail(str(error))
        if not self._key_set.keys:
            self._document = None  # to be taken again, also as it was

    def _complain(self, problem: str, effect: str) -> None:
        """Say it once, until it is another one."""
        if problem != self._key_set.problem:
            place = self._key_set.source.partition("?")[0]  # in the rest there may be a secret
            self._log.warning("jwks %s: %s%s", place, problem, effect)


async def fetch_url(url: str, ca: str | None, egress: Egress | None = None, via: Via | None = None) -> bytes:
    """The document at a URL. `ca`: a file with the authorities to trust; None: the system's. `egress`: what
    judges the addresses that are dialled; None: nothing does. `via`: the egress proxy that leads to its host. Raises
    `CallFailed`.
    """
    scheme, _, rest = url.partition("://")
    authority, slash, target = rest.partition("/")
    tls = None
    if scheme == "https":
        try:
            tls = await trio.to_thread.run_sync(trusting, ca)
        except FileError as error:
            raise CallFailed(str(error)) from None
    try:
        through = None if via is None else await trio.to_thread.run_sync(_passage, via, url)
    except SecretError as error:
        raise CallFailed(f"the egress proxy's password: {error}") from None
    headers = [(b"accept", b"application/jwk-set+json, application/json"), (b"user-agent", b"ambassador")]
    with trio.move_on_after(_TIMEOUT_S) as scope:
        async with get(
            f"{scheme}://{authority}",
            f"{slash}{target}",
            headers,
            tls=tls,
            timeout_s=_TIMEOUT_S,
            idle_s=_TIMEOUT_S,
            egress=egress,
            only_loopback=scheme == "http",  # who stands between could put keys of their own there
            through=through,
        ) as incoming:
            if incoming.status != 200:
                raise CallFailed(f"was answered with status {incoming.status}")
            return await incoming.body(MOST_SET_BYTES)
    assert scope.cancelled_caught
    raise CallFailed(f"did not answer within {_TIMEOUT_S:g} s")


def _passage(via: Via, url: str) -> Passage:
    """Raises `SecretError`."""
    return Passage(via, None if via.password is None else read_secret(via.password), url)
