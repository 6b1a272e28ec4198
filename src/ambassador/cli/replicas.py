"""`ambassador replicas`."""

from __future__ import annotations

import argparse
import json
import time

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_live


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "replicas",
        help="list the replicas that share the state",
        description="List the replicas that share the state: with `state: local` only this one.",
    )
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """List them."""
    from ambassador.cli.client import Failure, client, complain
    from ambassador.cli.table import table

    try:
        replicas = client(args).get("/api/replicas")
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if args.json:
        print(json.dumps(replicas))
        return OK
    rows = [
        (
            each["id"],
            each["workers"],
            each["version"],
            each["generation"],
            "up" if each["state_up"] else "lost",
            _ago(each["since"], now),
            _ago(each["last_beat"], now),
        )
        for each in replicas
        # By the store's clock, as the beats are: this host's may be another.
        for now in [each.get("now") or time.time()]
    ]
    print(table(("REPLICA", "WORKERS", "VERSION", "GENERATION", "STATE", "STARTED", "LAST BEAT"), rows))
    return OK


def _ago(at: float, now: float) -> str:
    """How long ago a time in unix seconds was."""
    seconds = max(0, int(now - at))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit} ago"
    return f"{seconds}s ago"
