"""`ambassador drain`."""

from __future__ import annotations

import argparse
import json
import time

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_live

_POLL_S = 0.1


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "drain",
        help="have the service finish and exit",
        description="Have the service finish what is under way and exit, as `drain` in its config says.",
    )
    parser.add_argument("--wait", action="store_true", help="return when it has ended, not when it has begun")
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """Begin the drain."""
    from ambassador.cli.client import Client, Failure, client, complain

    def wait_for_end(service: Client) -> None:
        while True:
            try:
                service.call("GET", "/livez")
            except Failure:
                return
            time.sleep(_POLL_S)

    try:
        service = client(args)
        service.post("/api/drain")
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if args.wait:
        wait_for_end(service)
    text = "drained" if args.wait else "draining"
    print(json.dumps({"draining": not args.wait, "drained": args.wait}) if args.json else text)
    return OK
