"""`ambassador routes`."""

from __future__ import annotations

import argparse
import json
import re
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


_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.-]*(?:\*\*)?")
_WORDS = frozenset({"true", "false", "on", "off", "yes", "no", "null"})


def _match(match: dict[str, Any]) -> str:
    """As it is written in the config, on one line."""
    written = {name: value for name, value in match.items() if (name, value) != ("host", "*")}
    return _yaml(written) if written else "everything"


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_yaml(name)}: {_yaml(each)}' for name, each in value.items())}}}"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
