"""Asks token services, in tasks of trio: what the data plane's keepers of tokens (`proxy/tokens`) cannot do.

Each question is one POST over a connection of its own, to a server that is verified; redirects are not followed, and
nothing is read beyond what an answer may have (`answer.MOST_BYTES`). Every question is answered, or its task has been
cancelled with the worker.
"""

from __future__ import annotations

import importlib
import ssl
from typing import TYPE_CHECKING, Final

import trio

from ambassador.pem_files import FileError, trusting
from ambassador.proxy.egress import Egress
from ambassador.proxy.tokens.answer import CONNECT, FAILED, MOST_BYTES, TIMEOUT, Failure, Granted, read
from ambassador.proxy.tokens.keeper import MOST_WAIT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from ambassador.proxy.tokens.request import Question

MOST_AT_ONCE: Final = 32
"""Of one worker: callers' tokens are exchanged one by one, and a cold start has many."""
MOST_WAITING: Final = 1000
"""More are refused, and so are those that get no place within 5 s: who waits longer has gone."""
_TLS_S: Final = 60.0
"""Authorities are read again after this time: 20 ms of a thread."""


class TokenServices:
    """Asks in tasks of `nursery`. `agent` is sent as User-Agent; `egress` gives the rules that hold now."""

    def __init__(self, agent: str, nursery: trio.Nursery, *, egress: Callable[[], Egress] = Egress) -> None:
        self._egress = egress
        self._nursery = nursery
        self._agent = (b"user-agent", agent.encode("ascii"))
        self._places = trio.CapacityLimiter(MOST_AT_ONCE)
        self._contexts: dict[str | None, tuple[float, ssl.SSLContext]] = {}

    def ask(self, question: Question, done: Callable[[Granted | Failure], None]) -> None:
        """Have it asked; `done` is called once, later. For any code of the worker's thread."""
        self._nursery.start_soon(self._ask, question, done)

    async def _ask(self, question: Question, done: Callable[[Granted | Failure], None]) -> None:
        result: Granted | Failure = Failure(FAILED, "too many requests for tokens are under way")
        if self._places.statistics().tasks_waiting < MOST_WAITING and await self._has_place():
            try:
                result = await self._result(question)
            finally:
                self._places.release()
        done(result)

    async def _has_place(self) -> bool:
        with trio.move_on_after(MOST_WAIT_S) as scope:
            await self._places.acquire()
        return not scope.cancelled_caught

    async def _result(self, question: Question) -> Granted | Failure:
        # 50 ms, of a thread, and only where tokens are fetched.
        await trio.to_thread.run_sync(importlib.import_module, "ambassador.control.http_client")
        from ambassador.control.http_client import CallFailed, TooSlow, post  # noqa: PLC0415

        scheme, _, rest = question.url.partition("://")
        authority, _, path = rest.partition("/")
        try:
            answer = await post(
                f"{scheme}://{authority}",
                f"/{path}",
                [*question.headers, self._agent],
                question.body,
                tls=await self._tls(question.ca) if scheme == "https" else None,
                timeout_s=question.timeout_s,
                limit=MOST_BYTES,
                egress=self._egress(),
                only_loopback=question.only_loopback,
                through=question.through,
            )
        except TooSlow as error:
            return Failure(TIMEOUT, str(error))
        except (CallFailed, FileError) as error:
            return Failure(CONNECT, str(error))
        return read(answer.status, answer.body, after=answer.header(b"retry-after"))

    async def _tls(self, ca: str | None) -> ssl.SSLContext:
        """Whom to trust. Raises `FileError`."""
        now = trio.current_time()
        made_at, context = self._contexts.get(ca, (now - _TLS_S, None))
        if context is None or now >= made_at + _TLS_S:
            context = await trio.to_thread.run_sync(trusting, ca)
            self._contexts[ca] = (now, context)
        return context
