"""The supervisor: one `trio.run` that owns what must outlive a worker, and serves no client itself.

It binds (`slots`), starts workers (`crew`), tells about them (`admin`), and obeys signals (`signals`) and the API in
the same way: reload (`reload`), resize, replace, drain. Its loop must never stall, since heartbeats, counters and the
health of the whole service are told by it: the config is checked in another process (`checker`), standard output has
a thread.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType

import msgspec
import trio

from ambassador import __version__
from ambassador.config.discover import Discover, Found
from ambassador.config.schema import Admin, Config, Upstream
from ambassador.config.secrecy import holds_secrets
from ambassador.control import socket_path
from ambassador.control.admin.api import Api
from ambassador.control.admin.doors import AdminDoor, ControlDoor, serve_door
from ambassador.control.breakers import BreakerView, BreakerViews, Outcome, Override, breaker_names, override
from ambassador.control.certificates import CannotLoad, Certificates
from ambassador.control.checker import Checker
from ambassador.control.checking import CHECKING_MODULE, Checked
from ambassador.control.crew import Crew
from ambassador.control.deployment import Deployment, random_name
from ambassador.control.discovery.directory import Directory, SourceStatus
from ambassador.control.discovery.dns import Resolver
from ambassador.control.health import Calls, HealthChecks, watched_upstreams
from ambassador.control.host import keep_private, raise_descriptor_limit, usable_cpus
from ambassador.control.incarnation import WORKER_MODULE
from ambassador.control.key_set_status import KeySetStatus, key_set_statuses
from ambassador.control.last_good import KeptByReplica
from ambassador.control.limits import LimitView, LimitViews, PastCounts, PermitView, permits
from ambassador.control.logs import ACCESS_LOG, why_not_writable
from ambassador.control.names import host_names, sources
from ambassador.control.orders import Addresses, Discovered, Health, Reopen
from ambassador.control.output import Output
from ambassador.control.pages import Pages
from ambassador.control.places import Unusable, blaming, told
from ambassador.control.provision import Equipment
from ambassador.control.refusals import Refusals
from ambassador.control.reload import LastReload, Reload
from ambassador.control.roll import Replica, decode_roll
from ambassador.control.slots import BindError
from ambassador.control.state_watch import StateWatch
from ambassador.control.status import (
    ListenerStatus,
    RouteStatus,
    StateStatus,
    Status,
    masked,
    route_status,
    worker_status,
)
from ambassador.control.store import StoreServer
from ambassador.control.sums import UpstreamStatus, UpstreamSums
from ambassador.control.turns import Turns
from ambassador.observe.families import Figures, KeySetFigures, Traffic
from ambassador.proxy.egress import Egress
from ambassador.proxy.limit_keys import LimitStatus
from ambassador.proxy.tls import Keyring
from ambassador.secret import SecretError, read_secret

_OUTPUT_TIMEOUT_S = 1.0
_ADMIN_MOVES_AFTER_S = 1.0  # an answer that is under way on the old address
_INTERRUPTED_S = 5.0  # what Ctrl-C leaves for requests under way


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What is told when the service is there."""

    listeners: tuple[str, ...]
    admin: str | None
    control: str
    state: str
    pid: int


