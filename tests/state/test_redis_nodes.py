from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from redis.exceptions import MovedError, OutOfMemoryError, ReadOnlyError, ResponseError

from ambassador.state import redis_nodes
from ambassador.state.protocol import StoreLost
from ambassador.state.redis_nodes import Kind, Node, Trouble, make_nodes
from ambassador.state.redis_scripts import Scripts
from ambassador.state.redis_url import Address, parse_address
from loadtest.shared.fault_proxy import FaultProxy
from tests.proxy.pem import Authority
from tests.state.servers import (
    PATIENCE_S,
    Server,
    any_binary,
    binary,
    free_port,
    shared_cluster,
    shared_sentinels,
    shared_server,
    slot_of,
    wait_until,
)

SHORT_S = 1.0
"""For what never answers."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(any_binary()) as started:
        yield started


def connect(url: str, timeout_s: float = PATIENCE_S) -> Node:
    nodes = make_nodes(parse_address(url), timeout_s, Scripts.hash_tag)
    nodes.open()
    return nodes.of_tag(0)


# ----- one connection -------------------------------------------------------------------------------------------------


def test_node_answers_in_order(server: Server) -> None:
    node = connect(server.url)
    node.send([("SET", "a", b"\xff"), ("GET", "a"), ("INCR", "n")])
    assert node.receive(3) == [b"OK", b"\xff", 1]
    assert node.ask("GET", "nothing") is None
    node.close()


def test_node_on_a_unix_socket_selects_its_database(server: Server) -> None:
    node = connect(f"unix:{server.socket}?db=3")
    node.ask("SET", "a", "1")
    assert server.client(db=3).get("a") == b"1"
    node.close()


def test_node_says_what_was_not_done(server: Server) -> None:
    node = connect(server.url)
    assert node.ask("EVALSHA", "0" * 40, 0) == Trouble(Kind.NO_SCRIPT)
    failed = node.ask("HGET", "no", "such", "thing")
    assert isinstance(failed, Trouble)
    assert failed.kind is Kind.FAILED
    assert node.ask("PING") == b"PONG"
    node.close()


def test_node_that_is_closed_does_not_connect_by_itself(server: Server) -> None:
    node = connect(server.url)
    node.close()
    with pytest.raises(StoreLost, match="closed"):
        node.send([("PING",)])


def test_refused_connection_is_a_loss_after_one_attempt(server: Server) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        server.kill()
        with pytest.raises(StoreLost):
            connect(f"redis://127.0.0.1:{proxy.port}")
        assert proxy.connections == 1
    with pytest.raises(StoreLost, match="refused"):
        connect(f"redis://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("fault", ["swallow_replies", "hang"])
def test_answer_that_does_not_come_is_a_loss_and_is_not_asked_again(server: Server, fault: str) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        node = connect(f"redis://127.0.0.1:{proxy.port}", SHORT_S)
        setattr(proxy, fault, True)
        with pytest.raises(StoreLost, match="no answer"):
            node.ask("INCR", "n")
        with pytest.raises(StoreLost, match="closed"):
            node.ask("INCR", "n")
        assert proxy.connections == 1
        assert server.client().get("n") == (b"1" if fault == "swallow_replies" else None)


def test_cut_connection_is_a_loss(server: Server) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        node = connect(f"redis://127.0.0.1:{proxy.port}")
        proxy.cut_after_requests = 1
        with pytest.raises(StoreLost):
            node.ask("INCR", "n")
        assert server.client().get("n") == b"1"
        assert proxy.connections == 1


def test_connection_that_was_closed_while_idle_is_made_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = connect(server.url)
    server.client().client_kill_filter(_type="normal", skipme=True)
    monkeypatch.setattr(redis_nodes, "_IDLE_S", -1.0)
    assert node.ask("PING") == b"PONG"
    node.close()


def test_wrong_password_is_a_loss(server: Server) -> None:
    server.client().config_set("requirepass", "right")
    node = connect(f"redis://:right@127.0.0.1:{server.port}")
    assert node.ask("PING") == b"PONG"
    node.close()
    for credentials in (":wrong@", "nobody:right@"):
        with pytest.raises(StoreLost, match="refused the user or password"):
            connect(f"redis://{credentials}127.0.0.1:{server.port}")
    with pytest.raises(StoreLost, match="refused the user or password"):
        connect(server.url).ask("PING")


def test_user_may_have_its_own_password(server: Server) -> None:
    server.client().execute_command("ACL", "SETUSER", "amb", "on", ">secret", "+ping")
    node = connect(f"redis://amb:secret@127.0.0.1:{server.port}")
    assert node.ask("PING") == b"PONG"
    with pytest.raises(StoreLost, match="NOPERM"):
        node.ask("GET", "a")
    node.close()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ReadOnlyError("You can't write against a read only replica."), "READONLY"),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "OOM"),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots, but …"), "MISCONF"),
        (ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL"), "BUSY"),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), "NOREPLICAS"),
        # Redis 6.2, where a command inside a script fails
        (
            ResponseError(
                "Error running script (call to f_12): @user_script:9: @user_script: 9: -OOM command not"
            ),
            "OOM",
        ),
        (
            ResponseError("Error running script (call to f_12): @user_script:9: -READONLY You can't write"),
            "READONLY",
        ),
    ],
)
def test_server_that_cannot_serve_is_a_loss(error: ResponseError, says: str) -> None:
    with pytest.raises(StoreLost, match=says):
        redis_nodes._trouble(error)


def test_other_errors_are_of_the_command() -> None:
    assert redis_nodes._trouble(ResponseError("WRONGTYPE Operation against a key")).kind is Kind.FAILED
    assert (
        redis_nodes._trouble(ResponseError("wrong number of arguments for 'get' command")).kind is Kind.FAILED
    )
    moved = redis_nodes._trouble(MovedError("3999 127.0.0.1:6381"))
    assert (moved.kind, moved.host, moved.port) == (Kind.MOVED, "127.0.0.1", 6381)


def test_push_is_waited_for(server: Server) -> None:
    node = connect(server.url)
    assert node.ask("SUBSCRIBE", "c")[0] == b"subscribe"
    assert node.wait_push(0.01) is None
    server.client().publish("c", b"x")
    assert node.wait_push(PATIENCE_S) == [b"message", b"c", b"x"]
    server.kill()
    with pytest.raises(StoreLost):
        node.wait_push(PATIENCE_S)


# ----- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(directory / "other-ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(directory / "key.pem"))
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(directory / "cert.pem"), append=index > 0)
    return directory


def test_tls_verifies_the_server(certificates: Path) -> None:
    with Server(binary("redis"), tls=certificates) as server:
        node = connect(f"rediss://127.0.0.1:{server.port}?ca={certificates / 'ca.pem'}")
        assert node.ask("PING") == b"PONG"
        node.close()
        for url in (
            f"rediss://127.0.0.1:{server.port}?ca={certificates / 'other-ca.pem'}",
            f"rediss://localhost:{server.port}?ca={certificates / 'ca.pem'}",
            f"rediss://127.0.0.1:{server.port}",
            f"redis://127.0.0.1:{server.port}",
        ):
            with pytest.raises(StoreLost):
                connect(url, SHORT_S)


def test_tls_trusts_the_authorities_of_the_file_and_not_the_systems_beside_them(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    with Server(binary("redis"), tls=certificates) as server:
        connect(f"rediss://127.0.0.1:{server.port}").close()
        with pytest.raises(StoreLost):
            connect(f"rediss://127.0.0.1:{server.port}?ca={certificates / 'other-ca.pem'}", SHORT_S)


def test_tls_of_a_missing_file_is_a_loss() -> None:
    server = shared_server("redis")
    with pytest.raises(StoreLost):
        connect(f"rediss://127.0.0.1:{server.port}?ca=/nonexistent", SHORT_S)


def test_context_never_turns_verification_off() -> None:
    context = redis_nodes._context(Address("server", tls=True))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_node_never_retries() -> None:
    node = Node(Address("server"), "127.0.0.1", 1, 1.0)
    assert node._connection.retry.get_retries() == 0


# ----- Sentinel -------------------------------------------------------------------------------------------------------


def test_sentinels_name_the_master() -> None:
    sentinels = shared_sentinels()
    node = connect(sentinels.url)
    assert node.port == sentinels.master().port
    node.close()


def test_sentinel_that_is_away_is_passed_over() -> None:
    sentinels = shared_sentinels()
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinels.sentinel.port}/fleet"
    connect(url, SHORT_S).close()


def test_unknown_master_is_a_loss() -> None:
    sentinels = shared_sentinels()
    with pytest.raises(StoreLost, match="no Sentinel knows"):
        connect(sentinels.url.replace("fleet", "other"))
    with pytest.raises(StoreLost, match="no Sentinel knows"):
        connect(f"redis+sentinel://127.0.0.1:{free_port()}/fleet")


def test_replica_that_a_sentinel_takes_for_the_master_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    sentinels = shared_sentinels()
    replica = sentinels.first if sentinels.master() is sentinels.second else sentinels.second
    wait_until(lambda: replica.client().role()[0] == b"slave", "it is a replica")
    monkeypatch.setattr(redis_nodes, "_ask_sentinels", lambda *_: ("127.0.0.1", replica.port))
    with pytest.raises(StoreLost, match="not the master"):
        connect(sentinels.url)


def test_sentinels_are_asked_again_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_nodes, "_WATCH_EVERY_S", 0.0)
    monkeypatch.setattr(redis_nodes, "_WATCH_AGAIN_S", 0.0)
    sentinels = shared_sentinels()
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinels.sentinel.port}/fleet"
    nodes = make_nodes(parse_address(url), PATIENCE_S, Scripts.hash_tag)
    with closing(nodes):
        nodes.open()
        monkeypatch.setattr(nodes.of_tag(0), "port", 1)  # as if another were the master by now
        with pytest.raises(StoreLost, match="another server"):
            wait_until(nodes.check, "it is noticed")


# ----- Cluster --------------------------------------------------------------------------------------------------------


def test_cluster_is_found_through_any_node() -> None:
    cluster = shared_cluster()
    for server in cluster.servers:
        nodes = make_nodes(
            parse_address(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{server.port}"),
            SHORT_S,
            Scripts.hash_tag,
        )
        with closing(nodes):
            nodes.open()
            assert {node.port for node in nodes.all()} == {server.port for server in cluster.servers}
            for tag in range(64):
                assert nodes.of_tag(tag).port == cluster.owner(slot_of(tag)).port


def test_cluster_says_who_has_moved() -> None:
    cluster = shared_cluster()
    nodes = make_nodes(parse_address(cluster.url), PATIENCE_S, Scripts.hash_tag)
    with closing(nodes):
        nodes.open()
        source = cluster.owner(slot_of(5))
        target = next(server for server in cluster.servers if server is not source)
        for to in (target, source):
            cluster.begin_move(slot_of(5), to)
            cluster.end_move(slot_of(5), to)
            moved = nodes.of_tag(5).ask("GET", "{s05}")
            assert moved == Trouble(Kind.MOVED, host="127.0.0.1", port=to.port)
            nodes.moved(5, moved.host, moved.port)
            assert nodes.of_tag(5).ask("GET", "{s05}") is None


def test_cluster_without_any_node_is_a_loss() -> None:
    with pytest.raises(StoreLost):
        connect(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()}")


def test_server_that_is_no_cluster_is_a_loss_for_who_wants_one(server: Server) -> None:
    with pytest.raises(StoreLost, match="cluster"):
        connect(f"redis+cluster://127.0.0.1:{server.port}")


def test_node_of_a_cluster_is_no_single_server() -> None:
    nodes = make_nodes(parse_address(shared_cluster().servers[0].url), PATIENCE_S, Scripts.hash_tag)
    with closing(nodes):
        nodes.open()
        with pytest.raises(StoreLost, match=r"redis\+cluster"):
            nodes.moved(1, "h", 1)


def test_any_node_will_do_for_a_subscription() -> None:
    cluster = shared_cluster()
    nodes = make_nodes(parse_address(cluster.url), PATIENCE_S, Scripts.hash_tag)
    with closing(nodes):
        assert nodes.open_any().ask("PING") == b"PONG"
        assert len(nodes.all()) == 1


# ----- the proxy of the tests itself ----------------------------------------------------------------------------------


def test_proxy_delays_what_it_passes_on(server: Server) -> None:
    with FaultProxy(str(server.socket)) as proxy:
        node = connect(f"redis://127.0.0.1:{proxy.port}")
        proxy.delay_s = 0.05
        began = time.monotonic()
        assert node.ask("PING") == b"PONG"
        assert time.monotonic() - began >= 0.1
        node.close()


def test_proxy_refuses_and_accepts_again(server: Server) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        node = connect(url)
        proxy.refuse()
        with pytest.raises(StoreLost):
            node.ask("PING")
        with pytest.raises(StoreLost, match="refused"):
            connect(url)
        proxy.heal()
        node = connect(url)
        assert node.ask("PING") == b"PONG"
        node.close()


def test_proxy_leaves_no_thread_behind(server: Server) -> None:
    before = threading.active_count()
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        connect(f"redis://127.0.0.1:{proxy.port}").close()
    wait_until(lambda: threading.active_count() <= before, "the proxy's threads ended")


def test_loss_for_a_file_of_tls_names_it(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StoreLost, match=r"^`ca` '/nowhere' cannot be read: No such file or directory$"):
        connect(f"rediss://127.0.0.1:{server.port}?ca=/nowhere")
    os.mkfifo(tmp_path / "pipe")
    for url in (f"?ca={tmp_path}/pipe", f"?cert={tmp_path}/pipe&key={tmp_path}/pipe"):
        with pytest.raises(StoreLost, match=r"' is not a file$"):
            connect(f"rediss://127.0.0.1:{server.port}{url}")
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(StoreLost, match=rf"^`ca` '{tmp_path}/junk' holds no certificate in PEM form$"):
        connect(f"rediss://127.0.0.1:{server.port}?ca={tmp_path}/junk")
    authority = Authority(tmp_path)
    one, two = authority.issue("a.b"), authority.issue("c.d")
    with pytest.raises(
        StoreLost, match=rf"^`key` '{two.key}' does not belong to the certificate in '{one.cert}'$"
    ):
        connect(f"rediss://127.0.0.1:{server.port}?cert={one.cert}&key={two.key}")
