"""Sets of public keys that tokens are verified with, as this worker has them.

A set is fed from outside (`control/key_sets.py` fetches URLs and reads files): here is only what is in hand, and the
wish for more. Who meets a token with a key that is not in hand `ask`s, and rests until the set was fed. So that nobody
can have the service fetch at will by inventing key ids, an answered wish is the last for COOL_DOWN_S; and all that wait
wait for one fetch.

Keys in hand are used for as long as the source is away, up to KEPT_S: a token service that is restarted must not stop
calls, but a key that was withdrawn must not live for ever either. A set without keys is one: all were withdrawn, and
nothing verifies any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from ambassador.proxy.jose import NO_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ambassador.messages import Waiter
    from ambassador.proxy.jose import PublicKey
    from ambassador.proxy.upstream.via import Config as Via

FRESH_S: Final = 600.0
"""How long a set that was fetched is taken for the present one. Envoy's `cache_duration`: 10 min."""
EARLY: Final = 0.8
"""At this part of that it is fetched again, in the background."""
COOL_DOWN_S: Final = 30.0
"""After a fetch an unknown key id brings no other for so long."""
WAIT_S: Final = 2.0
"""How long a request waits for a fetch at most."""
KEPT_S: Final = 86_400.0
"""How long keys are used when the source is away."""


class Clock(Protocol):
    """The lane, as far as it is needed here."""

    @property
    def now(self) -> float:
        """The time, in seconds."""

    def tick(self) -> None:
        """Read the clock again."""


class KeySet:
    """The keys of one source: a URL, or the path of a file. `ring` tells its feeder that something is wanted."""

    __slots__ = (
        "_asked_at", "_clock", "_waiting", "ca", "failing_since", "fed_at", "keys", "problem", "retired", "ring", "source", "version",
        "via", "wanted",
    )  # fmt: skip

    def __init__(self, source: str, ca: str | None, clock: Clock, via: Via | None = None) -> None:
        self.source = source
        self.ca = ca
        """A file with the authorities that a URL's server is verified with; None: the system's."""
        self.via = via
        """The egress proxy that leads to a URL's server; None: none does."""
        self.keys: tuple[PublicKey, ...] = ()
        self.version = 0
        """Grows with each change of the keys."""
        self.fed_at: float | None = None
        """When the keys were as the source has them; None: never."""
        self.problem = ""
        """Why the last feeding failed, or gave no key; empty: it did not."""
        self.failing_since: float | None = None
        """When the first had a problem of those that had since the last without; None: the last one had none."""
        self.wanted = True
        """Somebody wants the source to be asked, or it is being asked. At first, everybody does."""
        self.retired = False
        """Nobody uses it any more."""
        self.ring: Callable[[], None] = _nobody
        self._clock = clock
        self._asked_at = clock.now
        self._waiting: list[Waiter] = []

    def ask(self) -> bool:
        """Want it fed. Whether it is being fed, or will be at once; False: it was asked not long ago."""
        if not self.wanted:
            if self._clock.now < self._asked_at + COOL_DOWN_S:
                return False
            self.wanted = True
            self.ring()
        return True

    async def wait(self, waiter: Waiter) -> None:
        """Rest until what is wanted has come, or could not; not longer than WAIT_S. Raises when the client leaves."""
        until = self._clock.now + WAIT_S
        self._waiting.append(waiter)
        try:
            while self.wanted and self._clock.now < until:
                await waiter.rest(until)
        finally:
            self._waiting.remove(waiter)

    def begin(self) -> None:
        """The source is being asked."""
        self._clock.tick()
        self.wanted = True
        self._asked_at = self._clock.now

    def feed(self, keys: tuple[PublicKey, ...]) -> None:
        """These are the keys now; there may be none."""
        self.keys = keys
        self.version += 1
        self.confirm()

    def resume(self, keys: tuple[PublicKey, ...], fed_at: float) -> None:
        """These were the keys at `fed_at`, as another worker had them: used until the source has been asked, and for as
        long as it is away.
        """
        if not self.keys and self._clock.now < fed_at + KEPT_S:
            self.keys = keys
            self.version += 1
            self.fed_at = fed_at

    def confirm(self) -> None:
        """The keys are still those in hand."""
        self._clock.tick()
        self.fed_at = self._clock.now
        if self.keys:
            self.problem, self.failing_since = "", None
        else:
            self._have_problem(NO_KEYS)
        self._done()

    def fail(self, problem: str) -> None:
        """The source could not be asked, or its answer is no set."""
        self._clock.tick()
        self._have_problem(problem)
        if self.keys and self.fed_at is not None and self._clock.now >= self.fed_at + KEPT_S:
            self.keys = ()
            self.version += 1
        self._done()

    @property
    def is_empty(self) -> bool:
        """The source has a set, without a key that verifies signatures."""
        return self.problem == NO_KEYS and not self.keys

    def _have_problem(self, problem: str) -> None:
        if self.failing_since is None:
            self.failing_since = self._clock.now
        self.problem = problem

    def retire(self) -> None:
        """Nobody uses it any more."""
        self.retired = True
        self.ring()

    def _done(self) -> None:
        self._asked_at = self._clock.now
        self.wanted = False
        for waiter in self._waiting:
            waiter.wake()


def _nobody() -> None:
    """Rings for nobody."""


class KeySets:
    """The sets of a worker, by source. `on_new` is called with each that is new."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str | None, Via | None], KeySet] = {}
        self._on_new: Callable[[KeySet], None] | None = None

    def get(self, source: str, ca: str | None = None, via: Via | None = None) -> KeySet:
        """The set of a source; the same object as long as it is used."""
        key_set = self._known.get((source, ca, via))
        if key_set is None:
            key_set = self._known[source, ca, via] = KeySet(source, ca, self._clock, via)
            if self._on_new is not None:
                self._on_new(key_set)
        return key_set

    def feed_by(self, on_new: Callable[[KeySet], None]) -> None:
        """Have `on_new` called with each set that there is, and with those that come."""
        self._on_new = on_new
        for key_set in self._known.values():
            on_new(key_set)

    def install(self, used: Iterable[KeySet]) -> None:
        """These are used from now on, and no others."""
        kept = set(map(id, used))
        for name, key_set in list(self._known.items()):
            if id(key_set) not in kept:
                del self._known[name]
                key_set.retire()

    def __iter__(self) -> Iterator[KeySet]:
        return iter(list(self._known.values()))
