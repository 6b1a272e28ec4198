"""`ambassador check`: everything that is wrong with a config, in one run."""

from __future__ import annotations

import argparse
import sys

from ambassador.cli import NO, OK
from ambassador.cli.arguments import Subparsers, add_unused_control


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "check",
        help="say everything that is wrong with a config",
        description="Say everything that is wrong with each file, as file:line:col: error: path: problem. Each FILE is a "
        "whole config; what it includes is checked with it. Exit status 0: no errors (there may be warnings), 1: errors.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a config")
    parser.add_argument(
        "--format", choices=("text", "json", "github"), default="text", help="how to print (default: text)"
    )
    parser.add_argument(
        "--json", action="store_const", const="json", dest="format", help="the same as --format json"
    )
    add_unused_control(parser)


def run(args: argparse.Namespace) -> int:
    """Check, and print."""
    from ambassador.config.load import load

    loaded = [load(path) for path in args.files]
    problems = [problem for one in loaded for problem in one.problems]
    failed = any(one.config is None for one in loaded)
    if args.format == "json":
        import msgspec

        print(msgspec.json.encode({"ok": not failed, "problems": problems}).decode())
        return NO if failed else OK
    for problem in problems:
        print(problem.github() if args.format == "github" else problem.text())
    if args.format == "text":
        _summary(args.files, sum(problem.level == "error" for problem in problems), len(problems))
    return NO if failed else OK


def _summary(files: list[str], errors: int, problems: int) -> None:
    """One line for people, on standard error so that the list stays a list."""
    counts = [_count(errors, "error"), _count(problems - errors, "warning")]
    said = " and ".join(count for count in counts if count) or "no problems"
    print(f"{', '.join(files)}: {said}", file=sys.stderr)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""
