"""How a worker speaks with a store: questions that are answered later, events that come by themselves.

A worker has two scopes: the *replica's*, always the store that its supervisor holds, and the *fleet's*, which is Redis
or, without one, the same store. Everything here is called from the worker's one thread; nothing waits. An answer is
never given inside `ask`: whoever asks can finish what it does first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from ambassador.state.protocol import Answer, Event, Operation


MAX_WAIT_S: Final = 0.02
"""How long requests wait for a store, all in all, unless the config says otherwise (`state.max_wait`)."""
MISSED: Final = "missed"
"""The kind of an event that no store publishes: it says that events are not heard for now, and that whoever goes by
them should look. It comes again and again as long as that is so."""


class Clock(Protocol):
    """What tells the time: the lane. Seconds of a monotonic clock, as of the present batch."""

    @property
    def now(self) -> float:
        """The time."""


class Scope(Protocol):
    """A worker's side of one store."""

    @property
    def up(self) -> bool:
        """The store answers. False from the first operation that had no answer in time until the next that has one."""

    @property
    def losses(self) -> int:
        """How often the store, or its data, was lost. `on_up` is called for less: events were missed, or it is there
        for the first time.
        """

    @property
    def born_at(self) -> float:
        """When the store's data began, by the worker's clock, as of when it was connected; -inf: buckets begin full, or
        nobody knows. Never later than it was: where shards differ, the oldest.
        """

    @property
    def replicas(self) -> int:
        """Replicas alive, as far as known; at least 1. While the store is away: as last known."""

    @property
    def workers(self) -> int:
        """Workers alive over all replicas, likewise."""

    def ask(self, operation: Operation, answered: Callable[[Answer | None], None] | None = None) -> None:
        """Have an operation done. `answered` is called exactly once, later: with its answer, with `Refused`, or with
        None when no answer came in time; the operation may have been done then.

        While the store is not `up`, what is asked is answered None at once (in the next batch) without being sent,
        but for the bridge's own attempts to reach it.
        """

    def listen(self, kind: str, heard: Callable[[Event], None]) -> None:
        """Have every event of this kind told. Some may be lost while the connection is: see `on_up`.

        A bound method is held weakly, here and by `on_up`: scopes outlive the config's generations.
        """

    def on_up(self, again: Callable[[], None]) -> None:
        """Have `again` called whenever the store is back after it was away, or was connected for the first time:
        what it knows may be older or newer than what the worker knows.
        """


class Scopes(NamedTuple):
    """Both scopes of a worker, as policies get them when a config is compiled."""

    fleet: Scope
    """What all replicas share: rate limits, breakers, credentials. The same object for the worker's whole life."""
    replica: Scope
    """What the workers of this replica share. Where there is no store beyond the replica, `fleet` asks the same one."""
