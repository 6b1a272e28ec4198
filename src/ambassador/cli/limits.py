"""`ambassador limits`."""

from __future__ import annotations

import argparse
import json

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_live


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "limits",
        help="list the rate limits of the service",
        description="List every limit that was used, with its busiest keys: what is left, and what this replica has "
        "admitted and refused since the config was loaded. FALLBACK is what was admitted while the state store was "
        "late or away, CREDIT what `mode: bounded` admitted ahead of the store's tokens.",
    )
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """List them."""
    from ambassador.cli.client import Failure, client, complain
    from ambassador.cli.table import table

    try:
        limits = client(args).get("/api/limits")
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if args.json:
        print(json.dumps(limits))
        return OK
    head = ("LIMIT", "RATE", "BURST", "KEY", "BALANCE", "ADMITTED", "LIMITED", "FALLBACK", "CREDIT")
    print(table(head, [[each[name.lower()] for name in ("name", *head[1:])] for each in limits]))
    return OK
