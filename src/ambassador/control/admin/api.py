"""What the admin API answers. Who may ask has been decided by `rules`; what it tells is the supervisor's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Literal, Protocol, TypeAlias

import msgspec

from ambassador.config.units import Wrong, parse_duration
from ambassador.control.admin.dashboard import PAGE, PAGE_HEADERS
from ambassador.control.admin.document import pieces
from ambassador.control.admin.http import Request, Response, problem
from ambassador.control.breakers import BreakerView, NobodyObeyed, NoBreaker, Outcome, Override
from ambassador.control.limits import LimitView, PermitView
from ambassador.control.reload import LastReload
from ambassador.control.roll import Replica
from ambassador.control.status import RouteStatus, Status
from ambassador.control.sums import UpstreamStatus
from ambassador.control.turns import Turns
from ambassador.observe.families import Traffic
from ambassador.printable import printable

_LONGEST_REASON = 500
"""Characters of it, and of who gave an order: they are kept with the circuit, and told by each replica's log."""
_MOST_WORKERS = 1024

_BREAKERS = "/api/breakers"
_NOT_BUILT = frozenset({"/api/migrations", "/api/tap"})


class Service(Protocol):
    """What the API tells of and acts on."""

    @property
    def alive(self) -> bool:
        """Whether it should be left running: no upstream and no store has a say in this."""

    @property
    def not_ready_because(self) -> str | None:
        """Why no traffic should be sent here; None: it should."""

    def status(self) -> Status:
        """The whole state."""

    def config(self) -> Mapping[str, object]:
        """The config that is served, without secrets."""

    def routes(self) -> Iterator[RouteStatus]:
        """The routes in order."""

    def traffic(self) -> Iterator[Traffic]:
        """What the routes have had to do, in short."""

    async def replicas(self) -> list[Replica]:
        """Those that share the state."""

    def metrics(self, accept: str) -> tuple[Iterator[bytes], str]:
        """(text in pieces, content type) for scrapers, in the format that `accept` prefers."""

    async def upstreams(self) -> Iterator[UpstreamStatus]:
        """All workers' upstreams, summed."""

    async def breakers(self) -> Iterator[BreakerView]:
        """All breakers."""

    async def limits(self) -> Iterator[LimitView | PermitView]:
        """The limits' keys with most traffic, and permits to be in progress."""

    async def override(self, order: Override) -> Outcome:
        """Hold a breaker open or closed, or let go of it. Raises `NoBreaker`, `NobodyObeyed`."""

    async def tasks(self) -> Iterator[msgspec.Raw]:
        """What each worker's tasks are, counted by name."""

    async def reload(self) -> LastReload:
        """Serve what the config file says now."""

    def begin_drain(self) -> None:
        """Finish and exit."""

    async def resize(self, workers: int) -> None:
        """Have so many workers."""


Action: TypeAlias = Callable[[Request], Awaitable[Response]]


def _json(value: object, status: int = 200) -> Response:
    """For what is short."""
    return Response(status, b"".join(pieces(value)))


