"""A worker process, put together: the only place that builds the parts of the data plane.

`python -m ambassador.control.worker FD SUPERVISOR_PID`, started by the supervisor and by nobody else.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import sys
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from ambassador.config.compile import compile_table
from ambassador.control.duties import obey
from ambassador.observe.access_log import AccessLog
from ambassador.observe.metrics import NO_NAME, BlockKey, Page, decode_blocks
from ambassador.proxy.http1_parser import Limits
from ambassador.proxy.lane import Lane
from ambassador.proxy.listener import Listener, ListenerLimits
from ambassador.proxy.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ambassador.config import schema
    from ambassador.control.orders import Brief, Start
    from ambassador.observe.metrics import RouteMetrics
    from ambassador.proxy.service import Table

_BEAT_EVERY_S: Final = 0.5
_LOG_FLUSH_S: Final = 1.0


class _Counters:
    """Blocks of the worker's page, by route and upstream."""

    def __init__(self, page: Page, blocks: bytes) -> None:
        self._page = page
        self._blocks = decode_blocks(blocks)

    def route(self, route: str, upstream: str) -> RouteMetrics:
        return self._page.route(self._blocks[BlockKey(route or NO_NAME, upstream or NO_NAME)])


class WorkerPlane:
    """The data plane as the supervisor's orders see it (`duties.Plane`)."""

    def __init__(self, start: Start, config: schema.Config, page: Page, log_fd: int, lane: Lane, nursery: trio.Nursery) -> None:
        self._page = page
        self._log_fd = log_fd
        self._lane = lane
        self._nursery = nursery
        self._addresses = dict(start.brief.addresses)
        self._prepared: tuple[schema.Config, Table] | None = None
        self._listeners: dict[str, Listener] = {}
        self._metrics = page.worker()
        self._lag_s = 0.0
        self._log_target: str | None = None
        self.service = Service(
            lane, self._compile(config, start.brief), name=config.name or start.instance, access_log=None
        )
        self._apply(config)
        nursery.start_soon(self._beat)

    def _compile(self, config: schema.Config, brief: Brief) -> Table:
        self._addresses.update(brief.addresses)
        self._page.remap(brief.page_size)
        return compile_table(config, self._lane, _Counters(self._page, brief.blocks), self._addresses)

    def _apply(self, config: schema.Config) -> None:
        """What of a generation lives outside the table: listeners' settings and the log."""
        for listener in config.listeners:
            self._listeners[listener.address] = self._listener(listener)
        telemetry = config.telemetry
        if telemetry.access_log != self._log_target:
            if self.service.access_log is not None:
                self.service.access_log.close(_LOG_FLUSH_S)
            self._log_target = telemetry.access_log
            self.service.access_log = self._open_log(telemetry)
        gc.collect()
        gc.freeze()

    def _open_log(self, telemetry: schema.Telemetry) -> AccessLog | None:
        if telemetry.access_log is None:
            return None
        target = self._log_fd if telemetry.access_log == "stdout" else telemetry.access_log
        return AccessLog(target, sample=telemetry.sample)

    def _listener(self, config: schema.Listener) -> Listener:
        limits = config.limits
        settings = {
            "limits": ListenerLimits(
                connections=limits.connections,
                idle=limits.idle,
                header_timeout=limits.header_timeout,
                body_timeout=limits.body_timeout,
                min_rate=limits.min_rate,
                requests_per_connection=limits.requests_per_connection,
            ),
            "head_limits": Limits(limits.header_bytes, limits.headers, limits.uri, limits.body),
        }
        known = self._listeners.get(config.address)
        if known is not None:
            known.configure(
                trusted=config.trusted, cancel_on_half_close=config.half_close == "cancel", **settings
            )
            return known
        return Listener(
            self.service,
            self._nursery,
            trusted=config.trusted,
            cancel_on_half_close=config.half_close == "cancel",
            **settings,
        )

    async def _beat(self) -> None:
        while True:
            lag, self._lane.lag_s = self._lane.lag_s, 0.0
            self._lag_s = max(self._lag_s, lag)
            log = self.service.access_log
            active = min(self.service.inflight, self.service.connections)
            upstream_open, upstream_idle = self._upstream_connections()
            self._metrics.beat(
                loop_lag_s=lag,
                inflight=self.service.inflight,
                client=(active, self.service.connections - active),
                upstream=(upstream_open - upstream_idle, upstream_idle),
                log_dropped=log.dropped if log is not None else 0,
            )
            await trio.sleep(_BEAT_EVERY_S)

    def _upstream_connections(self) -> tuple[int, int]:
        pools = [
            endpoint.pool for upstream in self.service.table.upstreams.values() for endpoint in upstream.endpoints
        ]
        return sum(pool.open for pool in pools), sum(pool.idle_count for pool in pools)

    # Orders

    def prepare(self, config: schema.Config, brief: Brief) -> None:
        self._prepared = (config, self._compile(config, brief))

    def commit(self) -> None:
        assert self._prepared is not None
        (config, table), self._prepared = self._prepared, None
        old, self.service.table = self.service.table, table
        old.retire()
        self._apply(config)

    def abort(self) -> None:
        self._prepared = None

    def add(self, address: str, sock: socket.socket) -> None:
        self._listeners[address].add(sock)

    def remove(self, address: str, sock: socket.socket) -> None:
        self._listeners[address].remove(sock)

    def set_addresses(self, host: str, addresses: tuple[str, ...]) -> None:
        self._addresses[host] = addresses
        self.service.table.set_addresses(host, addresses)
        if self._prepared is not None:
            self._prepared[1].set_addresses(host, addresses)

    def drain(self) -> None:
        self.service.draining = True

    def close_idle(self) -> None:
        for listener in self._listeners.values():
            listener.close_idle()

    def reopen(self) -> None:
        if self.service.access_log is not None:
            self.service.access_log.reopen()

    def answer(self, what: str) -> bytes:
        if what == "upstreams":
            return msgspec.json.encode([_describe(upstream) for upstream in self.service.table.upstreams.values()])
        if what == "tasks":
            return msgspec.json.encode(self._tasks())
        return b"null"

    def _tasks(self) -> list[dict[str, object]]:
        return [
            {"name": "client connections", "count": self.service.connections},
            {"name": "requests", "count": self.service.inflight},
            {"name": "registered sockets", "count": self._lane.link_count},
        ]

    def take_lag_ms(self) -> float:
        lag, self._lag_s = max(self._lag_s, self._lane.lag_s), 0.0
        return lag * 1000

    @property
    def connections(self) -> int:
        return self.service.connections

    @property
    def inflight(self) -> int:
        return self.service.inflight

    def close(self) -> None:
        """The end: logs are flushed, what is unused is closed."""
        if self.service.access_log is not None:
            self.service.access_log.close(_LOG_FLUSH_S)
        self.service.table.retire()
        self.service.splices.close()


