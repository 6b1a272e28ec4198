"""`ambassador run`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ambassador.cli import NO, USAGE
from ambassador.cli.arguments import Subparsers

if TYPE_CHECKING:
    from ambassador.config.load import Loaded
    from ambassador.control.supervisor import Announcement

DEFAULT_LISTEN = "127.0.0.1:8080"


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "run",
        help="serve in the foreground",
        description="Check the config, then serve in the foreground. Prints the listeners' URLs, the admin URL and "
        "the state backend. TERM drains, HUP reloads, Ctrl-C ends within 5 s.",
    )
    parser.add_argument("file", nargs="?", help=argparse.SUPPRESS)  # to say what is missing before it
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-c", "--config", metavar="FILE", help="the config")
    source.add_argument(
        "--to", metavar="URL", action="append", help="no file: one route to this endpoint, or to these"
    )
    parser.add_argument(
        "--listen", metavar="ADDR", help=f"with --to: where to listen (default {DEFAULT_LISTEN})"
    )
    parser.add_argument(
        "--admin", metavar="ADDR", help="with --to: where the admin API is (default: nowhere)"
    )
    parser.add_argument("--control", metavar="unix:PATH", help="with --to: the control socket")
    parser.add_argument(
        "--workers", metavar="N", type=_count, help="worker processes, whatever the config says"
    )
    parser.add_argument("--json", action="store_true", help="print what is served as JSON")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers, from 1 to 1024")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Serve."""
    from ambassador.control.service import serve

    if args.file is not None:
        return _usage(f"a config is named with -c: ambassador run -c {args.file}")
    if args.config is not None and (args.listen or args.admin or args.control):
        return _usage("--listen, --admin and --control go with --to; with -c they are in the file")
    if args.config is None and args.to is None:
        return _usage("what to serve? A config with -c FILE, or one route with --to URL (see --help)")
    loaded = loaded_of(args)
    if loaded.config is None:
        return USAGE if args.config is None else NO
    announce = _as_json if args.json else announcement_text
    # What the command line made is in no file.
    places = {} if args.config is None else loaded.places
    return serve(loaded.config, announce, config_file=args.config, workers=args.workers, places=places)


def _usage(text: str) -> int:
    print(f"ambassador run: {text}", file=sys.stderr)
    return USAGE


def loaded_of(args: argparse.Namespace) -> Loaded:
    """The config that the command line names or makes; what is wrong with it is printed."""
    from ambassador.config.load import load, load_string

    if args.config is not None:
        loaded = load(args.config)
        lines = [problem.text() for problem in (*loaded.errors, *loaded.warnings)]
    else:
        loaded = load_string(_text(args))
        lines = [f"ambassador run: {option_of(each.path)}: {each.advice}" for each in loaded.problems]
    for line in lines:
        print(line, file=sys.stderr)
    return loaded


def option_of(path: str) -> str:
    """The option that a place in the config of `_text` comes from."""
    return "--to" if path.startswith("routes") else f"--{path.partition('.')[0]}"


def _text(args: argparse.Namespace) -> str:
    """The config that `--to` and its companions stand for; JSON is YAML."""
    config: dict[str, object] = {"version": 1, "listen": args.listen or DEFAULT_LISTEN}
    if args.admin:
        config["admin"] = args.admin
    if args.control:
        config["control"] = args.control
    return json.dumps(config | {"routes": [{"name": "default", "to": args.to}]})


def announcement_text(announcement: Announcement) -> str:
    """What is served, line by line; the listeners first."""
    lines = [f"listening on {url}" for url in announcement.listeners]
    if announcement.admin is not None:
        lines.append(f"admin on {announcement.admin}")
    return "\n".join([*lines, f"state {announcement.state}", f"control unix:{announcement.control}"])


def _as_json(announcement: Announcement) -> str:
    import msgspec

    return msgspec.json.encode(announcement).decode()
