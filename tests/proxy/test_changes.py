"""What was changed, and who hears of it: at once here, with the store's next delivery everywhere else."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest

from ambassador.messages import Fields, Request, ResponseHead
from ambassador.proxy.changes import Changes, changed
from ambassador.state.protocol import Put
from tests.proxy.stores import SharedStore


def a_request(path: bytes = b"/", query: bytes | None = None) -> Request:
    request = Request("PUT", path, [], 1)
    request.authority, request.path, request.query = b"Host", path, query
    return request


def a_head(*fields: tuple[bytes, bytes]) -> ResponseHead:
    head = ResponseHead(200, list(fields))
    head.passing = list(fields)
    return head


class FakeCache:
    """Remembers what it was told to forget."""

    def __init__(self) -> None:
        self.forgotten: list[bytes] = []

    def forget(self, uris: Collection[bytes]) -> None:
        self.forgotten += uris


class Worker:
    """One that has a cache, with the others around a store."""

    def __init__(self, shared: SharedStore, number: int) -> None:
        self.scope = shared.scopes[number]
        self.cache = FakeCache()
        self.changes = Changes(teller=f"w{number}")
        self.changes.install([self.cache], self.scope)

    def change(self, *paths: bytes) -> None:
        spoil = self.changes.spoiler([self.cache])
        assert spoil is not None
        for path in paths:
            spoil(a_request(path), a_head())

    @property
    def told(self) -> list[list[bytes]]:
        """The messages that were sent."""
        return [msgspec.msgpack.decode(each.value) for each in self.scope.asked if isinstance(each, Put)]


def some(count: int) -> tuple[SharedStore, list[Worker]]:
    shared = SharedStore(count)
    return shared, [Worker(shared, number) for number in range(count)]


@pytest.mark.parametrize(
    ("fields", "also"),
    [
        ([], []),
        ([(b"Location", b"/new#x")], [b"host/new"]),
        ([(b"Content-Location", b"http://HOST/new?a")], [b"host/new?a"]),
        ([(b"location", b"/1"), (b"content-location", b"/2")], [b"host/1", b"host/2"]),
        ([(b"location", b"http://other/new")], []),
        ([(b"location", b"ftp://host/new")], []),
        ([(b"location", b"new")], []),
    ],
)
def test_changed_is_the_target_and_what_the_answer_names_on_its_host(
    fields: Fields, also: list[bytes]
) -> None:
    assert changed(a_request(b"/a", b"x=1"), a_head(*fields)) == [b"host/a?x=1", *also]


def test_change_is_known_here_at_once_and_everywhere_with_the_next_delivery() -> None:
    shared, (one, two, three) = some(3)
    one.change(b"/a")
    assert (one.cache.forgotten, two.cache.forgotten) == ([b"host/a"], [])
    shared.deliver()
    assert one.cache.forgotten == two.cache.forgotten == three.cache.forgotten == [b"host/a"]


def test_changes_while_one_message_is_under_way_go_with_the_next() -> None:
    shared, (one, two) = some(2)
    one.change(b"/1", b"/2", b"/3", b"/2")
    assert one.told == [[b"host/1"]]
    shared.deliver()
    assert one.told == [[b"host/1"], [b"host/2", b"host/3"]]
    shared.deliver()
    assert two.cache.forgotten == [b"host/1", b"host/2", b"host/3"]


def test_messages_are_bounded() -> None:
    shared, (one, two) = some(2)
    one.change(*[b"/%d" % number for number in range(1000)], b"/" + b"x" * 30_000, b"/" + b"y" * 30_000)
    for _ in range(8):
        shared.deliver()
    assert max(map(len, one.told)) == 256
    assert max(sum(map(len, each)) for each in one.told) <= 32 * 1024
    assert two.cache.forgotten == one.cache.forgotten


def test_what_is_longer_than_a_message_is_not_told() -> None:
    shared, (one, two) = some(2)
    one.change(b"/" + b"x" * 40_000, b"/a")
    shared.deliver()
    assert two.cache.forgotten == [b"host/a"]
    assert len(one.cache.forgotten) == 2


def test_of_too_many_those_that_waited_for_longest_are_not_told() -> None:
    shared, (one, two) = some(2)
    one.change(b"/first", *[b"/%d" % number for number in range(5000)])
    for _ in range(20):
        shared.deliver()
    assert two.cache.forgotten == [b"host/first", *[b"host/%d" % number for number in range(904, 5000)]]


def test_store_that_is_lost_costs_what_it_was_told_and_no_more() -> None:
    shared, (one, two) = some(2)
    one.scope.drop()
    one.change(b"/1", b"/2")
    shared.deliver()
    assert two.cache.forgotten == [b"host/2"]


def test_message_that_nobody_understands_is_ignored() -> None:
    shared, (one, _) = some(2)
    for name, value in ((b"changed:w9", b"\xc1"), (b"changed:w9", b"\x01"), (b"other:w9", b"\x91\xc4\x01a")):
        shared.scopes[1].ask(Put(name.decode(), value, ttl_ms=1, publish=True))
    shared.deliver()
    assert one.cache.forgotten == []


def test_nothing_is_left_in_the_store() -> None:
    _, (one, _) = some(2)
    one.change(b"/a")
    (put,) = [each for each in one.scope.asked if isinstance(each, Put)]
    assert 0 < put.ttl_ms <= 1000


def test_table_without_caches_tells_and_hears_nothing() -> None:
    shared, (one, two) = some(2)
    two.changes.install([], two.scope)
    assert two.changes.spoiler([]) is None
    one.change(b"/a")
    two.change(b"/b")
    shared.deliver()
    assert two.told == []
    assert two.cache.forgotten == [b"host/b"]
    two.changes.install([two.cache], two.scope)
    one.change(b"/c")
    shared.deliver()
    assert two.cache.forgotten == [b"host/b", b"host/c"]
