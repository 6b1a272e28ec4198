from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from ambassador.config import schema
from ambassador.config.discover import Discover
from ambassador.control.health import (
    RATE,
    Calls,
    CheckFailed,
    HealthChecks,
    Target,
    Watched,
    watched_upstreams,
)
from ambassador.proxy.egress import Config as EgressConfig
from ambassador.proxy.egress import Egress
from ambassador.proxy.key_files import ClientConfig, KeyPair, ServerConfig
from ambassador.proxy.tls import Keyring
from ambassador.proxy.upstream.health import Config
from ambassador.proxy.upstream.via import Config as Via
from tests.control.test_http_client import Serve, answering, server
from tests.proxy.egress_proxy import LOGIN, EgressProxy, SocksProxy, running
from tests.proxy.pem import Authority

A, B = "http://10.0.0.1:80", "http://10.0.0.2:80"
CHECK = Config(every=5.0, rise=2, fall=3)


class Servers:
    """Whether each url is well; a check takes `takes_s`."""

    def __init__(self) -> None:
        self.ill: dict[str, str] = {}
        self.asked: list[tuple[float, str]] = []
        self.takes_s: dict[str, float] = {}
        self.addresses: list[Sequence[str]] = []

    async def check(self, target: Target, addresses: Sequence[str]) -> None:
        self.asked.append((trio.current_time(), target.url))
        self.addresses.append(addresses)
        await trio.sleep(self.takes_s.get(target.url, 0.0))
        if target.url in self.ill:
            raise CheckFailed(self.ill[target.url])

    def times(self, url: str) -> list[float]:
        return [when for when, asked in self.asked if asked == url]


class Watching:
    def __init__(self, addresses: dict[str, Sequence[str]] | None = None) -> None:
        self.servers = Servers()
        self.pushed: list[dict[str, dict[str, str]]] = []
        self.checks = HealthChecks(
            addresses or {}, self.pushed.append, check=self.servers.check, chance=lambda: 0.5
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.checks.run)
            yield
            nursery.cancel_scope.cancel()


def watched(*urls: str, check: Config = CHECK) -> Watched:
    return Watched(check, urls)


async def test_checks_tell_nothing_while_all_is_well(autojump_clock: trio.testing.MockClock) -> None:
    watching = Watching()
    watching.checks.watch({"a": watched(A)})
    async with watching.running():
        await trio.sleep(11)
    assert watching.servers.times(A) == pytest.approx([0.125, 5.125, 10.125], abs=0.01)
    assert watching.servers.addresses[0] == ("10.0.0.1",)
    assert not watching.pushed
    assert not watching.checks.unhealthy


async def test_checks_have_the_addresses_of_names_and_addresses_as_they_are(
    autojump_clock: trio.testing.MockClock,
) -> None:
    watching = Watching({"api.test": ("10.0.0.1", "10.0.0.2")})
    urls = "http://api.test:80", "http://[2001:db8::1]:80", "http://unknown.test:80"
    watching.checks.watch({"a": watched(*urls)})
    async with watching.running():
        await trio.sleep(1)
    seen = {
        url: list(addresses)
        for (_, url), addresses in zip(watching.servers.asked, watching.servers.addresses, strict=True)
    }
    assert seen == dict(zip(urls, (["10.0.0.1", "10.0.0.2"], ["2001:db8::1"], []), strict=True))


async def test_checks_hurry_until_it_is_clear_whether_an_endpoint_is_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    watching = Watching()
    watching.checks.watch({"a": watched(A, B)})
    watching.servers.ill[A] = "cannot connect"
    async with watching.running():
        await trio.sleep(4.9)
    # Three that fail, 250 ms apart; then it is clear, and B serves.
    assert watching.servers.times(A) == pytest.approx([0.125, 0.375, 0.625], abs=0.01)
    assert len(watching.servers.times(B)) == 1
    assert watching.pushed == [{"a": {A: "unhealthy: cannot connect"}}]
    assert watching.checks.unhealthy == {"a": {A: "unhealthy: cannot connect"}}


