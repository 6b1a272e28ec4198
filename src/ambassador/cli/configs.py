"""The config that a command is about: a file's, or that of the running service."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from ambassador.cli import NO

if TYPE_CHECKING:
    from ambassador.config.explain_lines import EndpointNow
    from ambassador.config.schema import Config


def file_config(path: str, *, as_json: bool) -> Config | None:
    """The file's config; None when it has errors, which are then printed."""
    from ambassador.control.checking import check_file

    checked = check_file(path)
    if checked.config is None:
        if as_json:
            print(json.dumps({"errors": checked.errors}))
        for error in checked.errors:
            print(error, file=sys.stderr)
    return checked.config


def live_config(args: argparse.Namespace) -> Config:
    """The config that the service runs with. Raises Failure."""
    import msgspec

    from ambassador.cli.client import Failure, client
    from ambassador.config.schema import Config

    service = client(args)
    try:
        return msgspec.convert(service.get("/api/config"), Config)
    except msgspec.ValidationError as error:
        raise Failure(f"the service at {service.where} is of another version: {error}", NO) from None


def live_names(args: argparse.Namespace, config: Config) -> dict[str, tuple[str, ...]]:
    """The names in the certificates of the service's listeners, by file; `config` is its. Raises Failure."""
    from ambassador.cli.client import client

    if all(listener.tls is None for listener in config.listeners):
        return {}
    told = client(args).get("/api/status").get("certificates", ())
    return {each["file"]: tuple(each["names"]) for each in told if each["side"] == "client"}


def live_upstream(args: argparse.Namespace, upstream: str) -> tuple[list[EndpointNow], str | None]:
    """The endpoints that an upstream of the service has now, each with its state in words, and how the token stands
    that is fetched for it (None: none is). Raises Failure.
    """
    from ambassador.cli.client import client
    from ambassador.config.explain_lines import EndpointNow

    told = next((each for each in client(args).get("/api/upstreams") if each["name"] == upstream), None)
    if told is None:
        return [], None
    endpoints = [
        EndpointNow(
            url=each["url"],
            state=_in_words(each),
            is_well=not each["why"],
            weight=each["weight"],
            zone=each["zone"] or "",
            priority=each["priority"],
        )
        for each in told["endpoints"]
    ]
    token = told.get("token")
    return endpoints, token_in_words(token) if token else None


def live_breakers(args: argparse.Namespace) -> dict[str, str]:
    """How the breakers of the service stand that are not simply closed, in words, by name. Raises Failure."""
    from ambassador.cli.client import client

    found = {each["name"]: breaker_in_words(each) for each in client(args).get("/api/breakers")}
    return {name: words for name, words in found.items() if words}


def breaker_in_words(breaker: dict[str, Any]) -> str:
    """How a breaker stands, of `/api/breakers`; empty where it is simply closed."""
    forced, retry_at, now = breaker["forced"], breaker["retry_at"], breaker.get("now") or time.time()
    parts = []
    if forced is not None:
        until = "" if forced["until"] is None else f" for {max(0, round(forced['until'] - now))} s more"
        parts.append(f"held {forced['state']}{until} by {forced['by']}: {forced['reason']}")
    elif breaker["state"] == "half_open":
        parts.append("half-open: probes pass, nothing else")
    elif breaker["state"] == "open":
        left = "" if retry_at is None else f" for {max(0, round(retry_at - now))} s more, then probes"
        parts.append(f"open{left}")
    if breaker["local"]:
        parts.append(f"{len(breaker['local'])} worker(s) have opened their own")
    return "; ".join(parts)


def token_in_words(token: dict[str, Any]) -> str:
    """How the token that is fetched for an upstream stands."""
    valid_for_s, problem, next_try_s = token["valid_for_s"], token["problem"], token["next_try_s"]
    parts = ["no token" if valid_for_s is None else f"a token for {valid_for_s:.0f} s"]
    if problem:
        parts.append(f"the token service last: {problem}")
    if problem and next_try_s is not None and next_try_s >= 0.5:
        parts.append(f"not asked again for {next_try_s:.0f} s")
    return "; ".join(parts)


def _in_words(endpoint: dict[str, Any]) -> str:
    words = [endpoint["why"] or ("up" if endpoint["healthy"] else "down")]
    if endpoint["ewma_ms"] is not None:
        words.append(f"{endpoint['ewma_ms']:.1f} ms")
    return ", ".join([*words, f"{endpoint['inflight']} in flight"])
