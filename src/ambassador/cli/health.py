"""`ambassador health`: for probes. Starts in a few tens of milliseconds."""

from __future__ import annotations

import argparse
import json

from ambassador.cli import NO, OK
from ambassador.cli.arguments import Subparsers, add_live

_TIMEOUT_S = 2.0


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "health",
        help="whether the service is ready",
        description="Whether the service should get traffic (--ready, the default) or should be left running (--live). "
        "Exit status 0: yes, 1: no, 3: it cannot be reached.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--ready", action="store_const", const="/readyz", dest="path", help="ready for traffic"
    )
    which.add_argument("--live", action="store_const", const="/livez", dest="path", help="alive")
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, and print the answer."""
    from ambassador.cli.client import Failure, client, complain

    try:
        status, answer = client(args, timeout_s=_TIMEOUT_S).call("GET", (args.path or "/readyz") + "?verbose")
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if not isinstance(answer, dict) or "ok" not in answer:
        return complain(Failure(f"that is no answer of an ambassador ({status})", NO), as_json=args.json)
    print(json.dumps(answer) if args.json else answer["reason"] or "ok")
    return OK if answer["ok"] else NO
