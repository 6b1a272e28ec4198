"""`ambassador version`."""

from __future__ import annotations

import argparse
import json
import platform

from ambassador import __version__
from ambassador.cli.arguments import Subparsers, add_unused_control


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("version", help="print the version", description="Print the version.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_unused_control(parser)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    if args.json:
        print(json.dumps({"version": __version__, "python": platform.python_version()}))
    else:
        print(f"ambassador {__version__}")
    return 0
