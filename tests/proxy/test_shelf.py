"""Where answers are kept: by what they are found, how many there are at most, and how they are recorded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ambassador.messages import Fields, Request, ResponseHead
from ambassador.proxy.freshness import Said
from ambassador.proxy.shelf import Kept, Key, Recording, Shelf, Shelves, uri_of

DATE = b"Fri, 27 Nov 2026 06:44:34 GMT"
FORWARDED: Fields = [
    (b"x-forwarded-for", b"10.0.0.9"),
    (b"x-forwarded-proto", b"http"),
    (b"x-forwarded-host", b"a"),
]


def a_request(path: bytes = b"/", fields: Fields | None = None, authority: bytes = b"a") -> Request:
    request = Request("GET", path, fields or [], 1)
    request.passing = list(fields or [])
    request.authority = authority
    request.path = path
    return request


def a_key(path: bytes = b"/", fields: Fields | None = None, forwarded: Fields = FORWARDED) -> Key:
    return Key(a_request(path, fields), forwarded)


def a_head(fields: Fields | None = None, status: int = 200) -> ResponseHead:
    head = ResponseHead(status, fields or [])
    head.passing = list(fields or [])
    head.special = {name: value for name, value in head.passing if name == b"date"}
    return head


def kept(
    key: Key, body: bytes = b"ok", fields: Fields | None = None, *, now: float = 0.0, age_s: float = 0.0
) -> Kept:
    head = a_head(fields)
    return Kept(key, head, body, Said(head.status, head.passing, date=DATE), now=now, age_s=age_s)


# What an answer is found by


def test_target_is_in_the_key() -> None:
    request = a_request(b"/a", authority=b"Host:80")
    assert uri_of(request) == b"host:80/a"
    request.query = b"x=1"
    assert uri_of(request) == b"host:80/a?x=1"


def test_everything_that_goes_upstream_is_in_the_key() -> None:
    for field in (
        (b"Authorization", b"Bearer a"), (b"Cookie", b"a=b"), (b"X-Api-Key", b"k"), (b"X-Forwarded-Server", b"evil"),
        (b"X-Original-URL", b"/admin"), (b"X-Host", b"evil"), (b"X-HTTP-Method-Override", b"POST"), (b"Origin", b"http://b"),
    ):  # fmt: skip
        with_it = a_key(fields=[field])
        assert with_it.who != a_key().who
        assert with_it.who == a_key(fields=[field]).who
        assert with_it.who != a_key(fields=[(field[0], field[1] + b"x")]).who
    for name in (b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-client-cert"):
        assert a_key(forwarded=[*FORWARDED, (name, b"evil")]).who != a_key().who


def test_what_vary_tells_of_and_who_sent_it_are_not_in_the_key() -> None:
    fields = [
        (b"Accept", b"a"),
        (b"User-Agent", b"b"),
        (b"Cache-Control", b"no-cache"),
        (b"If-None-Match", b"*"),
    ]
    assert a_key(fields=fields).who == a_key().who
    assert a_key(forwarded=[(b"x-forwarded-for", b"10.1.1.1"), *FORWARDED[1:]]).who == a_key().who


def test_headers_that_do_not_matter_are_left_out() -> None:
    request = a_request(fields=[(b"X-Correlation-Id", b"1")])
    assert Key(request, FORWARDED, frozenset({b"x-correlation-id"})).who == a_key().who


def test_client_identity_is_in_the_key() -> None:
    request = a_request()
    request.client = "billing"
    assert Key(request, FORWARDED).who != a_key().who


_FIELDS = st.lists(st.tuples(st.sampled_from([b"a", b"ab", b"cookie"]), st.binary(max_size=4)), max_size=4)


@given(_FIELDS, _FIELDS)
def test_different_fields_have_different_keys(one: Fields, other: Fields) -> None:
    def canonical(fields: Fields) -> Fields:
        return sorted(fields, key=lambda field: field[0])

    assert (a_key(fields=one).who == a_key(fields=other).who) == (canonical(one) == canonical(other))


# Answers


def test_answer_says_its_length_and_date_and_nothing_of_its_way() -> None:
    answer = kept(
        a_key(),
        b"abc",
        [(b"Age", b"9"), (b"Content-Type", b"t"), (b"Proxy-Status", b"x"), (b"Cache-Status", b"y")],
    )
    assert answer.head.passing == [(b"Content-Type", b"t"), (b"date", DATE), (b"content-length", b"3")]
    assert answer.head.special[b"date"] == DATE


def test_age_and_what_is_left_go_with_the_time() -> None:
    answer = kept(a_key(), fields=[(b"cache-control", b"max-age=10")], now=100.0, age_s=3.0)
    assert (answer.age_s(104.0), answer.left_s(104.0), answer.held_s(104.0)) == (7.0, 3.0, 4.0)


def test_renewed_answer_has_the_new_fields_and_the_old_body() -> None:
    old = kept(
        a_key(), b"abc", [(b"ETag", b'"1"'), (b"Content-Type", b"t"), (b"x", b"old"), (b"date", b"then")]
    )
    news = a_head(
        [
            (b"x", b"new"),
            (b"Content-Type", b"u"),
            (b"content-length", b"0"),
            (b"cache-control", b"max-age=9"),
        ],
        304,
    )
    new = old.renewed(news, now=50.0, age_s=1.0, date=DATE, default_lifetime_s=None)
    assert new.body == b"abc"
    assert dict(new.head.passing) == {
        b"x": b"new",
        b"Content-Type": b"t",
        b"content-length": b"3",
        b"cache-control": b"max-age=9",
        b"ETag": b'"1"',
        b"date": DATE,
    }
    assert (new.said.fields[b"etag"], new.head.status) == (b'"1"', 200)
    assert (new.left_s(50.0), new.age_s(50.0)) == (8.0, 1.0)


def test_renewed_answer_is_fresh_as_the_config_says_where_it_says_nothing() -> None:
    new = kept(a_key()).renewed(a_head(status=304), now=0.0, age_s=0.0, date=DATE, default_lifetime_s=60.0)
    assert new.left_s(0.0) == 60.0


# The place


def test_variants_are_found_by_what_vary_names() -> None:
    shelf = Shelf(100_000)
    for language in (b"de", b"en"):
        shelf.put(
            kept(a_key(fields=[(b"accept-language", language)]), language, [(b"vary", b"Accept-Language")])
        )
    assert len(shelf) == 2
    for language in (b"de", b"en"):
        found = shelf.find(a_key(fields=[(b"Accept-Language", language)]))
        assert found is not None
        assert found.body == language
    assert shelf.find(a_key(fields=[(b"accept-language", b"fr")])) is None
    assert shelf.find(a_key()) is None


def test_variants_of_one_answer_are_few() -> None:
    shelf = Shelf(10_000_000)
    for number in range(100):
        shelf.put(kept(a_key(fields=[(b"user-agent", b"%d" % number)]), fields=[(b"vary", b"user-agent")]))
    assert len(shelf) == 8


def test_answer_that_is_larger_than_the_place_takes_nothing_with_it() -> None:
    shelf = Shelf(10_000)
    shelf.put(kept(a_key(b"/small")))
    shelf.put(kept(a_key(b"/large"), b"x" * 10_000))
    assert shelf.find(a_key(b"/small")) is not None
    assert shelf.find(a_key(b"/large")) is None


PATHS = st.sampled_from([b"/1", b"/2", b"/3", b"/4", b"/5"])
WHO = st.sampled_from([b"a", b"b"])
VARIANT = st.sampled_from([b"x", b"y"])


class ShelfMachine(RuleBasedStateMachine):
    """A shelf against a list that is searched from the youngest."""

    MOST = 8_000

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf(self.MOST)
        self.groups: list[tuple[tuple[bytes, bytes], list[tuple[bytes | None, bytes, int]]]] = []

    def key(self, path: bytes, who: bytes, variant: bytes) -> Key:
        return a_key(path, [(b"cookie", who), (b"accept", variant)])

    def group(self, path: bytes, who: bytes) -> list[tuple[bytes | None, bytes, int]] | None:
        return next((members for name, members in self.groups if name == (path, who)), None)

    def touch(self, path: bytes, who: bytes) -> None:
        self.groups.sort(key=lambda each: each[0] == (path, who))

    @rule(path=PATHS, who=WHO, variant=VARIANT, size=st.integers(0, 4000), varies=st.booleans())
    def put(self, path: bytes, who: bytes, variant: bytes, size: int, varies: bool) -> None:
        body = b"%d" % size * (size // 4)
        fields = [(b"vary", b"accept")] if varies else []
        answer = kept(self.key(path, who, variant), body, fields)
        self.shelf.put(answer)
        members = self.group(path, who)
        if members is None:
            members = []
            self.groups.append(((path, who), members))
        members[:] = [each for each in members if each[0] not in (None, variant)]
        if answer.size <= self.MOST:
            members.append((variant if varies else None, body, answer.size))
            self.touch(path, who)
        self.groups = [each for each in self.groups if each[1]]
        while sum(each[2] for _, members in self.groups for each in members) > self.MOST:
            del self.groups[0][1][0]
            self.groups = [each for each in self.groups if each[1]]

    @rule(path=PATHS, who=WHO, variant=VARIANT)
    def find(self, path: bytes, who: bytes, variant: bytes) -> None:
        found = self.shelf.find(self.key(path, who, variant))
        wanted = [each[1] for each in self.group(path, who) or () if each[0] in (None, variant)]
        assert (found.body if found is not None else None) == (wanted[0] if wanted else None)
        if found is not None:
            self.touch(path, who)

    @rule(path=PATHS)
    def forget(self, path: bytes) -> None:
        self.shelf.forget(b"a" + path)
        self.groups = [each for each in self.groups if each[0][0] != path]

    @invariant()
    def is_within_its_bound_and_counts_right(self) -> None:
        assert self.shelf.size <= self.MOST
        assert self.shelf.size == sum(each[2] for _, members in self.groups for each in members)
        assert len(self.shelf) == sum(len(members) for _, members in self.groups)
        assert {uri for uri, _ in self.shelf._groups} == self.shelf._by_uri.keys()


TestShelf = ShelfMachine.TestCase


def test_shelves_outlive_tables_as_long_as_their_terms_hold() -> None:
    shelves = Shelves()
    first = shelves.get("a", ("u", 1), 100)
    assert shelves.get("a", ("u", 1), 100) is not first  # that table was never served
    shelves.install({"a": (("u", 1), first)})
    assert shelves.get("a", ("u", 1), 100) is first
    assert shelves.get("a", ("u", 2), 100) is not first
    assert shelves.get("a", ("u", 1), 200) is not first
    assert shelves.get("b", ("u", 1), 100) is not first
    shelves.install({})
    assert shelves.get("a", ("u", 1), 100) is not first


# Recording


@given(
    st.lists(st.binary(max_size=20), max_size=10),
    st.integers(1, 800),
    st.integers(1, 800),
    st.sampled_from(["whole", "part", "abandoned"]),
)
def test_recording_gives_the_whole_or_nothing_once(
    pieces: list[bytes], one: int, other: int, end: str
) -> None:
    shelves = [Shelf(one), Shelf(other)]
    got: list[list[bytes | None]] = [[], []]
    recording = Recording([(shelf, taken.append) for shelf, taken in zip(shelves, got, strict=True)])
    for piece in pieces:
        going_on = recording.add(memoryview(piece))
        assert all(0 <= shelf.recording <= shelf.most for shelf in shelves)
        if not going_on:
            break
    if end == "abandoned":
        recording.abandon()
    recording.end(whole=end == "whole")
    body = b"".join(pieces)
    for shelf, taken in zip(shelves, got, strict=True):
        fits = len(body) <= shelf.most_each
        assert taken == (
            [None] if not fits else [] if end == "abandoned" else [body if end == "whole" else None]
        )
        assert shelf.recording == 0


def test_all_that_is_recorded_at_once_is_bounded() -> None:
    shelf = Shelf(8000)
    got: list[bytes | None] = []
    recordings = [Recording([(shelf, got.append)]) for _ in range(9)]
    assert [each.add(b"x" * 1000) for each in recordings] == [True] * 8 + [False]
    assert got == [None]
    recordings[0].end(whole=True)
    assert got == [None, b"x" * 1000]
    assert Recording([(shelf, got.append)]).add(b"x" * 1000)
