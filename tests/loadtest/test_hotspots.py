"""Shares of functions from collapsed stacks and from cProfile."""

import cProfile
import pstats

import pytest

from loadtest import hotspots, machine


def test_parse_collapsed_counts_own_and_total_shares() -> None:
    spots = hotspots.parse_collapsed(
        "main (a.py:1);serve (a.py:2) 6\nmain (a.py:1);serve (a.py:2);recv (b.py:3) 2\n"
    )
    assert [(spot.name, spot.own, spot.total) for spot in spots] == [
        ("serve (a.py:2)", 0.75, 1.0),
        ("recv (b.py:3)", 0.25, 0.25),
        ("main (a.py:1)", 0.0, 1.0),
    ]


def test_parse_collapsed_counts_recursion_once() -> None:
    [spot] = hotspots.parse_collapsed("walk;walk;walk 4")
    assert (spot.own, spot.total) == (1.0, 1.0)


def test_parse_collapsed_of_nothing() -> None:
    assert hotspots.parse_collapsed("") == []


def test_from_pstats() -> None:
    profile = cProfile.Profile()
    profile.runcall(sorted, range(100_000), key=str)
    spots = hotspots.from_pstats(pstats.Stats(profile))
    assert spots[0].own == pytest.approx(max(spot.own for spot in spots))


def test_sitecustomize_compiles() -> None:
    compile(hotspots.SITECUSTOMIZE.format(path="/x/worker.prof"), "sitecustomize.py", "exec")


def test_cpu_model() -> None:
    assert machine.cpu_model("processor : 0\nmodel name\t: Example 9000\nflags : x\n") == "Example 9000"
    assert machine.cpu_model("processor : 0\n")
