"""The fleet's store as the config says it: a Redis whose passwords are read at each connecting."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from ambassador.config import schema
from ambassador.secret import SecretError, read_secret
from ambassador.state.protocol import Answer, Operation, StoreLost
from ambassador.state.redis import RedisStore
from ambassador.state.store_thread import Subscription


class FleetStore:
    """A client of the Redis of a config; see `store_thread.Store`."""

    def __init__(self, state: schema.State) -> None:
        self._state = state
        self._url = state.url
        self._store = RedisStore(state.url, prefix=state.prefix)

    @property
    def age_s(self) -> float:
        """How long ago the data began, as of the last `connect`."""
        return self._store.age_s

    def connect(self) -> None:
        """Connect, or connect again, with the passwords as they are now. Raises `StoreLost`."""
        try:
            url = with_passwords(self._state)
        except SecretError as error:
            raise StoreLost(str(error)) from None
        if url != self._url:
            # Else it stays the same: it remembers whether the data that it finds are those it knew.
            self._store.close()
            self._url, self._store = url, RedisStore(url, prefix=self._state.prefix)
        self._store.connect()

    def perform(self, operations: Sequence[Operation]) -> list[Answer]:
        """Have them done; the answers in the same order. Raises `StoreLost`."""
        return self._store.perform(operations)

    def subscribe(self) -> Subscription:
        """Hear what is published from now on, by another connection. Raises `StoreLost`."""
        return self._store.subscribe()

    def examine(self) -> list[str]:
        """What is wrong with the servers, or may become so, in sentences. Connect first."""
        return self._store.examine()

    def try_out(self) -> None:
        """Write something small that goes by itself. Connect first. Raises `StoreLost`: it is refused, and why."""
        self._store.try_out()

    def close(self) -> None:
        """Close the connections."""
        self._store.close()


def with_passwords(state: schema.State) -> str:
    """The URL with the secrets in it that the config only names. Raises `SecretError`."""
    parts = urlsplit(state.url)
    if state.password is not None:
        user, _, place = parts.netloc.rpartition("@")
        password = quote(read_secret(state.password), safe="")
        parts = parts._replace(netloc=f"{user}:{password}@{place}")
    if state.sentinel_password is not None:
        secret = urlencode({"sentinel_password": read_secret(state.sentinel_password)})
        parts = parts._replace(query=f"{parts.query}&{secret}".lstrip("&"))
    return urlunsplit(parts)


def examine(state: schema.State) -> list[str]:
    """What is wrong with the Redis, in sentences. Raises `StoreLost`, which says why it cannot be used. Blocks."""
    store = FleetStore(state)
    try:
        store.connect()
        findings = store.examine()
        store.try_out()
        return findings
    finally:
        store.close()