async def test_checks_tell_when_an_endpoint_is_back(autojump_clock: trio.testing.MockClock) -> None:
    watching = Watching()
    watching.checks.watch({"a": watched(A, B)})
    watching.servers.ill[A] = "status 503"
    async with watching.running():
        await trio.sleep(1)
        watching.servers.ill.clear()
        await trio.sleep(5.5)
    assert watching.pushed == [{"a": {A: "unhealthy: status 503"}}, {"a": {}}]
    assert not watching.checks.unhealthy


async def test_checks_hurry_while_nothing_of_an_upstream_is_healthy(
    autojump_clock: trio.testing.MockClock,
) -> None:
    watching = Watching()
    watching.checks.watch({"a": watched(A, B)})
    async with watching.running():
        await trio.sleep(1)
        watching.servers.ill = {A: "down", B: "down"}
        await trio.sleep(60)
        assert max(after - before for before, after in pairwise(watching.servers.times(A)[20:40])) < 0.3
        watching.servers.ill.clear()
        back = trio.current_time()
        while watching.checks.unhealthy:  # noqa: ASYNC110 - the mock clock's time is free
            await trio.sleep(0.01)
        assert trio.current_time() - back < 0.6
        await trio.sleep(0.01)
    assert watching.pushed[-1] == {"a": {}}


async def test_endpoint_that_was_resting_is_asked_at_once_when_the_last_healthy_one_goes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    watching = Watching()
    watching.checks.watch({"a": watched(A, B, check=Config(every=100.0, rise=1, fall=1))})
    watching.servers.takes_s[B] = 10.0
    watching.servers.ill = {A: "down"}
    async with watching.running():
        await trio.sleep(50)
        watching.servers.ill = {A: "down", B: "down"}
        await trio.sleep(55)
        assert len(watching.servers.times(A)) == 2
        watching.servers.ill = {B: "down"}
        await trio.sleep(5.5)  # at 110.1 s it is clear that B is down
        assert len(watching.servers.times(A)) == 3
    assert watching.checks.unhealthy == {"a": {B: "unhealthy: down"}}


async def test_check_that_hangs_holds_up_no_other(autojump_clock: trio.testing.MockClock) -> None:
    watching = Watching()
    watching.checks.watch({"a": watched(A, B)})
    watching.servers.takes_s[A] = 1e6
    async with watching.running():
        await trio.sleep(20.2)
    assert len(watching.servers.times(A)) == 1
    assert len(watching.servers.times(B)) == 5


async def test_endpoint_of_several_upstreams_is_asked_once(autojump_clock: trio.testing.MockClock) -> None:
    watching = Watching()
    watching.checks.watch({"a": watched(A), "b": watched(A, B), "c": watched(A, check=Config(path="/other"))})
    watching.servers.ill[A] = "down"
    async with watching.running():
        await trio.sleep(0.3)
        assert len(watching.servers.times(A)) == 2
        await trio.sleep(1)
    assert watching.pushed == [{name: {A: "unhealthy: down"} for name in ("a", "b", "c")}]
    by_name = {each.upstream: each for each in watching.checks.figures()}
    assert (by_name["b"].healthy, by_name["b"].unhealthy) == (1, 1)
    assert by_name["a"].failed >= 3


async def test_watch_keeps_what_is_known_of_targets_that_stay(autojump_clock: trio.testing.MockClock) -> None:
    watching = Watching()
    watching.checks.watch({"a": watched(A, B)})
    watching.servers.ill[A] = "down"
    async with watching.running():
        await trio.sleep(2)
        watching.checks.watch({"a": watched(A), "b": watched(A)})
        await trio.sleep(0.01)
        assert watching.pushed[-1] == {"b": {A: "unhealthy: down"}}
        asked = len(watching.servers.times(B))
        await trio.sleep(30)
        assert len(watching.servers.times(B)) == asked


