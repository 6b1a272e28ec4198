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
    print(
        f"{'SLOT':>4} {'PID':>8} {'STATE':<9} {'CONNECTIONS':>11} {'INFLIGHT':>8} {'LAG ms':>7} {'RSS MiB':>7}"
    )
    for worker in workers:
        print(
            f"{worker['slot']:>4} {worker['pid']:>8} {worker['state']:<9} {worker['connections']:>11} "
            f"{worker['inflight']:>8} {worker['loop_lag_ms']:>7.1f} {(worker['rss'] or 0) / 2**20:>7.1f}"
        )
    return OK
