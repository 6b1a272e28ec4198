"""What the log says of the store that replicas share: that it is away, that it is back, what is wrong with it.

Nothing waits for this. Whether the store is there is what the workers' pages say. What is wrong with a Redis is asked
in a thread when it is there, and again each minute, for rights and settings change; why it cannot be used, by
connecting to it and writing just as the workers do, when they have lost it and again and again until they have it back.
What the replica's own store says of itself is looked at all the time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from ambassador.config import schema
from ambassador.control.pages import Pages
from ambassador.extras import REDIS
from ambassador.printable import printable
from ambassador.state.protocol import StoreLost

_LOOK_EVERY_S = 0.5  # as often as workers write it down
_EXAMINE_EVERY_S = 5.0  # until it worked
_EXAMINE_AGAIN_S = 60.0
_EXPLAIN_WITHIN_S = 1.0  # while somebody waits for it

Examine = Callable[[schema.State], list[str]]
"""Finds what is wrong with a Redis. Raises `StoreLost`, which says why it cannot be used. Blocks."""


def examine_fleet(state: schema.State) -> list[str]:
    """What is wrong with the Redis of this config. Raises `StoreLost`: it cannot be used, and why."""
    try:
        from ambassador.control.fleet import examine  # noqa: PLC0415 - only where there is a Redis
    except ImportError:
        raise StoreLost(f"the extra 'redis' is not installed: {REDIS.hint}") from None
    return examine(state)


class StateWatch:
    """Runs beside everything else. `state` gives the section of the config that is served."""

    def __init__(
        self,
        pages: Pages,
        state: Callable[[], schema.State],
        log: logging.Logger,
        examine: Examine = examine_fleet,
        own: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`own` gives what the replica's own store says of itself."""
        self._pages = pages
        self._state = state
        self._log = log
        self._examine = examine
        self._own = own
        self._own_findings: tuple[str, ...] = ()
        self._findings: tuple[str, ...] = ()
        self._lost_because = ""

    @property
    def findings(self) -> tuple[str, ...]:
        """What is wrong with the store, in sentences."""
        findings = (*self._findings, *self._own_findings)
        lost = self._lost_because
        return (f"the store cannot be used: {lost}", *findings) if lost else findings

    async def run(self) -> None:
        """Look until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._examine_each)

    async def why_lost(self) -> str:
        """Why the store cannot be used, for who has just found that; empty if nobody knows. Takes 1 s at most."""
        if not self._lost_because:
            with trio.move_on_after(_EXPLAIN_WITHIN_S):
                return await self._why_lost(self._state())
        return self._lost_because

    async def _watch(self) -> None:
        up, look_again_at = True, 0.0
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            self._look_at_own()
            if self._pages.state_up:
                if not up:
                    up, self._lost_because = True, ""
                    self._log.info("state: every worker reaches %s again", self._state().url)
            elif up or trio.current_time() >= look_again_at:
                state = self._state()
                why = await self._why_lost(state)
                if up or why not in ("", self._lost_because):
                    self._lost_because = why
                    self._tell_loss(state, why)
                up, look_again_at = False, trio.current_time() + _EXAMINE_EVERY_S

    def _look_at_own(self) -> None:
        known, self._own_findings = self._own_findings, self._own()
        for finding in self._own_findings:
            if finding not in known:
                self._log.warning("state: %s", finding)

    async def _why_lost(self, state: schema.State) -> str:
        """Empty: it is not a Redis, or it serves this process, though not every worker.

        One that takes what is written may still serve nobody: what is wrong with it that was not before is the reason
        then.
        """
        if state.url == "local":
            return ""
        try:
            findings = await trio.to_thread.run_sync(self._examine, state, abandon_on_cancel=True)
        except StoreLost as lost:
            return printable(str(lost))
        return "; ".join(text for text in map(printable, findings) if text not in self._findings)

    def _tell_loss(self, state: schema.State, why: str) -> None:
        self._log.error(
            "state: %s %s; limits go on as 'on_loss: %s' says",
            state.url,
            f"cannot be used: {why}" if why else "does not answer",
            state.on_loss,
        )

    async def _examine_each(self) -> None:
        examined, again_at = "local", 0.0
        while True:
            state = self._state()
            if state.url == "local":
                examined, self._findings = "local", ()
            elif state.url != examined or trio.current_time() >= again_at:
                if state.url != examined:
                    self._findings = ()
                if await self._examine_one(state):
                    examined, again_at = state.url, trio.current_time() + _EXAMINE_AGAIN_S
            await trio.sleep(_EXAMINE_EVERY_S)

    async def _examine_one(self, state: schema.State) -> bool:
        """Whether it was there."""
        try:
            findings = await trio.to_thread.run_sync(self._examine, state, abandon_on_cancel=True)
        except StoreLost:  # that is for `_watch` to tell, if the workers cannot use it either
            return False
        known, self._findings = self._findings, tuple(map(printable, findings))
        for finding in self._findings:
            if finding in known:
                continue
            self._log.warning("state: %s", finding)
        return True
