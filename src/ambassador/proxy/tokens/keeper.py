"""A keeper of a token: drives the flight of one token, and wakes the requests that wait for it.

Nothing here does I/O: stores are asked by their scopes, the token service by what `control/tokens.py` gives. Neither
answers inside of the call. Who keeps what, and who hears of what is stored, is in `register.py`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

import msgspec

from ambassador.errors import CredentialUnavailable
from ambassador.proxy.lane import Timer
from ambassador.proxy.tokens.answer import OK, REFUSED, SECRET, Failure, Granted
from ambassador.proxy.tokens.flight import LOCK_S, Ask, Down, Flight, Record, Refusal, Seen
from ambassador.proxy.tokens.life import Held
from ambassador.proxy.tokens.outage import Outage
from ambassador.proxy.tokens.request import Unaskable
from ambassador.proxy.tokens.seal import NONCE_BYTES, Sealer
from ambassador.secret import SecretError
from ambassador.state.protocol import Token, Tokened

if TYPE_CHECKING:
    from collections.abc import Iterable
    from logging import Logger

    from ambassador.errors import ProxyError
    from ambassador.messages import Request, Waiter
    from ambassador.proxy.tokens.request import Asker, Question
    from ambassador.state.protocol import Answer
    from ambassador.state.scope import Scope

MOST_WAIT_S: Final = 5.0
"""So long a request waits for a token that is not there yet, and no longer than its route allows."""
_US: Final = 1_000_000

Post: TypeAlias = "Callable[[Question, Callable[[Granted | Failure], None]], None]"
"""Asks a token service, and calls back once, later."""
Blame: TypeAlias = "Callable[[Failure], ProxyError | None]"
"""What requests are told of a failure; None: that the credential is unavailable."""

_encode: Final = msgspec.msgpack.Encoder().encode
_DECODER: Final[msgspec.msgpack.Decoder[Record | Refusal]] = msgspec.msgpack.Decoder(Record | Refusal)


class Clock(Protocol):
    """The lane, as far as it is needed here."""

    @property
    def now(self) -> float:
        """The time, in seconds of a monotonic clock."""

    def tick(self) -> None:
        """Read the clock again."""

    def arm(self, timer: Timer) -> None:
        """Have it called at its deadline."""

    def disarm(self, timer: Timer) -> None:
        """Do not."""


class TokenCounts(Protocol):
    """Where it is counted what became of requests for an upstream's tokens."""

    def asked(self, result: str) -> None:
        """A request for a token ended with one of `answer.RESULTS`."""

    def expires(self, unix_s: float) -> None:
        """The token in hand expires then; 0: there is none."""


class Place(NamedTuple):
    """A store to share tokens by. `sealer`: by whom what is stored there is encrypted."""

    scope: Scope
    sealer: Sealer | None = None

    def name(self, credential: str) -> str:
        """The name of a credential's token there. Replicas with different keys could not read each other's, and would
        each replace what the others need: their tokens have different names. Raises `SecretError`.
        """
        if self.sealer is None:
            return f"token:{credential}"
        return f"token:{credential}:{self.sealer.key_id}"


