"""All that upstreams find at run time: their sources' endpoints, and the addresses that names have.

A source is looked after by a task of its own as long as some upstream has it, so a reload that keeps a source keeps
what is known. An answer without endpoints leaves the last ones in place, unless the source is one that means it: a file
with an empty list, Kubernetes without a ready pod. Names in what was found are resolved before it is told, so that a
worker never hears of an endpoint whose address it could have had.

The rest is told by `push`, each source whole, and by the names' own news (`dns.Resolver`). Times are trio's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

import msgspec
import trio

from ambassador.config import addresses
from ambassador.config.addresses import split_address
from ambassador.config.discover import Discover, Found, Server, source_name
from ambassador.control.discovery.dns import Resolver, is_address
from ambassador.control.discovery.file import FileWatch
from ambassador.control.discovery.srv import SrvWatch

if TYPE_CHECKING:
    from ambassador.control.discovery.slices import Merged

FIRST_ANSWER_S: Final = 5.0
"""How long the service waits for its sources before it serves without them."""

Tell: TypeAlias = Callable[[tuple[Server, ...]], Awaitable[None]]
Trouble: TypeAlias = Callable[[str | None], None]


class Watch(Protocol):
    """What keeps one source up to date."""

    async def run(self) -> None:
        """For ever."""


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A source for people. `changed` is in unix seconds, None before the first answer; `problem`: why what it has may
    be old, or none.
    """

    source: str
    endpoints: int
    changed: float | None
    problem: str | None


class _Source:
    """A source that somebody wants."""

    def __init__(self) -> None:
        self.servers: tuple[Server, ...] = ()
        self.published: tuple[Server, ...] | None = None
        """What was told last; None: nothing yet."""
        self.changed: float | None = None
        self.problem: str | None = None
        """Why it says nothing new."""
        self.finding: str | None = None
        """What is wrong with what it says."""
        self.told_empty = False
        self.answered = trio.Event()
        self.scope = trio.CancelScope()


