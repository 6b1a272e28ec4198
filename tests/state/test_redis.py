"""The store in Redis under what befalls it: what is lost, what heals, and that nothing is counted twice."""

from __future__ import annotations

import math
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ambassador.state.protocol import (
    Answer,
    Beat,
    Beaten,
    Event,
    Force,
    Get,
    Lease,
    Leased,
    NotAllowed,
    Operation,
    Probe,
    Put,
    Refused,
    Report,
    Restore,
    Roll,
    Row,
    Rules,
    StoreLost,
    Token,
    Verb,
    encode,
    tag_of,
)
from ambassador.state.redis import RedisStore, Subscription
from loadtest.shared.fault_proxy import FaultProxy
from tests.state.servers import (
    BINARIES,
    PATIENCE_S,
    ClusterServers,
    Server,
    any_binary,
    binary,
    shared_cluster,
    shared_sentinels,
    slot_of,
    wait_until,
)

A = TypeVar("A", bound=Answer)

RULES = Rules(0.5, 2.0, 5, 10_000, 0.3, 5000, 60_000, 3)
SHORT_S = 1.0
"""For what never answers."""
SLOW = 1e-6
"""Tokens a second: none within a test."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(any_binary()) as started:
        yield started


@contextmanager
def connected(url: str, timeout_s: float = PATIENCE_S, prefix: str = "amb") -> Iterator[RedisStore]:
    with closing(RedisStore(url, timeout_s=timeout_s, prefix=prefix)) as store:
        store.connect()
        yield store


@contextmanager
def through_a_proxy(server: Server, timeout_s: float = SHORT_S) -> Iterator[tuple[RedisStore, FaultProxy]]:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        with connected(f"redis://127.0.0.1:{proxy.port}", timeout_s) as store:
            yield store, proxy


def ask(store: RedisStore, operation: Operation, kind: type[A]) -> A:
    (answer,) = store.perform([operation])
    assert isinstance(answer, kind), answer
    return answer


def left(store: RedisStore, key: str = "k") -> float:
    """Tokens in a bucket of 100."""
    return ask(store, Lease(key, SLOW, 100.0, 0), Leased).left


def take(store: RedisStore, key: str = "k", want: int = 1) -> int:
    return ask(store, Lease(key, SLOW, 100.0, want, want), Leased).granted


def connect_again(store: RedisStore) -> None:
    def connects() -> bool:
        try:
            store.connect()
        except StoreLost:
            return False
        return True

    wait_until(connects, "the store connects again")


def one_of_each() -> list[Operation]:
    row = Row(0, 0, 1, 0, 0, 0, "", 0, "", "", 0, 0, 0, 0, 0)  # type: ignore[arg-type]
    return [
        Lease("k", 1.0, 10.0, 1),
        Report("b", "a", 0, 0, RULES, 1),
        Probe("b", "id", Verb.ASK, RULES),
        Force("b", "open", RULES),
        Restore("b", row),
        Token("t", "lock", "me"),
        Token("t", "store", "me", 0, b"v"),
        Beat("a", 0, b"i"),
        Roll(),
        Put("n", b"v", publish=True),
        Get("n"),
    ]


# ----- a store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BINARIES))
def test_two_stores_share_what_there_is(name: str) -> None:
    with (
        Server(binary(name)) as server,
        connected(server.url) as one,
        connected(f"unix:{server.socket}") as other,
    ):
        assert take(one, want=60) == 60
        assert take(other, want=60) == 40
        assert take(one) == 0


def test_prefixes_are_worlds_of_their_own(server: Server) -> None:
    with connected(server.url) as one, connected(server.url, prefix="test") as other:
        assert take(one, want=100) == 100
        assert take(other, want=100) == 100
        ask(one, Beat("a", 0), Beaten)
        assert ask(other, Beat("b", 0), Beaten).replicas == 1


def test_answers_come_in_the_operations_order(server: Server) -> None:
    with connected(server.url) as store:
        operations: list[Operation] = []
        for n in range(100):
            operations += [Put(f"n{n}", str(n).encode()), Lease(f"k{n}", SLOW, 100.0, n), Get(f"n{n}")]
        answers = store.perform(operations)
        for n in range(100):
            _, leased, named = answers[3 * n : 3 * n + 3]
            assert isinstance(leased, Leased)
            assert leased.granted == n
            assert named.value == str(n).encode()  # type: ignore[union-attr]


def test_operations_of_one_name_are_done_in_their_order(server: Server) -> None:
    with connected(server.url) as store:
        answers = store.perform([Lease("k", SLOW, 100.0, want) for want in (70, 50, 10)])
        assert [answer.granted for answer in answers] == [70, 30, 0]  # type: ignore[union-attr]


def test_nothing_is_performed_before_connecting_or_after_closing(server: Server) -> None:
    store = RedisStore(server.url)
    with pytest.raises(StoreLost):
        store.perform([Roll()])
    store.connect()
    store.close()
    with pytest.raises(StoreLost):
        store.perform([Roll()])
    assert store.shown() == f"redis://127.0.0.1:{server.port}"


def test_empty_batch_asks_nothing(server: Server) -> None:
    with connected(server.url) as store:
        assert store.perform([]) == []


def test_operation_that_cannot_be_done_does_not_spoil_its_batch(server: Server) -> None:
    with connected(server.url) as store:
        answers = store.perform([Lease("k", -1.0, 1.0, 1), Lease("k", SLOW, 100.0, 1)])
        assert [type(answer) for answer in answers] == [Refused, Leased]


def test_key_of_a_foreign_type_is_refused_and_stays(server: Server) -> None:
    with connected(server.url) as store:
        take(store)
        (key,) = server.client().keys("*:rl:k")
        server.client().delete(key)
        server.client().lpush(key, "x")
        answers = store.perform([Lease("k", SLOW, 100.0, 1), Get("n")])
        assert isinstance(answers[0], Refused)
        assert "WRONGTYPE" in answers[0].why
        assert not isinstance(answers[1], Refused)
        assert server.client().type(key) == b"list"


def test_user_with_no_more_than_the_documented_rights_does_everything(server: Server) -> None:
    import ambassador.state.redis as documented  # noqa: PLC0415 # for its docstring

    assert documented.__doc__ is not None
    rights = documented.__doc__.split("no more than")[1].split("(and,")[0].replace("PREFIX", "amb").split()
    server.client().execute_command("ACL", "SETUSER", "amb", "on", ">secret", *rights)
    with (
        connected(f"redis://amb:secret@127.0.0.1:{server.port}") as store,
        closing(store.subscribe()) as heard,
    ):
        answers = store.perform(one_of_each())
        assert not [answer for answer in answers if isinstance(answer, Refused)]
        assert heard.receive(PATIENCE_S) is not None
        (finding,) = store.examine()
        assert "cannot be examined: NOPERM" in finding
    server.client().execute_command("ACL", "SETUSER", "amb", "+info")
    with connected(f"redis://amb:secret@127.0.0.1:{server.port}") as store:
        assert store.examine() == []


def test_rights_of_the_guide_are_those_of_the_module() -> None:
    import ambassador.state.redis as documented  # noqa: PLC0415 # for its docstring

    assert documented.__doc__ is not None
    needed = documented.__doc__.split("no more than")[1].split("(and,")[0].replace("PREFIX", "amb").split()
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "shared-state.md"
    (line,) = re.findall(r"ACL SETUSER ambassador on >\S+ (.*?)\n```", guide.read_text(), re.DOTALL)
    assert set(line.replace("\\", " ").split()) == {*needed, "+info"}


# ----- replies that do not come ---------------------------------------------------------------------------------------


def test_swallowed_replies_count_once(server: Server) -> None:
    keys = [f"k{n}" for n in range(200)]
    with through_a_proxy(server) as (store, proxy):
        store.perform([Lease(key, SLOW, 100.0, 0) for key in keys])
        for _ in range(2):
            proxy.swallow_replies = True
            with pytest.raises(StoreLost, match="no answer"):
                store.perform([Lease(key, SLOW, 100.0, 1) for key in keys])
            proxy.heal()
            store.connect()
        assert {round(left(store, key)) for key in keys} == {98}


def test_connection_cut_before_the_reply_counts_once(server: Server) -> None:
    with through_a_proxy(server) as (store, proxy):
        left(store)
        proxy.cut_after_requests = 1
        with pytest.raises(StoreLost):
            take(store)
        store.connect()
        assert left(store) == pytest.approx(99, abs=0.01)


def test_nothing_is_sent_again_by_itself(server: Server) -> None:
    with through_a_proxy(server) as (store, proxy):
        left(store)
        before = proxy.connections, proxy.chunks_sent
        proxy.swallow_replies = True
        with pytest.raises(StoreLost):
            take(store)
        assert (proxy.connections, proxy.chunks_sent) == (before[0], before[1] + 1)
        proxy.refuse()
        with pytest.raises(StoreLost):
            store.connect()
        assert proxy.connections == before[0]


def test_slow_server_is_waited_for(server: Server) -> None:
    with through_a_proxy(server, PATIENCE_S) as (store, proxy):
        proxy.delay_s = 0.03
        assert take(store) == 1
        assert left(store) == pytest.approx(99, abs=0.01)


def test_server_that_hangs_is_lost_and_heals(server: Server) -> None:
    with connected(server.url, SHORT_S) as store:
        left(store)
        server.stop_running()
        with pytest.raises(StoreLost, match="no answer"):
            take(store)
        with pytest.raises(StoreLost, match="no answer"):
            store.connect()
        server.go_on()
        connect_again(store)
        assert left(store) >= 98.99


# ----- servers that cannot serve --------------------------------------------------------------------------------------


def test_server_that_died_has_lost_its_data(server: Server) -> None:
    with connected(server.url) as store:
        born_us = ask(store, Beat("a", 0), Beaten).born_us
        assert take(store, want=40) == 40
        server.kill()
        with pytest.raises(StoreLost):
            take(store)
        with pytest.raises(StoreLost, match="refused"):
            store.connect()
        server.start()
        store.connect()
        assert take(store, want=100) == 0  # and not a second burst
        assert ask(store, Beat("a", 0), Beaten).born_us > born_us


def test_server_that_loads_is_lost_until_it_has(server: Server) -> None:
    with connected(server.url) as store:
        client = server.client()
        take(store, want=40)
        client.execute_command("DEBUG", "POPULATE", 2000, "fill", 100) if _may_debug(client) else [
            client.set(f"fill:{n}", b"x" * 100) for n in range(2000)
        ]
        client.save()
        server.kill()
        server.start(
            "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024", wait=False
        )

        def refused_as_loading() -> bool:
            try:
                store.connect()
            except StoreLost as lost:
                return "LOADING" in str(lost)
            return False

        wait_until(refused_as_loading, "the server loads")
        wait_until(lambda: server.client().config_set("key-load-delay", 0), "it takes the setting")
        connect_again(store)
        assert left(store) == pytest.approx(60, abs=0.01)


def _may_debug(client: Any) -> bool:
    return bool(client.config_get("enable-debug-command").get("enable-debug-command", "yes") != "no")


def test_full_server_is_lost_and_changed_nothing(server: Server) -> None:
    with connected(server.url) as store:
        take(store, want=40)
        server.client().config_set("maxmemory", "1mb")
        for _ in range(2):
            with pytest.raises(StoreLost, match="OOM"):
                take(store)
            store.connect()
        server.client().config_set("maxmemory", 0)
        assert left(store) == pytest.approx(60, abs=0.01)


def test_user_that_is_switched_off_is_lost(server: Server) -> None:
    client = server.client()
    client.execute_command("ACL", "SETUSER", "amb", "on", ">secret", "~*", "&*", "+@all")
    with connected(f"redis://amb:secret@127.0.0.1:{server.port}") as store:
        take(store)
        client.execute_command("ACL", "SETUSER", "amb", "off")
        client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(StoreLost):
            take(store)
        with pytest.raises(StoreLost, match="refused the user"):
            store.connect()
        client.execute_command("ACL", "SETUSER", "amb", "on", "-evalsha")
        with pytest.raises(StoreLost, match="NOPERM"):
            store.connect()
        client.execute_command("ACL", "SETUSER", "amb", "+evalsha")
        store.connect()
        assert left(store) == pytest.approx(99, abs=0.01)


def test_server_that_becomes_a_replica_is_lost(server: Server) -> None:
    with Server(any_binary()) as other, connected(server.url) as store:
        take(store)
        server.client().replicaof("127.0.0.1", other.port)
        with pytest.raises(StoreLost):
            take(store)
        store.connect()
        with pytest.raises(StoreLost, match="READONLY"):
            take(store)


# ----- scripts and data that are gone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BINARIES))
def test_flushed_scripts_are_loaded_again_and_counted_once(name: str) -> None:
    with Server(binary(name)) as server, connected(server.url) as store:
        client = server.client()
        store.perform(one_of_each())
        for n in range(1, 4):
            client.script_flush()
            client.config_resetstat()
            answers = store.perform([Lease(f"k{key}", SLOW, 100.0, 1) for key in range(200)] + [Roll()])
            assert {round(answer.left) for answer in answers[:-1]} == {100 - n}  # type: ignore[union-attr]
            loads = (
                client.info("commandstats")["cmdstat_script|load"]
                if _names_subcommands(client)
                else {"calls": 2}
            )
            assert loads["calls"] == 2


def _names_subcommands(client: Any) -> bool:
    return any("|" in name for name in client.info("commandstats"))


def births(server: Server) -> list[tuple[float, float]]:
    client = server.client()
    return [struct.unpack("<dd", client.get(f"amb:v1:{{s{tag:02}}}:gen")) for tag in range(64)]


def test_first_process_finds_nothing_lost(server: Server) -> None:
    with connected(server.url) as store:
        assert take(store, want=100) == 100
        assert {grows_from for _, grows_from in births(server)} == {0.0}


def test_wiped_data_grows_from_nothing_and_is_said_to_be_new(server: Server) -> None:
    with connected(server.url) as store:
        first = ask(store, Beat("a", 0), Beaten)
        assert take(store, want=100) == 100
        server.client().flushall()
        assert take(store, want=100) == 0
        again = ask(store, Beat("a", 0), Beaten)
        assert again.born_us > first.born_us
        # A beat that finds it out has all shards know.
        assert all(grows_from > 0 for _, grows_from in births(server))
        with connected(server.url) as newcomer:
            assert take(newcomer, "other", want=100) == 0
            assert ask(newcomer, Beat("b", 0), Beaten).born_us == again.born_us


def test_wipe_while_nobody_was_connected_is_noticed_at_connecting(server: Server) -> None:
    with connected(server.url) as store:
        store.close()
        server.client().flushall()
        store.connect()
        assert take(store, want=100) == 0


def test_shard_that_lost_its_data_is_not_taken_for_old_by_a_newcomer(server: Server) -> None:
    client = server.client()
    tag = tag_of("k")
    with connected(server.url):
        pass
    # As if the data were older than a start-up in which several processes write.
    for other in range(64):
        client.set(f"amb:v1:{{s{other:02}}}:gen", struct.pack("<dd", 1e15, 0.0))
    client.delete(f"amb:v1:{{s{tag:02}}}:gen")
    with connected(server.url) as newcomer:
        assert take(newcomer, want=100) == 0
        assert take(newcomer, next(name for name in "abc" if tag_of(name) != tag), want=100) == 100


def test_age_is_that_of_the_oldest_shard(server: Server) -> None:
    client = server.client()
    with connected(server.url) as store:
        assert store.age_s == math.inf
        client.flushall()
        store.connect()
        assert 0 <= store.age_s < 5
        born_us, _ = struct.unpack("<dd", client.get(f"amb:v1:{{s{tag_of('k'):02}}}:gen"))
        client.set(f"amb:v1:{{s{tag_of('k'):02}}}:gen", struct.pack("<dd", born_us - 60e6, born_us - 60e6))
        store.connect()
        assert 60 <= store.age_s < 65


def test_process_that_finds_the_births_half_written_goes_on_writing(server: Server) -> None:
    with connected(server.url):
        pass
    for tag in range(32):
        server.client().delete(f"amb:v1:{{s{tag:02}}}:gen")
    with connected(server.url):
        assert {grows_from for _, grows_from in births(server)} == {0.0}


# ----- Sentinel -------------------------------------------------------------------------------------------------------


def test_failover_leads_to_the_new_master_before_the_old_one_knows() -> None:
    sentinels = shared_sentinels()
    with connected(sentinels.url) as store:
        take(store, "failover", 10)
        before = left(store, "failover")
        sentinels.master().client().wait(1, 5000)
        sentinels.fail_over()
        with pytest.raises(StoreLost):
            wait_until(lambda: left(store, "failover") < 0, "the loss is noticed")
        connect_again(store)
        assert left(store, "failover") == pytest.approx(before, abs=0.01)


# ----- Cluster --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[ClusterServers]:
    shared = shared_cluster()
    yield shared
    for server in shared.servers:
        server.client().flushall()


def test_cluster_counts_exactly_while_a_slot_moves(cluster: ClusterServers) -> None:
    names = [f"k{n}" for n in range(2000)]
    tag = tag_of(names[0])
    moving = [name for name in names if tag_of(name) == tag][:20]
    resting = [name for name in names if tag_of(name) != tag][:20]
    granted = dict.fromkeys([*moving, *resting], 0)
    slot = slot_of(tag)

    with connected(cluster.url) as store:

        def take_one_of_each(known: list[str]) -> int:
            refused = 0
            answers = store.perform([Lease(name, SLOW, 1000.0, 1, 1) for name in known])
            for name, answer in zip(known, answers, strict=True):
                if isinstance(answer, Refused):
                    refused += 1
                else:
                    granted[name] += answer.granted  # type: ignore[union-attr]
            return refused

        assert take_one_of_each([*moving[:15], *resting]) == 0
        for turn in range(6):
            source = cluster.owner(slot)
            target = next(server for server in cluster.servers if server is not source)
            cluster.begin_move(slot, target)
            assert take_one_of_each([*moving[:15], *resting]) == 0
            take_one_of_each([moving[15], *resting])  # which can be made on neither side
            while cluster.move_keys(slot, target, 3):
                take_one_of_each([*moving, *resting])
            assert take_one_of_each([*moving[:15], *resting]) == 0
            if turn % 2:
                for server in cluster.servers:
                    server.client().script_flush()
            cluster.end_move(slot, target)
            assert take_one_of_each([*moving, *resting]) == 0
        for name, count in granted.items():
            assert ask(store, Lease(name, SLOW, 1000.0, 0), Leased).left == pytest.approx(
                1000 - count, abs=0.01
            )
        assert min(granted[name] for name in resting) > 20


def test_cluster_whose_node_is_gone_is_lost_as_a_whole(cluster: ClusterServers) -> None:
    with connected(cluster.url) as store:
        victim = cluster.owner(slot_of(tag_of("k")))
        others = [name for name in map(str, range(100)) if cluster.owner(slot_of(tag_of(name))) is not victim]
        assert take(store) == 1
        assert take(store, others[0]) == 1
        victim.kill()
        with pytest.raises(StoreLost):
            take(store)
        with pytest.raises(StoreLost):
            store.connect()
        victim.start()
        cluster.wait_until_ready()
        connect_again(store)
        assert left(store) < 1  # lost, and known to be
        assert left(store, others[0]) == pytest.approx(99, abs=0.01)


def test_events_reach_subscribers_of_every_node(cluster: ClusterServers) -> None:
    with ExitStack() as stack:
        store = stack.enter_context(connected(cluster.url))
        heard = [
            stack.enter_context(closing(RedisStore(f"redis+cluster://127.0.0.1:{server.port}").subscribe()))
            for server in cluster.servers
        ]
        for n in range(10):
            store.perform([Put(f"n{n}", b"v", publish=True)])
        for each in heard:
            assert len([each.receive(PATIENCE_S) for _ in range(10)]) == 10


# ----- events ---------------------------------------------------------------------------------------------------------


class Listener:
    """Iterates over a subscription in a thread, as the bridge does."""

    def __init__(self, subscription: Subscription) -> None:
        self.events: list[Event] = []
        self.lost: StoreLost | None = None
        self._subscription = subscription
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.events += self._subscription
        except StoreLost as lost:
            self.lost = lost

    def ended(self) -> bool:
        return not self.thread.is_alive()


def test_events_are_told_until_stopped(server: Server) -> None:
    with connected(server.url) as store:
        subscription = store.subscribe()
        events = iter(subscription)
        store.perform([Put("n", b"v", publish=True), Force("b", "open", RULES), Put("silent", b"v")])
        assert {(event.kind, event.name) for event in (next(events), next(events))} == {
            ("value", "n"),
            ("circuit", "b"),
        }
        subscription.stop()
        assert list(events) == []
        wait_until(lambda: not server.client().pubsub_channels(), "the connection is closed")


def test_subscription_is_stopped_from_another_thread(server: Server) -> None:
    with connected(server.url) as store:
        subscription = store.subscribe()
        listener = Listener(subscription)
        subscription.stop()
        wait_until(listener.ended, "it ended")
        assert listener.lost is None


def test_what_others_publish_is_passed_over(server: Server) -> None:
    with connected(server.url) as store:
        subscription = store.subscribe()
        server.client().publish(subscription.channel, b"hello")
        for kind in ("circuit", "value", "token", "permits", "alive"):
            server.client().publish(subscription.channel, encode(Event(kind, "x", b"\xc1")))
        store.perform([Put("n", b"v", publish=True)])
        assert next(iter(subscription)).name == "n"
        subscription.close()


@pytest.mark.parametrize("fault", [Server.kill, Server.stop_running])
def test_subscription_to_a_server_that_is_gone_is_lost(
    server: Server, fault: Callable[[Server], None]
) -> None:
    with connected(server.url) as store:
        listener = Listener(store.subscribe())
        fault(server)
        wait_until(listener.ended, "the loss is noticed")
        assert listener.lost is not None
        with pytest.raises(StoreLost):
            RedisStore(server.url, timeout_s=SHORT_S).subscribe()


def test_idle_subscription_stays(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ambassador.state.redis._IDLE_S", 0.05)
    with connected(server.url) as store:
        listener = Listener(store.subscribe())
        server.client().config_resetstat()
        wait_until(
            lambda: server.client().info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"] >= 3,
            "it has asked three times whether the server is there",
        )
        assert not listener.ended()
        listener._subscription.stop()
        wait_until(listener.ended, "it ended")


def test_subscribing_without_the_right_is_a_loss(server: Server) -> None:
    server.client().execute_command("ACL", "SETUSER", "amb", "on", ">secret", "~*", "+@all", "resetchannels")
    with pytest.raises(NotAllowed, match=r"may not subscribe to amb:v1:ev: give it \+subscribe and &amb:\*"):
        RedisStore(f"redis://amb:secret@127.0.0.1:{server.port}").subscribe()


@pytest.mark.parametrize("name", sorted(BINARIES))
def test_user_without_channels_has_everything_done_and_is_told_what_is_missing(name: str) -> None:
    """A user has no channel unless it is given one, since Redis 7."""
    with Server(binary(name)) as server:
        server.client().execute_command(
            "ACL", "SETUSER", "amb", "on", ">secret", "~*", "+@all", "resetchannels"
        )
        with connected(f"redis://amb:secret@127.0.0.1:{server.port}") as store:
            answers = store.perform(one_of_each())
            assert [answer for answer in answers if isinstance(answer, Refused)] == []
            publish, subscribe, so = store.examine()
            assert publish.startswith("the user may not publish to amb:v1:ev: give it +publish and &amb:*")
            assert subscribe.startswith("the user may not subscribe to amb:v1:ev")
            assert "a second later" in so


@pytest.mark.parametrize("name", sorted(BINARIES))
@pytest.mark.parametrize("command", ["get", "hset", "zadd", "time", "del", "hmget"])
def test_missing_right_inside_a_script_is_a_loss_that_names_it(name: str, command: str) -> None:
    with Server(binary(name)) as server:
        server.client().execute_command(
            "ACL", "SETUSER", "amb", "on", ">s", "~*", "&*", "+@all", f"-{command}"
        )
        store = RedisStore(f"redis://amb:s@127.0.0.1:{server.port}", timeout_s=PATIENCE_S)

        def use() -> None:
            store.connect()
            store.perform(one_of_each())
            store.try_out()

        with closing(store), pytest.raises(NotAllowed) as denied:
            use()
        assert re.search(rf"may not run {command.upper()}.*give it \+{command}$", str(denied.value))


# ----- what is wrong with a server ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BINARIES))
def test_sound_server_has_no_findings(name: str) -> None:
    with Server(binary(name)) as server, connected(server.url) as store:
        assert store.examine() == []


def test_server_that_evicts_is_found(server: Server) -> None:
    with connected(server.url) as store:
        server.client().config_set("maxmemory-policy", "allkeys-lru")
        (finding,) = store.examine()
        assert "maxmemory-policy is allkeys-lru" in finding


def test_replica_is_found(server: Server) -> None:
    with Server(any_binary()) as other, connected(server.url) as store:
        server.client().replicaof("127.0.0.1", other.port)
        assert any("is a replica" in finding for finding in store.examine())


def test_server_that_takes_no_scripts_is_found(server: Server) -> None:
    client = server.client()
    client.execute_command("ACL", "SETUSER", "amb", "on", ">secret", "~*", "&*", "+@all")
    with connected(f"redis://amb:secret@127.0.0.1:{server.port}") as store:
        client.execute_command("ACL", "SETUSER", "amb", "-script")
        findings = store.examine()
        assert len(findings) == 6
        assert all("does not take the script" in finding for finding in findings)


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"redis_version": "6.0.16"}, "Redis 6.0.16 is older than 6.2"),
        ({"redis_version": "6.2.14"}, None),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, None),
        ({"redis_version": "10.0.0"}, None),
        ({"redis_version": "7.0.1", "loading": "1"}, "still loading"),
    ],
)
def test_version_is_examined(info: dict[str, str], says: str | None) -> None:
    from ambassador.state.redis import _examine_info  # noqa: PLC0415 # inside, for this test alone

    findings = list(_examine_info("h:1", info))
    assert (len(findings) == 1 and says in findings[0]) if says else not findings