class Wanted(NamedTuple):
    """Which token: for what upstream, what `asker` gets for `form`, and by which stores it is shared."""

    upstream: str
    asker: Asker
    form: tuple[tuple[str, str], ...]
    places: tuple[Place, ...]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a keeper stands, for others to see; nothing of the token."""

    valid_for_s: float | None
    """None: there is no token."""
    problem: str = ""
    """Why the last one could not be had; empty once there is another."""
    next_try_s: float | None = None


class Surroundings(NamedTuple):
    """What all keepers of a worker have in common. `post` asks token services, `wall_s` gives the time of day in unix
    seconds, `chance` a number in [0, 1).
    """

    clock: Clock
    post: Post
    wall_s: Callable[[], float]
    chance: Callable[[], float]
    log: Logger


class Keeper(Timer):
    """Keeps one token. `counts` is told how its fetching goes, and when a `proactive` one expires."""

    __slots__ = (
        "__weakref__", "_around", "_asked_at", "_blame", "_caller", "_counts", "_flight", "_news", "_nonce", "_outage", "_places", "_problem",
        "_waiters", "_wanted", "credential", "namesakes", "until", "upstream",
    )  # fmt: skip

    def __init__(
        self,
        around: Surroundings,
        wanted: Wanted,
        credential: str,
        counts: TokenCounts,
        *,
        proactive: bool = False,
        until: float = inf,
        blame: Blame | None = None,
        outage: Outage | None = None,
        caller: str = "",
    ) -> None:
        super().__init__()
        self.upstream = wanted.upstream
        self.credential = credential
        """Its name among all; no secret."""
        self.namesakes: Iterable[Keeper] = ()
        """All of this credential, for who looks for them by it."""
        self._nonce = secrets.token_hex(8)
        """Who holds a lock: this keeper alone, and not its namesakes, which would fetch beside it."""
        self._around = around
        self._wanted = wanted
        self._places = wanted.places
        self._counts = counts
        self._blame = blame
        self._outage = outage
        self._asked_at = 0.0
        self._caller = caller
        """For whom it is, as `outage` tells callers apart."""
        self.until = until
        """The token is not used beyond this time of the lane's clock."""
        self._flight = Flight(len(self._places), proactive=proactive)
        self._news = 0
        self._problem = ""
        self._waiters: set[Waiter] = set()

    # Requests

    def in_hand(self) -> bool:
        """Whether there is a token. Else it is being fetched from now on.

        Raises `CredentialUnavailable`, or what `blame` says.
        """
        found = self._want()
        if isinstance(found, Down):
            raise self._error(found)
        return found is not None

    async def fetched(self, request: Request) -> None:
        """Rest until there is one. Raises as `in_hand`, and when it has not come within MOST_WAIT_S."""
        flight, clock, waiter = self._flight, self._around.clock, request.waiter
        if waiter is None:
            raise self._unavailable("is being fetched")
        give_up_at = clock.now + MOST_WAIT_S
        news = flight.news
        self._waiters.add(waiter)
        try:
            while clock.now < give_up_at:
                await waiter.rest(give_up_at)
                if flight.news == news:
                    continue
                news = flight.news
                if self.in_hand():
                    return
        finally:
            self._waiters.discard(waiter)
        raise self._unavailable("has not come in time")

    def held(self) -> Held | None:
        """The token for what is written now; None: it has ended meanwhile, or there is none.

        Within the margin before its end it still may be sent, by who began before; so may one that was refused since,
        which gets a 401 that is worth another attempt.
        """
        token = self._flight.latest
        return token if token is not None and self._around.clock.now < token.expires_at else None

    def line(self) -> bytes | None:
        """The field for requests that begin now, with CRLF before it; None: there is no token in hand."""
        found = self._want()
        return found.line if isinstance(found, Held) else None

    def refused(self, began: float) -> bool:
        """The upstream answered 401 to an attempt that began then: whether another may do better."""
        again = self._flight.refused(began, self._around.clock.now)
        self._act()
        return again

    def accepted(self) -> None:
        """An attempt that followed a refused one was not refused."""
        self._flight.accepted()

    def standing(self) -> Standing:
        """How it stands now."""
        now, flight = self._around.clock.now, self._flight
        token, down = flight.token, flight.down
        return Standing(
            valid_for_s=None if token is None or now >= token.expires_at else token.expires_at - now,
            problem="" if down is None else down.failure.why,
            next_try_s=None if down is None else max(0.0, down.until - now),
        )

    @property
    def idle(self) -> bool:
        """Nobody waits for it: it may be forgotten."""
        return not self._waiters

    def _want(self) -> Held | Down | None:
        now = self._around.clock.now
        flight = self._flight
        found = flight.want(now)
        while flight.todo:
            self._act()
            found = found or flight.want(now)  # what cannot even be asked has failed already
        if self.deadline != flight.ring_at:
            self._act()
        return found

    def _error(self, down: Down) -> ProxyError:
        failure = down.failure
        blamed = None if self._blame is None else self._blame(failure)
        if blamed is not None:
            return blamed
        what = "is refused by the token service" if failure.result == REFUSED else "cannot be had"
        if failure.code:
            what += f" ({failure.code})"
        return self._unavailable(what, max(down.until - self._around.clock.now, 1.0))

    def _unavailable(self, what: str, retry_after_s: float = 1.0) -> CredentialUnavailable:
        return CredentialUnavailable(
            f"the credential for upstream {self.upstream} {what}", retry_after_s=retry_after_s
        )

    # What happens

    def heard(self, name: str, version: int) -> None:
        """Somebody stored a token as this version, under this name of it."""
        try:
            mine = any(place.name(self.credential) == name for place in self._places)
        except SecretError:
            return
        if mine:
            self._flight.heard(version, self._around.clock.now)
            self._act()

    def expire(self) -> None:
        """The lane calls: it is the time that the flight asked for."""
        self._flight.rang(self._around.clock.now)
        self._act()

    def _act(self) -> None:
        """Do what the flight has to have done, wake who waits for news, and be called when it is time."""
        flight = self._flight
        while flight.todo:
            todo, flight.todo = flight.todo, []
            for each in todo:
                if isinstance(each, Ask):
                    self._ask(each)
                else:
                    self._fetch()
        if flight.news != self._news:
            self._news = flight.news
            if flight.proactive:
                self._tell_expiry()
            for waiter in self._waiters:
                waiter.wake()
        if self.deadline != flight.ring_at:
            self.deadline = flight.ring_at
            self._around.clock.arm(self)

    def _tell_expiry(self) -> None:
        token, around = self._flight.token, self._around
        if token is None or token.expires_at <= around.clock.now:
            self._counts.expires(0.0)
        else:
            self._counts.expires(around.wall_s() + token.expires_at - around.clock.now)

    # The stores

    def _ask(self, ask: Ask) -> None:
        scope, sealer = self._places[ask.place]
        try:
            name = self._places[ask.place].name(self.credential)
            value = b"" if ask.value is None else _encode(ask.value)
            if sealer is not None and value:
                value = sealer.seal(name, ask.version + 1, value, secrets.token_bytes(NONCE_BYTES))
        except SecretError as error:
            self._complain(f"state.secret_key: {error}; tokens are not shared with other replicas")
            self._told(ask.turn, None)
            return
        operation = Token(
            name,
            ask.action,
            nonce="" if ask.action == "read" else self._nonce,
            version=ask.version,
            value=value,
            ttl_ms=max(1, round(ask.ttl_s * 1000)) if ask.action == "store" else 0,
            lock_ms=round(LOCK_S * 1000),
        )
        scope.ask(operation, lambda answer: self._answered(ask, name, answer))

    def _answered(self, ask: Ask, name: str, answer: Answer | None) -> None:
        seen = None
        if isinstance(answer, Tokened):
            left_us = answer.expires_us - answer.now_us
            value = self._read(self._places[ask.place].sealer, name, answer) if answer.version else None
            seen = Seen(answer.version, value, left_us / _US, answer.done)
        self._told(ask.turn, seen)

    def _told(self, turn: int, seen: Seen | None) -> None:
        self._flight.told(turn, seen, self._around.clock.now, self._around.chance())
        self._act()

    def _read(self, sealer: Sealer | None, name: str, answer: Tokened) -> Record | Refusal | None:
        try:
            plain = answer.value if sealer is None else sealer.open(name, answer.version, answer.value)
            return None if plain is None else _DECODER.decode(plain)
        except (msgspec.MsgspecError, RecursionError, SecretError):
            return None

    # The token service

    def _fetch(self) -> None:
        around = self._around
        refusal = None if self._outage is None else self._outage.refusal(around.clock.now, self._caller)
        if refusal is not None:
            self._flight.fetched(refusal, around.clock.now, around.chance())
            self._act()
            return
        self._asked_at = around.clock.now
        try:
            question = self._wanted.asker.question(
                self._wanted.form, wall_s=around.wall_s(), nonce=secrets.token_hex(16)
            )
        except Unaskable as error:
            self._fetched(Failure(SECRET, str(error)))
            return
        around.post(question, self._fetched)

    def _fetched(self, result: Granted | Failure) -> None:
        around = self._around
        around.clock.tick()
        now = around.clock.now
        self._counts.asked(OK if isinstance(result, Granted) else result.result)
        if isinstance(result, Granted):
            left_s = self.until - now
            if result.life_s > left_s:
                result = Granted(result.text, max(left_s, 0.001))
            if self._problem:
                self._problem = ""
                around.log.info("upstream %s: the token service gives tokens again", self.upstream)
        elif self._blame is None or self._blame(result) is None:  # else anybody could fill the log
            place = self._wanted.asker.url.partition("?")[0]  # in the rest there may be a secret
            if self._outage is None or self._outage.may_tell(now):
                self._complain(f"no token from {place}: {result.why}")
        if self._outage is not None:
            self._outage.heard(result, now, around.chance(), self._caller, asked_at=self._asked_at)
        self._flight.fetched(result, now, around.chance())
        self._act()

    def _complain(self, problem: str) -> None:
        """Say it once, until it is another one."""
        if problem != self._problem:
            self._problem = problem
            self._around.log.warning("upstream %s: %s", self.upstream, problem)
