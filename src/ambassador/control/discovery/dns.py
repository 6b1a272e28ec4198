"""The addresses that names have: looked up in the supervisor, kept up to date, and told when they change.

The hosts file is asked first and read again when it changes, then the name servers of resolv.conf (dnspython: A and
AAAA with their times to live, search list and `ndots` honoured). Where resolv.conf names no server, and only there,
getaddrinfo is asked instead, which tells no time to live. So NXDOMAIN is an answer, and not a reason to ask elsewhere.

A name is asked again a little before its answer ends, between 1 s and 5 min. While nobody answers, the last answer
stands: each family's by itself, so that a server that fails for AAAA takes away nothing. That a name which had
addresses has none any more is believed when it was said twice in a row.

Times are trio's. The one module that imports dnspython, whose errors end here as `LookUpFailed`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeAlias

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.resolver
import msgspec
import trio

from ambassador.control.backoff import retry_s

FIRST_LOOK_UP_S: Final = 1.0
"""How long `Resolver.watch` waits for names; what comes later is told."""

SHORTEST_S: Final = 1.0
LONGEST_S: Final = 300.0
"""Bounds on the time to live: what a server may cost us, and how late we may notice."""

_UNTOLD_S = 5.0  # getaddrinfo's time to live
_PARTIAL_S = 30.0  # at most, where one family got no answer
_ABSENT_S = 5.0  # until a name without addresses is asked again
_OTHER_FAMILY_S = 1.0  # how long one family's addresses wait for the other's
_LIFETIME_S = 5.0  # of one question, over all servers: resolv.conf's own default
_POLL_FILES_S = 1.0
_COALESCE_S = 0.02
_CONCURRENT = 16
_JITTER = (0.80, 0.95)

Kind: TypeAlias = str
_KINDS: Final[tuple[Kind, ...]] = ("A", "AAAA")


class LookUpFailed(Exception):
    """Nobody could say which addresses, or which services, a name has."""


class Answer(msgspec.Struct, frozen=True):
    """Addresses, none if the name has none, and for how many seconds that holds."""

    addresses: tuple[str, ...]
    ttl_s: float


class Service(msgspec.Struct, frozen=True):
    """An SRV record (RFC 2782): lower priorities first, then by weight, which may be 0."""

    host: str
    port: int
    weight: int
    priority: int


class Services(msgspec.Struct, frozen=True):
    """SRV records, none if the name has none or says that there is no such service, and for how many seconds."""

    records: tuple[Service, ...]
    ttl_s: float


Ask: TypeAlias = Callable[[str, Kind], Awaitable[Answer | None]]
"""(name, `A` or `AAAA`) -> its answer; None if there is no name server to ask. Raises `LookUpFailed`."""

Push: TypeAlias = Callable[[dict[str, tuple[str, ...]]], None]


def is_address(host: str) -> bool:
    """Whether this is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def again_s(ttl_s: float, chance: float) -> float:
    """Seconds until an answer that holds for `ttl_s` is asked for again: a little before, and within the bounds."""
    low, high = _JITTER
    return max(SHORTEST_S, min(LONGEST_S, ttl_s) * (low + (high - low) * chance))


class _File:
    """A file that is read again when it has changed. One that cannot be read is empty."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self.text = ""
        self.changed()

    def changed(self) -> bool:
        """Read the file if it is another than at the last call, and say so."""
        try:
            now = os.stat(self._path)
            seen = (now.st_mtime_ns, now.st_size, now.st_ino)
        except OSError:
            seen = None
        if seen == self._seen:
            return False
        self._seen = seen
        before = self.text
        self.text = _read(self._path)
        return self.text != before


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """Name, in lower case, -> its addresses in the order of the lines. Lines that make no sense are passed over."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if is_address(address):
            for name in names:
                key = _key(name)
                if address not in found.get(key, ()):
                    found[key] = (*found.get(key, ()), address)
    return found


def _key(name: str) -> str:
    return name.lower().rstrip(".")


