"""`ambassador explain`: what would happen to a request, and why. No request is sent."""

from __future__ import annotations

import argparse
import re
import time

from ambassador.cli import NO, OK, USAGE
from ambassador.cli.arguments import Subparsers, add_live

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 5.6.2
_ODD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "explain",
        help="say what would happen to a request, and why",
        description="Say which route takes a request, which routes were passed over and why, and what would be done: "
        "policies, endpoints, timeouts and retries, with the places in the config. Nothing is sent. "
        "Exit status 0: a route takes it, 1: none does or it would be refused.",
        epilog="example: ambassador explain GET http://billing.internal/v1/accounts/42 -H 'x-tenant: acme' -c ambassador.yaml",
    )
    parser.add_argument("method", metavar="METHOD", type=_method, help="as GET")
    parser.add_argument("url", metavar="URL", help="as http://host/path, or only a path")
    parser.add_argument(
        "-H",
        "--header",
        metavar="'K: V'",
        type=_header,
        action="append",
        default=[],
        help="a header; may be repeated",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-c", "--config", metavar="FILE", help="ask this config")
    source.add_argument(
        "--live", action="store_true", help="ask the config of the running service (the default)"
    )
    add_live(parser)


def _method(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a method")
    if text != text.upper():
        raise argparse.ArgumentTypeError(f"methods are upper case; did you mean '{text.upper()}'?")
    return text


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name) or _ODD_VALUE.search(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a header, as 'x-tenant: acme'")
    return name, value.strip(" \t")


def run(args: argparse.Namespace) -> int:
    """Explain, and print."""
    from ambassador.cli.client import Failure, complain
    from ambassador.cli.configs import file_config, live_breakers, live_config, live_names, live_upstream
    from ambassador.config.certificates import certificate_names
    from ambassador.config.explain import (
        BadUrl,
        explain,
        render,
        with_breakers,
        with_endpoints,
        with_token,
    )
    from ambassador.config.identity import identifier

    try:
        config = live_config(args) if args.config is None else file_config(args.config, as_json=args.json)
        if config is None:
            return NO
        names = certificate_names(config) if args.config is not None else live_names(args, config)
        explanation = explain(
            config,
            args.method,
            args.url,
            args.header,
            names=names,
            identify=identifier(config),
            wall_s=time.time(),
        )
        if args.config is None and explanation.upstream is not None:
            endpoints, token = live_upstream(args, explanation.upstream)
            explanation = with_token(with_endpoints(explanation, config, endpoints), token)
            if any(line.what == "breaker" for line in explanation.lines):
                explanation = with_breakers(explanation, live_breakers(args))
    except Failure as failure:
        return complain(failure, as_json=args.json)
    except BadUrl as error:
        return complain(Failure(str(error), USAGE), as_json=args.json)
    if args.json:
        import msgspec

        print(msgspec.json.encode(explanation).decode())
    else:
        print(render(explanation), end="")
    return NO if explanation.route is None or explanation.code is not None else OK
