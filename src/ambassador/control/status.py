"""The shapes of what the admin API tells (contract 7.11, 7.17), made from the supervisor's state."""

from __future__ import annotations

from typing import Any

import msgspec

from ambassador.config.schema import Config, Match, PathRegex, Route, ValueMatch, policies_of
from ambassador.config.secrecy import without_secrets
from ambassador.control.certificates import CertificateStatus
from ambassador.control.discovery.directory import SourceStatus
from ambassador.control.host import resident_bytes
from ambassador.control.incarnation import Incarnation
from ambassador.control.key_set_status import KeySetStatus
from ambassador.control.reload import LastReload


class StateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state store: which, and whether it answers."""

    backend: str
    up: bool
    warnings: tuple[str, ...] = ()
    """What is wrong with the servers of the store, in sentences: why they cannot be used, while they cannot, and what
    was seen when they were first reached."""


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. `started` is in unix seconds, `rss` in bytes, None when it cannot be read."""

    slot: int
    pid: int
    ready: bool
    started: float
    connections: int
    inflight: int
    loop_lag_ms: float
    rss: int | None
    generation: int
    state: str


class ListenerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A listener: its address as configured, and where clients connect."""

    address: str
    url: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`/api/status`."""

    version: str
    name: str
    pid: int
    generation: int
    started: float
    draining: bool
    ready: bool
    state: StateStatus
    workers: list[WorkerStatus]
    listeners: list[ListenerStatus]
    admin: str | None
    control: str
    config_file: str | None
    worker_restarts: int
    last_reload: LastReload | None
    discovery: list[SourceStatus] = []
    """Where upstreams' endpoints are found."""
    certificates: list[CertificateStatus] = []
    """The files of TLS, each with its certificates' end."""
    key_sets: list[KeySetStatus] = []
    """The sets of keys that clients' tokens are verified with."""


def worker_status(worker: Incarnation) -> WorkerStatus:
    """One process as it is now."""
    return WorkerStatus(
        slot=worker.slot,
        pid=worker.pid,
        ready=worker.ready and not worker.stalled and not worker.retiring,
        started=worker.started,
        connections=worker.beat.connections,
        inflight=worker.beat.inflight,
        loop_lag_ms=round(worker.beat.loop_lag_ms, 3),
        rss=resident_bytes(worker.pid),
        generation=worker.generation,
        state=_state(worker),
    )


def _state(worker: Incarnation) -> str:
    if worker.retiring:
        return "draining"
    if worker.stalled:
        return "stalled"
    return "ready" if worker.ready else "starting"


def masked(config: Config) -> dict[str, object]:
    """The config for people: by key, with every secret, and what may be one, as `***`. Routes are made one by one."""
    told = {
        name: value if name == "routes" else without_secrets(value)
        for name, value in msgspec.structs.asdict(config).items()
    }
    told["routes"] = map(without_secrets, config.routes)
    return told


class RouteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`/api/routes`: one route. `to` is an upstream's name, or what is done instead; `match` is as one writes it."""

    name: str
    match: dict[str, Any]
    to: str | None
    policies: list[str]
    line: int


def route_status(route: Route) -> RouteStatus:
    """A route in short: what is not written is left out."""
    instead = "redirect" if route.redirect is not None else "respond"
    return RouteStatus(
        name=route.name,
        match=_match(route.match),
        to=route.to if route.to is not None else instead,
        policies=list(policies_of(route)),
        line=route.line,
    )


def _match(match: Match) -> dict[str, Any]:
    path = {"regex": match.path.regex} if isinstance(match.path, PathRegex) else match.path
    host: Any = match.host[0] if len(match.host) == 1 else list(match.host)
    tree = {"host": host, "path": path, "methods": list(match.methods)}
    shown = without_secrets(match)
    tree |= {"headers": _values(shown.headers), "query": _values(shown.query)}
    return {key: value for key, value in tree.items() if value}


def _values(wanted: dict[str, ValueMatch]) -> dict[str, Any]:
    return {name: _value(value) for name, value in wanted.items()}


def _value(wanted: ValueMatch) -> Any:
    if wanted.regex is not None:
        return {"regex": wanted.regex}
    if wanted.present is not None:
        return {"present": wanted.present}
    exact = list(wanted.exact or ())
    if exact == ["*"]:
        return {"exact": "*"}  # bare, it would mean `present`
    return exact[0] if len(exact) == 1 else exact
