"""A worker: the composition root of the data plane, and the process that serves clients.

Run by the supervisor as `python -m ambassador.control.worker FD PID`. Only this module builds a worker's parts.

The lane runs in an outer nursery and clients in an inner one: the lane must outlive the strands that it drives.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypedDict

import msgspec
import trio

from ambassador import __version__
from ambassador.config import schema
from ambassador.config.compile import compile_steps, compile_table
from ambassador.config.discover import Found
from ambassador.config.secrecy import holds_secrets
from ambassador.control import breakers, limits
from ambassador.control.certificates import CannotLoad, Certificates
from ambassador.control.duties import CannotServe, obey
from ambassador.control.host import keep_private
from ambassador.control.key_sets import feed, fetch_url
from ambassador.control.last_good import unpacked
from ambassador.control.listeners import keyed
from ambassador.control.logs import ACCESS_LOG, cannot_open, log_to_stderr
from ambassador.control.orders import Brief, KeySetName, KeySetTrouble, KeysRead, Start
from ambassador.control.roll import encode_roll
from ambassador.control.scopes import WorkerScopes
from ambassador.control.sums import ConnectionCounts, EndpointStatus, TokenStatus, UpstreamStatus, answer
from ambassador.control.tokens import TokenServices
from ambassador.extras import REDIS
from ambassador.observe.access_log import AccessLog
from ambassador.observe.metrics import (
    ACCESS,
    CLIENT,
    EGRESS,
    NO_NAME,
    TOKENS,
    AccessMetrics,
    BlockKey,
    LimitMetrics,
    Page,
    RouteMetrics,
    TokenMetrics,
    decode_blocks,
)
from ambassador.proxy.breakers import Breakers
from ambassador.proxy.changes import Changes
from ambassador.proxy.clients.key_sets import KeySet, KeySets
from ambassador.proxy.credentials import Means
from ambassador.proxy.egress import Egress
from ambassador.proxy.http1_requests import Limits
from ambassador.proxy.lane import Lane
from ambassador.proxy.lasting import Lasting
from ambassador.proxy.limit_keys import Limit
from ambassador.proxy.listener import Listener, ListenerLimits
from ambassador.proxy.overload import Monitor, memory_in_use
from ambassador.proxy.policies.concurrency import Bulkheads
from ambassador.proxy.service import Service, Table
from ambassador.proxy.tls import Keyring, Material
from ambassador.proxy.tokens.keeper import Surroundings
from ambassador.proxy.tokens.register import Tokens
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.health import Marks
from ambassador.proxy.upstream.outlier import Outliers
from ambassador.proxy.upstream.upstream import Upstream
from ambassador.secret import Secrets, quiet
from ambassador.state.protocol import Roll
from ambassador.state.store_thread import Store

_COLLECT_AFTER = (5_000, 2, 50)
"""Objects that came and did not go, and collections of one generation before the next. A worker that meets many new
keys at once keeps what comes: with 20,000 and 10 the second generation took 255 ms in one piece while 54,000 keys came,
with these 28 ms, and the youngest 8 in place of 24; all together as long. All objects are looked at after 750,000."""
_STATE_WITHIN_S = 0.5  # a worker that is to count with others waits so long for their store before it serves
_FEW_KEYS = 2000  # of a limit: to find the busiest among them takes 0.5 ms
_SECRETS_EVERY_S = 1.0  # a secret that was replaced is in use so soon
_LOG_TIMEOUT_S = 1.0  # to write the last lines, at the end


class PageCounters:
    """Where routes count: the blocks of this worker's page."""

    def __init__(self, page: Page, blocks: Mapping[BlockKey, int]) -> None:
        self._page = page
        self._blocks = blocks

    def route(self, route: str, upstream: str) -> RouteMetrics:
        """The counters of a route towards an upstream; `-` for none."""
        return self._page.route(self._blocks[BlockKey(route, upstream)])

    def limit(self, owner: str, limit: str) -> LimitMetrics:
        """The counters of a limit; `owner` is its route, or its upstream as `owner_of_upstream` has it."""
        return self._page.limit(self._blocks[BlockKey(owner, NO_NAME, limit)])

    def tokens(self, upstream: str) -> TokenMetrics:
        """The counters of the tokens that are fetched for an upstream."""
        return self._page.tokens(self._blocks[BlockKey(NO_NAME, upstream, TOKENS)])

    def access(self, route: str) -> AccessMetrics:
        """The counters of those whom a route refuses."""
        return self._page.access(self._blocks[BlockKey(route, NO_NAME, ACCESS)])

    def egress(self, upstream: str) -> Callable[[], None]:
        """What counts the connections to an upstream that egress refuses."""
        return self._page.egress(self._blocks[BlockKey(upstream, NO_NAME, EGRESS)]).refused

    def client(self, name: str) -> Callable[[], None]:
        """What counts the requests of a client."""
        return self._page.client(self._blocks[BlockKey(name, NO_NAME, CLIENT)]).asked


