"""`ambassador doctor`: what on this host, or in the running service, stands in the way."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from ambassador import __version__
from ambassador.cli import NO, OK
from ambassador.cli.arguments import Subparsers, add_live
from ambassador.extras import RE2
from ambassador.printable import printable

_OLDEST_KERNEL: Final = (5, 10)
_BACKLOG: Final = 4096  # what the listeners ask for (control/slots.py)
_FEW_DESCRIPTORS: Final = 10_000  # two for each client, and a worker accepts 10,000 clients by default
_SLOW_LOOP_MS: Final = 100.0

Level: TypeAlias = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` is None where nothing need be done."""

    level: Level
    what: str
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """What a host is like. `somaxconn` None: it cannot be read."""

    system: str
    kernel: str
    descriptors: int
    somaxconn: int | None
    cpus: int
    usable_cpus: int
    has_re2: bool


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="look for what is wrong with this host or the service",
        description="Look at this host and at the running service for what is known to make trouble, and say what to "
        "do about it. Exit status 0: nothing is wrong (there may be warnings), 1: something is, 3: the service cannot "
        "be reached.",
    )
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """Look, and print."""
    from ambassador.cli.client import Failure, client

    findings = list(host_findings(_look_at_host()))
    status = OK
    try:
        service = client(args)
        findings += service_findings(
            service.get("/api/status"), service.get("/api/upstreams"), now=time.time()
        )
    except Failure as failure:
        findings.append(Finding("error", str(failure)))
        status = failure.status
    if status == OK and any(finding.level == "error" for finding in findings):
        status = NO
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings]))
        return status
    for finding in findings:
        print(f"{finding.level:<8} {printable(finding.what)}")
        if finding.advice is not None:
            print(f"         {printable(finding.advice)}")
    return status


def _look_at_host() -> Host:
    from ambassador.control.host import usable_cpus

    try:
        somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        somaxconn = None
    is_linux = sys.platform == "linux"
    return Host(
        system=platform.system(),
        kernel=platform.release(),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        somaxconn=somaxconn,
        cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus() if is_linux else 1,
        has_re2=RE2.is_installed,
    )


def host_findings(host: Host) -> Iterator[Finding]:
    """What can be said of a host."""
    if host.system != "Linux":
        yield Finding("error", f"this is {host.system}", "the service runs on Linux only")
        return
    if _version(host.kernel) < _OLDEST_KERNEL:
        yield Finding("error", f"Linux {host.kernel}", "at least 5.10 is needed")
    else:
        yield Finding("ok", f"Linux {host.kernel}, Python {platform.python_version()}")
    yield Finding(
        "ok", f"{host.usable_cpus} of {host.cpus} CPUs may be used: so many workers are the default"
    )
    if host.descriptors < _FEW_DESCRIPTORS:
        yield Finding(
            "warning",
            f"{host.descriptors} open descriptors are allowed",
            "each client takes two; raise the hard limit (ulimit -Hn, LimitNOFILE=)",
        )
    if host.somaxconn is not None and host.somaxconn < _BACKLOG:
        yield Finding(
            "warning",
            f"the kernel queues {host.somaxconn} connections of a listener",
            f"bursts are refused beyond; sysctl -w net.core.somaxconn={_BACKLOG}",
        )
    if not host.has_re2:
        yield Finding(
            "warning",
            "google-re2 is not installed",
            f"path regexes that may backtrack without end are refused; {RE2.hint}",
        )


