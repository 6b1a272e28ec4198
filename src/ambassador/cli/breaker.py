"""`ambassador breaker`."""

from __future__ import annotations

import argparse
import json
import sys

from ambassador.cli import NO, OK, USAGE
from ambassador.cli.arguments import Subparsers, add_live


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "breaker",
        help="hold a circuit breaker open or closed, or let go of it",
        description="Hold a circuit breaker open (nothing is sent) or closed (it does not trip), for every replica, or "
        "give control back to it (auto). Returns when the state store has it. While the store does not answer, the "
        "order acts on this replica only, and the exit status is 1.",
    )
    parser.add_argument("name", metavar="NAME", help="the breaker, as `ambassador breakers` lists it")
    parser.add_argument("state", choices=("open", "close", "auto"), help="what to do")
    parser.add_argument(
        "--for",
        dest="duration",
        metavar="TIME",
        type=_duration,
        help="for how long, as 10m; unset: until further notice",
    )
    parser.add_argument(
        "--reason", metavar="TEXT", required=True, help="why; it is shown, and kept in the log"
    )
    add_live(parser)


def _duration(text: str) -> str:
    """What the admin API takes for one, so that what it does not take is a wrong command line."""
    from ambassador.config.units import Wrong, parse_duration

    try:
        if parse_duration(text) >= 0.001:
            return text
    except Wrong as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    raise argparse.ArgumentTypeError(f"{text!r} holds nothing; leave it out to hold until further notice")


def run(args: argparse.Namespace) -> int:
    """Give the order."""
    if args.state == "auto" and args.duration is not None:
        print("ambassador breaker: --for has no meaning where control is given back", file=sys.stderr)
        return USAGE
    from getpass import getuser
    from urllib.parse import quote

    from ambassador.cli.client import Failure, client, complain

    body = {"state": args.state, "reason": args.reason}
    if args.duration is not None:
        body["for"] = args.duration
    try:
        body["by"] = getuser()
    except (OSError, KeyError):  # a user without a name
        pass
    try:
        done = client(args).post(f"/api/breakers/{quote(args.name, safe='/:[]')}", body)
    except Failure as failure:
        return complain(failure, as_json=args.json)
    print(json.dumps(done) if args.json else f"{done['name']}: {done['detail']}")
    return OK if done["fleet"] else NO
