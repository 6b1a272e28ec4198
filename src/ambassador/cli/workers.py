"""`ambassador workers`."""

from __future__ import annotations

import argparse
import json

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_live


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "workers",
        help="have the service run so many workers",
        description="Have the service run N workers, until a reload brings another number. Without N: list them.",
    )
    parser.add_argument("workers", metavar="N", type=_count, nargs="?", help="how many")
    add_live(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers; at least 1")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Set the number, or list the workers."""
    from ambassador.cli.client import Failure, client, complain
    from ambassador.cli.table import table

    try:
        service = client(args)
        if args.workers is not None:
            answer = service.post("/api/workers", {"workers": args.workers})
            print(json.dumps(answer) if args.json else f"{answer['workers']} workers")
            return OK
        workers = service.get("/api/status")["workers"]
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if args.json:
        print(json.dumps(workers))
        return OK
    head = ("SLOT", "PID", "STATE", "CONNECTIONS", "INFLIGHT", "LAG ms", "RSS MiB")
    rows = [
        (
            each["slot"],
            each["pid"],
            each["state"],
            each["connections"],
            each["inflight"],
            each["loop_lag_ms"],
            None if each["rss"] is None else each["rss"] / 2**20,
        )
        for each in workers
    ]
    print(table(head, rows))
    return OK