def _version(release: str) -> tuple[int, ...]:
    numbers = release.partition("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdecimal())


def service_findings(
    status: dict[str, Any], upstreams: list[dict[str, Any]], *, now: float
) -> Iterator[Finding]:
    """What can be said of a service, from `/api/status` and `/api/upstreams`; `now` in unix seconds."""
    workers = status["workers"]
    ready = [worker for worker in workers if worker["ready"]]
    what = f"{status['name']}: generation {status['generation']}, {len(ready)} workers ready"
    if status["draining"]:
        yield Finding("warning", what, "it is draining and will end")
    elif not ready:
        yield Finding("error", what, "its log says why workers do not start")
    else:
        yield Finding("ok", what)
    if status["version"] != __version__:
        yield Finding(
            "warning",
            f"version {status['version']} runs, and {__version__} is installed",
            "USR2 replaces the workers; the supervisor changes with a restart",
        )
    last = status["last_reload"]
    if last is not None and not last["ok"]:
        first = last["errors"][0].partition("\n")[0] if last["errors"] else "no reason is known"
        yield Finding("error", "the last reload was refused; the config before it is served", first)
    if status["worker_restarts"]:
        yield Finding(
            "warning", f"{status['worker_restarts']} workers died or stalled and were replaced", "see its log"
        )
    yield from _state_findings(status["state"])
    yield from certificate_findings(status.get("certificates", ()), now)
    yield from key_set_findings(status.get("key_sets", ()))
    for worker in ready:
        if worker["loop_lag_ms"] > _SLOW_LOOP_MS:
            yield Finding(
                "warning",
                f"worker {worker['pid']}: its loop stood still for {worker['loop_lag_ms']:.0f} ms",
                "the host may lack CPU; see ambassador_loop_lag_seconds",
            )
    for upstream in upstreams:
        if upstream.get("credential"):
            what = f"upstream {upstream['name']}: requests to it fail; {upstream['credential']}"
            yield Finding("error", what, "its log says which secret it is, and why")
        for endpoint in upstream["endpoints"]:
            if not endpoint["healthy"]:
                yield Finding(
                    "error", f"upstream {upstream['name']}: {endpoint['url']} is down", endpoint["why"]
                )


def certificate_findings(certificates: Iterable[dict[str, Any]], now: float) -> Iterator[Finding]:
    """Of certificates that end, and of files that have changed and cannot be used; `now` in unix seconds."""
    from ambassador.config.certificates import SOON_S, user_of

    told: set[tuple[str, str]] = set()
    for each in certificates:
        who = user_of(each["side"], each["name"])
        left_s = each["expires"] - now
        if left_s <= 0:
            yield Finding("error", f"{who}: the certificate in {each['file']} has expired", "renew it")
        elif left_s <= SOON_S:
            what = f"{who}: the certificate in {each['file']} expires in {left_s / 86400:.1f} days"
            yield Finding("warning", what, "renew it; the file is read again by itself")
        problem = each["problem"]
        if problem is not None and (who, problem) not in told:
            told.add((who, problem))
            yield Finding("error", f"{who}: changed files of TLS are not in use", problem)


def key_set_findings(key_sets: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    """Of sets of keys that cannot be read, each told once for all clients that have it."""
    clients: dict[tuple[str, str, float, bool], list[str]] = {}
    for each in key_sets:
        if not each["up"]:
            same = (each["source"], each["problem"], each["since"], each["has_keys"])
            clients.setdefault(same, []).append(each["client"])
    for (source, problem, since, has_keys), names in clients.items():
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since))
        whose = f"client {names[0]}" if len(names) == 1 else f"clients {', '.join(names)}"
        what = f"{whose}: the keys of {source} cannot be read since {day}"
        if has_keys:
            yield Finding("warning", what, f"{problem}; older keys are used, for 24 h at most")
        else:
            yield Finding("error", what, f"{problem}; tokens are refused")


def _state_findings(state: dict[str, Any]) -> Iterator[Finding]:
    if state["up"]:
        yield Finding("ok", f"state store {state['backend']}: every worker reaches it")
    else:
        yield Finding("error", f"the state store {state['backend']} is lost", "limits are local")
    for warning in state.get("warnings", ()):
        what = "the state store could do better" if state["up"] else "something is wrong with the state store"
        yield Finding("warning", what, warning)
