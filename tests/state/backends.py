"""What the conformance suite asks of a store under test, and the stores there are.

A backend is a store with a clock that the test moves. The suite (`test_conformance.py`) works out what it expects from
the `now_us` of the answers, so it holds for a clock that stands still between steps and for one that runs.

To have another store tested: write a class with the methods of `Backend`, and add its name and how it is opened to
`OPENERS`. An opener is a context manager; it may call `pytest.skip` where its server is not to be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from ambassador.state.memory import MemoryStore
from ambassador.state.protocol import Answer, Event, Operation


class Backend(Protocol):
    """A store under test. When it is opened it is empty, and its data is *old*: born an hour before its clock's time,
    so that buckets begin full."""

    steps_freely: bool
    """The clock may be moved by any distance, at no cost. Else `advance` sleeps: tests that need more than a second
    in all are skipped."""

    def perform(self, operations: list[Operation]) -> list[Answer]:
        """Have operations done in this order, each by itself; their answers, in the same order."""

    def advance(self, seconds: float) -> None:
        """Let the store's clock go on by that much at least. Negative only if `steps_freely`."""

    def events(self) -> list[Event]:
        """What was published since the last call, in order; all of it."""

    def wipe(self) -> None:
        """Have it lose everything it holds, its birth included: its data is born now."""


class MemoryBackend:
    """The store in memory, on a clock that stands still between steps."""

    steps_freely = True

    def __init__(self) -> None:
        self.now_us = 1_800_000_000_000_000
        self.store = MemoryStore(self.now_us - 3_600_000_000, full=False)

    def perform(self, operations: list[Operation]) -> list[Answer]:
        return [self.store.perform(operation, self.now_us) for operation in operations]

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)

    def events(self) -> list[Event]:
        return self.store.collect()

    def wipe(self) -> None:
        self.store = MemoryStore(self.now_us, full=False)


@contextmanager
def open_memory() -> Iterator[Backend]:
    yield MemoryBackend()


OPENERS: dict[str, Callable[[], AbstractContextManager[Backend]]] = {"memory": open_memory}
"""By the name that a test's id shows."""
