"""The command line: `python -m loadtest compare`, `python -m loadtest profile`."""

import argparse
import datetime as dt
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtest import (
    balance,
    compare,
    fleet,
    hedge,
    hotspots,
    idle,
    losses,
    machine,
    origin,
    overload,
    processes,
    renewal,
    report,
    storms,
    wrk,
)
from loadtest.job import Job, Proxy
from loadtest.peers import PROXIES, ambassador
from loadtest.scenarios import SCENARIOS, Scenario
from loadtest.shared import commands as shared_commands
from loadtest.shared import findings
from loadtest.shared.apart import ApartError

OK, SAID_NO, USAGE, CANNOT = 0, 1, 2, 3


class UsageError(Exception):
    """What was asked for cannot be done; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 ok, 1 a check said no, 2 usage, 3 could not measure."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        status: int = options.run(options)
    except UsageError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return USAGE
    except (processes.StartError, wrk.WrkError, idle.IdleError, hotspots.ProfileError, ApartError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return CANNOT
    except KeyboardInterrupt:
        print("loadtest: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return status


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    names = ",".join(scenario.name for scenario in SCENARIOS)
    proxies = ",".join(proxy.name for proxy in PROXIES)

    comparison = commands.add_parser("compare", help="measure the ambassador beside its peers")
    comparison.add_argument("--scenarios", default=names, help=f"some of {names}")
    comparison.add_argument("--proxies", default=proxies, help=f"some of {proxies}")
    comparison.add_argument("--rounds", type=_count, default=3, help="turns of each proxy; default 3")
    comparison.add_argument("--connections", type=_count, default=idle.CONNECTIONS, help="idle connections")
    comparison.add_argument("--access-log", action="store_true", help="JSON access logs to a file, for all")
    comparison.add_argument("--json", metavar="FILE", help="write everything as JSON; - for standard output")
    comparison.add_argument(
        "--check", action="store_true", help="exit 1 when a target is missed or unmeasured"
    )
    comparison.set_defaults(run=_compare)

    profile = commands.add_parser("profile", help="show where the ambassador's worker spends its time")
    profile.add_argument("--scenario", default="plain", help=f"one of {names}")
    profile.add_argument("--top", type=_count, default=30, help="functions to show; default 30")
    profile.add_argument("--native", action="store_true", help="C functions too (py-spy; slows the worker)")
    profile.set_defaults(run=_profile)

    simulation = commands.add_parser("fleet", help="simulate rate limits over many workers")
    simulation.add_argument("--workers", default="4,64,1024", help="numbers of workers; default 4,64,1024")
    simulation.add_argument("--json", metavar="FILE", help="write everything as JSON; - for standard output")
    simulation.add_argument("--check", action="store_true", help="exit 1 when more than the limit passes")
    simulation.set_defaults(run=_fleet)

    dying = commands.add_parser("losses", help="kill endpoints under load, and let them return")
    dying.add_argument(
        "--check", action="store_true", help="exit 1 when a request fails, or one second is over"
    )
    dying.set_defaults(run=_losses)
    balancing = commands.add_parser("balance", help="one of four endpoints is slow, or fails")
    balancing.add_argument("--only", default="", metavar="TEXT", help="only cases with this in their names")
    balancing.add_argument("--json", metavar="FILE", help="write everything as JSON; - for standard output")
    balancing.add_argument("--check", action="store_true", help="exit 1 when something did not hold")
    balancing.set_defaults(run=_balance)

    for name, about, run in _FINDING:
        finding = commands.add_parser(name, help=about)
        finding.add_argument("--json", metavar="FILE", help="write everything as JSON; - for standard output")
        finding.add_argument("--check", action="store_true", help="exit 1 when something did not hold")
        finding.set_defaults(run=run)

    shared_commands.add(commands)

    for command in (comparison, profile):
        command.add_argument(
            "--duration", type=_seconds, default=5, metavar="5s", help="whole seconds a turn"
        )
        command.add_argument("--ambassador-cmd", metavar="CMD", help=ambassador.custom.__doc__)
        command.add_argument("--proxy-core", type=int, help="default: the first core of this process")
        command.add_argument("--generator-core", type=int, help="default: the second")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _seconds(text: str) -> int:
    return _count(text.removesuffix("s"))


def choose_scenarios(text: str) -> list[Scenario]:
    """Scenarios by name, in the order given. Raises UsageError."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(f"no such scenario: {', '.join(unknown) or text!r}; there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def choose_proxies(text: str, ambassador_command: str | None) -> list[Proxy]:
    """Proxies by name, in the order given; a command line takes the ambassador's place. Raises UsageError."""
    known = {proxy.name: proxy for proxy in PROXIES}
    if ambassador_command is not None:
        known[ambassador.NAME] = ambassador.custom(ambassador_command)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(f"no such proxy: {', '.join(unknown) or text!r}; there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _choose_cores(options: argparse.Namespace) -> compare.Cores:
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        print("loadtest: one core only: the generator disturbs the proxy", file=sys.stderr)
        return compare.Cores(proxy=options.proxy_core, generator=options.generator_core)
    proxy = mine[0] if options.proxy_core is None else options.proxy_core
    generator = mine[1] if options.generator_core is None else options.generator_core
    if not {proxy, generator} <= set(mine):
        raise UsageError(f"cores must be among {', '.join(map(str, mine))}")
    return compare.Cores(proxy=proxy, generator=generator)


def _found(proxies: Sequence[Proxy]) -> list[tuple[Proxy, str]]:
    found = []
    for proxy in proxies:
        binary = proxy.find()
        if binary is None:
            print(f"loadtest: {proxy.name} not found, skipped; install it: {proxy.install}", file=sys.stderr)
        else:
            found.append((proxy, binary))
    if not found:
        raise UsageError("no proxy to measure")
    return found


def _compare(options: argparse.Namespace) -> int:
    cores = _choose_cores(options)
    proxies = _found(choose_proxies(options.proxies, options.ambassador_cmd))
    chosen = choose_scenarios(options.scenarios)
    scenarios = possible(chosen)
    described = machine.describe(proxies, now=dt.datetime.now(dt.UTC))
    prose = sys.stderr if options.json == "-" else sys.stdout
    with (
        tempfile.TemporaryDirectory(prefix="loadtest-") as name,
        origin.serving(Path(name), cores.generator) as origin_port,
    ):
        plan = compare.Plan(
            proxies=proxies,
            scenarios=scenarios,
            rounds=options.rounds,
            duration_s=options.duration,
            connections=options.connections,
            access_log=options.access_log,
            cores=cores,
            directory=Path(name),
        )
        print(f"loadtest: about {plan.estimate_s() / 60:.0f} min", file=sys.stderr)
        measurements = compare.run(plan, origin_port, _tell)
    print(report.machine_line(described), file=prose)
    print(file=prose)
    print(report.text(measurements), file=prose)
    if options.json is not None:
        asked = {
            "rounds": options.rounds,
            "duration_s": options.duration,
            "connections": options.connections,
            "access_log": options.access_log,
            "ambassador_cmd": options.ambassador_cmd,
        }
        _write_json(options.json, report.document(measurements, machine=described, options=asked))
    return _status(measurements, {scenario.name for scenario in chosen}, check=options.check)


def possible(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Those that can be measured here; says which cannot. Raises UsageError when none can."""
    found = [scenario for scenario in scenarios if not scenario.bulk or processes.may_prioritise()]
    for scenario in scenarios:
        if scenario not in found:
            print(f"loadtest: {scenario.name} skipped: it needs real-time priorities (root)", file=sys.stderr)
    if not found:
        raise UsageError("no scenario to measure")
    return found


def _status(measurements: Sequence[compare.Measurement], scenarios: set[str], *, check: bool) -> int:
    if any(measurement.problem is not None for measurement in measurements):
        return SAID_NO
    held = report.verdicts(report.summarise(measurements), scenarios=scenarios)
    return SAID_NO if check and not all(verdict.held for verdict in held) else OK


def _tell(measurement: compare.Measurement) -> None:
    print(f"loadtest: {report.line(measurement)}", file=sys.stderr, flush=True)


def _write_json(target: str, document: dict[str, object]) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text)


def choose_workers(text: str) -> list[int]:
    """Numbers of workers, separated by commas. Raises UsageError."""
    try:
        return [_count(part) for part in text.split(",")]
    except (ValueError, argparse.ArgumentTypeError):
        raise UsageError(f"not numbers of workers: {text!r}") from None


def _fleet(options: argparse.Namespace) -> int:
    outcomes = []
    for outcome in fleet.run(choose_workers(options.workers)):
        outcomes.append(outcome)
        scenario = outcome.scenario
        print(f"loadtest: {scenario.workers} workers, {scenario.name}", file=sys.stderr, flush=True)
    print(fleet.table(outcomes), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json is not None:
        _write_json(options.json, fleet.document(outcomes))
    return SAID_NO if options.check and not fleet.never_over(outcomes) else OK


def _losses(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        first, second = Path(name, "death"), Path(name, "outage")
        first.mkdir()
        second.mkdir()
        death = losses.death(first)
        print(death.text(), flush=True)
        outage = losses.outage(second)
        print(outage.text())
    held = not death.failed and max(outage.back_s, 0.0) <= losses.BACK_WITHIN_S
    return SAID_NO if options.check and not held else OK


def _balance(options: argparse.Namespace) -> int:
    troubles = [trouble for trouble in balance.TROUBLES if options.only in trouble.name]
    if not troubles:
        raise UsageError(f"no such case: {options.only!r}")
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        found = balance.run(Path(name), troubles, _say)
    return _told(options, found)


def _storms(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        found = storms.run(Path(name), _say)
    return _told(options, found)


def _hedge(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        found = hedge.run(Path(name), _say)
    return _told(options, found)


def _renewal(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        found = renewal.run(Path(name), _say)
    return _told(options, found)


def _overload(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        found = overload.run(Path(name), _say)
    return _told(options, found)


def _say(text: str) -> None:
    print(f"loadtest: {text}", file=sys.stderr, flush=True)


def _told(options: argparse.Namespace, found: findings.Findings) -> int:
    """Print findings, and write them as JSON where that was asked for; the exit status."""
    print(findings.text(found), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json is not None:
        _write_json(
            options.json, findings.document([found], machine.describe([], now=dt.datetime.now(dt.UTC)))
        )
    return SAID_NO if options.check and not findings.all_held([found]) else OK


def _profile(options: argparse.Namespace) -> int:
    cores = _choose_cores(options)
    [scenario] = choose_scenarios(options.scenario)
    if scenario.memory or scenario.tls:
        raise UsageError(f"nothing to profile in {scenario.name}")
    [(proxy, binary)] = _found(choose_proxies(ambassador.NAME, options.ambassador_cmd))
    with (
        tempfile.TemporaryDirectory(prefix="loadtest-") as name,
        origin.serving(Path(name), cores.generator) as origin_port,
    ):
        port, admin_port = processes.free_ports(2)
        job = Job(
            scenario=scenario,
            port=port,
            upstream_port=origin_port,
            admin_port=admin_port,
            directory=Path(name),
        )
        tool, spots = hotspots.run(
            job, proxy, binary, duration_s=options.duration, cores=cores, native=options.native
        )
    print(f"{scenario.name}: {scenario.about}; the worker under {tool}\n")
    rows = ([f"{spot.own:.1%}", f"{spot.total:.1%}", spot.name] for spot in spots[: options.top])
    print(report.table(["own", "with callees", "function"], rows, left=(2,)))
    return OK


_FINDING: Final = (
    ("hedge", "some answers are slow: with and without a second attempt", _hedge),
    ("storms", "an upstream fails every time: how many attempts it sees", _storms),
    ("overload", "more comes than can be served: limits, health, cost", _overload),
    ("renewal", "replace a certificate under load", _renewal),
)
"""Commands that print findings: name, help, and who does it."""


if __name__ == "__main__":
    sys.exit(main())