class NameServers:
    """The name servers of a resolv.conf. `port` and `lifetime_s` (of a question, over all servers) are for tests."""

    def __init__(
        self, resolv_conf: str = "/etc/resolv.conf", *, port: int = 53, lifetime_s: float = _LIFETIME_S
    ) -> None:
        self._path = resolv_conf
        self._port = port
        self._lifetime_s = lifetime_s
        self._backend = dns.asyncbackend.get_backend("trio")
        self._resolver: dns.asyncresolver.Resolver | None = None
        self.configure()

    def configure(self) -> None:
        """Read the file, again when it has changed."""
        try:
            self._resolver = dns.asyncresolver.Resolver(self._path)
        except (dns.exception.DNSException, OSError, ValueError):
            self._resolver = None
            return
        self._resolver.port = self._port

    async def ask(self, name: str, kind: Kind) -> Answer | None:
        """See `Ask`. Over TCP where the answer was truncated."""
        if self._resolver is None:
            return None
        answer = await self._resolve(self._resolver, name, kind)
        if answer is None:
            return Answer((), SHORTEST_S)
        addresses = () if answer.rrset is None else tuple(str(item.address) for item in answer.rrset)
        return Answer(addresses, float(answer.chaining_result.minimum_ttl))

    async def services(self, name: str) -> Services:
        """The name's SRV records; their hosts are in lower case, without the last dot. Raises `LookUpFailed`."""
        if self._resolver is None:
            raise LookUpFailed(f"SRV: {self._path} names no server")
        answer = await self._resolve(self._resolver, name, "SRV")
        if answer is None:
            return Services((), _ABSENT_S)
        found = (
            Service(_key(item.target.to_text(omit_final_dot=True)), item.port, item.weight, item.priority)
            for item in answer.rrset or ()
        )
        # A target "." says that there is decidedly no such service.
        records = tuple(record for record in found if record.host and record.port)
        ttl_s = float(answer.chaining_result.minimum_ttl)
        return Services(records, ttl_s if records else max(_ABSENT_S, ttl_s))

    async def _resolve(
        self, resolver: dns.asyncresolver.Resolver, name: str, kind: Kind
    ) -> dns.resolver.Answer | None:
        """None: there is no such name."""
        try:
            return await resolver.resolve(
                name,
                kind,
                raise_on_no_answer=False,
                search=True,
                lifetime=self._lifetime_s,
                backend=self._backend,
            )
        except dns.resolver.NXDOMAIN:
            return None
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise LookUpFailed(f"{kind}: {error}") from error


async def ask_system(name: str) -> Answer:
    """What getaddrinfo says, in a thread. Raises `LookUpFailed`."""
    try:
        with trio.fail_after(2 * _LIFETIME_S):
            found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
            return Answer((), _UNTOLD_S)
        raise LookUpFailed(str(error)) from error
    except (OSError, UnicodeError, trio.TooSlowError) as error:
        raise LookUpFailed(str(error) or "no answer in time") from error
    return Answer(tuple(str(where[0]) for *_, where in found), _UNTOLD_S)


class _Watched:
    """A name that is kept up to date."""

    __slots__ = ("due", "failures", "hurry", "kept", "missing", "scope")

    def __init__(self) -> None:
        self.due = float("-inf")
        self.failures = 0
        self.missing = False
        self.kept = False
        """Some task keeps it up to date."""
        self.scope = trio.CancelScope()
        self.hurry = trio.Event()


