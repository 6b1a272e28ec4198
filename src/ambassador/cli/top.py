"""`ambassador top`: what goes through the service now, route by route."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_live

_CLEAR = "\x1b[H\x1b[J"
_ADDED_UP = ("requests", "errors", "unanswered", "retries", "seconds")


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "top",
        help="watch the traffic of each route",
        description="Show what goes through each route, again and again: requests, errors (answers of class 5xx) and "
        "retries a second, and how long a request takes on average. The busiest come first. Ctrl-C ends it.",
    )
    parser.add_argument(
        "--every", metavar="SECONDS", type=_seconds, default=2.0, help="how often (%(default)s)"
    )
    parser.add_argument("--count", metavar="N", type=_count, help="show it so many times, and end")
    add_live(parser)


def _seconds(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, from 0.1 to 3600")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; at least 1")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Show until interrupted."""
    from ambassador.cli.client import Failure, client, complain

    try:
        service = client(args)
        before, at = _by_route(service.get("/api/traffic")), time.monotonic()
        left = args.count
        while left is None or left > 0:
            time.sleep(args.every)
            now, now_at = _by_route(service.get("/api/traffic")), time.monotonic()
            _show(rates(before, now, now_at - at), as_json=args.json)
            before, at = now, now_at
            left = None if left is None else left - 1
    except Failure as failure:
        return complain(failure, as_json=args.json)
    except KeyboardInterrupt:
        pass
    return OK


def _by_route(traffic: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """A route may lead to several upstreams."""
    routes: dict[str, dict[str, float]] = {}
    for part in traffic:
        sums = routes.setdefault(part["route"], dict.fromkeys(_ADDED_UP, 0))
        for name in _ADDED_UP:
            sums[name] += part[name]
    return routes


def rates(
    before: dict[str, dict[str, float]], now: dict[str, dict[str, float]], seconds: float
) -> list[dict[str, Any]]:
    """What each route did in between, a second; the busiest first. Counters that fell began anew."""
    found: list[dict[str, Any]] = []
    for route, sums in now.items():
        old = before.get(route, {})
        fresh = {name: max(0.0, value - old.get(name, 0)) for name, value in sums.items()}
        requests = fresh["requests"]
        found.append(
            {
                "route": route,
                "requests_per_s": requests / seconds,
                "errors_per_s": fresh["errors"] / seconds,
                "unanswered_per_s": fresh["unanswered"] / seconds,
                "retries_per_s": fresh["retries"] / seconds,
                "mean_ms": fresh["seconds"] / requests * 1000 if requests else None,
            }
        )
    return sorted(found, key=lambda each: (-each["requests_per_s"], each["route"]))


def _show(routes: list[dict[str, Any]], *, as_json: bool) -> None:
    from ambassador.cli.table import table

    if as_json:
        print(json.dumps(routes), flush=True)
        return
    head = ("ROUTE", "REQUESTS/s", "ERRORS/s", "UNANSWERED/s", "RETRIES/s", "MEAN ms")
    clear = _CLEAR if sys.stdout.isatty() else ""
    print(clear + table(head, [list(each.values()) for each in routes]), flush=True)
