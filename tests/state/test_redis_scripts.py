from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest
from redis.crc import key_slot

from ambassador.state.memory import MemoryStore
from ambassador.state.protocol import (
    MAX_VALUE_BYTES,
    Answer,
    Beat,
    Beaten,
    Event,
    Force,
    Get,
    Lease,
    Leased,
    Operation,
    Permit,
    Probe,
    Probed,
    Put,
    Refused,
    Report,
    Restore,
    Roll,
    Row,
    Rules,
    State,
    Token,
    Verb,
    tag_of,
)
from ambassador.state.redis_scripts import Scripts, refusal
from tests.state.backends import RedisBackend
from tests.state.servers import BINARIES, shared_server

RULES = Rules(0.5, 2.0, 5, 10_000, 0.3, 5000, 60_000, 3)


# ----- calls ----------------------------------------------------------------------------------------------------------


def test_keys_of_a_call_are_of_one_slot() -> None:
    operations: list[Operation] = [
        *(Lease(f"l{n}", 1.0, 1.0, 1) for n in range(200)),
        *(Report(f"r{n}", "a", 0, 0, RULES, 1) for n in range(200)),
        Probe("p", "id", Verb.ASK, RULES),
        Force("f", "open", RULES),
        Token("t", "read"),
        Beat("a", 0),
        Roll(),
        Put("v", b""),
        Get("v"),
    ]
    scripts = Scripts("amb")
    calls = scripts.calls(list(enumerate(operations)))
    assert sorted(position for call in calls for position in call.positions) == list(range(len(operations)))
    for call in calls:
        assert {key_slot(key.encode()) for key in call.keys} == {key_slot(f"s{call.tag:02}".encode())}
        assert all(key.startswith(f"amb:v1:{{s{call.tag:02}}}:") for key in call.keys)


def test_leases_of_a_shard_travel_together() -> None:
    same = [name for name in map(str, range(1000)) if tag_of(name) == 7]
    calls = Scripts("amb").calls([(n, Lease(name, 1.0, 1.0, 1)) for n, name in enumerate(same[:10])])
    assert [call.positions for call in calls] == [list(range(10))]


def test_batch_of_a_shard_is_not_endless() -> None:
    calls = Scripts("amb").calls([(n, Lease("k", 1.0, 1.0, 1)) for n in range(100)])
    assert [len(call.positions) for call in calls] == [32, 32, 32, 4]


def test_reports_do_not_pass_a_probe_of_the_same_circuit() -> None:
    report = Report("b", "a", 0, 0, RULES, 1)
    operations: list[Operation] = [report, Probe("b", "id", Verb.ASK, RULES), report, report]
    calls = Scripts("amb").calls(list(enumerate(operations)))
    assert [call.positions for call in calls] == [[0], [1], [2, 3]]


def test_split_calls_ask_for_the_same() -> None:
    scripts = Scripts("amb")
    for kind in ("k", "b"):
        many: list[Operation] = [
            Lease(f"k{n}", 1.0, 1.0, n) if kind == "k" else Report(f"b{n}", "a", 0, n, RULES)
            for n in range(300)
        ]
        many = [operation for operation in many if tag_of(_name(operation)) == 3]
        assert len(many) > 1
        (together,) = scripts.calls(list(enumerate(many)))
        alone = [scripts.calls([(n, operation)])[0] for n, operation in enumerate(many)]
        assert [call.command() for call in together.split()] == [call.command() for call in alone]
        assert [call.positions for call in together.split()] == [call.positions for call in alone]


def _name(operation: Operation) -> str:
    return operation.key if isinstance(operation, Lease) else operation.breaker  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "operation",
    [
        Lease("k" * 201, 1.0, 1.0, 1),
        Lease("k", math.nan, 1.0, 1),
        Lease("k", 1.0, -1.0, 1),
        Report("b", "a", 0, 0, RULES, requests=-1),
        Report("b", "a", 0, 0, msgspec.structs.replace(RULES, window_ms=0)),
        Probe("b", "i" * 201, Verb.ASK, RULES),
        Force("b", "ajar", RULES),
        Force("b", "open", RULES, reason="r" * (MAX_VALUE_BYTES + 1)),
        Restore("b", Row(0, State.OPEN, 1, 0, 0, 0, "ajar", 0, "", "", 0, 0, 0, 0, 0)),
        Token("t", "steal"),
        Token("t", "store", value=b"x" * (MAX_VALUE_BYTES + 1)),
        Beat("a", 0, b"x" * (MAX_VALUE_BYTES + 1)),
        Put("\N{SNOWMAN}" * 67, b""),
        Put("n", b"", ttl_ms=-1),
    ],
)
def test_operation_that_no_store_does_is_refused_by_both(operation: Operation) -> None:
    refused = refusal(operation)
    assert isinstance(refused, Refused)
    assert MemoryStore(0).perform(operation, 1) == refused


