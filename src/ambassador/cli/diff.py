"""`ambassador diff`: what changes from one config to another, and what a reload does about it."""

from __future__ import annotations

import argparse
import sys

from ambassador.cli import NO, OK, USAGE
from ambassador.cli.arguments import Subparsers, add_live


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "diff",
        help="say what changes from one config to another",
        description="Say what changes from config A to config B, or from what the service runs with to FILE, and what "
        "a reload does about it. What is written in another way but means the same is no change. Exit status 0: "
        "compared, 1: a config has errors.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="A and B; with --live only one")
    parser.add_argument("--live", action="store_true", help="compare with the config of the running service")
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, and print."""
    from ambassador.cli.client import Failure, complain
    from ambassador.cli.configs import file_config, live_config
    from ambassador.config.diff import diff, render

    if len(args.files) != (1 if args.live else 2):
        print(
            f"ambassador diff: {'--live takes one file' if args.live else 'takes two files'}", file=sys.stderr
        )
        return USAGE
    try:
        before = live_config(args) if args.live else file_config(args.files[0], as_json=args.json)
        after = file_config(args.files[-1], as_json=args.json)
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if before is None or after is None:
        return NO
    changes = diff(before, after)
    if args.json:
        import msgspec

        print(msgspec.json.encode(changes).decode())
    else:
        print(render(changes), end="")
    return OK
