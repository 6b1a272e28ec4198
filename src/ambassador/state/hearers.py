"""Who wants to be called. A scope outlives the config's generations, and what of one listens to it must not be kept
alive by that: a bound method is held weakly, and goes with its object. Anything else is held until the end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, Generic, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_FEW = 16  # not worth looking through


class Hearers(Generic[F]):
    """In the order of `add`. Those that are gone are dropped whenever the list has doubled."""

    __slots__ = ("_kept", "_sweep_at")

    def __init__(self) -> None:
        self._kept: list[Callable[[], F | None]] = []
        self._sweep_at = _FEW

    def add(self, hearer: F) -> None:
        """Have it called, with the others."""
        if len(self._kept) >= self._sweep_at:
            self._kept = [kept for kept in self._kept if kept() is not None]
            self._sweep_at = max(_FEW, 2 * len(self._kept))
        if isinstance(hearer, MethodType):
            self._kept.append(weakref.WeakMethod(hearer))
        else:
            self._kept.append(lambda: hearer)

    def __iter__(self) -> Iterator[F]:
        """Those that are there; who is added meanwhile is not among them."""
        for kept in list(self._kept):
            hearer = kept()
            if hearer is not None:
                yield hearer

    def __len__(self) -> int:
        """How many are kept, those included that are gone and not dropped yet."""
        return len(self._kept)
