"""Workers that keep tokens, with a store between them and a token service that answers when it is told."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import trio

from ambassador.messages import Request, Waiter
from ambassador.proxy.tokens.answer import Failure, Granted
from ambassador.proxy.tokens.keeper import Keeper, Place, Surroundings, Wanted
from ambassador.proxy.tokens.register import Tokens
from ambassador.proxy.tokens.request import Asker, Question
from tests.proxy.stores import SharedStore, Time

ASKER = Asker(url="https://id.test/token", client_id="me")
FORM = (("grant_type", "client_credentials"),)
WALL_S = 1_800_000_000.0


class Clock(Time):
    def tick(self) -> None:
        """A test moves it."""

    def disarm(self, timer: object) -> None:
        if timer in self.timers:
            self.timers.remove(timer)


class Counts:
    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        self.expiry = -1.0

    def asked(self, result: str) -> None:
        self.results[result] += 1

    def expires(self, unix_s: float) -> None:
        self.expiry = unix_s


class Rest(Waiter):
    """Rests until it is woken."""

    def __init__(self) -> None:
        self._woken = trio.Event()

    async def rest(self, until: float) -> None:
        await self._woken.wait()
        self._woken = trio.Event()

    def wake(self) -> None:
        self._woken.set()


class Shared(SharedStore):
    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.time: Clock = Clock()


class World:
    def __init__(self, workers: int = 1) -> None:
        self.shared = Shared(workers)
        self.clock = self.shared.time
        self.questions: list[Question] = []
        self.waiting: list[Callable[[Granted | Failure], None]] = []
        self.counts = Counts()
        self.tokens = [self.make_tokens(worker) for worker in range(workers)]

    def make_tokens(self, worker: int) -> Tokens:
        around = Surroundings(
            self.clock,
            self._post,
            wall_s=lambda: WALL_S + self.clock.now,
            chance=lambda: 0.5,
            log=logging.getLogger("test.tokens"),
        )
        return Tokens(around, self.shared.scopes_of(worker))

    def _post(self, question: Question, done: Callable[[Granted | Failure], None]) -> None:
        self.questions.append(question)
        self.waiting.append(done)

    def keeper(
        self, worker: int = 0, asker: Asker = ASKER, places: tuple[Place, ...] | None = None
    ) -> Keeper:
        if places is None:
            places = (Place(self.shared.scopes[worker]),)
        return self.tokens[worker].get(Wanted("api", asker, FORM, places), self.counts)

    def answer(self, result: Granted | Failure) -> None:
        """The token service answers the oldest question, and the stores what comes of it."""
        self.waiting.pop(0)(result)
        self.shared.deliver()

    def fill(self, keeper: Keeper, text: str = "t", life_s: float = 1000.0) -> None:
        """Have the keeper fetch a token."""
        keeper.line()
        self.shared.deliver()
        self.answer(Granted(text, life_s))


def a_request(waiter: Waiter | None = None, *fields: tuple[bytes, bytes]) -> Request:
    request = Request("GET", b"/", list(fields), 1)
    request.waiter = waiter
    return request
