"""Against a name server of a few lines on a real UDP and TCP socket for what is on the wire, and against an `Ask` of
the test's own, under a clock that jumps, for what happens when."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio
from trio.testing import MockClock

from ambassador.control.discovery.dns import (
    LONGEST_S,
    Answer,
    LookUpFailed,
    NameServers,
    Resolver,
    Service,
    parse_hosts,
)

# What is on the wire


class Zone:
    """A name server: (name, kind) -> records, a ttl, or something worse. Names that it does not have do not exist."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self.alias: dict[str, tuple[int, str]] = {}
        self.silent = False
        self.truncates = False
        self.rcode = dns.rcode.NOERROR
        self.asked: list[tuple[str, str, str]] = []
        self.heard = trio.Event()

    def reply(self, wire: bytes, transport: str) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, transport))
        self.heard.set()
        if self.silent:
            return None
        reply = dns.message.make_response(query)
        reply.set_rcode(self.rcode)
        if self.rcode == dns.rcode.NOERROR:
            self._fill(reply, name, kind)
        if self.truncates and transport == "udp":
            reply.answer.clear()
            reply.flags |= dns.flags.TC
        return reply.to_wire()

    def _fill(self, reply: dns.message.Message, name: str, kind: str) -> None:
        if name in self.alias:
            ttl, target = self.alias[name]
            reply.answer.append(dns.rrset.from_text(name, ttl, "IN", "CNAME", target))
            name = target
        if (name, kind) in self.records:
            ttl, values = self.records[name, kind]
            reply.answer.append(dns.rrset.from_text_list(name, ttl, "IN", kind, values))
        elif not any(known == name for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)


async def bind_both() -> tuple[trio.socket.SocketType, list[trio.SocketListener]]:
    """One port for both. TCP chooses, since connections that have ended still hold ports there."""
    while True:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        udp = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        try:
            await udp.bind(listeners[0].socket.getsockname())
        except OSError:
            udp.close()
            await listeners[0].aclose()
        else:
            return udp, listeners


@asynccontextmanager
async def serving(zone: Zone) -> AsyncIterator[int]:
    """The zone on one port of the loopback, UDP and TCP."""
    udp, listeners = await bind_both()
    with udp:
        port = udp.getsockname()[1]

        async def serve_udp() -> None:
            while True:
                wire, client = await udp.recvfrom(4096)
                reply = zone.reply(wire, "udp")
                if reply is not None:
                    await udp.sendto(reply, client)

        async def serve_tcp(stream: trio.SocketStream) -> None:
            data = b""
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
                data += await stream.receive_some()
            reply = zone.reply(data[2:], "tcp")
            if reply is not None:
                await stream.send_all(len(reply).to_bytes(2) + reply)
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_udp)
            nursery.start_soon(trio.serve_listeners, serve_tcp, listeners)
            yield port
            nursery.cancel_scope.cancel()


def resolv_conf(tmp_path: Path, text: str = "nameserver 127.0.0.1\n") -> str:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    return str(path)


@asynccontextmanager
async def asking(tmp_path: Path, zone: Zone, conf: str = "") -> AsyncIterator[NameServers]:
    async with serving(zone) as port:
        yield NameServers(resolv_conf(tmp_path, "nameserver 127.0.0.1\n" + conf), port=port, lifetime_s=5.0)


