"""`ambassador routes`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_live


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "routes",
        help="list the routes of the service",
        description="List the routes that the service has, in the order in which they are tried. "
        "`ambassador explain` says which of them takes a request.",
    )
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """List them."""
    from ambassador.cli.client import Failure, client, complain
    from ambassador.cli.table import table

    try:
        routes = client(args).get("/api/routes")
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if args.json:
        print(json.dumps(routes))
        return OK
    rows = [
        (each["name"], _match(each["match"]), each["to"], " ".join(each["policies"]), each["line"])
        for each in routes
    ]
    print(table(("ROUTE", "MATCH", "TO", "POLICIES", "LINE"), rows))
    return OK


def _match(match: dict[str, Any]) -> str:
    """As it is written, without what YAML needs around it."""
    parts = [f"{name} {_value(value)}" for name, value in match.items() if (name, value) != ("host", "*")]
    return ", ".join(parts) or "everything"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "|".join(map(_value, value))
    if isinstance(value, dict):
        return " ".join(f"{name}={_value(each)}" for name, each in value.items())
    return str(value)
