"""`ambassador reload`."""

from __future__ import annotations

import argparse
import json
import sys

from ambassador.cli import NO, OK
from ambassador.cli.arguments import Subparsers, add_live

_TIMEOUT_S = 60.0  # checking a large config, and every worker compiling it


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "reload",
        help="have the service read its config again",
        description="Have the service read its config file again. On any error it goes on with the old one.",
    )
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """Reload, and say how it went."""
    from ambassador.cli.client import Failure, client, complain

    try:
        answer = client(args, timeout_s=_TIMEOUT_S).post("/api/reload", refused=409)
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if args.json:
        print(json.dumps(answer))
    elif answer["ok"]:
        print(f"generation {answer['generation']} is served")
    else:
        print("\n".join(answer["errors"]), file=sys.stderr)
        print(f"not reloaded; generation {answer['generation']} is served on", file=sys.stderr)
    return OK if answer["ok"] else NO
