"""`ambassador upstreams`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from ambassador.cli import OK
from ambassador.cli.arguments import Subparsers, add_live


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "upstreams",
        help="list the endpoints of the service's upstreams",
        description="List every endpoint of every upstream: its state, the requests in flight to it and its "
        "connections, over all workers, its latency as they see it on average, and why it gets no requests if it gets "
        "none.",
    )
    add_live(parser)


def run(args: argparse.Namespace) -> int:
    """List them."""
    from ambassador.cli.client import Failure, client, complain
    from ambassador.cli.configs import token_in_words
    from ambassador.cli.table import table

    try:
        upstreams = client(args).get("/api/upstreams")
    except Failure as failure:
        return complain(failure, as_json=args.json)
    if args.json:
        print(json.dumps(upstreams))
        return OK
    head = (
        "UPSTREAM", "ENDPOINT", "STATE", "ADDRESS", "WEIGHT", "ZONE", "PRIORITY", "INFLIGHT", "ACTIVE", "IDLE", "EWMA ms",
        "WHY",
    )  # fmt: skip
    print(table(head, _rows(upstreams)))
    for upstream in upstreams:
        if upstream.get("problem"):
            print(f"{upstream['name']}: {upstream['source']} says nothing new: {upstream['problem']}")
        if upstream.get("credential"):
            print(f"{upstream['name']}: {upstream['credential']}; its log says more")
        if upstream.get("token"):
            print(f"{upstream['name']}: {token_in_words(upstream['token'])}")
    return OK


def _rows(upstreams: list[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    for upstream in upstreams:
        if not upstream["endpoints"]:
            yield upstream["name"], upstream.get("source"), "no endpoint", *[None] * 8, ""
        for each in upstream["endpoints"]:
            yield (
                upstream["name"],
                each["url"],
                _state(each),
                each["address"],
                each["weight"],
                each["zone"] or "",
                each["priority"],
                each["inflight"],
                each["connections"]["active"],
                each["connections"]["idle"],
                each["ewma_ms"],
                each["why"] or "",
            )


def _state(endpoint: dict[str, Any]) -> str:
    """In a word."""
    if not endpoint["healthy"]:
        return "down"
    if endpoint["ejected_until"] is not None:
        return "ejected"
    return "unused" if endpoint["why"] else "up"