class Directory:
    """Sources are asked while `run` runs. `push` is told what sources have found; `wall_s` is unix time."""

    def __init__(
        self,
        resolver: Callable[[Callable[[dict[str, tuple[str, ...]]], None]], Resolver],
        push_addresses: Callable[[dict[str, tuple[str, ...]]], None],
        push: Callable[[Found], None],
        *,
        log: logging.Logger | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._resolver = resolver(self._addresses_changed)
        self._push_addresses = push_addresses
        self._push = push
        self._log = log or logging.getLogger(__name__)
        self._wall_s = wall_s
        self._hosts: frozenset[str] = frozenset()
        self._sources: dict[Discover, _Source] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """What the names of all endpoints resolve to, as far as it is known."""
        return self._resolver.known

    def found(self) -> tuple[Found, ...]:
        """What every source that has answered says now."""
        return tuple(
            self._told(source, known.published)
            for source, known in self._sources.items()
            if known.published is not None
        )

    def urls(self) -> dict[Discover, list[str]]:
        """The URLs that every source that has answered has found."""
        return {
            source: [server.url for server in known.published or ()]
            for source, known in self._sources.items()
        }

    def status(self) -> Iterator[tuple[Discover, SourceStatus]]:
        """All sources."""
        for source, known in self._sources.items():
            yield (
                source,
                SourceStatus(
                    source=source_name(source),
                    endpoints=len(known.servers),
                    changed=known.changed,
                    problem=self._problem(source, known),
                ),
            )

    def _problem(self, source: Discover, known: _Source) -> str | None:
        if source.dns is not None:
            return self._resolver.troubles.get(split_address(source.dns)[0])
        return known.problem or known.finding

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep everything up to date, for ever."""
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self._resolver.run)
            for source, known in self._sources.items():
                self._nursery.start_soon(self._keep, source, known)
            task_status.started()

    async def watch(
        self, hosts: Iterable[str], sources: Iterable[Discover], *, within_s: float = FIRST_ANSWER_S
    ) -> None:
        """Have these names and sources, and no others any more. Back when all new ones have answered, or after
        `within_s`; what comes later is told.
        """
        wanted = dict.fromkeys(sources)
        for source in self._sources.keys() - wanted.keys():
            self._sources.pop(source).scope.cancel()
        self._hosts = frozenset(hosts)
        new = {source: _Source() for source in wanted if source not in self._sources}
        self._sources.update(new)
        if self._nursery is None:
            await self._resolve()
            return
        for source, known in new.items():
            self._nursery.start_soon(self._keep, source, known)
        with trio.move_on_after(within_s):
            await self._resolve()
            for source, known in new.items():
                if source.dns is not None and source in self._sources:
                    self._take_addresses(source, source.dns)
                await known.answered.wait()

    async def _resolve(self) -> None:
        """Have all names looked up that anybody needs."""
        wanted = set(self._hosts)
        for source, known in self._sources.items():
            if source.dns is not None:
                wanted.add(split_address(source.dns)[0])
            wanted.update(_hosts(known.servers))
        await self._resolver.watch(wanted)

    async def _keep(self, source: Discover, known: _Source) -> None:
        with known.scope:
            watch = self._watch_of(source)
            if watch is not None:
                await watch.run()

    def _watch_of(self, source: Discover) -> Watch | None:
        """None for `dns`, which the resolver looks after."""
        trouble = partial(self._trouble, source)
        if source.srv is not None:
            return SrvWatch(source.srv, self._resolver.services, partial(self._tell, source), trouble)
        if source.file is not None:
            return FileWatch(source.file, partial(self._tell_exact, source), trouble)
        if source.kubernetes is not None:
            # What only those pay who are in a cluster: TLS and an HTTP client, 30 ms.
            from ambassador.control.discovery.kubernetes import SliceWatch  # noqa: PLC0415

            return SliceWatch(source.kubernetes, partial(self._tell_merged, source), trouble, log=self._log)
        return None

    # What sources say

    def _trouble(self, source: Discover, problem: str | None) -> None:
        known = self._sources.get(source)
        if known is None or known.problem == problem:
            return
        if problem is None:
            self._log.info("%s answers again", source_name(source))
        else:
            stands = "no endpoint is known yet" if known.published is None else "what was known stands"
            self._log.warning("%s: %s: %s", source_name(source), stands, problem)
        known.problem = problem
        if source.file is not None:
            known.answered.set()  # a file with mistakes is not worth waiting for

    async def _tell(self, source: Discover, servers: tuple[Server, ...]) -> None:
        """An answer that may be empty by mistake."""
        known = self._sources.get(source)
        if known is None:
            return
        if not servers and known.servers:
            if not known.told_empty:
                self._log.warning("%s has no endpoint any more: what was known stands", source_name(source))
            known.told_empty = True
            return
        known.told_empty = False
        await self._tell_exact(source, servers)

    async def _tell_merged(self, source: Discover, merged: Merged) -> None:
        known = self._sources.get(source)
        if known is not None and known.finding != merged.problem:
            known.finding = merged.problem
            if merged.problem is not None:
                self._log.warning("%s: %s", source_name(source), merged.problem)
        await self._tell_exact(source, merged.servers)

    async def _tell_exact(self, source: Discover, servers: tuple[Server, ...]) -> None:
        """An answer that means what it says, whatever that is."""
        known = self._sources.get(source)
        if known is not None:
            known.servers = servers
            await self._resolve()
            self._publish(source)

    def _addresses_changed(self, addresses: dict[str, tuple[str, ...]]) -> None:
        self._push_addresses(addresses)
        for source in self._sources:
            if source.dns is not None and split_address(source.dns)[0] in addresses:
                self._take_addresses(source, source.dns)

    def _take_addresses(self, source: Discover, name: str) -> None:
        """A `dns` source is what its name resolves to."""
        host, port = split_address(name)
        found = self._resolver.known.get(host)
        known = self._sources[source]
        if found is None:
            return
        if not found and known.servers:
            self._log.warning("%s has no address any more: what was known stands", source_name(source))
            return
        known.servers = tuple(Server(addresses.endpoint_url(_url(address, port))) for address in found)
        self._publish(source)

    def _publish(self, source: Discover) -> None:
        """Tell what the source has now, if that is new."""
        known = self._sources.get(source)
        if known is None:
            return
        known.answered.set()
        if known.published != known.servers:
            first = known.published is None
            known.published = known.servers
            known.changed = self._wall_s()
            count = len(known.servers)
            level = logging.DEBUG if first and count else logging.INFO
            self._log.log(
                level, "%s has %d endpoint%s", source_name(source), count, "" if count == 1 else "s"
            )
            self._push(self._told(source, known.servers))

    def _told(self, source: Discover, servers: tuple[Server, ...]) -> Found:
        names = {host: self._resolver.known[host] for host in _hosts(servers) if host in self._resolver.known}
        return Found(source, servers, {host: each for host, each in names.items() if not is_address(host)})


def _hosts(servers: Iterable[Server]) -> Iterator[str]:
    """The hosts of their URLs, as `Resolver` takes them."""
    for server in servers:
        host = urlsplit(server.url).hostname
        if host is not None:
            yield host


def _url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
