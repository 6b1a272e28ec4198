"""`ambassador breakers`."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_live


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "breakers",
        help="list the circuit breakers of the service",
        description="List every circuit breaker: its state, what its window holds, and the workers that have opened "
        "for themselves only.",
    )
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """List them."""
    from ambassador.cli.client import Failure, client, complain, note_unready
    from ambassador.cli.table import table

    try:
        service = client(args)
        breakers = service.get("/api/breakers")
        note_unready(service, breakers)
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if args.json:
        print(json.dumps(breakers))
        return OK
    here = time.time()
    head = ("BREAKER", "SCOPE", "STATE", "REQUESTS", "FAILURES", "SLOW", "RETRY IN s", "LOCAL", "FORCED")
    print(table(head, [_row(each, each.get("now") or here) for each in breakers]))
    return OK


def _row(breaker: dict[str, Any], now: float) -> tuple[object, ...]:
    """`now` by the store's clock, as all its times are: this host's may be another."""
    window = breaker["window"]
    retry_at = breaker["retry_at"]
    return (
        breaker["name"],
        breaker["scope"],
        breaker["state"],
        window["requests"],
        window["failures"],
        window["slow"],
        None if retry_at is None else max(0.0, retry_at - now),
        len(breaker["local"]),
        _forced(breaker["forced"], now),
    )


def _forced(forced: dict[str, Any] | None, now: float) -> str:
    if forced is None:
        return "no"
    until = "" if forced["until"] is None else f" for {max(0, round(forced['until'] - now))} s more"
    return f"{forced['state']}{until} by {forced['by']}: {forced['reason']}"