class Supervisor:
    """`run` serves until it has drained; the rest is what signals and the admin API ask of it.

    `config_file` is what a reload reads; None when the config came from the command line. `workers` overrides the
    config's number, until the next reload brings another. `places`: where the config's settings stand, see
    `config.load.Loaded`. `warm`: the process that checks is there before the first
    reload, not from then on. `module` and `checking` are what workers and that process run.
    """

    def __init__(
        self,
        config: Config,
        log: logging.Logger,
        *,
        config_file: str | None = None,
        workers: int | None = None,
        places: Mapping[str, str] = MappingProxyType({}),
        warm: bool = True,
        module: str = WORKER_MODULE,
        checking: str = CHECKING_MODULE,
    ) -> None:
        self._log = log
        self._file = config_file
        self._places = places
        self._warm = warm and config_file is not None
        self._checker = Checker(checking)
        self._asked_workers = workers
        self._pages = Pages()
        directory = Directory(partial(Resolver, log=log), self._push_addresses, self._push_found, log=log)
        self._certificates = Certificates(Keyring(log))
        self._kept = KeptByReplica(self._certificates.keyring)
        self._refusals = Refusals(log)
        self._health = HealthChecks(
            directory.addresses,
            self._push_health,
            log=log,
            check=Calls(
                self._certificates.keyring, egress=lambda: Egress(self._deployment.config.egress)
            ).check,
        )
        self._deployment = Deployment(
            config,
            config.name or random_name(),
            self._pages,
            directory,
            self._health.unhealthy,
            places=places,
            kept=self._kept.kept,
        )
        self._output = Output(1, waits=True)
        self._store = StoreServer(log)
        equipment = Equipment(self._deployment, self._output, self._store, self._kept.learn)
        self._crew = Crew(equipment, log, module=module)
        self._state_watch = StateWatch(
            self._pages, lambda: self._deployment.config.state, log, own=self._store.findings
        )
        self._changing = trio.Lock()
        self._last_reload: LastReload | None = None
        self._draining = False
        self._there = trio.Event()
        self._drained = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._admin: _Admin | None = None
        self._old_admins: dict[str, _Admin] = {}
        """By address: doors that are open for a moment longer. A reload that wants one again takes it back."""
        self._control: ControlDoor | None = None
        self._turns = Turns()
        self._api = Api(self, self._turns)

    # Life

    async def run(self) -> None:
        """Serve until drained.

        Raises `BindError` when an address cannot be had, `SecretError` and `Unusable` for other settings that cannot be
        used here, `NoWorker` when no worker can start.
        """
        raise_descriptor_limit()
        config = self._deployment.config
        if holds_secrets(config):
            keep_private()
        size = self._asked_workers or config.workers or usable_cpus()
        with ExitStack() as stack:
            stack.callback(self._output.close, _OUTPUT_TIMEOUT_S)
            stack.callback(self._deployment.close)
            why = why_not_writable(config.telemetry.access_log)
            if why is not None:
                raise Unusable(told(self._places, ACCESS_LOG, why))
            self._load_certificates(config)
            self._kept.add(config)
            self._deployment.bind(range(size))
            self._open_doors(stack)
            async with trio.open_nursery() as self._nursery:
                await self._nursery.start(self._deployment.directory.run)
                await self._deployment.directory.watch(host_names(config), sources(config))
                self._watch_health()
                self._nursery.start_soon(self._health.run)
                self._nursery.start_soon(self._certificates.run)
                self._nursery.start_soon(self._kept.run)
                assert self._control is not None
                self._nursery.start_soon(serve_door, self._control, self._api, self._log)
                if self._admin is not None:
                    self._nursery.start_soon(self._serve_admin, self._admin)
                self._nursery.start_soon(self._end_when_drained)
                self._nursery.start_soon(self._state_watch.run)
                await self._nursery.start(self._checker.run)
                await self._nursery.start(self._crew.run, size)
                # What there is now stays: without this each full collection holds the loop for 30 ms.
                gc.collect()
                gc.freeze()
                self._there.set()
                if self._warm:
                    self._checker.warm()

    def _load_certificates(self, config: Config) -> None:
        """Raises `Unusable`."""
        try:
            for _ in self._certificates.load(config):
                pass
        except CannotLoad as error:
            raise Unusable(told(self._places, error.setting, error.problem)) from None
        self._certificates.use(config)

    def _open_doors(self, stack: ExitStack) -> None:
        config = self._deployment.config
        if config.admin is not None:
            self._admin = _open_admin(config.admin, self._places)
        stack.callback(self._close_admin)
        if config.control is not None:
            path = config.control.removeprefix("unix:")
        else:
            socket_path.make_directory()
            path = str(socket_path.default_path(self._label()))
        with blaming(self._places, "control", BindError):
            self._control = ControlDoor(path)
        stack.callback(self._control.close)

    def _label(self) -> int | str:
        """What names this instance's control socket: its first port, or the name of its first unix socket."""
        first = next(iter(self._deployment.bindings.values()))
        return first.port or os.path.basename(first.address).removesuffix(".sock")

    def _close_admin(self) -> None:
        for admin in (self._admin, *self._old_admins.values()):
            if admin is not None:
                admin.door.close()

    async def _serve_admin(self, admin: _Admin) -> None:
        admin.served = True
        with admin.serving:
            await serve_door(admin.door, self._api, self._log)

    def _move_admin(self, admin: _Admin | None) -> None:
        """Serve the API on another address. The old one goes once it has told how the reload went."""
        assert self._nursery is not None
        if admin is self._admin:
            return
        before, self._admin = self._admin, admin
        if before is not None:
            self._leave_admin(before)
        if admin is not None and not admin.served:
            self._nursery.start_soon(self._serve_admin, admin)

    def _leave_admin(self, admin: _Admin) -> None:
        assert self._nursery is not None
        admin.left += 1
        self._old_admins[admin.door.admin.address] = admin
        self._nursery.start_soon(self._retire_admin, admin, admin.left)

    async def _retire_admin(self, admin: _Admin, left: int) -> None:
        await trio.sleep(_ADMIN_MOVES_AFTER_S)
        address = admin.door.admin.address
        if self._old_admins.get(address) is admin and admin.left == left:
            del self._old_admins[address]
            admin.serving.cancel()
            admin.door.close()

    async def _end_when_drained(self) -> None:
        assert self._nursery is not None
        await self._drained.wait()
        self._nursery.cancel_scope.cancel()

    async def announcement(self) -> Announcement:
        """What there is, once clients are served."""
        await self._there.wait()
        assert self._control is not None
        return Announcement(
            listeners=tuple(self._deployment.urls()),
            admin=None if self._admin is None else self._admin.door.url,
            control=self._control.path,
            state=self._deployment.config.state.url,
            pid=os.getpid(),
        )

    def say(self, text: str) -> None:
        """The first line on standard output: programs that start this one read it. The access log comes after it."""
        self._output.put_first(text.encode() + b"\n")

    # What is asked of us, by signals and by the API

    async def reload(self) -> LastReload:
        """Serve what the config file says now; on any error, what was served before."""
        async with self._changing:
            self._last_reload = await self._reload()
            return self._last_reload

    async def _reload(self) -> LastReload:
        if self._draining:
            return LastReload(ok=False, at=time.time(), errors=("the service is draining",))
        before = self._deployment.config
        checked = await self._check()
        try:
            admin = self._admin_for(checked)
        except (BindError, SecretError) as error:
            self._log.error("reload: %s", error)
            self._log.error("not reloaded; generation %d is served on", self._deployment.generation)
            return LastReload(ok=False, at=time.time(), errors=(str(error),))
        done = await self._apply(checked)
        if not done.ok:
            if admin is not None and admin is not self._admin:
                if admin.served:
                    self._leave_admin(admin)
                else:
                    admin.door.close()
            return done
        config = self._deployment.config
        self._watch_health()
        self._move_admin(admin)
        if admin is not None and config.admin is not None:
            admin.door.admin = config.admin
        if config.workers != before.workers:
            self._crew.resize(config.workers or usable_cpus())
        return done

    async def _apply(self, checked: Checked) -> LastReload:
        """Serve the checked config, with its certificates, or say why not."""
        if checked.config is not None:
            if holds_secrets(checked.config):
                keep_private()
            try:
                # A thread: files may be far away, and the system's authorities take 20 ms.
                await trio.to_thread.run_sync(deque, self._certificates.load(checked.config), 0)
            except CannotLoad as error:
                text = told(checked.places, error.setting, error.problem)
                checked = Checked(config=None, errors=(text,), warnings=checked.warnings)
        try:
            if checked.config is not None:
                await self._kept.add_soon(checked.config)
            return await Reload(self._deployment, self._crew, self._log).apply(checked)
        finally:
            self._certificates.use(self._deployment.config)
            self._kept.only(self._deployment.config)

    def _admin_for(self, checked: Checked) -> _Admin | None:
        """The door that the config wants: one that there is, or a new one that is not served yet."""
        config = checked.config
        if config is None or config.admin is None:
            return None
        if config.admin.token is not None and config.admin != self._deployment.config.admin:
            with blaming(checked.places, "admin.token", SecretError):
                read_secret(config.admin.token)
        if self._admin is not None and self._admin.door.admin.address == config.admin.address:
            return self._admin
        left = self._old_admins.pop(config.admin.address, None)
        if left is not None:
            return left
        return _open_admin(config.admin, checked.places)

    async def _check(self) -> Checked:
        if self._file is None:
            return Checked(config=None, errors=("there is no config file to read again: started with --to",))
        checked = await self._checker.check(self._file)
        for line in checked.warnings:
            self._log.warning("%s", line)
        return checked

    async def resize(self, workers: int) -> None:
        """Have so many workers, at least one."""
        async with self._changing:
            if not self._draining:
                self._crew.resize(max(1, workers))

    async def resize_by(self, difference: int) -> None:
        """So many workers more, or less."""
        await self.resize(self._crew.size + difference)

    async def replace_all(self) -> None:
        """Put workers that run the code as it is now installed in the places of all."""
        if await self._crew.replace_all():
            self._checker.renew()
            self._log.info("every worker is replaced")
        else:
            self._log.error("not every worker is replaced; those that could not be serve on")

    def reopen(self) -> None:
        """Open log files again, by name."""
        self._crew.post(Reopen())

    def begin_drain(self) -> None:
        """Finish as the config says, and exit."""
        drain = self._deployment.config.drain
        self._begin_drain(drain.delay, drain.timeout)

    def interrupt(self) -> None:
        """Finish within five seconds, and exit; asked again, at once."""
        timeout_s = min(_INTERRUPTED_S, self._deployment.config.drain.timeout)
        if self._draining:
            self._crew.shorten(0.0, timeout_s)
        else:
            self._begin_drain(0.0, timeout_s)

    def exit_now(self) -> None:
        """Cut everything."""
        self._draining = True
        self._crew.ending = True
        self._crew.kill()
        self._drained.set()

    def _begin_drain(self, delay_s: float, timeout_s: float) -> None:
        assert self._nursery is not None
        if not self._draining:
            self._draining = True
            self._log.info("draining: accepting for %g s more, then %g s to finish", delay_s, timeout_s)
            self._nursery.start_soon(self._drain, delay_s, timeout_s)

    async def _drain(self, delay_s: float, timeout_s: float) -> None:
        await self._crew.drain(delay_s, timeout_s)
        self._drained.set()

    def _push_addresses(self, addresses: dict[str, tuple[str, ...]]) -> None:
        self._crew.post(Addresses(addresses=addresses))
        self._tell_refusals()

    def _push_health(self, unhealthy: dict[str, dict[str, str]]) -> None:
        self._crew.post(Health(unhealthy=unhealthy))

    def _push_found(self, found: Found) -> None:
        self._crew.post(Discovered(found=found))
        self._watch_health()

    def _watch_health(self) -> None:
        """Have the endpoints checked that there are now."""
        found = self._deployment.directory.urls()
        self._health.watch(watched_upstreams(self._deployment.config.upstreams, found))
        self._tell_refusals()

    def _tell_refusals(self) -> None:
        """Have the log told of addresses that are not connected to."""
        directory = self._deployment.directory
        self._refusals.look(self._deployment.config, directory.addresses, directory.urls())

    # What is told; see Service of admin/api.py.

    @property
    def alive(self) -> bool:
        """Workers may all be down for a moment; they are being restarted here, and nowhere else."""
        return True

    @property
    def not_ready_because(self) -> str | None:
        """Why no traffic should come."""
        if self._draining:
            return "draining"
        if not self._crew.available:
            return "no worker is ready"
        return None if self._crew.begun else "not every worker is ready yet"

    def status(self) -> Status:
        """The whole state."""
        assert self._control is not None
        listeners = zip(self._deployment.config.listeners, self._deployment.urls(), strict=True)
        return Status(
            version=__version__,
            name=self._deployment.instance,
            pid=os.getpid(),
            generation=self._deployment.generation,
            started=self._deployment.started,
            draining=self._draining,
            ready=self.not_ready_because is None,
            state=self._state_status(),
            workers=[worker_status(worker) for worker in sorted(self._crew.live, key=lambda each: each.slot)],
            listeners=[ListenerStatus(address=each.address, url=url) for each, url in listeners],
            admin=None if self._admin is None else self._admin.door.url,
            control=self._control.path,
            config_file=self._file,
            worker_restarts=self._crew.restarts,
            last_reload=self._last_reload,
            discovery=[status for _, status in self._deployment.directory.status()],
            certificates=self._certificates.status(),
            key_sets=self._key_sets(),
        )

    def _state_status(self) -> StateStatus:
        return StateStatus(
            backend=self._deployment.config.state.url,
            up=self._pages.state_up,
            warnings=self._state_watch.findings,
        )

    def config(self) -> dict[str, object]:
        """The config that is served, without secrets."""
        return masked(self._deployment.config)

    def routes(self) -> Iterator[RouteStatus]:
        """The routes in order."""
        return (route_status(route) for route in self._deployment.config.routes)

    def traffic(self) -> Iterator[Traffic]:
        """What the routes have had to do."""
        return self._pages.traffic()

    async def replicas(self) -> list[Replica]:
        """Those that share the state, as the first worker hears it that hears anything; else only this one."""
        for answer in await self._crew.ask("replicas"):
            if replicas := decode_roll(answer):
                return replicas
        return [
            Replica(
                id=self._deployment.replica,
                workers=len(self._crew.current),
                since=self._deployment.started,
                last_beat=time.time(),
                now=time.time(),
                version=__version__,
                generation=self._deployment.generation,
                state_up=self._pages.state_up,
            )
        ]

    def metrics(self, accept: str) -> tuple[Iterator[bytes], str]:
        """(text in pieces, content type) for scrapers."""
        figures = Figures(
            version=__version__,
            instance=self._deployment.instance,
            generation=self._deployment.generation,
            restarts=self._crew.restarts,
            workers=len(self._crew.current),
            started=self._deployment.started,
            draining=self._draining,
            breakers=self._breaker_states(),
            health=tuple(self._health.figures()),
            ejections=self._ejections(),
            certificates=self._certificates.figures(),
            key_sets=[KeySetFigures(each.client, each.source, each.up) for each in self._key_sets()],
        )
        return self._pages.render(figures, accept)

    async def upstreams(self) -> Iterator[UpstreamStatus]:
        """All workers' upstreams, summed, with the sources that their endpoints come from."""
        sums = UpstreamSums()
        await self._turns.take(sums.add(await self._crew.ask("upstreams")))
        sources = dict(self._deployment.directory.status())
        upstreams = self._deployment.config.upstreams
        return (_with_source(each, upstreams.get(each.name), sources) for each in sums.upstreams())

    async def breakers(self) -> Iterator[BreakerView]:
        """Every breaker, as the worker knows it that heard of it last."""
        views = BreakerViews()
        await self._turns.take(views.add(await self._crew.ask("breakers")))
        return views.views()

    async def limits(self) -> Iterator[LimitView | PermitView]:
        """The limits' keys with most traffic, and permits to be in progress, over all workers."""
        views = LimitViews()
        await self._turns.take(views.add(await self._crew.ask("limits")))
        await self._turns.take(views.add_past(self._past_counts()))
        return itertools.chain(views.views(), permits(await self._crew.ask("permits")))

    def _past_counts(self) -> Iterator[LimitStatus]:
        """What limits have counted in workers that have ended, and in those that are about to."""
        generation = self._deployment.generation
        ending = PastCounts()
        for worker in self._crew.live:
            if worker not in self._crew.current and worker.counted is not None:
                ending.fold(worker.counted)
        yield from self._deployment.past_counts.of(generation)
        yield from ending.of(generation)

    async def override(self, order: Override) -> Outcome:
        """Hold a breaker open or closed, or let go of it."""
        return await override(
            order, self._deployment.config, list(self._crew.current), self._log, self._state_watch.why_lost
        )

    def _breaker_states(self) -> list[tuple[str, int]]:
        """As of the workers' last beats."""
        states: dict[str, tuple[int, int]] = {}
        for worker in self._crew.current:
            for name, state in worker.beat.open_breakers.items():
                states[name] = max(states.get(name, state), state)
        return [(name, states.get(name, (0, 0))[1]) for name in breaker_names(self._deployment.config)]

    def _ejections(self) -> list[tuple[str, int, int]]:
        """As of the workers' last beats; they share them, so the last to hear knows most."""
        upstreams = self._deployment.config.upstreams.items()
        known = {name: (0, 0) for name, upstream in upstreams if upstream.outlier is not None}
        for worker in self._crew.current:
            for name, (ejected, total) in worker.beat.ejections.items():
                if name in known:
                    known[name] = max(known[name], (total, ejected))
        return [(name, ejected, total) for name, (total, ejected) in sorted(known.items())]

    def _key_sets(self) -> list[KeySetStatus]:
        """As of the workers' last beats."""
        beats = (worker.beat.key_sets for worker in self._crew.current)
        return list(key_set_statuses(self._deployment.config, beats))

    async def tasks(self) -> Iterator[msgspec.Raw]:
        """What each worker's tasks are, counted by name."""
        return map(msgspec.Raw, await self._crew.ask("tasks"))


class _Admin:
    """An address of the admin API. `left` counts how often a reload moved away from it."""

    def __init__(self, door: AdminDoor) -> None:
        self.door = door
        self.serving = trio.CancelScope()
        self.served = False
        self.left = 0


def _open_admin(admin: Admin, places: Mapping[str, str]) -> _Admin:
    with blaming(places, "admin.address", BindError), blaming(places, "admin.token", SecretError):
        return _Admin(AdminDoor(admin))


def _with_source(
    told: UpstreamStatus, config: Upstream | None, sources: Mapping[Discover, SourceStatus]
) -> UpstreamStatus:
    source = None if config is None or config.discover is None else sources.get(config.discover)
    if source is not None:
        told.source, told.problem = source.source, source.problem
    return told


__all__ = ["Announcement", "BindError", "Supervisor"]
