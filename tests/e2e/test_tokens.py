"""Tokens that are fetched for an upstream: by real workers, from a token service that does what such services do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.control.service import Service, until
from tests.e2e.identity import CLIENT, EXCHANGE, SECRET, Api, Identity
from tests.e2e.origins import wsgi
from tests.proxy.clients import tokens
from tests.state.servers import Server, any_binary

REQUEST = b"GET /things HTTP/1.1\r\nhost: a\r\nauthorization: Basic bWluZTpvd24=\r\nconnection: close\r\n\r\n"


class World(NamedTuple):
    identity: Identity
    api: Api
    token_url: str
    api_url: str


@pytest.fixture
def world() -> Iterator[World]:
    identity = Identity()
    api = Api(identity)
    with wsgi(identity) as token_server, wsgi(api) as api_url:
        yield World(identity, api, f"{token_server}/realms/shop/protocol/openid-connect/token", api_url)
        identity.go_on.set()


class Replica(Service):
    """Workers in front of the API."""

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        workers: int = 2,
        state: dict[str, Any] | str = "local",
        kind: str = "oauth2",
        clients: dict[str, Any] | None = None,
        auth: dict[str, Any] | None = None,
        key: str = "",
        **route: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "secret").write_text(SECRET)
        service = {
            "token_url": world.token_url,
            "client_id": CLIENT,
            "client_secret": f"file:{folder}/secret",
            "scopes": ["read"],
            **(auth or {}),
        }
        service = {name: value for name, value in service.items() if value is not None}
        if key:
            (folder / "key").write_text(key)
            assert isinstance(state, dict)
            state = {**state, "secret_key": f"file:{folder}/key"}
        config = {
            "version": 1,
            "listen": "127.0.0.1:0",
            "control": f"unix:{folder}/c.sock",
            "workers": workers,
            "state": state,
            "drain": {"delay": "0s", "timeout": "3s"},
            "telemetry": {"access_log": str(folder / "access.log")},
            "upstreams": {
                "api": {
                    "endpoints": [world.api_url],
                    "auth": {kind: service},
                    "connections": {"max": 8, "max_pending": 2000},
                }
            },
            "routes": [{"name": "r", "to": "api", "timeout": "40s", **route}],
        }
        if clients is not None:
            config["clients"] = clients
        file = folder / "amb.yaml"
        file.write_text(json.dumps(config))
        super().__init__(["ambassador", "run", "-c", str(file)], folder / "c.sock")
        self.workers = workers

    def start(self) -> None:
        self.wait_until_up()
        self.wait_for_workers(self.workers)

    def fetch(self, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, "/things", body or None, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode(), answer.getheader("retry-after"))
        finally:
            connection.close()


class Answer(NamedTuple):
    """What a client got."""

    status: int
    body: str
    retry_after: str | None

    @property
    def code(self) -> str:
        code: str = json.loads(self.body)["code"]
        return code


def storm(replicas: list[Replica], count: int, meanwhile: Callable[[], object]) -> Counter[int]:
    """So many requests at once, each on a connection of its own; the statuses that they got."""
    statuses: Counter[int] = Counter()
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for number in range(count):
            replica = replicas[number % len(replicas)]
            sock = stack.enter_context(socket.create_connection((replica.host, replica.port), timeout=20))
            sock.sendall(REQUEST)
            selector.register(sock, selectors.EVENT_READ, bytearray())
        meanwhile()
        end = time.monotonic() + 60
        while selector.get_map():
            assert time.monotonic() < end, statuses
            for key, _ in selector.select(1.0):
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(65536)
                key.data.extend(data)
                if not data:
                    statuses[int(key.data.split(b" ", 2)[1])] += 1
                    selector.unregister(key.fileobj)
    return statuses


@contextlib.contextmanager
def running(*replicas: Replica) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        for replica in replicas:
            stack.enter_context(replica)
        for replica in replicas:
            replica.start()
        yield list(replicas)


@pytest.fixture
def redis() -> Iterator[Server]:
    with Server(any_binary()) as server:
        yield server


def test_thousand_cold_requests_of_four_workers_fetch_one_token(tmp_path: Path, world: World) -> None:
    world.identity.go_on.clear()
    with running(Replica(tmp_path, world, workers=4)) as replicas:

        def release() -> None:
            until(lambda: world.identity.asked)
            world.identity.go_on.set()

        assert storm(replicas, 1000, release) == {200: 1000}
        (told,) = replicas[0].admin("GET", "/api/upstreams")[1]
        assert told["token"]["problem"] is None
        assert 200 < told["token"]["valid_for_s"] <= 300
        assert not [token for token in world.identity.valid if token in json.dumps(told)]
        metrics = replicas[0].admin("GET", "/metrics")[1]
        assert 'ambassador_token_requests_total{upstream="api",result="ok"} 1' in metrics
        (expiry,) = re.findall(
            r'^ambassador_token_expiry_seconds\{upstream="api"\} (\S+)$', metrics, re.MULTILINE
        )
        assert 200 < float(expiry) - time.time() <= 300
    assert len(world.identity.asked) == 1
    (asked,) = world.identity.asked
    assert asked.form == {"grant_type": "client_credentials", "scope": "read"}
    assert asked.headers["content_type"] == "application/x-www-form-urlencoded"
    assert set(world.api.seen) == {f"Bearer {token}" for token in world.identity.valid}


@pytest.mark.parametrize("key", ["", "a secret key for the fleet"])
def test_thousand_cold_requests_of_two_replicas_fetch_one_token_where_they_may_share_it(
    tmp_path: Path, world: World, redis: Server, key: str
) -> None:
    world.identity.go_on.clear()
    state = {"url": redis.url}
    with running(*(Replica(tmp_path / name, world, state=state, key=key) for name in "ab")) as replicas:
        wanted = 1 if key else 2

        def release() -> None:
            until(lambda: len(world.identity.asked) >= wanted)
            world.identity.go_on.set()

        assert storm(replicas, 1000, release) == {200: 1000}
    assert len(world.identity.asked) == wanted


def test_token_is_only_encrypted_in_redis(tmp_path: Path, world: World, redis: Server) -> None:
    state = {"url": redis.url}
    heard: list[bytes] = []
    with contextlib.closing(Monitor(redis)) as monitor:
        key = "a secret key for the fleet"
        with running(*(Replica(tmp_path / name, world, state=state, key=key) for name in "ab")) as replicas:
            assert {replica.fetch().status for replica in replicas * 4} == {200}
            everything = dump(redis)
        heard = monitor.heard()
    assert len(world.identity.asked) == 1
    (token,) = world.identity.valid
    assert [name for name in everything if b":tok:" in name], "a token is there"
    assert any(b"token" in line and b"store" in line for line in heard), "it was heard on its way"
    for secret in (token.encode(), token.split(".")[1].encode(), SECRET.encode(), key.encode()):
        assert not [name for name, value in everything.items() if secret in name + value]
        assert not [line for line in heard if secret in line]


def test_token_is_not_in_redis_without_a_key(tmp_path: Path, world: World, redis: Server) -> None:
    with running(*(Replica(tmp_path / name, world, state={"url": redis.url}) for name in "ab")) as replicas:
        assert {replica.fetch().status for replica in replicas * 4} == {200}
        assert not [name for name in dump(redis) if b":tok:" in name]
    assert len(world.identity.asked) == 2


def test_replica_with_another_key_shares_with_nobody_and_harms_nobody(
    tmp_path: Path, world: World, redis: Server
) -> None:
    state = {"url": redis.url}
    keys = {"a": "the key of the fleet", "b": "the key of the fleet", "c": "quite another key"}
    with running(
        *(Replica(tmp_path / name, world, state=state, key=key) for name, key in keys.items())
    ) as all_:
        for _ in range(5):
            assert {replica.fetch().status for replica in all_} == {200}
    assert len(world.identity.asked) == 2


def test_redis_that_is_lost_costs_no_request(tmp_path: Path, world: World, redis: Server) -> None:
    redis.stop_running()
    state = {"url": redis.url}
    with running(Replica(tmp_path, world, state=state, key="a secret key for the fleet")) as (replica,):
        assert {replica.fetch().status for _ in range(10)} == {200}
        assert len(world.identity.asked) == 1, "its workers share by their own store"
        redis.go_on()


def test_callers_tokens_are_exchanged_each_once(tmp_path: Path, world: World, redis: Server) -> None:
    callers = {f"caller-{number}-token": f"user{number}" for number in range(5)}
    world.identity.callers = dict(callers)
    state, key = {"url": redis.url}, "a secret key for the fleet"
    with running(
        *(Replica(tmp_path / name, world, state=state, key=key, kind="exchange") for name in "ab")
    ) as replicas:
        for token, user in list(callers.items()) * 3:
            for replica in replicas:
                answer = replica.fetch(authorization=f"Bearer {token}")
                assert (answer.status, answer.body) == (200, user)
        assert len(world.identity.asked) == len(callers)
        assert {asked.form["grant_type"] for asked in world.identity.asked} == {EXCHANGE}
        nobody = replicas[0].fetch()
        assert (nobody.status, nobody.code) == (401, "unauthenticated")
        mallory = replicas[0].fetch(authorization="Bearer made-up")
        assert (mallory.status, mallory.code) == (401, "unauthenticated")
        world.identity.revoke()
        assert replicas[0].fetch(authorization="Bearer caller-1-token").body == "user1"
        everything = dump(redis)
        pages = ("/metrics", "/api/upstreams", "/api/config", "/api/status", "/api/routes")
        told = [json.dumps(replica.admin("GET", page)[1]) for replica in replicas for page in pages]
        for replica in replicas:
            replica.signal(signal.SIGTERM)
            told.append(replica.end()[1])
        told += [(tmp_path / name / "access.log").read_text() for name in "ab"]
    given = [shown.removeprefix("Bearer ") for shown in world.api.seen]
    for secret in (SECRET, key, "made-up", *callers, *given):
        assert not [text for text in told if secret in text]
    assert not [shown for shown in world.api.seen if "caller" in shown], "the caller's own stays here"
    assert not [name for name, value in everything.items() if b"caller-" in name + value]


def test_callers_of_one_client_never_see_what_another_was_answered(tmp_path: Path, world: World) -> None:
    (tmp_path / "jwks").write_bytes(tokens.jwks("rsa"))
    issued = {tokens.sign(time.time(), sub=user).decode(): user for user in ("alice", "bob")}
    world.identity.callers = dict(issued)
    jwt = {"issuer": tokens.ISSUER, "audience": tokens.AUDIENCE, "jwks": f"file:{tmp_path}/jwks"}
    route: dict[str, Any] = {
        "access": ["app"],
        "cache": {"ttl": "60s"},
        "idempotency": {},
        "fallback": {"stale": "1m"},
    }
    with running(
        Replica(tmp_path, world, kind="exchange", clients={"app": {"jwt": jwt}}, workers=1, **route)
    ) as (replica,):
        for method in ("GET", "POST"):
            for token, user in list(issued.items()) * 2:
                shown = {"authorization": f"Bearer {token}", "idempotency-key": "1"}
                answer = replica.fetch(method, b"", **shown)
                assert (answer.status, answer.body) == (200, user)
        assert len(world.api.bodies) == 4, "the second time all was at hand"
    assert not [shown for shown in world.api.seen for token in issued if token in shown]


# ----- questions that are signed --------------------------------------------------------------------------------------


def signed_by(folder: Path, world: World, name: str, algorithm: str, **auth: str) -> dict[str, Any]:
    """Have the token service know a key alone, and the settings with which questions are signed by it."""
    (folder / "private.pem").write_text(tokens.private_key(name))
    world.identity.client_keys = [tokens.jwk(name)]
    world.identity.audience = auth.get("assertion_audience", world.token_url)
    signed = {"private_key": f"file:{folder}/private.pem", "algorithm": algorithm, "key_id": f"{name}-1"}
    return {"client_secret": None, **signed, **auth}


@pytest.mark.parametrize(
    ("name", "algorithm", "more"),
    [
        ("rsa", "RS256", {}),
        ("ec", "ES256", {"assertion_audience": "https://id.test/realms/shop"}),
    ],
)
def test_question_is_signed_each_time_anew_and_holds_before_another_library(
    tmp_path: Path, world: World, name: str, algorithm: str, more: dict[str, str]
) -> None:
    auth = signed_by(tmp_path, world, name, algorithm, **more)
    with running(Replica(tmp_path, world, auth=auth)) as (replica,):
        assert storm([replica], 50, lambda: None) == {200: 50}
        world.identity.revoke()
        assert replica.fetch().status == 200
        told = [json.dumps(replica.admin("GET", page)[1]) for page in ("/metrics", "/api/config")]
        replica.signal(signal.SIGTERM)
        told.append(replica.end()[1])
    taken = world.identity.assertions
    assert [(each.kid, each.algorithm) for each in taken] == [(f"{name}-1", algorithm)] * 2
    assert len({each.jti for each in taken}) == len(world.identity.asked) == 2
    assert all(not asked.headers.get("authorization") for asked in world.identity.asked)
    key = tokens.private_key(name).splitlines()[1]
    for secret in (key, *(each.text for each in taken)):
        assert not [text for text in told if secret in text]
        assert not [shown for shown in world.api.seen if secret in shown]


def test_key_of_signed_questions_is_read_again(tmp_path: Path, world: World) -> None:
    auth = signed_by(tmp_path, world, "rsa", "PS256", key_id="shop")
    world.identity.client_keys = [tokens.jwk("rsa", kid="shop")]
    with running(Replica(tmp_path, world, auth=auth, workers=1)) as (replica,):
        assert replica.fetch().status == 200
        world.identity.client_keys = [tokens.jwk("thief", kid="shop")]
        (tmp_path / "private.pem").write_text(tokens.private_key("thief"))
        world.identity.revoke()
        until(lambda: replica.fetch().status == 200)
    assert len(world.identity.assertions) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"private_key": "thief"}, {"key_id": "nobody's"}, {"assertion_audience": "https://another.test/"}],
)
def test_signed_question_that_does_not_fit_is_refused_and_told(
    tmp_path: Path, world: World, wrong: dict[str, str]
) -> None:
    auth = signed_by(tmp_path, world, "rsa", "RS256")
    if "private_key" in wrong:
        (tmp_path / "private.pem").write_text(tokens.private_key(wrong["private_key"]))
    else:
        auth |= wrong
    with running(Replica(tmp_path, world, auth=auth, workers=1)) as (replica,):
        answer = replica.fetch()
        assert (answer.status, answer.code) == (503, "credential_unavailable")
        assert "invalid_client" in answer.body
    assert not world.identity.assertions
    assert not world.api.seen


# ----- a token service that is slow, fails, or takes back ------------------------------------------------------------


def test_requests_wait_for_a_slow_token_service_and_none_waits_twice(tmp_path: Path, world: World) -> None:
    world.identity.delay_s = 3.0
    with running(Replica(tmp_path, world)) as replicas:
        assert storm(replicas, 100, lambda: None) == {200: 100}
        began = time.monotonic()
        assert replicas[0].fetch().status == 200
        assert time.monotonic() - began < 2.0
    assert len(world.identity.asked) == 1


def test_token_is_refreshed_while_the_old_one_serves(tmp_path: Path, world: World) -> None:
    world.identity.life_s = 6.0
    with running(Replica(tmp_path, world)) as (replica,):
        assert replica.fetch().status == 200
        world.identity.delay_s = 1.0
        end = time.monotonic() + 8.0
        slowest = 0.0
        while time.monotonic() < end:
            began = time.monotonic()
            assert replica.fetch().status == 200
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
    assert 3 <= len(world.identity.asked) <= 5
    assert world.api.refused == 0
    assert slowest < 1.0, "nobody waited for the refresh"


def test_request_gives_up_after_five_seconds_and_the_token_is_there_for_the_next(
    tmp_path: Path, world: World
) -> None:
    world.identity.go_on.clear()
    with running(Replica(tmp_path, world)) as (replica,):
        began = time.monotonic()
        answer = replica.fetch()
        assert (answer.status, answer.code) == (503, "credential_unavailable")
        assert 4.5 < time.monotonic() - began < 15.0
        world.identity.go_on.set()
        until(lambda: replica.fetch().status == 200)
    assert len(world.identity.asked) == 1


def test_wait_is_bounded_by_the_route(tmp_path: Path, world: World) -> None:
    world.identity.go_on.clear()
    with running(Replica(tmp_path, world, timeout="500ms")) as (replica,):
        answer = replica.fetch()
        assert answer.status == 504
        world.identity.go_on.set()


@pytest.mark.parametrize(
    ("status", "body", "result"),
    [
        (500, b"<html>an error page with s3cret details</html>", "failed"),
        (401, b'{"error":"invalid_client","error_description":"s3cret details"}', "refused"),
        (200, b"s3cret garbage", "malformed"),
        (200, b'{"access_token":"s3cret\\r\\nx: y","token_type":"Bearer"}', "malformed"),
        (302, b"s3cret", "malformed"),
    ],
)
def test_failing_token_service_is_a_coded_answer_and_is_left_alone(
    tmp_path: Path, world: World, status: int, body: bytes, result: str
) -> None:
    world.identity.status, world.identity.body = status, body
    with running(Replica(tmp_path, world)) as (replica,):
        answers = [replica.fetch() for _ in range(40)]
        assert {(answer.status, answer.code) for answer in answers} == {(503, "credential_unavailable")}
        assert all(answer.retry_after is not None for answer in answers)
        assert len(world.identity.asked) <= 4
        if result == "refused":
            assert "invalid_client" in answers[0].body
        assert not [answer for answer in answers if "s3cret" in answer.body]
        metrics = replica.admin("GET", "/metrics")[1]
        (told,) = replica.admin("GET", "/api/upstreams")[1]
        assert told["token"]["valid_for_s"] is None
        assert told["token"]["problem"].startswith(("answered", "an answer", "a token"))
        asked = (
            f'ambassador_token_requests_total{{upstream="api",result="{result}"}} {len(world.identity.asked)}'
        )
        assert asked in metrics
        world.identity.status, world.identity.body = 200, None
        until(lambda: replica.fetch().status == 200)
        replica.signal(signal.SIGTERM)
        _, errors = replica.end()
    assert "no token from" in errors
    assert "s3cret" not in errors
    assert not world.api.refused


def test_token_service_that_says_nothing_is_given_up(tmp_path: Path, world: World) -> None:
    world.identity.go_on.clear()
    with running(Replica(tmp_path, world, auth={"timeout": "300ms"})) as (replica,):
        answer = replica.fetch()
        assert (answer.status, answer.code) == (503, "credential_unavailable")
        assert 'result="timeout"} 1' in replica.admin("GET", "/metrics")[1]
        world.identity.go_on.set()
        until(lambda: replica.fetch().status == 200)


def test_token_service_that_fails_is_not_felt_while_the_token_is_good(tmp_path: Path, world: World) -> None:
    world.identity.life_s = 6.0
    with running(Replica(tmp_path, world)) as (replica,):
        assert replica.fetch().status == 200
        world.identity.status = 500
        end = time.monotonic() + 4.5
        while time.monotonic() < end:
            assert replica.fetch().status == 200
            time.sleep(0.05)
        assert len(world.identity.asked) > 1
        until(lambda: replica.fetch().status == 503)
    assert world.api.refused == 0
    assert len(set(world.api.seen)) == 1


def test_revoked_token_is_replaced_once_and_clients_notice_nothing(
    tmp_path: Path, world: World, redis: Server
) -> None:
    state = {"url": redis.url}
    key = "a secret key for the fleet"
    with running(*(Replica(tmp_path / name, world, state=state, key=key) for name in "ab")) as replicas:
        assert {replica.fetch().status for replica in replicas * 4} == {200}
        for _ in range(2):
            asked = len(world.identity.asked)
            world.identity.revoke()
            assert storm(replicas, 200, lambda: None) == {200: 200}
            assert len(world.identity.asked) == asked + 1
        world.identity.revoke()
        assert replicas[0].fetch("POST", b"a body").body == CLIENT
        assert world.api.bodies[-2:] == [b"a body"] * 2


def test_upstream_that_refuses_every_token_is_heard_and_the_token_service_left_alone(
    tmp_path: Path, world: World
) -> None:
    class Nothing(dict[str, str]):
        def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
            return None

    world.identity.valid = Nothing()
    with running(Replica(tmp_path, world)) as (replica,):
        answers = [replica.fetch() for _ in range(50)]
    assert {(answer.status, answer.body) for answer in answers} == {(401, "refused")}
    assert len(world.identity.asked) <= 8


def test_worker_that_dies_while_it_fetches_holds_nobody_up(tmp_path: Path, world: World) -> None:
    world.identity.go_on.clear()
    with running(Replica(tmp_path, world, workers=2)) as (replica,):
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(replica.fetch) for _ in range(16)]
            until(lambda: world.identity.asked)
            holder = next(pid for pid in replica.pids().values() if has_connection(pid, world.token_url))
            os.kill(holder, signal.SIGKILL)
            until(lambda: len(world.identity.asked) == 2)
            world.identity.go_on.set()
            statuses = Counter(status_or_cut(each) for each in asked)
        assert statuses[200] > 0, statuses
        assert set(statuses) <= {0, 200}, "those of the dead worker are cut, the others served"
        assert replica.fetch().status == 200


def test_reload_and_new_workers_take_the_token_that_is_there(tmp_path: Path, world: World) -> None:
    with running(Replica(tmp_path, world)) as (replica,):
        assert replica.fetch().status == 200
        file = tmp_path / "amb.yaml"
        changed = json.loads(file.read_text())
        changed["routes"].append({"name": "other", "match": {"path": "/other"}, "respond": 204})
        file.write_text(json.dumps(changed))
        replica.signal(signal.SIGHUP)
        until(lambda: replica.status()["generation"] == 2)
        assert {replica.fetch().status for _ in range(4)} == {200}
        before = set(replica.pids().values())
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(set(replica.pids().values()) - before) == 2)
        assert {replica.fetch().status for _ in range(4)} == {200}
    assert len(world.identity.asked) == 1


def status_or_cut(asked: Future[Answer]) -> int:
    try:
        return asked.result().status
    except (OSError, http.client.HTTPException):
        return 0


def has_connection(pid: int, url: str) -> bool:
    """Whether a process has a connection to the port of a URL on this host. Skips the test where that is not shown."""
    if not os.access(f"/proc/{pid}/fd", os.R_OK):
        pytest.skip("who holds secrets shows its descriptors to root only")
    port = int(url.split(":")[2].split("/", maxsplit=1)[0])
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if int(line.split()[2].split(":")[1], 16) == port
    }
    links = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(each))
    return any(f"socket:[{inode}]" in links for inode in inodes)


def dump(redis: Server) -> dict[bytes, bytes]:
    """Every key and value."""
    with redis.client() as client:
        return {name: repr_of(client, name) for name in client.scan_iter(count=1000)}


def repr_of(client: Any, name: bytes) -> bytes:
    kind = client.type(name)
    if kind == b"string":
        return bytes(client.get(name) or b"")
    return repr(client.hgetall(name) if kind == b"hash" else client.dump(name)).encode()


class Monitor:
    """Everything that a Redis is told, from now on."""

    def __init__(self, redis: Server) -> None:
        self._sock = socket.create_connection(("127.0.0.1", redis.port), timeout=20)
        self._sock.sendall(b"MONITOR\r\n")
        assert self._sock.recv(5) == b"+OK\r\n"

    def heard(self) -> list[bytes]:
        self._sock.setblocking(False)
        data = b""
        with contextlib.suppress(BlockingIOError):
            while more := self._sock.recv(1 << 20):
                data += more
        return data.split(b"\r\n")

    def close(self) -> None:
        self._sock.close()
