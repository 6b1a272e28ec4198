"""Who serves which slot. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NEIGHBOUR_AFTER_S = 0.2
"""A slot without a ready worker for so long is served by a neighbour: long enough for a prompt hand-over."""


def assign(orphans: Iterable[int], ready: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """For each ready slot, the slots its worker serves: its own, and each orphan by the next ready slot in the circle.

    `orphans` are the slots that need a neighbour. With no slot ready the result is empty.
    """
    served = {slot: [slot] for slot in ready}
    for orphan in orphans:
        if ready and orphan not in served:
            served[_next_in_circle(orphan, ready)].append(orphan)
    return {slot: tuple(sorted(slots)) for slot, slots in served.items()}


def _next_in_circle(slot: int, ready: Sequence[int]) -> int:
    return min(ready, key=lambda other: (other < slot, other))