async def test_watch_begins_anew_where_the_check_is_another(autojump_clock: trio.testing.MockClock) -> None:
    watching = Watching()
    watching.checks.watch({"a": watched(A, B)})
    watching.servers.ill[A] = "down"
    async with watching.running():
        await trio.sleep(2)
        watching.servers.ill.clear()
        watching.checks.watch({"a": watched(A, B, check=Config(path="/other"))})
        await trio.sleep(0.01)
        assert watching.pushed[-1] == {"a": {}}
        watching.checks.watch({})
        asked = len(watching.servers.asked)
        await trio.sleep(30)
        assert len(watching.servers.asked) == asked
    assert not list(watching.checks.figures())


async def test_many_endpoints_are_asked_less_often(autojump_clock: trio.testing.MockClock) -> None:
    watching = Watching()
    urls = [f"http://10.0.{n // 250}.{n % 250}:80" for n in range(2000)]
    watching.checks.watch({"a": watched(*urls)})
    async with watching.running():
        await trio.sleep(30)
    assert len(watching.servers.asked) <= 30 * RATE + len(urls)


async def test_transitions_are_logged_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watching = Watching()
    watching.checks.watch({"a": watched(A)})
    watching.servers.ill[A] = "status 500"
    async with watching.running():
        await trio.sleep(10)
        watching.servers.ill.clear()
        await trio.sleep(1)
    assert [record.getMessage() for record in caplog.records] == [
        f"upstream a: {A} is unhealthy: status 500 (3 checks failed)",
        "upstream a: no endpoint is healthy",
        f"upstream a: {A} is healthy again",
    ]


def test_watched_upstreams_are_those_with_a_check() -> None:
    endpoint = schema.Endpoint(url=A)
    upstreams = {
        "a": schema.Upstream(endpoints=(endpoint,), health=CHECK),
        "b": schema.Upstream(endpoints=(endpoint,)),
    }
    assert watched_upstreams(upstreams) == {"a": Watched(CHECK, (A,))}


def test_watched_upstreams_have_what_their_source_has_found() -> None:
    source = Discover(dns="api.test:8080")
    upstreams = {"a": schema.Upstream(discover=source, health=CHECK)}
    assert watched_upstreams(upstreams) == {"a": Watched(CHECK, (), "api.test:8080", written=False)}
    assert watched_upstreams(upstreams, {source: [A]}) == {
        "a": Watched(CHECK, (A,), "api.test:8080", written=False)
    }


def test_watched_upstreams_have_tls_where_their_endpoints_do() -> None:
    plain, secure = schema.Endpoint(url=A), schema.Endpoint(url="https://10.0.0.2:443")
    shown = ClientConfig(sni="a.b")
    found = Discover(dns="api.test:443")
    watched = watched_upstreams(
        {
            "both": schema.Upstream(endpoints=(plain, secure), health=CHECK),
            "named": schema.Upstream(endpoints=(secure,), tls=shown, health=CHECK),
            "found": schema.Upstream(discover=found, tls=shown, health=CHECK),
            "in the clear": schema.Upstream(discover=found, health=CHECK),
        },
        {found: [A]},
    )
    assert {name: [each.target(url).tls for url in each.urls] for name, each in watched.items()} == {
        "both": [None, ClientConfig()],
        "named": [shown],
        "found": [shown],
        "in the clear": [None],
    }


# Over real sockets

PATIENT = Config(timeout=20.0, expect=("200",))


def target(url: str, check: Config = PATIENT, **changes: object) -> Target:
    return Target(url, msgspec.structs.replace(check, **changes))


async def test_calls_pass_when_one_address_answers_as_it_should() -> None:
    seen: list[bytes] = []
    async with server(answering(b"HTTP/1.1 200 OK\r\n\r\n", seen)) as place:
        checked = target(f"http://example.test:{place.port}", path="/ok")
        # The second address listens nowhere, and nothing waits for what never answers.
        await Calls(Keyring()).check(checked, ["127.0.0.1", "127.0.0.2"])
    assert seen[0].startswith(b"GET /ok HTTP/1.1\r\n")
    assert b"host: example.test:%d\r\n" % place.port in seen[0].lower()