# ----- the scripts against the store in memory ------------------------------------------------------------------------


_BUCKETS = {
    "small": (1.5, 5.0, 0),
    "large": (100.0, 80.5, 0),
    "never fills": (0.0, 1000.0, 0),
    "quota": (0.0, 20.0, 1),
    "long quota": (0.0, 1000.0, 60),
}
"""Rate, depth and window. They stay: a bucket that is full may be dropped or not, and is then made by what is said."""


class _Walk:
    """Random operations on few names, as fleets of few workers and rules of all kinds would ask for."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        pick = self._random.choice
        self._rules = {
            breaker: Rules(
                errors=pick([0.0, 0.1, 0.5, 2.0]),
                slow=pick([0.5, 2.0]),
                min_requests=pick([1, 5, 20]),
                window_ms=pick([777, 1000, 10_000]),
                quorum=pick([0.0, 0.3, 0.5, 1.0]),
                open_ms=pick([100, 5000]),
                max_open_ms=pick([100, 5000, 60_000]),
                probes=pick([1, 2, 3]),
            )
            for breaker in "xy"
        }
        self._live = pick([(1, 1), (1, 2), (1, 4), (2, 4), (3, 6)])
        self.epochs = dict.fromkeys("xy", 0)
        self._makers = [self._lease] * 2 + [self._report] * 4 + [self._probe] * 3 + [self._other] * 3

    def step(self) -> float:
        """How far the clock goes on."""
        return self._random.choice([0, 1e-6, 0.001, 0.05, 0.5, 0.7, 3.0])

    def batch(self, now_us: int) -> list[Operation]:
        return [self._random.choice(self._makers)(now_us) for _ in range(self._random.randint(1, 5))]

    def _lease(self, now_us: int) -> Operation:
        pick = self._random.choice
        key, (rate, depth, window_s) = pick(list(_BUCKETS.items()))
        return Lease(
            key,
            rate=rate,
            depth=depth,
            want=self._random.randrange(30),
            least=self._random.randrange(4),
            demand=pick([0.0, 3.0, 55.5]),
            tells_demand=pick([True, False]),
            debt=pick([0.0, 0.0, 2.0]),
            credit=pick([0.0, 0.0, 1.5]),
            window_s=window_s,
            back=pick([0, 0, 3]),
            back_window=now_us // (window_s * 1_000_000) - pick([0, 1]) if window_s else 0,
            start=pick([None, 3.0, -4.0]) if key == "never fills" else None,
            most=pick([None, None, 3.0, -4.0]),
            first=pick([0, 1, 2, 4, 9]),
            lacks=pick([0, 0, 1, 4, 9]),
            birth=pick([0.0, 1.5]),
            knows=pick([True, False]),
        )

    def _report(self, now_us: int) -> Operation:
        pick = self._random.choice
        breaker = pick("xy")
        requests = self._random.randrange(8)
        return Report(
            breaker,
            replica=pick(["r0", "r1", "r2"]),
            slot=pick([0, 1]),
            epoch=pick([self.epochs[breaker]] * 9 + [5]),
            rules=self._rules[breaker],
            requests=requests,
            failures=pick([0, self._random.randint(0, requests)]),
            slow=pick([0, 0, self._random.randint(0, requests)]),
            vote=self._random.random() < 0.15,
            live_replicas=self._live[0],
            live_workers=self._live[1],
        )

    def _probe(self, now_us: int) -> Operation:
        pick = self._random.choice
        breaker = pick("xy")
        verb = pick([Verb.ASK, Verb.ASK, Verb.ASK, Verb.OK, Verb.OK, Verb.FAILED, Verb.LOST])
        return Probe(breaker, pick("123456"), verb, self._rules[breaker], pick([50, 500, 10_000]))

    def _other(self, now_us: int) -> Operation:
        pick = self._random.choice
        breaker = pick("xy")
        epoch = now_us + pick([-1_000_000, 0, 5])
        state, forced = pick(list(State)), pick(["", "open", "closed"])
        row = Row(now_us, state, epoch, now_us, now_us + 100_000, 2, forced, 0, "b", "w", 3, 2, 1, 1, 1)
        others: list[Operation] = [
            Force(
                breaker,
                pick(["open", "closed", "auto"]),
                self._rules[breaker],
                pick([0, 300]),
                "me",
                "w\xe9",
            ),
            Restore(breaker, row),
            Token(
                "t",
                pick(["read", "lock", "store", "unlock"]),
                pick("mn"),
                pick([0, 1]),
                b"\xff",
                pick([0, 200]),
                100,
            ),
            Token(
                "t",
                pick(["read", "lock", "store", "unlock"]),
                pick("mn"),
                pick([1, 2]),
                b"\xfe",
                pick([0, 200]),
                900,
            ),
            Beat(pick(["r0", "r1"]), pick([0, 1]), b"i", leaving=pick([False, False, True])),
            Roll(),
            Put("n", pick([b"\xff", b"v" * 300]), pick([0, 100, 1000]), pick([None, 0, 1]), publish=True),
            Put("n", b"longest", pick([0, 100, 1000]), longest=True, publish=pick([True, False])),
            Get("n"),
        ]
        return self._random.choice(others)


@pytest.fixture(params=sorted(BINARIES))
def store(request: pytest.FixtureRequest) -> Iterator[RedisBackend]:
    server = shared_server(request.param)
    with closing(RedisBackend(server, f"unix:{server.socket}")) as backend:
        yield backend


@pytest.mark.parametrize("seed", range(12))
def test_scripts_answer_what_the_memory_store_answers(store: RedisBackend, seed: int) -> None:
    walk = _Walk(seed)
    # The scripts take the microseconds of the clock for chance.
    memory = MemoryStore(store.now_us - 3_600_000_000, full=False, chance=lambda: store.now_us % 997 / 997)
    published: list[Event] = []
    for _ in range(100):
        store.advance(walk.step())
        operations = walk.batch(store.now_us)
        for operation, answer in zip(operations, store.perform(operations), strict=True):
            expected = memory.perform(operation, store.now_us)
            assert _comparable(answer) == _comparable(expected), operation
            row = answer.row if isinstance(answer, Probed) else answer
            if isinstance(row, Row):
                walk.epochs[operation.breaker] = row.epoch  # type: ignore[union-attr]
        published += memory.collect()
    assert _by_name(store.events()) == _by_name(published)


def _comparable(answer: Answer) -> Any:
    """Tokens of the last bit alike, and without what the two have each of their own."""
    if isinstance(answer, Leased):
        return msgspec.structs.replace(answer, left=pytest.approx(answer.left, rel=1e-12, abs=1e-9))
    if isinstance(answer, Beaten):
        return msgspec.structs.replace(answer, born_us=0)
    return answer


def _by_name(events: list[Event]) -> dict[tuple[str, str], list[Any]]:
    """What was told of each name; the same numbers may be written in two ways."""
    told: dict[tuple[str, str], list[Any]] = {}
    for event in events:
        told.setdefault((event.kind, event.name), []).append(msgspec.msgpack.decode(event.body))
    return told


def test_walk_meets_every_answer(store: RedisBackend) -> None:
    met: Counter[str] = Counter()
    for seed in range(3):
        walk = _Walk(seed)
        for _ in range(60):
            store.advance(walk.step())
            met.update(type(answer).__name__ for answer in store.perform(walk.batch(store.now_us)))
    assert {"Leased", "Row", "Probed", "Tokened", "Beaten", "Rolled", "Named"} <= met.keys()


# ----- what is left behind --------------------------------------------------------------------------------------------


def test_every_key_has_a_time_to_live_but_those_without_an_end(store: RedisBackend) -> None:
    walk = _Walk(1)
    for _ in range(60):
        store.advance(walk.step())
        store.perform(
            [each for each in walk.batch(store.now_us) if not isinstance(each, Restore | Force | Put | Token)]
        )
    store.perform(
        [Put("timed", b"", 100), Token("t", "lock", "me"), Token("t", "store", "me", 0, b"v", 1000)]
    )
    store.perform([Force("forced", "open", RULES, for_ms=1000)])
    endless = [key for key, left_ms in store.times_to_live().items() if left_ms < 0]
    assert not [key for key in endless if not key.endswith((":gen", ":now"))]
    store.perform([Put("endless", b""), Force("x", "open", RULES)])
    assert {key.split(":", 3)[3] for key in store.times_to_live() if key not in endless} >= {
        "val:endless",
        "cb:x",
    }


def test_permits_are_refused_for_they_are_the_replicas() -> None:
    assert isinstance(refusal(Permit("k", "h", 1, 0, 1)), Refused)
