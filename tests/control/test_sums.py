from __future__ import annotations

import msgspec

from ambassador.control.sums import (
    ConnectionCounts,
    EndpointStatus,
    TokenStatus,
    UpstreamStatus,
    UpstreamSums,
    answer,
)


def endpoint(url: str, inflight: int, idle: int, ewma_ms: float | None) -> EndpointStatus:
    return EndpointStatus(
        url=url,
        address="127.0.0.1",
        healthy=True,
        ejected_until=None,
        weight=1,
        zone=None,
        priority=0,
        inflight=inflight,
        ewma_ms=ewma_ms,
        connections=ConnectionCounts(idle=idle, active=1),
        why=None,
    )


def upstream(name: str, *endpoints: EndpointStatus) -> UpstreamStatus:
    return UpstreamStatus(name=name, endpoints=list(endpoints))


def summed(*answers: bytes) -> list[UpstreamStatus]:
    sums = UpstreamSums()
    assert len(list(sums.add(answers))) == sum(each.count(b"\n") for each in answers)
    return list(sums.upstreams())


def test_counts_are_added_and_latencies_averaged() -> None:
    told = [(1, 2, 4.0), (2, 3, 8.0), (0, 0, None)]
    answers = [answer([upstream("a", endpoint("http://a:1", *each))]) for each in told]
    expected = endpoint("http://a:1", 3, 5, 6.0)
    expected.connections.active = 3
    assert summed(*answers) == [upstream("a", expected)]


def test_what_only_some_workers_know_yet_is_told_too() -> None:
    first = [upstream("a", endpoint("http://a:1", 1, 0, None))]
    second = [
        upstream("b", endpoint("http://b:1", 1, 0, 2.0)),
        upstream("a", endpoint("http://a:2", 1, 0, None), endpoint("http://a:1", 1, 0, None)),
    ]
    told = summed(answer(first), answer(second))
    assert [(each.name, [(end.url, end.inflight) for end in each.endpoints]) for each in told] == [
        ("a", [("http://a:1", 2), ("http://a:2", 1)]),
        ("b", [("http://b:1", 1)]),
    ]


def test_what_one_worker_has_against_an_endpoint_holds() -> None:
    well, ill, ejected = (endpoint("http://a:1", 0, 0, None) for _ in range(3))
    ill.healthy, ill.why = False, "503"
    ejected.ejected_until, ejected.why = 50.0, "5 failures in a row"
    (told,) = summed(*(answer([upstream("a", each)]) for each in (well, ill, ejected)))
    (end,) = told.endpoints
    assert (end.healthy, end.ejected_until, end.why) == (False, 50.0, "503")


def test_no_answers_are_no_upstreams() -> None:
    assert summed() == []
    assert summed(answer([])) == []


def test_the_shape_is_the_contracts() -> None:
    (told,) = summed(answer([upstream("a", endpoint("http://a:1", 1, 2, 3.0))]))
    assert msgspec.to_builtins(told) == {
        "name": "a",
        "endpoints": [
            {
                "url": "http://a:1",
                "address": "127.0.0.1",
                "healthy": True,
                "ejected_until": None,
                "weight": 1,
                "zone": None,
                "priority": 0,
                "inflight": 1,
                "ewma_ms": 3.0,
                "connections": {"idle": 2, "active": 1},
                "why": None,
            }
        ],
    }


def test_token_that_lasts_longest_is_told_and_any_problem() -> None:
    tokens = [
        TokenStatus(valid_for_s=None, problem="answered 500", next_try_s=3.0),
        TokenStatus(valid_for_s=20.0, problem=None, next_try_s=None),
        TokenStatus(valid_for_s=50.0, problem="answered 502", next_try_s=1.0),
    ]
    answers = []
    for token in tokens:
        told = upstream("a", endpoint("http://a:1", 1, 0, None))
        told.token = token
        answers.append(answer([told]))
    (found,) = summed(*answers)
    assert found.token == TokenStatus(valid_for_s=50.0, problem="answered 500", next_try_s=1.0)
    (plain,) = summed(answer([upstream("a", endpoint("http://a:1", 1, 0, None))]))
    assert plain.token is None


def test_credential_that_one_worker_cannot_have_is_told() -> None:
    answers = []
    for problem in (None, "cannot be read"):
        told = upstream("a", endpoint("http://a:1", 1, 0, None))
        told.credential = problem
        answers.append(answer([told]))
    (found,) = summed(*answers)
    assert found.credential == "cannot be read"
    (well,) = summed(answers[0])
    assert well.credential is None