async def test_calls_fail_by_status_and_without_an_address(tmp_path: Path) -> None:
    async with server(answering(b"HTTP/1.1 503 No\r\n\r\n"), tmp_path / "s"):
        with pytest.raises(CheckFailed, match="status 503"):
            await Calls(Keyring()).check(target(f"unix:{tmp_path}/s"), [])
        await Calls(Keyring()).check(target(f"unix:{tmp_path}/s", tcp=True), [])
    with pytest.raises(CheckFailed, match="the name has no address"):
        await Calls(Keyring()).check(target("http://example.test:80"), [])


async def test_calls_are_bounded_in_number() -> None:
    now, most = 0, 0

    async def busy(stream: trio.SocketStream) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await stream.receive_some(1000)
        await trio.testing.wait_all_tasks_blocked()
        now -= 1
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        await stream.aclose()

    calls = Calls(Keyring(), at_once=2)
    async with server(busy) as place, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(calls.check, target(f"http://127.0.0.1:{place.port}"), ["127.0.0.1"])
    assert most <= 2


def secure(serve: Serve, pair: KeyPair) -> Serve:
    context = Keyring().server(ServerConfig(cert=pair.cert, key=pair.key), "listener").context

    async def serve_tls(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError):
            await serve(tls)  # type: ignore[arg-type]

    return serve_tls


