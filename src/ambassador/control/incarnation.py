"""One worker process as the supervisor sees it, from its exec to its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec
import trio

from ambassador.control.channel import Channel, Closed
from ambassador.control.child import start_child
from ambassador.control.orders import (
    Act,
    Answer,
    Ask,
    Beat,
    Commit,
    Committed,
    Counted,
    Failed,
    KeysRead,
    Leaving,
    Message,
    Prepare,
    Prepared,
    Ready,
    Refused,
    Report,
    Stopped,
)

R = TypeVar("R", bound=Message)

WORKER_MODULE: Final = "ambassador.control.worker"

_LAST_WORDS_S = 1.0  # how long to read on after a worker's exit

_REPORTS: Final = msgspec.msgpack.Decoder(Report)


class Incarnation:
    """One process. `attend` must run from its start to its end.

    `ready` and `ended` are its life; `error` is what it said when it could not start. Times are trio's, `started` is
    in unix seconds.
    """

    def __init__(self, slot: int, module: str = WORKER_MODULE) -> None:
        self.slot = slot
        self._process, sock = start_child(module)
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self.channel: Channel[Report] = Channel(sock, _REPORTS)
        self.started = time.time()
        self.born = self.last_beat = trio.current_time()
        self.ready = False
        self.ended = False
        self.retiring = False
        self.stalled = False
        self.generation = 0
        self.serving: tuple[int, ...] = ()
        self.error: str | None = None
        self.beat = Beat(connections=0, inflight=0, loop_lag_ms=0.0)
        self.counted: Counted | None = None
        """What its limits had counted when it told last."""
        self.settled = trio.Event()
        """Set when it is ready or has ended, whichever comes first."""
        self.gone = trio.Event()
        """Set when it has ended."""
        self.stopped = trio.Event()
        """Set when it accepts no more, or has ended."""
        self.on_leaving: Callable[[Incarnation], None] = lambda _: None
        """Called when the worker must be replaced: a signal told it to end, or it has lost its store."""
        self.on_keys_read: Callable[[KeysRead], None] = lambda _: None
        """Called with each set of public keys that it has read."""
        self._awaited: dict[tuple[str, int], Callable[[Report | None], None]] = {}
        self._asked = 0

    async def attend(self) -> None:
        """Talk with the process until it has ended."""
        heard_all = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.channel.run)
                nursery.start_soon(self._hear, heard_all)
                await trio.lowlevel.wait_readable(self._pidfd)
                with trio.move_on_after(_LAST_WORDS_S):
                    await heard_all.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._end()

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._pidfd)
        self.channel.close()
        self.ready = False
        self.ended = True
        self.settled.set()
        self.stopped.set()
        self.gone.set()
        for give in list(self._awaited.values()):
            give(None)

    async def _hear(self, heard_all: trio.Event) -> None:
        try:
            while True:
                self._take(await self.channel.receive())
        except (Closed, msgspec.MsgspecError):
            heard_all.set()

    def _take(self, report: Report) -> None:
        self.last_beat = trio.current_time()
        match report:
            case Beat():
                self.beat = report
            case KeysRead():
                self.on_keys_read(report)
            case Counted():
                self.counted = report
            case Ready():
                self.ready = True
                self.settled.set()
            case Failed():
                self.error = report.error
            case Prepared() | Refused():
                self._give("prepare", report.generation, report)
            case Committed():
                self.generation = report.generation
                self._give("commit", report.generation, report)
            case Leaving():
                self.on_leaving(self)
            case Stopped():
                self.stopped.set()
            case Answer():
                self._give("ask", report.id, report)

    def _give(self, what: str, number: int, report: Report) -> None:
        give = self._awaited.get((what, number))
        if give is not None:
            give(report)

    async def _reply(
        self, what: str, number: int, order: Message, kind: type[R], timeout_s: float
    ) -> R | None:
        """Post `order` and wait for its reply; None if the worker ended or took longer than `timeout_s`."""
        come = trio.Event()
        replies: list[Report | None] = []

        def give(report: Report | None) -> None:
            replies.append(report)
            come.set()

        if self.ended:
            return None
        self._awaited[what, number] = give
        try:
            self.channel.post(order)
            with trio.move_on_after(timeout_s):
                await come.wait()
        finally:
            del self._awaited[what, number]
        return replies[0] if replies and isinstance(replies[0], kind) else None

    async def prepare(self, order: Prepare, timeout_s: float) -> Prepared | Refused | None:
        """Whether the worker can serve a generation; None: it does not say."""
        return await self._reply("prepare", order.brief.generation, order, Message, timeout_s)  # type: ignore[return-value]

    async def commit(self, order: Commit, timeout_s: float) -> bool:
        """Have it serve what it prepared; whether it does."""
        return await self._reply("commit", order.generation, order, Committed, timeout_s) is not None

    async def ask(self, what: str, timeout_s: float) -> bytes | None:
        """Its answer to a question; None if none came."""
        self._asked += 1
        answer = await self._reply("ask", self._asked, Ask(id=self._asked, what=what), Answer, timeout_s)
        return None if answer is None else answer.data

    async def act(self, what: bytes, timeout_s: float) -> bytes | None:
        """Its answer when it has done what the admin API wants (`orders.Act`); None if none came."""
        self._asked += 1
        answer = await self._reply("ask", self._asked, Act(id=self._asked, data=what), Answer, timeout_s)
        return None if answer is None else answer.data

    def post(self, order: Message, descriptors: Sequence[int] = ()) -> None:
        """Give an order that has no reply; nothing happens if it has ended."""
        if not self.ended:
            self.channel.post(order, descriptors)

    def kill(self) -> None:
        """SIGKILL. What it had in hand is lost; what waits in its slots' queues is not."""
        if not self.ended:
            self._process.kill()

    @property
    def exit_status(self) -> int | None:
        """As subprocess says it: negative for a signal; None while it lives."""
        return self._process.returncode
