"""`ambassador schema`: the JSON Schema of the config, for editors."""

from __future__ import annotations

import argparse

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_unused_control


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of the config",
        description="Print the JSON Schema of the config. With it, editors complete keys and show what they mean: put "
        "`# yaml-language-server: $schema=PATH` on the first line of a config.",
    )
    parser.add_argument("--json", action="store_true", help="print it without line breaks")
    add_unused_control(parser)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    import json

    from ambassador.config.describe import json_schema

    print(json.dumps(json_schema(), indent=None if args.json else 2, ensure_ascii=False))
    return OK
