"""What is known, told and kept, with a resolver whose answers the test gives, under a clock that jumps."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ambassador.config.discover import Discover, Found, Kubernetes, Server
from ambassador.control.discovery.directory import Directory
from ambassador.control.discovery.dns import Answer, LookUpFailed, Resolver, Service, Services
from ambassador.control.discovery.slices import Merged

DNS = Discover(dns="api.test:8080")
SRV = Discover(srv="_http._tcp.test")
TTL_S = 10.0


class Names(Resolver):
    """Answers from a table: names to addresses, and SRV records. What is not in it fails."""

    def __init__(self, push: Callable[[dict[str, tuple[str, ...]]], None], world: World) -> None:
        super().__init__(
            push, hosts_file="/dev/null", resolv_conf="/dev/null", ask=self.look_up, chance=lambda: 1.0
        )
        self._world = world

    async def look_up(self, name: str, kind: str) -> Answer | None:
        addresses = self._world.addresses.get(name)
        if addresses is None:
            raise LookUpFailed("no answer")
        wanted = tuple(each for each in addresses if (":" in each) == (kind == "AAAA"))
        return Answer(wanted, TTL_S)

    async def services(self, name: str) -> Services:
        if self._world.services is None:
            raise LookUpFailed("no server")
        return Services(tuple(Service(host, port, 1, 0) for host, port in self._world.services), TTL_S)


class World:
    def __init__(self) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.services: list[tuple[str, int]] | None = None
        self.pushed: list[Found] = []
        self.told = trio.Event()
        self.names_told: dict[str, tuple[str, ...]] = {}
        self.directory = Directory(
            partial(Names, world=self), self.names_told.update, self.push, wall_s=lambda: 1000.0
        )

    def push(self, found: Found) -> None:
        self.pushed.append(found)
        self.told.set()

    def urls(self, source: Discover) -> list[str] | None:
        """What a worker that starts now would have; None: nothing."""
        for found in self.directory.found():
            if found.source == source:
                return [server.url for server in found.servers]
        return None

    def problem(self, source: Discover) -> str | None:
        return {each: status.problem for each, status in self.directory.status()}[source]


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    world = World()
    async with trio.open_nursery() as nursery:
        await nursery.start(world.directory.run)
        yield world
        nursery.cancel_scope.cancel()


async def test_every_address_of_a_name_is_an_endpoint(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.addresses["api.test"] = ("10.0.0.2", "10.0.0.1", "2001:db8::1")
        await world.directory.watch((), {DNS})
        assert world.urls(DNS) == [
            "http://10.0.0.1:8080",
            "http://10.0.0.2:8080",
            "http://[2001:db8::1]:8080",
        ]
        world.addresses["api.test"] = ("10.0.0.3",)
        await trio.sleep(TTL_S)
        assert world.urls(DNS) == ["http://10.0.0.3:8080"]
        assert [found.source for found in world.pushed] == [DNS, DNS]


async def test_name_that_fails_or_is_gone_keeps_its_endpoints(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as world:
        world.addresses["api.test"] = ("10.0.0.1",)
        await world.directory.watch((), {DNS})
        del world.addresses["api.test"]
        await trio.sleep(10 * TTL_S)
        assert world.urls(DNS) == ["http://10.0.0.1:8080"]
        assert "no answer" in (world.problem(DNS) or "")
        world.addresses["api.test"] = ()
        await trio.sleep(10 * TTL_S)
        assert world.urls(DNS) == ["http://10.0.0.1:8080"]
        assert "dns api.test:8080 has no address any more: what was known stands" in caplog.text
        assert world.problem(DNS) is None


async def test_names_of_records_are_resolved_before_they_are_told(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.addresses["a.test"] = ("10.0.0.1",)
        world.services = [("a.test", 8000), ("10.0.0.9", 8000)]
        await world.directory.watch({"static.test"}, {SRV})
        assert world.urls(SRV) == ["http://10.0.0.9:8000", "http://a.test:8000"]
        assert world.pushed[0].addresses == {"a.test": ("10.0.0.1",)}
        # Addresses in URLs go the way of all others.
        assert world.directory.addresses["10.0.0.9"] == ("10.0.0.9",)
        world.addresses["b.test"] = ("10.0.0.2",)
        world.services = [("b.test", 8000)]
        await trio.sleep(TTL_S + 1)
        assert world.pushed[-1].addresses == {"b.test": ("10.0.0.2",)}
        assert "a.test" not in world.directory.addresses
        assert world.names_told["b.test"] == ("10.0.0.2",)


async def test_source_that_fails_at_first_has_nothing_that_stands(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as world:
        await world.directory.watch((), {SRV})
        assert "srv _http._tcp.test: no endpoint is known yet: no server" in caplog.text
        world.services = [("10.0.0.1", 80)]
        await world.told.wait()
        world.services = None
        await trio.sleep(10 * TTL_S)
        assert "srv _http._tcp.test: what was known stands: no server" in caplog.text
        assert world.urls(SRV) == ["http://10.0.0.1:80"]


async def test_empty_answer_keeps_the_endpoints_and_is_said_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as world:
        world.services = [("10.0.0.1", 80)]
        await world.directory.watch((), {SRV})
        world.services = []
        await trio.sleep(10 * TTL_S)
        assert world.urls(SRV) == ["http://10.0.0.1:80"]
        assert caplog.text.count("has no endpoint any more: what was known stands") == 1
        world.services = [("10.0.0.2", 80)]
        await trio.sleep(TTL_S)
        assert world.urls(SRV) == ["http://10.0.0.2:80"]


async def test_same_answer_is_told_once(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.services = [("10.0.0.1", 80), ("10.0.0.2", 80)]
        await world.directory.watch((), {SRV})
        world.services.reverse()
        await trio.sleep(10 * TTL_S)
        assert len(world.pushed) == 1


async def test_source_that_does_not_answer_holds_up_the_start_for_a_while(autojump_clock: MockClock) -> None:
    async with running() as world:
        began = trio.current_time()
        await world.directory.watch((), {SRV}, within_s=3.0)
        assert trio.current_time() - began == pytest.approx(3.0)
        assert world.urls(SRV) is None
        assert world.problem(SRV) == "no server"
        world.services = [("10.0.0.1", 80)]
        await trio.sleep(60.0)
        assert world.urls(SRV) == ["http://10.0.0.1:80"]
        assert world.problem(SRV) is None
        assert len(world.pushed) == 1


async def test_source_that_stays_keeps_what_is_known(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.services = [("10.0.0.1", 80)]
        world.addresses["api.test"] = ("10.0.0.2",)
        await world.directory.watch((), {SRV, DNS})
        world.services = None
        await world.directory.watch((), {SRV})
        assert world.urls(SRV) == ["http://10.0.0.1:80"]
        assert world.urls(DNS) is None
        assert set(world.directory.addresses) == {"10.0.0.1"}
        assert len(world.pushed) == 2


async def test_source_that_is_not_wanted_any_more_is_left_alone(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.services = [("10.0.0.1", 80)]
        await world.directory.watch((), {SRV})
        await world.directory.watch((), ())
        world.services = [("10.0.0.2", 80)]
        await trio.sleep(10 * TTL_S)
        assert len(world.pushed) == 1
        assert list(world.directory.status()) == []


async def test_kubernetes_means_it_when_nothing_is_ready(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = Discover(kubernetes=Kubernetes(service="web"))
    async with running() as world:
        # No pod of a cluster: the watch itself tells nothing.
        await world.directory.watch((), {source}, within_s=0.0)
        await world.directory._tell_merged(source, Merged((Server("http://10.0.0.1:80"),)))
        assert world.urls(source) == ["http://10.0.0.1:80"]
        await world.directory._tell_merged(source, Merged((), "the service has no port 'http'"))
        assert world.urls(source) == []
        assert "kubernetes web: the service has no port 'http'" in caplog.text
        assert "kubernetes web has 0 endpoints" in caplog.text


async def test_file_is_told_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- {url: http://10.0.0.1, weight: many}\n")
    source = Discover(file=str(path))
    async with running() as world:
        await world.directory.watch((), {source})  # nothing to wait for: a mistake does not go away
        assert world.urls(source) is None
        assert f"{path}:1:34: error: [0].weight" in (world.problem(source) or "")
        path.write_text("[]")
        await world.told.wait()
        assert world.urls(source) == []
        assert world.problem(source) is None


def test_status_names_the_source() -> None:
    assert list(World().directory.status()) == []
