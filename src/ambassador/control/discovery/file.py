"""Endpoints from a file, read again when it changes.

The file is looked at four times a second: a watch of the kernel would miss what a container's mounts and links do to
it. It may be written in place, be replaced by a rename, or be a link of a ConfigMap, which changes what it points to.
It is read once it has stayed the same for one look, since a list that is half written may be a whole one to read.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from ambassador.config.discover import Server
from ambassador.config.load import load_endpoints
from ambassador.config.problem import ConfigError

LOOK_EVERY_S: Final = 0.25

_Sign: TypeAlias = tuple[int, int, int, int]


class FileWatch:
    """Keeps the servers of a file up to date.

    `tell` is awaited with each list that has no mistake; `trouble` is told what is wrong with one, as `check` prints
    it, and None once there is nothing any more.
    """

    def __init__(
        self,
        path: str,
        tell: Callable[[tuple[Server, ...]], Awaitable[None]],
        trouble: Callable[[str | None], None],
        *,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._path = path
        self._tell = tell
        self._trouble = trouble
        self._look_every_s = look_every_s

    async def run(self) -> None:
        """Watch, for ever."""
        sign = _sign(self._path)
        await self._read()
        while True:
            await trio.sleep(self._look_every_s)
            now = _sign(self._path)
            if now == sign:
                continue
            sign = await self._settled(now)
            await self._read()

    async def _settled(self, sign: _Sign | None) -> _Sign | None:
        """The file's sign once it is the same twice."""
        while True:
            await trio.sleep(self._look_every_s)
            now = _sign(self._path)
            if now == sign:
                return sign
            sign = now

    async def _read(self) -> None:
        try:
            # In a thread: a long list takes tens of milliseconds, and a disk may be slow.
            found = await trio.to_thread.run_sync(load_endpoints, self._path, abandon_on_cancel=True)
        except ConfigError as error:
            self._trouble("; ".join(str(problem) for problem in error.problems))
            return
        self._trouble(None)
        await self._tell(
            tuple(Server(each.url, each.weight, each.zone or "", each.priority) for each in found)
        )


def _sign(path: str) -> _Sign | None:
    """What changes with the file, whatever is done to it; None while there is none."""
    try:
        now = os.stat(path)
    except OSError:
        return None
    return now.st_mtime_ns, now.st_size, now.st_ino, now.st_dev