class _Generation:
    """What `prepare` made and `commit` puts in force. `log` None: the one in use stays."""

    def __init__(self, config: schema.Config, number: int, table: Table, log: AccessLog | None) -> None:
        self.config = config
        self.number = number
        self.table = table
        self.log = log


class WorkerPlane:
    """The data plane as `duties` drives it. `clients` is the nursery of connections."""

    def __init__(
        self,
        start: Start,
        config: schema.Config,
        page: Page,
        log_fd: int,
        lane: Lane,
        *,
        scopes: WorkerScopes,
        means: Means,
    ) -> None:
        self._page = page
        self._scopes = scopes
        self._metrics = page.worker()
        self._log_fd = log_fd
        self._lane = lane
        self._config = config
        self._prepared: _Generation | None = None
        self._listeners: dict[str, Listener] = {}
        self._last = False
        if holds_secrets(config):
            keep_private()
        scopes.prepare(config.state)
        scopes.use(config.state)
        scopes.generation = start.brief.generation
        me = f"{start.replica}.{start.slot}.{secrets.token_hex(4)}"
        log = logging.getLogger("ambassador")
        self._lasting = Lasting(
            lane,
            breakers=Breakers(lane, replica=start.replica, slot=start.slot, key=me, log=log),
            bulkheads=Bulkheads(lane, holder=me),
            changes=Changes(teller=me),
            marks=Marks(start.brief.unhealthy),
            outliers=Outliers(lane, log=log, tells=start.slot == 0),
            means=means,
        )
        self.certificates = Certificates(self._lasting.keyring)
        self._slot = start.slot
        self._kept_keys: dict[KeySetName, tuple[bytes, float]] = {}
        self._keys_read: dict[KeySetName, bytes] = {}
        self._take_over(start.brief)
        for _ in self._load_certificates(config, start.brief):
            pass
        self.certificates.use(config)
        table = compile_table(
            config,
            lane,
            self._counters(start.brief),
            start.brief.addresses,
            scopes.scopes,
            found=start.brief.found,
            lasting=self._lasting,
        )
        table.begin()
        scopes.govern(_shared_limits(table))
        access_log = self._open_log(config.telemetry)
        self._service = Service(
            lane, table, name=start.instance, access_log=access_log, metrics=self._metrics
        )
        self._monitor: Monitor | None = None
        self._watch_overload(config)

    def serve_in(self, clients: trio.Nursery) -> None:
        """Make the listeners; their connections run in `clients`."""
        self._clients = clients
        self._configure_listeners()

    def watching_garbage(self) -> AbstractContextManager[None]:
        """Count the collector's pauses meanwhile."""
        return self._metrics.watching_garbage()

    # Generations

    def prepare(self, config: schema.Config, brief: Brief) -> Iterator[None]:
        """Compile another generation, in steps. Raises whatever is wrong with it, and nothing has changed then."""
        self._forget_prepared()
        if holds_secrets(config):
            keep_private()
        self._page.remap(brief.page_size)
        self._scopes.prepare(config.state)
        self._take_over(brief)
        yield from self._load_certificates(config, brief)
        counters, scopes = self._counters(brief), self._scopes.scopes
        table = yield from compile_steps(
            config,
            self._lane,
            counters,
            brief.addresses,
            scopes,
            found=brief.found,
            lasting=self._lasting,
        )
        changed = config.telemetry != self._config.telemetry
        log = self._open_log(config.telemetry) if changed else None
        self._prepared = _Generation(config, brief.generation, table, log)

    def commit(self) -> None:
        """Serve what was prepared; requests under way keep the table that they began with."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return
        old, self._service.table = self._service.table, prepared.table
        if prepared.config.telemetry != self._config.telemetry:
            before, self._service.access_log = self._service.access_log, prepared.log
            _close_log(before)
        if prepared.config.overload != self._config.overload:
            self._watch_overload(prepared.config)
        self._config = prepared.config
        self.certificates.use(prepared.config)
        self._scopes.use(prepared.config.state)
        self._scopes.generation = prepared.number
        prepared.table.inherit(old)
        prepared.table.begin()
        self._scopes.govern(_shared_limits(prepared.table))
        self._configure_listeners()
        old.retire()

    def abort(self) -> None:
        """Forget what was prepared."""
        self._forget_prepared()

    def _forget_prepared(self) -> None:
        prepared, self._prepared = self._prepared, None
        self._scopes.use(self._config.state)
        self.certificates.use(self._config)
        if prepared is not None:
            prepared.table.retire()
            _close_log(prepared.log)

    def _take_over(self, brief: Brief) -> None:
        """What is not good when it is read first has been, for the replica."""
        kept, now = brief.kept, self._lane.now
        self._lasting.means.secrets.hand_over(kept.secrets)
        self._kept_keys = {each.name: (each.document, now - each.age_s) for each in kept.key_sets}

    def _load_certificates(self, config: schema.Config, brief: Brief) -> Iterator[None]:
        """Raises `CannotServe` when a file cannot be used, and could not be before."""
        try:
            yield from self.certificates.load(config, unpacked(brief.kept))
        except CannotLoad as error:
            raise CannotServe(str(error)) from None
        for users, problem in self._lasting.keyring.stood_in():
            logging.getLogger("ambassador").error(
                "slot %d: tls of %s: %s; what was in use before is used", self._slot, users, problem
            )

    def _watch_overload(self, config: schema.Config) -> None:
        """Measure whether this worker is overloaded, as the config says, or not at all."""
        if self._monitor is not None:
            self._monitor.stop()
            self._monitor = None
        if config.overload is not None:
            self._monitor = Monitor(config.overload, self._service, lambda: memory_in_use(Path("/")))
            self._monitor.start()

    def _counters(self, brief: Brief) -> PageCounters:
        return PageCounters(self._page, decode_blocks(brief.blocks))

    def _configure_listeners(self) -> None:
        """Have a listener for each that is configured. Those that are gone keep their connections until these end."""
        for key, config in keyed(self._config.listeners).items():
            settings = _listener_settings(config, self._lasting.keyring)
            listener = self._listeners.get(key)
            if listener is None:
                self._listeners[key] = Listener(self._service, self._clients, **settings)
            else:
                listener.configure(**settings)

    # Sockets

    def add(self, listener: str, sock: socket.socket) -> None:
        """Accept from a socket of the listener with this key."""
        self._listeners[listener].add(sock)

    def stop_accepting(self) -> None:
        """Accept from no socket any more: nobody would take a connection that comes now."""
        for listener in self._listeners.values():
            listener.stop()

    def remove(self, listener: str, sock: socket.socket) -> None:
        """Accept from it no more."""
        self._listeners[listener].remove(sock)

    def take_rest(self, listener: str, sock: socket.socket) -> None:
        """Accept what waits at a socket that was removed and that listens no more."""
        self._lane.tick()
        self._listeners[listener].take_rest(sock)

    # While it runs

    def set_addresses(self, host: str, addresses: tuple[str, ...]) -> None:
        """A name has other addresses now, for what is prepared as well."""
        self._service.table.set_addresses(host, addresses)
        if self._prepared is not None:
            self._prepared.table.set_addresses(host, addresses)

    def set_unhealthy(self, unhealthy: Mapping[str, Mapping[str, str]]) -> None:
        """Of these upstreams other endpoints are unhealthy now. What is prepared learns of it when it is served."""
        self._lane.tick()
        self._lasting.marks.learn(unhealthy)

    def take_found(self, found: Found) -> None:
        """A source has other endpoints now, for what is prepared as well."""
        self._lane.tick()
        self._service.table.take_found(found.source, found.servers, found.addresses)
        if self._prepared is not None:
            self._prepared.table.take_found(found.source, found.servers, found.addresses)

    def take_secrets(self) -> None:
        """Secrets have been read again, for what is prepared as well."""
        tables = [self._service.table, *([] if self._prepared is None else [self._prepared.table])]
        for table in tables:
            if table.clients is not None:
                table.clients.refresh()
            for upstream in table.upstreams.values():
                if upstream.credential is not None:
                    upstream.credential.problem()  # so that the log hears of it before a client does

    @property
    def egress(self) -> Egress:
        """Where the worker's own calls may go."""
        return Egress(self._config.egress)

    @property
    def key_sets(self) -> KeySets:
        """What clients' tokens are verified with."""
        return self._lasting.key_sets

    def known_keys(self, key_set: KeySet) -> tuple[bytes, float] | None:
        """What others had of a set when this worker was given its config, and when by the lane's clock."""
        return self._kept_keys.get(KeySetName(key_set.source, key_set.ca, key_set.via))

    def note_keys(self, key_set: KeySet, document: bytes) -> None:
        """A set has been read."""
        self._keys_read[KeySetName(key_set.source, key_set.ca, key_set.via)] = document

    def keys_read(self) -> list[KeysRead]:
        """The sets of public keys that have been read since it was asked last."""
        read, self._keys_read = self._keys_read, {}
        return [KeysRead(name=name, document=document) for name, document in read.items()]

    def drain(self, *, last: bool) -> None:
        """From now on answers say `Connection: close`. `last`: no other worker takes this one's place."""
        self._service.draining = True
        self._last = last

    def close_idle(self) -> None:
        """Close connections that wait for a request."""
        for listener in self._listeners.values():
            listener.close_idle()

    def reopen(self) -> None:
        """Open log files again, by name."""
        if self._service.access_log is not None:
            self._service.access_log.reopen()

    def beat(self) -> float:
        """Write down the gauges; returns the loop's longest turn since the last call, in milliseconds."""
        lag_s, self._lane.lag_s = self._lane.lag_s, 0.0
        log = self._service.access_log
        inflight = self._service.inflight
        self._metrics.beat(
            loop_lag_s=lag_s,
            inflight=inflight,
            client=(inflight, max(0, self._service.connections - inflight)),
            upstream=self._upstream_connections(),
            log_dropped=0 if log is None else log.dropped,
            state_up=self._scopes.up,
            state_operations=self._scopes.operations,
        )
        return lag_s * 1000

    def _upstream_connections(self) -> tuple[int, int]:
        """(active, idle)."""
        pools = [endpoint.pool for _, endpoint in self._endpoints()]
        idle = sum(pool.idle_count for pool in pools)
        return sum(pool.open for pool in pools) - idle, idle

    def _endpoints(self) -> Iterator[tuple[Upstream, Endpoint]]:
        for upstream in self._service.table.upstreams.values():
            for endpoint in upstream.endpoints:
                yield upstream, endpoint

    @property
    def connections(self) -> int:
        """Client connections that are open."""
        return self._service.connections

    @property
    def inflight(self) -> int:
        """Requests that are not finished."""
        return self._service.inflight

    def answer(self, what: str, give: Callable[[bytes], None]) -> None:
        """Answer a question of the admin API: `give` it at once or later."""
        if what == "replicas":
            self._scopes.scopes.fleet.ask(Roll(), lambda told: give(encode_roll(told)))
        elif what == "breakers":
            self._lane.tick()
            give(breakers.answer(self._lasting.breakers.status()))
        elif what == "permits":
            give(limits.permit_answer(bulkhead.status() for bulkhead in self._lasting.bulkheads))
        elif what == "limits":
            self._lane.tick()
            give(limits.answer([each for policy in self._service.table.limits for each in policy.status()]))
        else:
            give(msgspec.json.encode(self._tasks()) if what == "tasks" else answer(self._upstreams()))

    @property
    def generation(self) -> int:
        """The number of the generation that is served."""
        return self._scopes.generation

    def counts(self, *, whole: bool) -> Iterator[bytes]:
        """What limits have counted since it is served, in steps: lines as of `limits.counted`. Unless `whole`, without
        those that it would take long to look through.
        """
        for policy in self._service.table.limits:
            for limit in policy.limits:
                if whole or limit.size <= _FEW_KEYS:
                    yield limits.counted(limit.status())

    def act(self, data: bytes, done: Callable[[bytes], None]) -> None:
        """Carry out an override of a breaker."""
        order = msgspec.msgpack.decode(data, type=breakers.Override)

        def obeyed(done_it: bool, why: str = "") -> None:  # noqa: FBT001 - as `Breakers.force` calls it
            done(msgspec.msgpack.encode(breakers.Obeyed(done_it, why)))

        self._lane.tick()
        try:
            if order.here_us:
                self._lasting.breakers.force_here(
                    order.name,
                    order.to,
                    now_us=order.here_us,
                    for_ms=order.for_ms,
                    by=order.by,
                    reason=order.reason,
                )
                obeyed(True)
            else:
                self._lasting.breakers.force(
                    order.name, order.to, for_ms=order.for_ms, by=order.by, reason=order.reason, done=obeyed
                )
        except KeyError:
            obeyed(False)  # a reload has just taken it away

    @property
    def open_breakers(self) -> Mapping[str, tuple[int, int]]:
        """Breakers that are not closed: epoch and state."""
        return self._lasting.breakers.open

    @property
    def ejections(self) -> Mapping[str, tuple[int, int]]:
        """Of each upstream that has had ejections: endpoints that are ejected, and ejections so far."""
        return self._lasting.outliers.figures()

    @property
    def key_set_troubles(self) -> Mapping[str, KeySetTrouble]:
        """As `orders.Beat` has them."""
        clients = self._service.table.clients
        troubles: dict[str, KeySetTrouble] = {}
        told: set[KeySet] = set()
        for name, key_set in () if clients is None else clients.key_sets.items():
            if key_set.failing_since is None or key_set in told:
                continue
            told.add(key_set)
            self._lane.tick()
            since = self._service.wall_s() - (self._lane.now - key_set.failing_since)
            troubles[name] = KeySetTrouble(since, key_set.problem, bool(key_set.keys))
        return troubles

    def _tasks(self) -> list[dict[str, object]]:
        root = trio.lowlevel.current_root_task()
        assert root is not None
        counts = Counter(_task_names(root))
        return [{"name": name, "count": count} for name, count in sorted(counts.items())]

    def _upstreams(self) -> list[UpstreamStatus]:
        self._lane.tick()
        now, wall_s = self._lane.now, self._service.wall_s()
        return [
            UpstreamStatus(
                name=upstream.name,
                endpoints=[_endpoint_status(upstream, each, now, wall_s) for each in upstream.endpoints],
                token=_token_status(upstream),
                credential=None if upstream.credential is None else upstream.credential.problem(),
            )
            for upstream in self._service.table.upstreams.values()
        ]

    # Logs

    def _open_log(self, telemetry: schema.Telemetry) -> AccessLog | None:
        """Raises `CannotServe` when a file cannot be opened."""
        if telemetry.access_log is None:
            return None
        target = os.dup(self._log_fd) if telemetry.access_log == "stdout" else telemetry.access_log
        try:
            return AccessLog(target, sample=telemetry.sample)
        except OSError as error:
            raise CannotServe(f"{ACCESS_LOG}: {cannot_open(telemetry.access_log, error)}") from error

    def close_logs(self) -> None:
        """Write the last lines."""
        _close_log(self._service.access_log)

    def leave_stores(self) -> None:
        """Give the stores what is still to be told, and what was leased of calendar quotas."""
        for policy in self._service.table.limits:
            policy.retire()
        self._lasting.bulkheads.leave()
        if self._monitor is not None:
            self._monitor.stop()
        if self._last:
            self._scopes.leave()  # else the one in its place beats under the same name
        self._scopes.close()