async def test_name_has_all_its_addresses_and_a_time_to_live(tmp_path: Path) -> None:
    zone = Zone()
    zone.records["api.test.", "A"] = (17, ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    zone.records["api.test.", "AAAA"] = (60, ["2001:db8::1"])
    async with asking(tmp_path, zone) as servers:
        answer = await servers.ask("api.test", "A")
        assert answer is not None
        assert (sorted(answer.addresses), answer.ttl_s) == (["10.0.0.1", "10.0.0.2", "10.0.0.3"], 17.0)
        assert await servers.ask("api.test", "AAAA") == Answer(("2001:db8::1",), 60.0)
        zone.records["api.test.", "A"] = (3, ["10.0.0.4"])
        assert await servers.ask("api.test", "A") == Answer(("10.0.0.4",), 3.0)


async def test_alias_that_ends_sooner_ends_the_answer(tmp_path: Path) -> None:
    zone = Zone()
    zone.alias["www.test."] = (5, "api.test.")
    zone.records["api.test.", "A"] = (60, ["10.0.0.1"])
    async with asking(tmp_path, zone) as servers:
        assert await servers.ask("www.test", "A") == Answer(("10.0.0.1",), 5.0)


async def test_nxdomain_and_no_data_are_answers_without_addresses(tmp_path: Path) -> None:
    zone = Zone()
    zone.records["api.test.", "A"] = (60, ["10.0.0.1"])
    async with asking(tmp_path, zone) as servers:
        for name in ("missing.test", "api.test"):
            answer = await servers.ask(name, "AAAA")
            assert answer is not None
            assert answer.addresses == ()


async def test_truncated_answer_is_fetched_over_tcp(tmp_path: Path) -> None:
    zone = Zone()
    zone.truncates = True
    zone.records["api.test.", "A"] = (60, [f"10.0.{number}.1" for number in range(100)])
    async with asking(tmp_path, zone) as servers:
        answer = await servers.ask("api.test", "A")
    assert answer is not None
    assert len(answer.addresses) == 100
    assert [transport for *_, transport in zone.asked] == ["udp", "tcp"]


async def test_srv_records_have_target_port_weight_and_priority(tmp_path: Path) -> None:
    zone = Zone()
    zone.records["_http._tcp.test.", "SRV"] = (30, ["10 5 8000 A.test.", "20 0 9000 b.test."])
    async with asking(tmp_path, zone) as servers:
        found = await servers.services("_http._tcp.test")
    assert set(found.records) == {Service("a.test", 8000, 5, 10), Service("b.test", 9000, 0, 20)}
    assert found.ttl_s == 30.0


async def test_srv_record_that_says_there_is_no_such_service_is_none(tmp_path: Path) -> None:
    zone = Zone()
    zone.records["_none._tcp.test.", "SRV"] = (30, ["0 0 0 ."])
    zone.records["_other._tcp.test.", "A"] = (30, ["10.0.0.1"])
    async with asking(tmp_path, zone) as servers:
        for name in ("_none._tcp.test", "_missing._tcp.test", "_other._tcp.test"):
            assert (await servers.services(name)).records == ()


async def test_srv_without_a_name_server_or_its_answer_fails(tmp_path: Path) -> None:
    zone = Zone()
    zone.rcode = dns.rcode.SERVFAIL
    async with asking(tmp_path, zone) as servers:
        with pytest.raises(LookUpFailed, match=r"SRV: .*SERVFAIL"):
            await servers.services("_http._tcp.test")
    with pytest.raises(LookUpFailed, match="names no server"):
        await NameServers(resolv_conf(tmp_path, "nameserver nonsense\n")).services("_http._tcp.test")


async def test_server_that_says_nothing_or_fails_is_no_answer(tmp_path: Path) -> None:
    zone = Zone()
    zone.rcode = dns.rcode.SERVFAIL
    async with asking(tmp_path, zone) as servers:
        with pytest.raises(LookUpFailed, match="SERVFAIL"):
            await servers.ask("api.test", "A")
        zone.silent = True
        servers._lifetime_s = 0.02
        with pytest.raises(LookUpFailed, match=r"^A: "):
            await servers.ask("api.test", "A")


@pytest.mark.parametrize(
    ("conf", "name", "asked"),
    [
        ("search one.test two.test\n", "api", ["api.one.test.", "api.two.test."]),
        ("search one.test two.test\n", "api.x", ["api.x.", "api.x.one.test.", "api.x.two.test."]),
        (
            "search one.test two.test\noptions ndots:5\n",
            "api.x",
            ["api.x.one.test.", "api.x.two.test.", "api.x."],
        ),
        ("search one.test\n", "api.x.", ["api.x."]),
    ],
)
async def test_search_list_and_ndots_are_honoured(
    tmp_path: Path, conf: str, name: str, asked: list[str]
) -> None:
    zone = Zone()
    zone.records["api.two.test.", "A"] = (60, ["10.0.0.1"])
    async with asking(tmp_path, zone, conf) as servers:
        answer = await servers.ask(name, "A")
    assert [name for name, *_ in zone.asked] == asked
    assert answer is not None
    assert answer.addresses == (("10.0.0.1",) if name == "api" else ())


@pytest.mark.parametrize("conf", [None, "", "options ndots:5\n"])
async def test_no_name_server_is_no_answer_at_all(tmp_path: Path, conf: str | None) -> None:
    path = str(tmp_path / "missing") if conf is None else resolv_conf(tmp_path, conf)
    assert await NameServers(path).ask("api.test", "A") is None


@pytest.mark.parametrize("name", ["a" * 64 + ".test", "a..b", "\udcff.test"])
async def test_name_that_cannot_be_asked_is_a_failure(tmp_path: Path, name: str) -> None:
    async with asking(tmp_path, Zone()) as servers:
        with pytest.raises(LookUpFailed):
            await servers.ask(name, "A")


async def test_cancelled_question_leaves_nothing_behind(tmp_path: Path) -> None:
    zone = Zone()
    zone.silent = True
    async with asking(tmp_path, zone) as servers:
        before = os.listdir("/proc/self/fd")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(servers.ask, "api.test", "A")
            await zone.heard.wait()
            nursery.cancel_scope.cancel()
        assert os.listdir("/proc/self/fd") == before


async def test_resolver_asks_real_servers(tmp_path: Path) -> None:
    zone = Zone()
    zone.records["api.test.", "A"] = (60, ["10.0.0.2", "10.0.0.1"])
    zone.records["api.test.", "AAAA"] = (60, ["2001:db8::1"])
    async with serving(zone) as port:
        resolver = Resolver(print, hosts_file=str(tmp_path / "hosts"), resolv_conf=resolv_conf(tmp_path))
        resolver._servers = NameServers(resolv_conf(tmp_path), port=port)
        resolver._ask = resolver._servers.ask
        await resolver.watch(["api.test"])
    assert resolver.known == {"api.test": ("10.0.0.1", "10.0.0.2", "2001:db8::1")}


# What happens when


class World:
    """Answers as the test has set them, and when each question came. Unset kinds have no addresses."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Answer | LookUpFailed | None] = {}
        self.delays: dict[str, float] = {}
        self.asked: list[tuple[float, str]] = []
        self.told: list[tuple[float, dict[str, tuple[str, ...]]]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.start = trio.current_time()

    @property
    def now(self) -> float:
        return round(trio.current_time() - self.start, 3)

    def has(self, name: str, *addresses: str, ttl: float = 10.0) -> None:
        for kind in ("A", "AAAA"):
            own = tuple(address for address in addresses if (":" in address) == (kind == "AAAA"))
            self.answers[name, kind] = Answer(own, ttl)

    def fails(self, name: str, *kinds: str) -> None:
        for kind in kinds or ("A", "AAAA"):
            self.answers[name, kind] = LookUpFailed(f"{kind}: down")

    async def ask(self, name: str, kind: str) -> Answer | None:
        if kind == "A":
            self.asked.append((self.now, name))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await trio.sleep(self.delays.get(kind, 0))
        finally:
            self.under_way -= 1
        answer = self.answers.get((name, kind), Answer((), 10.0))
        if isinstance(answer, LookUpFailed):
            raise answer
        return answer

    def tell(self, changes: dict[str, tuple[str, ...]]) -> None:
        self.told.append((self.now, changes))


async def no_system(name: str) -> Answer:
    raise AssertionError("getaddrinfo is not to be asked")


@asynccontextmanager
async def resolving(
    world: World,
    hosts: list[str],
    tmp_path: Path,
    *,
    ask_system: Callable[[str], Awaitable[Answer]] = no_system,
) -> AsyncIterator[Resolver]:
    """A resolver that watches and runs; its jitter is the least there is, 0.8 of the time."""
    resolver = Resolver(
        world.tell,
        hosts_file=str(tmp_path / "hosts"),
        resolv_conf=str(tmp_path / "resolv.conf"),
        ask=world.ask,
        ask_system=ask_system,
        chance=lambda: 0.0,
    )
    await resolver.watch(hosts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.run)
        yield resolver
        nursery.cancel_scope.cancel()


async def test_name_is_asked_again_before_its_time_ends(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World()
    world.has("api", "10.0.0.1", ttl=10)
    async with resolving(world, ["api"], tmp_path):
        await trio.sleep(20)
        world.has("api", "10.0.0.1", ttl=100)
        await trio.sleep(100)
    assert world.asked == [(0, "api"), (8, "api"), (16, "api"), (24, "api"), (104, "api")]


@pytest.mark.parametrize(("ttl", "again"), [(0, 1.0), (1, 1.0), (86400, 0.8 * LONGEST_S)])
async def test_time_to_live_is_bounded(
    autojump_clock: MockClock, tmp_path: Path, ttl: float, again: float
) -> None:
    world = World()
    world.has("api", "10.0.0.1", ttl=ttl)
    async with resolving(world, ["api"], tmp_path):
        await trio.sleep(again + 0.5)
    assert world.asked == [(0, "api"), (again, "api")]


async def test_change_is_told_and_a_new_order_is_none(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World()
    world.has("api", "10.0.0.1", "10.0.0.2")
    async with resolving(world, ["api"], tmp_path) as resolver:
        assert resolver.known == {"api": ("10.0.0.1", "10.0.0.2")}
        await trio.sleep(5)
        world.told.clear()
        world.has("api", "10.0.0.2", "10.0.0.1")
        await trio.sleep(5)
        assert world.told == []
        world.has("api", "10.0.0.3")
        await trio.sleep(8)
        assert [changes for _, changes in world.told] == [{"api": ("10.0.0.3",)}]
        assert resolver.known == {"api": ("10.0.0.3",)}


async def test_changes_that_come_together_are_told_together(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.has(name, "10.0.0.1")
    async with resolving(world, ["a", "b", "c"], tmp_path):
        await trio.sleep(1)
    assert [changes for _, changes in world.told] == [dict.fromkeys("abc", ("10.0.0.1",))]


async def test_stale_answer_stands_while_nobody_answers(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.has("api", "10.0.0.1")
    caplog.set_level(logging.INFO)
    async with resolving(world, ["api"], tmp_path) as resolver:
        world.fails("api")
        await trio.sleep(100)
        assert resolver.known == {"api": ("10.0.0.1",)}
        world.has("api", "10.0.0.2")
        await trio.sleep(30)
        assert resolver.known == {"api": ("10.0.0.2",)}
    gaps = [after - before for (before, _), (after, _) in zip(world.asked, world.asked[1:], strict=False)]
    assert gaps[:6] == pytest.approx([8, 0.75, 1.5, 3, 6, 12])
    assert [each.levelname for each in caplog.records] == ["WARNING", "INFO"]


async def test_family_that_fails_takes_nothing_away(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World()
    world.has("api", "10.0.0.1", "2001:db8::1")
    async with resolving(world, ["api"], tmp_path) as resolver:
        world.has("api", "10.0.0.2", "2001:db8::1")
        world.fails("api", "AAAA")
        await trio.sleep(10)
        assert resolver.known == {"api": ("10.0.0.2", "2001:db8::1")}


async def test_slow_family_holds_up_the_other_for_a_second_only(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World()
    world.has("api", "10.0.0.1", "2001:db8::1")
    world.delays["AAAA"] = 5.0
    async with resolving(world, ["api"], tmp_path) as resolver:
        await trio.sleep(0.1)
        assert world.now == pytest.approx(1.1, abs=0.05)
        await trio.sleep(2)
        assert resolver.known == {"api": ("10.0.0.1",)}


async def test_name_without_addresses_is_believed_the_second_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World()
    world.has("api", "10.0.0.1")
    async with resolving(world, ["api"], tmp_path) as resolver:
        world.has("api")
        await trio.sleep(8.5)
        assert resolver.known == {"api": ("10.0.0.1",)}
        await trio.sleep(1)
        assert resolver.known == {"api": ()}
        assert world.told[-1][1] == {"api": ()}
        world.has("api", "10.0.0.2")
        await trio.sleep(5)
        assert resolver.known == {"api": ("10.0.0.2",)}


async def test_one_answer_without_addresses_in_between_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World()
    world.has("api", "10.0.0.1")
    async with resolving(world, ["api"], tmp_path):
        for _ in range(3):
            world.has("api")
            await trio.sleep(8.5)
            world.has("api", "10.0.0.1")
            await trio.sleep(0.7)
    assert [changes for _, changes in world.told] == [{"api": ("10.0.0.1",)}]


async def test_watch_that_is_not_waited_for_goes_on(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World()
    world.has("api", "10.0.0.1")
    world.delays = {"A": 0.7, "AAAA": 0.7}
    async with resolving(world, [], tmp_path) as resolver:
        with trio.move_on_after(0.5):
            await resolver.watch(["api"])
        assert resolver.known == {}
        await trio.sleep(1)
        assert resolver.known == {"api": ("10.0.0.1",)}


async def test_watch_waits_a_second_and_the_rest_is_told(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World()
    world.has("api", "10.0.0.1")
    world.delays = {"A": 3.0, "AAAA": 3.0}
    async with resolving(world, ["api"], tmp_path) as resolver:
        assert world.now == 1.0
        assert resolver.known == {}
        await trio.sleep(5)
    assert [changes for _, changes in world.told] == [{"api": ("10.0.0.1",)}]


async def test_hosts_are_added_and_removed(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World()
    for name in ("a", "b"):
        world.has(name, "10.0.0.1")
    async with resolving(world, ["a"], tmp_path) as resolver:
        await trio.sleep(1)
        await resolver.watch(["b"])
        assert resolver.known == {"b": ("10.0.0.1",)}
        await trio.sleep(20)
    assert [name for _, name in world.asked] == ["a", "b", "b", "b"]


async def test_address_is_known_without_asking(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World()
    async with resolving(world, ["10.0.0.9", "2001:db8::9"], tmp_path) as resolver:
        assert resolver.known == {"10.0.0.9": ("10.0.0.9",), "2001:db8::9": ("2001:db8::9",)}
        await trio.sleep(100)
    assert world.asked == []


async def test_hosts_file_comes_first_and_is_read_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World()
    world.has("api.test", "10.0.0.1", ttl=1000)
    hosts = tmp_path / "hosts"
    hosts.write_text("10.9.9.9 other API.test # and this\n")
    async with resolving(world, ["api.test"], tmp_path) as resolver:
        assert resolver.known == {"api.test": ("10.9.9.9",)}
        hosts.write_text("10.8.8.8 other api.test another\n")
        await trio.sleep(1.5)
        assert resolver.known == {"api.test": ("10.8.8.8",)}
        assert world.asked == []
        hosts.unlink()
        await trio.sleep(1.5)
        assert resolver.known == {"api.test": ("10.0.0.1",)}


async def test_getaddrinfo_is_asked_where_there_is_no_name_server(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World()
    world.answers = {("api", kind): None for kind in ("A", "AAAA")}

    async def ask_system(name: str) -> Answer:
        return Answer(("10.7.7.7",), 5.0)

    async with resolving(world, ["api"], tmp_path, ask_system=ask_system) as resolver:
        assert resolver.known == {"api": ("10.7.7.7",)}
        await trio.sleep(5)
    assert [when for when, _ in world.asked] == [0, 4]


async def test_few_names_are_looked_up_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World()
    world.delays = {"A": 0.1, "AAAA": 0.1}
    names = [f"n{number}" for number in range(100)]
    async with resolving(world, names, tmp_path) as resolver:
        assert len(resolver.known) == 100
    assert world.most_under_way == 32  # 16 names, two kinds each


# Small things


def test_hosts_are_parsed_as_the_system_does() -> None:
    text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n# 10.0.0.1 no\nnonsense a\n10.0.0.1\tA.b. # c\n10.0.0.1 a.b\n"
    assert parse_hosts(text) == {
        "localhost": ("127.0.0.1", "::1"),
        "ip6-localhost": ("::1",),
        "a.b": ("10.0.0.1",),
    }
