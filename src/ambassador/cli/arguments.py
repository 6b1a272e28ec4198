"""Options that several commands share. Cheap to import."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001
"""What `ArgumentParser.add_subparsers` returns."""


def add_unused_control(parser: argparse.ArgumentParser) -> None:
    """`--control` of a command that talks to no service: scripts may give it to every command alike."""
    parser.add_argument(
        "--control", metavar="unix:PATH", help="taken as by every command, and not needed here"
    )


def add_live(parser: argparse.ArgumentParser) -> None:
    """The options of a command that talks to a running service."""
    parser.add_argument(
        "--control",
        metavar="unix:PATH",
        help="the control socket (default: the only one there is, or $AMBASSADOR_CONTROL)",
    )
    parser.add_argument(
        "--admin", metavar="URL", help="the admin API instead, as http://127.0.0.1:9901 or unix:/path"
    )
    parser.add_argument(
        "--token", metavar="SECRET", help="where the token for --admin is: env:NAME or file:/path"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
