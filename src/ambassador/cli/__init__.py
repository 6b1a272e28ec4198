"""The `ambassador` command. Each subcommand is a module with `add_parser(subparsers)` and `run(args) -> exit status`.

Only the module of the command that was asked for is imported, and it imports what it needs when it runs: a health
probe that starts every few seconds must not pay for the whole service.

Exit status: 0 done, 1 the check or the service said no, 2 usage, 3 the service cannot be reached.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Final

OK: Final = 0
NO: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3

COMMANDS: Final = {
    "run": "serve in the foreground",
    "demo": "try it: sample upstreams, routes to them, and a little traffic",
    "check": "say everything that is wrong with a config",
    "explain": "say what would happen to a request, and why",
    "diff": "say what changes from one config to another",
    "schema": "print the JSON Schema of the config",
    "routes": "list the routes of the service",
    "upstreams": "list the endpoints of the service's upstreams",
    "breakers": "list the circuit breakers of the service",
    "limits": "list the rate limits of the service, and what is in progress",
    "breaker": "hold a circuit breaker open or closed, or let go of it",
    "replicas": "list the replicas that share the state",
    "top": "watch the traffic of each route",
    "reload": "have the service read its config again",
    "drain": "have the service finish and exit",
    "workers": "have the service run so many workers",
    "health": "whether the service is ready",
    "doctor": "look for what is wrong with this host or the service",
    "version": "print the version",
}
"""Every command and what it does, in the order in which `--help` lists them."""


_LATER: Final = frozenset({"ramp", "tap"})
"""Commands that the documentation of the whole product names."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) > 1 and arguments[0] == "help":
        arguments = [*arguments[1:2], "--help"]
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if not arguments or arguments[0] in ("-h", "--help", "help") or name is None:
        return _without_command(arguments)
    if name not in COMMANDS:
        return _later(name) if name in _LATER else _unknown(name)
    parser = argparse.ArgumentParser(
        prog="ambassador", description="A smart proxy between clients and services."
    )
    try:
        module = import_module(f"ambassador.cli.{name}")
        module.add_parser(parser.add_subparsers(dest="command", metavar="COMMAND"))
        status: int = module.run(parser.parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO
    except KeyboardInterrupt:
        return 130
    return status


def _without_command(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] == "--version":
        return main(["version"])
    asked = bool(arguments) and arguments[0] in ("-h", "--help", "help")
    print(_help(), file=sys.stdout if asked else sys.stderr)
    return OK if asked else USAGE


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: ambassador COMMAND …\n\nA smart proxy between clients and the services they call.\n\n"
        f"commands:\n{commands}\n\n"
        "exit status: 0 ok, 1 the check or the service said no, 2 usage, 3 the service cannot be reached\n"
        "`ambassador COMMAND --help` tells more; start with `ambassador demo`."
    )


def _later(name: str) -> int:
    print(f"ambassador: '{name}' is not supported by this version", file=sys.stderr)
    return USAGE


def _unknown(name: str) -> int:
    close = get_close_matches(name, COMMANDS, 1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    print(f"ambassador: there is no command '{name}'{hint} (`ambassador --help` lists them)", file=sys.stderr)
    return USAGE
