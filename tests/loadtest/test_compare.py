"""The order of turns and what makes a run invalid."""

from pathlib import Path

import pytest

from loadtest import compare, idle, wrk
from loadtest.job import Job, Launch, Proxy
from loadtest.scenarios import SCENARIOS

PLAIN, IDLE = SCENARIOS[0], SCENARIOS[-1]


def proxy(name: str) -> tuple[Proxy, str]:
    return (
        Proxy(
            name=name, install="", find=lambda: name, version=(), configure=lambda _job, _binary: Launch([])
        ),
        name,
    )


def plan(*names: str, rounds: int) -> compare.Plan:
    return compare.Plan(
        proxies=[proxy(name) for name in names],
        scenarios=[PLAIN, IDLE],
        rounds=rounds,
        duration_s=5,
        connections=10,
        access_log=False,
        cores=compare.Cores(proxy=0, generator=1),
        directory=Path("/nowhere"),
    )


def test_turns_rotate_the_proxies_round_by_round() -> None:
    turns = [
        (scenario.name, number, binary) for scenario, number, _, binary in plan("a", "b", rounds=3).turns()
    ]
    assert turns[:6] == [
        ("plain", 1, "a"),
        ("plain", 1, "b"),
        ("plain", 2, "b"),
        ("plain", 2, "a"),
        ("plain", 3, "a"),
        ("plain", 3, "b"),
    ]
    assert {name for name, *_ in turns[6:]} == {"idle"}


def test_ready_path_is_one_that_a_get_is_answered_on() -> None:
    paths = {scenario.name: compare.ready_path(scenario) for scenario in SCENARIOS}
    assert paths["post4k"] == "/"
    assert paths["manyroutes"] == "/svc-499/items"


@pytest.mark.parametrize(
    ("requests", "socket_errors", "bad_status", "invalid"),
    [(100, 0, 0, False), (100, 1, 0, True), (100, 0, 1, True), (0, 0, 0, True)],
)
def test_problem_of_a_run(requests: int, socket_errors: int, bad_status: int, invalid: bool) -> None:
    result = wrk.Result(
        requests=requests,
        duration_s=5.0,
        p50_s=0.0,
        p99_s=0.0,
        socket_errors=socket_errors,
        bad_status=bad_status,
    )
    assert (compare.problem_of(result) is not None) is invalid


def test_download_that_all_but_stands_still_makes_a_turn_invalid() -> None:
    assert compare.starved(9.0) == "the download got only 9.0 MB/s"
    assert compare.starved(400.0) is None


def test_ratio_is_of_what_was_measured() -> None:
    assert compare.Beside(scenario="bulk", proxy="a", round=1, problem="refused").p50_ratio == 0.0
    assert (
        compare.Beside(scenario="bulk", proxy="a", round=1, alone_p50_us=2, beside_p50_us=3).p50_ratio == 1.5
    )


def test_many_routes_end_with_the_one_that_is_hit() -> None:
    many = next(scenario for scenario in SCENARIOS if scenario.name == "manyroutes")
    assert len(set(many.prefixes())) == 500
    assert many.path.startswith(many.prefixes()[-1])
    assert PLAIN.prefixes() == ["/"]


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [ANSWER, CHUNKED])
def test_an_answer_is_complete_at_its_last_byte_only(answer: bytes) -> None:
    assert [end for end in range(len(answer) + 1) if idle.complete(answer[:end])] == [len(answer)]


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 503 Busy\r\n\r\n", ANSWER.replace(b"Content", b"Connection: close\r\nContent", 1)]
)
def test_an_answer_that_does_not_keep_the_connection_is_an_error(answer: bytes) -> None:
    with pytest.raises(idle.IdleError):
        idle.complete(answer)


def test_job_names_the_upstream() -> None:
    job = Job(scenario=PLAIN, port=1, upstream_port=2, admin_port=3, directory=Path("/nowhere"))
    assert job.upstream == "127.0.0.1:2"