class Resolver:
    """Keeps names' addresses up to date. `known` holds the last good answer of each watched name, sorted.

    `on_change` gets the names whose addresses have changed, those that changed together in one call; an empty tuple is
    a name that has no addresses any more. `chance` is uniform in [0, 1).
    """

    def __init__(
        self,
        on_change: Push,
        *,
        log: logging.Logger | None = None,
        hosts_file: str = "/etc/hosts",
        resolv_conf: str = "/etc/resolv.conf",
        ask: Ask | None = None,
        ask_system: Callable[[str], Awaitable[Answer]] = ask_system,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.known: dict[str, tuple[str, ...]] = {}
        self.troubles: dict[str, str] = {}
        """Names that cannot be resolved now, each with the reason."""
        self._on_change = on_change
        self._log = log or logging.getLogger(__name__)
        self._hosts_file = _File(hosts_file)
        self._hosts = parse_hosts(self._hosts_file.text)
        self._resolv_conf = _File(resolv_conf)
        self._servers = NameServers(resolv_conf)
        self._ask: Ask = ask or self._servers.ask
        self._ask_system = ask_system
        self._chance = chance
        self._limit = trio.CapacityLimiter(_CONCURRENT)
        self._watched: dict[str, _Watched] = {}
        self._untold: dict[str, tuple[str, ...]] = {}
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def watch(self, hosts: Iterable[str]) -> None:
        """Watch these, and no others any more. Looks new ones up, and is back when that is done, or after a second.

        Addresses are known at once, as themselves. Works before `run`, which then goes on with what is watched.
        """
        wanted = set(hosts)
        for host in self._watched.keys() - wanted:
            self._watched.pop(host).scope.cancel()
        for host in self.known.keys() - wanted:
            self.known.pop(host)
            self.troubles.pop(host, None)
            self._untold.pop(host, None)
        new = {}
        for host in sorted(wanted - self._watched.keys()):
            if is_address(host):
                self._learn(host, (host,))
            else:
                new[host] = self._watched[host] = _Watched()
        try:
            with trio.move_on_after(FIRST_LOOK_UP_S):
                async with trio.open_nursery() as nursery:
                    for host, watched in new.items():
                        nursery.start_soon(self._refresh, host, watched)
        finally:
            # Also for a caller who does not wait so long.
            if self._nursery is not None:
                for host, watched in new.items():
                    self._nursery.start_soon(self._keep, host, watched)

    async def services(self, name: str) -> Services:
        """The SRV records of a name, looked up now. Raises `LookUpFailed`."""
        async with self._limit:
            return await self._servers.services(name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all watched names up to date, for ever."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._tell)
                self._nursery.start_soon(self._poll_files)
                for host, watched in self._watched.items():
                    self._nursery.start_soon(self._keep, host, watched)
                task_status.started()
        finally:
            self._nursery = None

    async def _keep(self, host: str, watched: _Watched) -> None:
        if watched.kept:
            return
        watched.kept = True
        with watched.scope:
            while True:
                with trio.move_on_at(watched.due):
                    await watched.hurry.wait()
                watched.hurry = trio.Event()
                await self._refresh(host, watched)

    async def _refresh(self, host: str, watched: _Watched) -> None:
        """Look a name up and say when to do it again."""
        try:
            async with self._limit:
                answer = await self._look_up(host)
        except LookUpFailed as error:
            self.troubles[host] = str(error)
            if not watched.failures:
                stands = ", what was known stands" if self.known.get(host) else ""
                self._log.warning("cannot resolve %s%s: %s", host, stands, error)
            watched.failures += 1
            watched.due = trio.current_time() + retry_s(watched.failures, self._chance())
            return
        if self._watched.get(host) is not watched:
            return  # meanwhile nobody wants it any more
        if watched.failures:
            self._log.info("%s resolves again", host)
        watched.failures = 0
        self.troubles.pop(host, None)
        watched.due = trio.current_time() + again_s(answer.ttl_s, self._chance())
        if answer.addresses or not self.known.get(host) or watched.missing:
            self._learn(host, tuple(sorted(set(answer.addresses))))
            watched.missing = False
        else:
            watched.missing = True
            watched.due = trio.current_time() + SHORTEST_S

    def _learn(self, host: str, addresses: tuple[str, ...]) -> None:
        """Every address that a worker may connect to comes in here, whoever told it: names', and those in URLs."""
        if self.known.get(host) != addresses:
            self.known[host] = self._untold[host] = addresses
            self._news.set()

    async def _tell(self) -> None:
        while True:
            await self._news.wait()
            await trio.sleep(_COALESCE_S)
            self._news = trio.Event()
            news, self._untold = self._untold, {}
            if news:
                self._on_change(news)

    async def _poll_files(self) -> None:
        """Look at both files once a second: a watch would miss what a container's mounts do to them."""
        while True:
            await trio.sleep(_POLL_FILES_S)
            hosts_changed, servers_changed = self._hosts_file.changed(), self._resolv_conf.changed()
            if hosts_changed:
                self._hosts = parse_hosts(self._hosts_file.text)
            if servers_changed:
                self._servers.configure()
            if hosts_changed or servers_changed:
                for watched in self._watched.values():
                    watched.hurry.set()

    # One name

    async def _look_up(self, host: str) -> Answer:
        from_file = self._hosts.get(_key(host))
        if from_file is not None:
            return Answer(from_file, LONGEST_S)
        answers = await self._ask_both(host)
        if None in answers.values():
            return await self._ask_system(host)
        return self._together(host, answers)

    async def _ask_both(self, host: str) -> dict[Kind, Answer | LookUpFailed | None]:
        """Each family's answer. One that has addresses does not wait long for the other."""
        answers: dict[Kind, Answer | LookUpFailed | None] = {
            kind: LookUpFailed(f"{kind}: no answer in time") for kind in _KINDS
        }
        async with trio.open_nursery() as nursery:

            async def ask(kind: Kind) -> None:
                try:
                    answer = await self._ask(host, kind)
                except LookUpFailed as error:
                    answers[kind] = error
                    return
                answers[kind] = answer
                if answer is not None and answer.addresses:
                    nursery.cancel_scope.deadline = trio.current_time() + _OTHER_FAMILY_S

            for kind in _KINDS:
                nursery.start_soon(ask, kind)
        return answers

    def _together(self, host: str, answers: dict[Kind, Answer | LookUpFailed | None]) -> Answer:
        addresses: list[str] = []
        times: list[float] = []
        failed: list[str] = []
        for kind, answer in answers.items():
            if isinstance(answer, Answer):
                addresses += answer.addresses
                times += [answer.ttl_s] if answer.addresses else []
            else:
                failed.append(str(answer))
                addresses += [
                    address for address in self.known.get(host, ()) if (":" in address) == (kind == "AAAA")
                ]
                times.append(_PARTIAL_S)
        if failed and not any(isinstance(answer, Answer) and answer.addresses for answer in answers.values()):
            raise LookUpFailed("; ".join(failed))
        # That one family has no address is no reason to ask sooner: most names have none of one.
        return Answer(tuple(addresses), min(times, default=_ABSENT_S))