def _close_log(log: AccessLog | None) -> None:
    if log is not None:
        log.close(_LOG_TIMEOUT_S)


def _shared_limits(table: Table) -> list[Limit]:
    """Those that all replicas share."""
    return [limit for policy in table.limits for limit in policy.limits if limit.config.mode != "local"]


class _Settings(TypedDict):
    limits: ListenerLimits
    head_limits: Limits
    trusted: tuple[str, ...]
    cancel_on_half_close: bool
    tls: Material | None


def _listener_settings(config: schema.Listener, keyring: Keyring) -> _Settings:
    limits = config.limits
    return {
        "limits": ListenerLimits(
            connections=limits.connections,
            idle=limits.idle,
            header_timeout=limits.header_timeout,
            body_timeout=limits.body_timeout,
            min_rate=limits.min_rate,
            requests_per_connection=limits.requests_per_connection,
        ),
        "head_limits": Limits(limits.header_bytes, limits.headers, limits.uri, limits.body),
        "trusted": config.trusted,
        "cancel_on_half_close": config.half_close == "cancel",
        "tls": None if config.tls is None else keyring.server(config.tls, f"listener {config.address}"),
    }


def _endpoint_status(upstream: Upstream, endpoint: Endpoint, now: float, wall_s: float) -> EndpointStatus:
    idle = endpoint.pool.idle_count
    addresses = endpoint.addresses
    first = addresses[0][1] if addresses else None
    latency_s = endpoint.latency_s(now)
    return EndpointStatus(
        url=endpoint.url,
        address=first[0] if isinstance(first, tuple) else first,
        healthy=first is not None and endpoint.healthy,
        ejected_until=wall_s + endpoint.ejected_until - now if endpoint.ejected_until > now else None,
        weight=endpoint.weight,
        zone=endpoint.zone or None,
        priority=endpoint.priority,
        inflight=endpoint.inflight,
        ewma_ms=None if latency_s is None else latency_s * 1000,
        connections=ConnectionCounts(idle=idle, active=endpoint.pool.open - idle),
        why=upstream.why_not(endpoint) or None,
    )


