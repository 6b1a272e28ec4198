"""The route table: each kind of match, the order of the file, and agreement with a plain linear scan."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambassador.config.schema import Match, PathRegex, ValueMatch
from ambassador.proxy import path_regex
from ambassador.proxy.routing import MatchSpec, Router, ValueTest, spec, why_not


@dataclass
class Asked:
    """A request as far as conditions see it."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    query: bytes | None = None
    client: str | None = None


class Blind:
    """A request that must not be looked at."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        raise AssertionError("headers were read")

    @property
    def query(self) -> bytes | None:
        raise AssertionError("the query was read")

    @property
    def client(self) -> str | None:
        raise AssertionError("the client was read")


def takes(
    match: MatchSpec, host: str = "h", path: str = "/", method: str = "GET", asked: Asked | None = None
) -> bool:
    asked = asked or Asked()
    found = Router([(match, "it")]).match(host, path, method, asked) is not None
    assert found is (why_not(match, host, path, method, asked) is None)
    return found


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("billing.internal", "billing.internal", True),
        ("billing.internal", "x.billing.internal", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*", "anything", True),
        ("*", "", True),
        ("[::1]", "[::1]", True),
    ],
)
def test_host_patterns(pattern: str, host: str, expected: bool) -> None:
    assert takes(MatchSpec(hosts=(pattern,)), host=host) is expected


def test_host_may_be_one_of_several() -> None:
    match = MatchSpec(hosts=("a", "*.b", "a"))
    assert [takes(match, host=host) for host in ("a", "x.b", "b")] == [True, True, False]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/p", "/p", True),
        ("/p", "/p/", False),
        ("/p/", "/p", False),
        ("/p/**", "/p", True),
        ("/p/**", "/p/", True),
        ("/p/**", "/p/a/b", True),
        ("/p/**", "/px", False),
        ("/p/**", "/", False),
        ("/**", "/", True),
        ("/**", "//", True),
        ("/v1/accounts/{id}", "/v1/accounts/42", True),
        ("/v1/accounts/{id}", "/v1/accounts/", False),
        ("/v1/accounts/{id}", "/v1/accounts", False),
        ("/v1/accounts/{id}", "/v1/accounts/42/x", False),
        ("/{a}/**", "/x/y/z", True),
        ("/{a}/**", "/x", True),
        ("/{a}/**", "//y", False),
        ("/a//b", "/a//b", True),
        ("/a/b", "/a//b", False),
    ],
)
def test_path_patterns(pattern: str, path: str, expected: bool) -> None:
    assert takes(MatchSpec(path=pattern), path=path) is expected


def test_parameters_are_the_segments_as_spelled() -> None:
    router = Router([(MatchSpec(path="/{a}/x/{b}/**"), "it")])
    assert router.match("h", "/1/x/a%20b/rest", "GET", Blind()) == ("it", {"a": "1", "b": "a%20b"})
    assert Router([(MatchSpec(), "it")]).match("h", "/", "GET", Blind()) == ("it", None)


def test_regex_matches_the_whole_path_and_gives_named_groups() -> None:
    router = Router([(MatchSpec(path=path_regex.compile(r"/v(?P<version>\d)/(a|b)(?P<rest>/.*)?")), "it")])
    assert router.match("h", "/v1/a", "GET", Blind()) == ("it", {"version": "1"})
    assert router.match("h", "/v1/b/c", "GET", Blind()) == ("it", {"version": "1", "rest": "/c"})
    assert router.match("h", "/x/v1/a", "GET", Blind()) is None


def test_methods_are_exact() -> None:
    match = MatchSpec(methods=frozenset({"GET", "PUT"}))
    assert [takes(match, method=method) for method in ("GET", "PUT", "HEAD")] == [True, True, False]


def test_headers_and_query_are_read_only_when_a_candidate_asks() -> None:
    router = Router(
        [
            (MatchSpec(hosts=("other",), headers=(ValueTest("x", present=True),)), 0),
            (MatchSpec(path="/a", methods=frozenset({"PUT"}), query=(ValueTest("x", present=True),)), 1),
            (MatchSpec(), 2),
        ]
    )
    assert router.match("h", "/a", "GET", Blind()) == (2, None)


@pytest.mark.parametrize(
    ("test", "headers", "expected"),
    [
        (ValueTest("x-v", exact=frozenset({b"1", b"2"})), [(b"X-V", b" 2 ")], True),
        (ValueTest("x-v", exact=frozenset({b"1"})), [(b"x-v", b"2"), (b"X-v", b"1")], True),
        (ValueTest("x-v", exact=frozenset({b"1"})), [(b"x-v", b"11")], False),
        (ValueTest("x-v", exact=frozenset({b"1"})), [], False),
        (ValueTest("x-v", present=True), [(b"x-v", b"")], True),
        (ValueTest("x-v", present=True), [], False),
        (ValueTest("x-v", present=False), [], True),
        (ValueTest("x-v", present=False), [(b"x-v", b"")], False),
        (ValueTest("x-v", regex=path_regex.compile("v[0-9]+")), [(b"x-v", b"v12")], True),
        (ValueTest("x-v", regex=path_regex.compile("v[0-9]+")), [(b"x-v", b"xv12\xff")], False),
    ],
)
def test_header_conditions(test: ValueTest, headers: list[tuple[bytes, bytes]], expected: bool) -> None:
    assert takes(MatchSpec(headers=(test,)), asked=Asked(headers)) is expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"v=a%20b", True),
        (b"x=1&v=a+b", True),
        (b"v=1&v=a+b", True),
        (b"%76=a+b", True),
        (b"v=", False),
        (b"", False),
        (None, False),
    ],
)
def test_query_conditions_are_decoded(query: bytes | None, expected: bool) -> None:
    assert (
        takes(MatchSpec(query=(ValueTest("v", exact=frozenset({b"a b"})),)), asked=Asked(query=query))
        is expected
    )


def test_first_route_of_the_file_wins_over_every_structure() -> None:
    kinds = [
        MatchSpec(hosts=("*",)),
        MatchSpec(hosts=("*.b.c",), path="/x/{id}"),
        MatchSpec(hosts=("*.c",), path=path_regex.compile("/x/.*")),
        MatchSpec(hosts=("a.b.c",), path="/x/1"),
        MatchSpec(hosts=("a.b.c",), path="/x/**"),
    ]
    for turn in range(len(kinds)):
        turned = kinds[turn:] + kinds[:turn]
        found = Router([(match, match) for match in turned]).match("a.b.c", "/x/1", "GET", Asked())
        assert found is not None
        assert found[0] is turned[0]


def test_a_route_that_fails_a_condition_leaves_the_request_to_the_next() -> None:
    router = Router(
        [
            (MatchSpec(path="/a", headers=(ValueTest("x", exact=frozenset({b"1"})),)), "header"),
            (MatchSpec(path="/{p}", methods=frozenset({"PUT"})), "method"),
            (MatchSpec(path="/a"), "plain"),
        ]
    )
    assert router.match("h", "/a", "GET", Asked([(b"x", b"1")])) == ("header", None)
    assert router.match("h", "/a", "PUT", Asked()) == ("method", {"p": "a"})
    assert router.match("h", "/a", "GET", Asked()) == ("plain", None)


def test_spec_of_a_config() -> None:
    match = spec(
        Match(
            host=("a",),
            path=PathRegex(regex="/[a-z]+"),
            methods=("GET",),
            headers={"X-V": ValueMatch(exact=("1",))},
            query={"q": ValueMatch(present=False), "r": ValueMatch(regex="[0-9]+")},
        )
    )
    assert takes(match, "a", "/abc", "GET", Asked([(b"x-v", b"1")], b"r=1"))
    assert not takes(match, "a", "/abc", "GET", Asked([(b"x-v", b"1")], b"r=1&q="))
    assert spec(Match()) == MatchSpec()


_SEGMENTS = st.sampled_from(["a", "b", "", "{p}", "{q}"])
_HOSTS = st.sampled_from(["*", "a", "x.a", "y.x.a", "*.a", "*.x.a"])
_TESTS = st.builds(
    ValueTest,
    st.sampled_from(["x", "y"]),
    exact=st.sampled_from([None, frozenset({b"1"})]),
    present=st.none(),
).map(lambda test: test if test.exact is not None else ValueTest(test.name, present=True))


@st.composite
def _patterns(draw: st.DrawFn) -> str:
    segments = draw(st.lists(_SEGMENTS, max_size=4))
    once = [
        "a" if segment[:1] == "{" and segment in segments[:index] else segment
        for index, segment in enumerate(segments)
    ]
    return "/" + "/".join([*once, *draw(st.sampled_from([[], ["**"]]))])


_REGEXES = st.sampled_from(["/a(/.*)?", "/(?P<p>[ab])", "/.*"]).map(path_regex.compile)
_SPECS = st.builds(
    MatchSpec,
    hosts=st.lists(_HOSTS, min_size=1, max_size=3).map(tuple),
    path=st.one_of(_patterns(), _patterns(), st.none(), _REGEXES),
    methods=st.sampled_from([None, None, frozenset({"GET"}), frozenset({"PUT", "GET"})]),
    headers=st.lists(_TESTS, max_size=1).map(tuple),
    query=st.lists(_TESTS, max_size=1).map(tuple),
)


@settings(max_examples=300)
@given(
    st.lists(_SPECS, max_size=12),
    st.sampled_from(["", "a", "x.a", "y.x.a", "z.y.x.a", ".a", "other"]),
    st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=5).map(lambda segments: "/" + "/".join(segments)),
    st.sampled_from(["GET", "PUT", "POST"]),
    st.builds(
        Asked,
        st.lists(st.sampled_from([(b"X", b"1"), (b"y", b"2")])),
        st.sampled_from([None, b"", b"x=1", b"y=1&x"]),
    ),
)
def test_table_agrees_with_a_linear_scan(
    specs: list[MatchSpec], host: str, path: str, method: str, asked: Asked
) -> None:
    scanned = next(
        (index for index, match in enumerate(specs) if why_not(match, host, path, method, asked) is None),
        None,
    )
    found = Router([(match, index) for index, match in enumerate(specs)]).match(host, path, method, asked)
    assert (found and found[0]) == scanned
    if found is not None:
        pattern = specs[found[0]].path
        for name, value in (found[1] or {}).items():
            assert value
            assert (
                not isinstance(pattern, str)
                or path.split("/")[pattern.split("/").index("{" + name + "}")] == value
            )


def test_cost_does_not_grow_with_the_number_of_routes() -> None:
    """Counted, not timed: how many candidates a look-up considers among a thousand routes."""
    considered: list[object] = []

    class Counted(frozenset[str]):
        def __contains__(self, method: object) -> bool:
            considered.append(method)
            return True

    specs = [
        MatchSpec(hosts=("h",), path=f"/svc{number}/v1/**", methods=Counted({"GET"}))
        for number in range(1000)
    ]
    assert Router([(match, match) for match in specs]).match("h", "/svc500/v1/42", "GET", Blind()) == (
        specs[500],
        None,
    )
    assert len(considered) == 1