class Api:
    """The handler for `http.serve`. What may be long is formed in turns of `turns`."""

    def __init__(self, service: Service, turns: Turns) -> None:
        self._service = service
        self._turns = turns
        self._actions: Mapping[str, Mapping[str, Action]] = {
            "/": {"GET": self._dashboard},
            "/livez": {"GET": self._livez},
            "/readyz": {"GET": self._readyz},
            "/metrics": {"GET": self._metrics},
            "/api/status": {"GET": self._status},
            "/api/config": {"GET": self._config},
            "/api/routes": {"GET": self._routes},
            "/api/traffic": {"GET": self._traffic},
            "/api/upstreams": {"GET": self._upstreams},
            _BREAKERS: {"GET": self._breakers},
            "/api/limits": {"GET": self._limits},
            "/api/tasks": {"GET": self._tasks},
            "/api/replicas": {"GET": self._replicas},
            "/api/reload": {"POST": self._reload},
            "/api/drain": {"POST": self._drain},
            "/api/workers": {"POST": self._workers},
        }

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        actions = self._actions.get(request.path)
        if actions is None and request.path.startswith(f"{_BREAKERS}/"):
            actions = {"GET": self._breaker, "POST": self._override}
        if actions is None:
            detail = (
                "not supported by this version"
                if request.path in _NOT_BUILT
                else f"there is no {request.path}"
            )
            return problem(404, "Not found", detail)
        action = actions.get("GET" if request.method == "HEAD" else request.method)
        if action is None:
            allowed = ", ".join([*actions, *(["HEAD"] if "GET" in actions else [])])
            return problem(405, "Method not allowed", f"use {' or '.join(actions)}", {"allow": allowed})
        return await action(request)

    async def _dashboard(self, _: Request) -> Response:
        return Response(200, PAGE, "text/html; charset=utf-8", PAGE_HEADERS)

    async def _livez(self, request: Request) -> Response:
        return _health(request, None if self._service.alive else "no worker is serving")

    async def _readyz(self, request: Request) -> Response:
        return _health(request, self._service.not_ready_because)

    async def _metrics(self, request: Request) -> Response:
        text, content_type = self._service.metrics(request.headers.get("accept", ""))
        return Response(200, await self._turns.take(text), content_type)

    async def _long(self, value: object) -> Response:
        return Response(200, await self._turns.take(pieces(value)))

    async def _status(self, _: Request) -> Response:
        return _json(self._service.status())

    async def _config(self, _: Request) -> Response:
        return await self._long(self._service.config())

    async def _routes(self, _: Request) -> Response:
        return await self._long(self._service.routes())

    async def _traffic(self, _: Request) -> Response:
        return await self._long(self._service.traffic())

    async def _upstreams(self, _: Request) -> Response:
        return await self._long(await self._service.upstreams())

    async def _limits(self, _: Request) -> Response:
        return await self._long(await self._service.limits())

    async def _breakers(self, _: Request) -> Response:
        return await self._long(await self._service.breakers())

    async def _breaker(self, request: Request) -> Response:
        name = request.path.removeprefix(f"{_BREAKERS}/")
        for view in await self._service.breakers():
            if view.name == name:
                return _json(view)
        return problem(404, "Not found", f"there is no breaker '{name}'")

    async def _override(self, request: Request) -> Response:
        try:
            asked = msgspec.json.decode(request.body, type=_Asked)
        except msgspec.MsgspecError as error:
            like = '{"state": "open", "for": "10m", "reason": "maintenance"}'
            return problem(400, "Bad request", f"the body must be like {like}: {error}")
        try:
            for_s = parse_duration(asked.duration) if asked.duration is not None else 0.0
        except Wrong as error:
            return problem(400, "Bad request", f"'for': {error}")
        for_ms = round(for_s * 1000)
        if asked.duration is not None and not for_ms:
            # For the store 0 is without end.
            detail = "'for' must be longer than 0s; leave it out to hold the breaker until further notice"
            return problem(400, "Bad request", detail)
        if for_ms and asked.to == "auto":
            return problem(400, "Bad request", "'for' has no meaning where control is given back")
        if not asked.reason.strip():
            return problem(400, "Bad request", "a 'reason' is needed: it is what others will read")
        for key, text in (("reason", asked.reason), ("by", asked.by)):
            if not text.isprintable():
                detail = f"'{key}' must be one line without control characters: {printable(text)}"
                return problem(400, "Bad request", detail)
            if len(text) > _LONGEST_REASON:
                return problem(400, "Bad request", f"'{key}' is longer than {_LONGEST_REASON} characters")
        order = Override(
            name=request.path.removeprefix(f"{_BREAKERS}/"),
            to=asked.to,
            for_ms=for_ms,
            by=asked.by or ("the admin API" if request.uid is None else f"uid {request.uid}"),
            reason=asked.reason,
        )
        try:
            return _json(await self._service.override(order))
        except NoBreaker as error:
            return problem(404, "Not found", str(error))
        except NobodyObeyed as error:
            return problem(503, "Service unavailable", str(error))

    async def _tasks(self, _: Request) -> Response:
        return await self._long(await self._service.tasks())

    async def _replicas(self, _: Request) -> Response:
        return _json(await self._service.replicas())

    async def _reload(self, _: Request) -> Response:
        done = await self._service.reload()
        generation = self._service.status().generation
        return _json(msgspec.to_builtins(done) | {"generation": generation}, 200 if done.ok else 409)

    async def _drain(self, _: Request) -> Response:
        self._service.begin_drain()
        return _json({"draining": True}, 202)

    async def _workers(self, request: Request) -> Response:
        try:
            asked = msgspec.json.decode(request.body, type=_Workers).workers
        except msgspec.MsgspecError as error:
            return problem(400, "Bad request", f'the body must be like {{"workers": 2}}: {error}')
        if not 1 <= asked <= _MOST_WORKERS:
            return problem(400, "Bad request", f"workers must be from 1 to {_MOST_WORKERS}")
        await self._service.resize(asked)
        return _json({"workers": asked})


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    state: Literal["open", "close", "closed", "auto"]
    reason: str
    duration: str | None = msgspec.field(name="for", default=None)
    by: str = ""

    @property
    def to(self) -> Literal["open", "closed", "auto"]:
        """As the store calls it."""
        return "closed" if self.state == "close" else self.state


class _Workers(msgspec.Struct, forbid_unknown_fields=True):
    workers: int


def _health(request: Request, trouble: str | None) -> Response:
    status = 200 if trouble is None else 503
    if "verbose" in request.query:
        return _json({"ok": trouble is None, "reason": trouble}, status)
    return Response(status, (trouble or "ok").encode() + b"\n", "text/plain; charset=utf-8")
