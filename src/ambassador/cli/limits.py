"""`ambassador limits`."""

from __future__ import annotations

import argparse
import json

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_live

_RATES: tuple[str, ...] = (
    "name",
    "rate",
    "burst",
    "key",
    "balance",
    "admitted",
    "limited",
    "fallback",
    "credit",
)
_PERMITS: tuple[str, ...] = ("name", "max", "limit", "in_use", "queued", "admitted", "limited")


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "limits",
        help="list the rate limits of the service, and what is in progress",
        description="List every limit that was used, with its busiest keys: what is left, and what this replica has "
        "admitted and refused since the config was loaded. FALLBACK is what was admitted while the state store was "
        "late or away, CREDIT what `mode: bounded` admitted ahead of the store's tokens. Then, of every route with "
        "`concurrency`, how many requests may be in progress on this replica (LIMIT: what `adaptive` has found), are, "
        "and wait for that, and how many its living workers have admitted and refused.",
    )
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """List them."""
    from ambassador.cli.client import Failure, client, complain, note_unready
    from ambassador.cli.table import table

    try:
        service = client(args)
        limits = service.get("/api/limits")
        note_unready(service, limits)
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if args.json:
        print(json.dumps(limits))
        return OK
    permits = [each for each in limits if "in_use" in each]
    rates = [each for each in limits if "in_use" not in each]
    shown = [("LIMIT", _RATES, rates)] if rates or not permits else []
    if permits:
        shown.append(("CONCURRENCY", _PERMITS, permits))
    tables = []
    for what, keys, rows in shown:
        head = (what, *(key.upper().replace("_", " ") for key in keys[1:]))
        tables.append(table(head, [[each[key] for key in keys] for each in rows]))
    print("\n\n".join(tables))
    return OK