async def test_calls_verify_the_certificate_as_requests_do(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    config = ClientConfig(ca=authority.ca)
    keyring = Keyring()
    keyring.client(config, "upstream a")
    calls = Calls(keyring)
    serve = secure(answering(b"HTTP/1.1 200 OK\r\n\r\n"), authority.issue("a.test"))
    async with server(serve) as place:
        good = f"https://a.test:{place.port}"
        await calls.check(Target(good, PATIENT, tls=config), ["127.0.0.1"])
        connects = msgspec.structs.replace(PATIENT, tcp=True)
        await calls.check(Target(good, connects, tls=config), ["127.0.0.1"])
        named = Target(
            f"http://127.0.0.1:{place.port}", PATIENT, "a.test:443", msgspec.structs.replace(config, sni=None)
        )
        await calls.check(named, ["127.0.0.1"])
        other = f"https://b.test:{place.port}"
        sni = msgspec.structs.replace(config, sni="a.test")
        await calls.check(Target(other, PATIENT, tls=sni), ["127.0.0.1"])
        for check in (PATIENT, connects):
            with pytest.raises(CheckFailed, match="TLS: Hostname mismatch"):
                await calls.check(Target(other, check, tls=config), ["127.0.0.1"])


async def test_calls_fail_where_nobody_speaks_tls(tmp_path: Path) -> None:
    config = ClientConfig(ca=Authority(tmp_path).ca)
    keyring = Keyring()
    keyring.client(config, "upstream a")

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    async with server(serve) as place:
        for check in (PATIENT, msgspec.structs.replace(PATIENT, tcp=True)):
            with pytest.raises(CheckFailed, match="TLS: "):
                await Calls(keyring).check(
                    Target(f"https://127.0.0.1:{place.port}", check, tls=config), ["127.0.0.1"]
                )
    with pytest.raises(CheckFailed, match="its certificates are not loaded"):
        await Calls(Keyring()).check(
            Target(f"https://127.0.0.1:{place.port}", PATIENT, tls=config), ["127.0.0.1"]
        )


async def test_calls_go_where_egress_lets_them() -> None:
    rules = Egress(EgressConfig(allow=("127.0.0.1",)))
    async with server(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as place:
        calls = Calls(Keyring(), egress=lambda: rules)
        named = target(f"http://example.test:{place.port}")
        await calls.check(named, ["169.254.169.254", "127.0.0.1"])
        rules = Egress(EgressConfig())
        with pytest.raises(CheckFailed, match=r"egress: 127\.0\.0\.1 is not public"):
            await calls.check(named, ["127.0.0.1"])
        written = target(f"http://127.0.0.1:{place.port}")
        await calls.check(written, ["127.0.0.1"])
        with pytest.raises(CheckFailed, match="egress"):
            await calls.check(msgspec.structs.replace(written, written=False), ["127.0.0.1"])


async def test_calls_go_to_an_egress_proxy_where_egress_lets_them() -> None:
    seen: list[bytes] = []
    async with server(answering(b"HTTP/1.1 200 OK\r\n\r\n", seen)) as place:
        checked = Target("http://api.test", PATIENT, via=Via(url=f"http://proxy.test:{place.port}"))
        for config, open_ in [
            (None, True),
            (EgressConfig(), False),
            (EgressConfig(allow=("proxy.test",)), True),
            (EgressConfig(deny=("proxy.test",)), False),
        ]:
            rules = Egress(config)
            calls = Calls(Keyring(), egress=lambda: rules)  # noqa: B023 - called in this turn
            if open_:
                await calls.check(checked, ["127.0.0.1"])
            else:
                with pytest.raises(CheckFailed, match="egress"):
                    await calls.check(checked, ["127.0.0.1"])
    assert len(seen) == 2


async def test_calls_that_are_given_up_in_their_handshake_leave_no_connection(tmp_path: Path) -> None:
    config = ClientConfig(ca=Authority(tmp_path).ca)
    keyring = Keyring()
    keyring.client(config, "upstream a")
    ended = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        while await stream.receive_some(1000):
            pass  # it never answers
        ended.set()

    async with server(serve) as place:
        for check in (PATIENT, msgspec.structs.replace(PATIENT, tcp=True)):
            ended = trio.Event()
            target = Target(f"https://127.0.0.1:{place.port}", check, tls=config)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Calls(keyring).check, target, ["127.0.0.1"])
                await trio.testing.wait_all_tasks_blocked(0.05)
                nursery.cancel_scope.cancel()
            with trio.fail_after(20):
                await ended.wait()


@pytest.mark.parametrize("make", [EgressProxy, SocksProxy])
@pytest.mark.parametrize("login", [False, True])
async def test_calls_go_through_the_egress_proxy(
    make: type[EgressProxy], tmp_path: Path, *, login: bool
) -> None:
    (tmp_path / "password").write_text(LOGIN[1])
    authority = Authority(tmp_path)
    config = ClientConfig(ca=authority.ca)
    keyring = Keyring()
    keyring.client(config, "upstream a")
    connects = msgspec.structs.replace(PATIENT, tcp=True)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            if b" /healthz " in await stream.receive_some():
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with server(serve) as place:
        async with running(make((place.address, place.port), login=login)) as proxy:
            shown = {"user": LOGIN[0], "password": f"file:{tmp_path / 'password'}"} if login else {}
            via = Via(url=proxy.url, **shown)
            calls = Calls(keyring)
            checked = Target("http://api.test:8080", PATIENT, via=via)
            assert checked.dialled == "127.0.0.1"
            await calls.check(checked, ["127.0.0.1"])
            await calls.check(msgspec.structs.replace(checked, check=connects), ["127.0.0.1"])
            if make is SocksProxy:
                assert proxy.heads == [b"api.test:8080"] * 2
            else:
                assert proxy.heads[0].startswith(b"GET http://api.test:8080/healthz HTTP/1.1\r\n")
                assert proxy.heads[1].startswith(b"CONNECT api.test:8080 HTTP/1.1\r\n")
            if login:
                for check in (PATIENT, connects):
                    without = Target("http://api.test:8080", check, via=Via(url=proxy.url))
                    with pytest.raises(CheckFailed, match="credentials"):
                        await calls.check(without, ["127.0.0.1"])
                missing = Via(url=proxy.url, user="a", password="file:/missing")
                with pytest.raises(CheckFailed, match="password"):
                    await calls.check(msgspec.structs.replace(checked, via=missing), ["127.0.0.1"])
            secure = Target("https://api.test", PATIENT, tls=config, via=via)
            with pytest.raises(CheckFailed, match="TLS: "):  # what is behind the proxy speaks none
                await calls.check(secure, ["127.0.0.1"])