def _describe(upstream: object) -> dict[str, object]:
    from ambassador.proxy.plan import Upstream

    assert isinstance(upstream, Upstream)
    return {
        "name": upstream.name,
        "endpoints": [
            {
                "url": endpoint.url,
                "address": ", ".join(str(where[1][0]) if isinstance(where[1], tuple) else str(where[1]) for where in endpoint.addresses),
                "healthy": True,
                "ejected_until": None,
                "weight": endpoint.weight,
                "zone": None,
                "priority": 0,
                "inflight": endpoint.inflight,
                "ewma_ms": None,
                "connections": {
                    "idle": endpoint.pool.idle_count,
                    "active": endpoint.pool.open - endpoint.pool.idle_count,
                },
                "why": None,
            }
            for endpoint in upstream.endpoints
        ],
    }


@contextlib.asynccontextmanager
async def open_plane(start: Start, config: schema.Config, page_fd: int, log_fd: int) -> AsyncIterator[WorkerPlane]:
    """A data plane that serves `start.brief`; leaving the context cuts what is under way."""
    page = Page.attach(page_fd, start.brief.page_size)
    lane = Lane()
    async with trio.open_nursery() as outer:  # the lane outlives every strand: else nobody drives them to their end
        await outer.start(lane.run)
        async with trio.open_nursery() as nursery:
            plane = WorkerPlane(start, config, page, log_fd, lane, nursery)
            try:
                yield plane
            finally:
                nursery.cancel_scope.cancel()
        plane.close()
        outer.cancel_scope.cancel()


if __name__ == "__main__":
    sys.exit(obey(int(sys.argv[1]), int(sys.argv[2]), open_plane))
