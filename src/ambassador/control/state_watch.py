"""What the log says of the store that replicas share: that it is away, that it is back, what is wrong with it.

Nothing waits for this. Whether the store is there is what the workers' pages say; what is wrong with a Redis is asked
once for each address that is configured, in a thread, when it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from ambassador.config import schema
from ambassador.control.pages import Pages

_LOOK_EVERY_S = 0.5  # as often as workers write it down
_EXAMINE_EVERY_S = 5.0  # until it worked

Examine = Callable[[schema.State], list[str] | None]
"""Finds what is wrong with a Redis; None: it is not there. Blocks."""


def examine_fleet(state: schema.State) -> list[str] | None:
    """What is wrong with the Redis of this config; None: it is not there, or cannot be spoken to from here."""
    try:
        from ambassador.control.fleet import examine  # noqa: PLC0415 - only where there is a Redis
    except ImportError:
        return None
    return examine(state)


class StateWatch:
    """Runs beside everything else. `state` gives the section of the config that is served."""

    def __init__(
        self,
        pages: Pages,
        state: Callable[[], schema.State],
        log: logging.Logger,
        examine: Examine = examine_fleet,
    ) -> None:
        self._pages = pages
        self._state = state
        self._log = log
        self._examine = examine
        self.findings: tuple[str, ...] = ()
        """What is wrong with the store, in sentences."""

    async def run(self) -> None:
        """Look until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._examine_each)

    async def _watch(self) -> None:
        up = True
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            if self._pages.state_up is up:
                continue
            up = not up
            state = self._state()
            if up:
                self._log.info("state: every worker reaches %s again", state.url)
            else:
                self._log.error(
                    "state: %s does not answer; limits go on as 'on_loss: %s' says", state.url, state.on_loss
                )

    async def _examine_each(self) -> None:
        examined = "local"
        while True:
            state = self._state()
            if state.url == "local":
                examined, self.findings = "local", ()
            elif state.url != examined:
                findings = await trio.to_thread.run_sync(self._examine, state, abandon_on_cancel=True)
                if findings is not None:
                    examined = state.url
                    self.findings = tuple(findings)
                    for finding in findings:
                        self._log.warning("state: %s", finding)
            await trio.sleep(_EXAMINE_EVERY_S)