def _token_status(upstream: Upstream) -> TokenStatus | None:
    standing = None if upstream.credential is None else upstream.credential.standing()
    if standing is None:
        return None
    return TokenStatus(
        valid_for_s=standing.valid_for_s, problem=standing.problem or None, next_try_s=standing.next_try_s
    )


def _task_names(task: trio.lowlevel.Task) -> Iterator[str]:
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield child.name
            yield from _task_names(child)


def _settle_garbage() -> None:
    """What there is before the first client stays: keep the collector from looking at it again and again.

    Requests leave no cycles behind, so the youngest generation is looked at seldom. Not to be done again later: what is
    frozen is never collected, and by then clients' connections would be among it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


async def _keep_current(kept: Secrets, changed: Callable[[], None]) -> None:
    """Read secrets again, for ever: in a thread, since a mount may hang. `changed` is called when it is done."""
    while True:
        await trio.sleep(_SECRETS_EVERY_S)
        files = kept.files()
        if files:
            await trio.to_thread.run_sync(kept.refresh, files, abandon_on_cancel=True)
            changed()


def _open_fleet(state: schema.State) -> Store:
    try:
        from ambassador.control.fleet import FleetStore  # noqa: PLC0415 - 50 ms that only those pay who need it
    except ImportError as error:
        raise CannotServe(f"state: a Redis needs the extra 'redis' ({REDIS.hint}): {error}") from None
    return FleetStore(state)


@asynccontextmanager
async def open_plane(
    start: Start, config: schema.Config, page_fd: int, log_fd: int, store_fd: int
) -> AsyncIterator[WorkerPlane]:
    """The data plane of this process, from its first generation to the last log line."""
    page = Page.attach(page_fd, start.brief.page_size)
    async with trio.open_nursery() as outer:
        lane = Lane()
        await outer.start(lane.run)
        scopes = WorkerScopes(
            lane,
            socket.socket(fileno=store_fd),
            replica=start.replica,
            slot=start.slot,
            started=start.started,
            open_remote=_open_fleet,
        )
        secrets_kept = Secrets(None if start.slot == 0 else quiet())
        services = TokenServices(f"ambassador/{__version__}", outer, egress=lambda: plane.egress)
        around = Surroundings(
            lane, services.ask, time.time, chance=random.random, log=logging.getLogger("ambassador")
        )
        means = Means(secrets_kept, time.time, Tokens(around, scopes.scopes))
        plane = WorkerPlane(start, config, page, log_fd, lane, scopes=scopes, means=means)
        outer.start_soon(plane.certificates.run)
        outer.start_soon(_keep_current, secrets_kept, plane.take_secrets)
        outer.start_soon(
            partial(
                feed,
                plane.key_sets,
                log=quiet() if start.slot else logging.getLogger("ambassador"),
                fetch=lambda url, ca, via: fetch_url(url, ca, plane.egress, via),
                known=plane.known_keys,
                tell=plane.note_keys,
            )
        )
        await scopes.wait_up(_STATE_WITHIN_S)
        _settle_garbage()
        try:
            with plane.watching_garbage():
                async with trio.open_nursery() as clients:
                    plane.serve_in(clients)
                    yield plane
                    plane.stop_accepting()
                    clients.cancel_scope.cancel()
        finally:
            plane.leave_stores()
            plane.close_logs()
            os.close(log_fd)
            page.close()
        outer.cancel_scope.cancel()


if __name__ == "__main__":
    log_to_stderr()
    sys.exit(obey(int(sys.argv[1]), int(sys.argv[2]), open_plane))
