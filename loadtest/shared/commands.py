"""The subcommands of these scenarios: what is run, and how it is printed."""

import argparse
import datetime as dt
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from loadtest import machine
from loadtest.shared import bench, breaker_trip, findings, limit_accuracy, redis_loss, redis_slow
from loadtest.shared.findings import Findings

Tell = Callable[[str], None]


def _tell(scenario: str, text: str) -> None:
    print(f"loadtest: {scenario}: {text}", file=sys.stderr, flush=True)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add them to the command line."""
    for name, (about, run) in SCENARIOS.items():
        parser = commands.add_parser(name, help=about)
        parser.add_argument("--store", choices=("redis", "memory"), default="redis", help="default redis")
        parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this in their names")
        parser.add_argument("--json", metavar="FILE", help="write everything as JSON; - for standard output")
        parser.add_argument("--check", action="store_true", help="exit 1 when something did not hold")
        parser.set_defaults(run=partial(_run, name, run))


def _run(
    name: str,
    scenario: Callable[[Path, argparse.Namespace, Tell], list[Findings]],
    options: argparse.Namespace,
) -> int:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as directory:
        found = scenario(Path(directory), options, partial(_tell, name))
    prose = sys.stderr if options.json == "-" else sys.stdout
    for each in found:
        print(f"{each.scenario}, {options.store} store\n\n{findings.text(each)}\n", file=prose)
    if options.json is not None:
        described = machine.describe([], now=dt.datetime.now(dt.UTC))
        text = json.dumps(findings.document(found, described), indent=1, ensure_ascii=False) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text)
    return 1 if options.check and not findings.all_held(found) else 0


def _limit_accuracy(directory: Path, options: argparse.Namespace, tell: Tell) -> list[Findings]:
    shared = options.store == "redis"
    cases = [
        case
        for case in limit_accuracy.CASES
        if options.only in case.name and (shared or not case.needs_redis)
    ]
    found = []
    if cases:
        with bench.running(directory / "a", shared=shared, make=partial(limit_accuracy.make, cases)) as each:
            found.append(limit_accuracy.run(each, cases, tell))
    loads = [load for load in limit_accuracy.KEYS if options.only in load.name]
    if loads:
        with bench.running(
            directory / "b", shared=shared, make=partial(limit_accuracy.make_keys, loads)
        ) as each:
            found.append(limit_accuracy.run_keys(each, loads, tell))
    return found


def _breaker_trip(directory: Path, options: argparse.Namespace, tell: Tell) -> list[Findings]:
    shared = options.store == "redis"
    found = breaker_trip.new_findings()
    for number, trips in enumerate(breaker_trip.TRIPS):
        if options.only in trips.name and (shared or not trips.muted):
            make = partial(breaker_trip.make, trips.open_s)
            with bench.running(directory / str(number), shared=shared, make=make) as each:
                breaker_trip.run(each, trips, tell, found)
    probes = breaker_trip.new_probe_findings()
    if options.only in "probes":
        make = partial(
            breaker_trip.make,
            0.5,
            window_s=breaker_trip.PROBED_WINDOW_S,
            per_try=f"{breaker_trip.PER_TRY_S:g}s",
        )
        with bench.running(directory / "probes", shared=shared, make=make) as each:
            breaker_trip.run_probes(each, tell, probes)
    return [each for each in (found, probes) if each.rows]


def _redis_loss(directory: Path, options: argparse.Namespace, tell: Tell) -> list[Findings]:
    faults = [fault for fault in redis_loss.FAULTS if options.only in fault.name]
    found = redis_loss.new_findings()
    fleets = [[fault for fault in faults if not fault.fails_over]]
    fleets += [[fault] for fault in faults if fault.fails_over]
    for number, together in enumerate(fleets):
        if together:
            watched = together[0].fails_over
            with bench.running(
                directory / str(number), shared=True, make=redis_loss.make, watched=watched
            ) as each:
                redis_loss.run(each, together, tell, found)
    return [found]


def _redis_slow(directory: Path, options: argparse.Namespace, tell: Tell) -> list[Findings]:
    cases = [case for case in redis_slow.cases() if options.only in case.name]
    with bench.running(directory / "a", shared=True, make=partial(limit_accuracy.make, cases)) as each:
        found = limit_accuracy.run(each, cases, tell)
    found.scenario = "redis-slow"
    return [found]


SCENARIOS: dict[str, tuple[str, Callable[[Path, argparse.Namespace, Tell], list[Findings]]]] = {
    "limit-accuracy": ("whether limits hold over a fleet, and what they ask of the store", _limit_accuracy),
    "breaker-trip": ("how soon a fleet stops after the outcome that opens a breaker", _breaker_trip),
    "redis-slow": ("whether limits hold behind a Redis that takes its time", _redis_slow),
    "redis-loss": ("what clients and limits notice of a Redis that is lost", _redis_loss),
}
