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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest

from tests.control.service import Service, until
from tests.e2e.identity import CLIENT, EXCHANGE, SECRET, Api, Identity
from tests.e2e.origins import wsgi
from tests.proxy.clients import tokens
from tests.state.servers import Server, any_binary

REQUEST = b"GET /things HTTP/1.1\r\nhost: a\r\nauthorization: Basic bWluZTpvd24=\r\nconnection: close\r\n\r\n"


More: TypeAlias = dict[str, tuple[dict[str, Any], dict[str, Any]]]
"""Upstreams by name: settings of their credential, and of their route."""


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
        more: More | None = None,
        key: str = "",
        **route: Any,
    ) -> None:
        """`auth` and `route` are settings of these sections; `more` has both for other upstreams, which are reached at
        the paths of their names.
        """
        folder.mkdir(exist_ok=True)
        (folder / "secret").write_text(SECRET)
        service = {
            "token_url": world.token_url,
            "client_id": CLIENT,
            "client_secret": f"file:{folder}/secret",
            "scopes": ["read"],
        }
        all_ = {"api": (auth or {}, route), **(more or {})}
        connections = {"max": 8, "max_pending": 2000}
        if key:
            (folder / "key").write_text(key)
            assert isinstance(state, dict)
            state = {**state, "secret_key": f"file:{folder}/key"}
        config: dict[str, Any] = {
            "version": 1,
            "listen": "127.0.0.1:0",
            "control": f"unix:{folder}/c.sock",
            "workers": workers,
            "state": state,
            "drain": {"delay": "0s", "timeout": "3s"},
            "telemetry": {"access_log": str(folder / "access.log")},
            "upstreams": {
                name: {
                    "endpoints": [world.api_url],
                    "auth": {
                        kind: {key: value for key, value in (service | own).items() if value is not None}
                    },
                    "connections": connections,
                }
                for name, (own, _) in all_.items()
            },
            "routes": [
                {"name": name, "to": name, "match": {"path": f"/{name}"}, "timeout": "40s", **own}
                for name, (_, own) in reversed(all_.items())
            ],
        }
        del config["routes"][-1]["match"]
        if clients is not None:
            config["clients"] = clients
        file = folder / "amb.yaml"
        file.write_text(json.dumps(config))
        super().__init__(["ambassador", "run", "-c", str(file)], folder / "c.sock")
        self.workers = workers

    def start(self) -> None:
        self.wait_until_up()
        self.wait_for_workers(self.workers)

    def fetch(self, method: str = "GET", body: bytes = b"", path: str = "/things", **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body or None, headers)
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
        assert bool([name for name in dump(redis) if b":tok:" in name]) is bool(key)
    assert len(world.identity.asked) == wanted


def test_token_is_only_encrypted_in_redis(tmp_path: Path, world: World, redis: Server) -> None:
    state = {"url": redis.url}
    heard: list[bytes] = []
    with contextlib.closing(Monitor(redis)) as monitor:
        key = "a secret key for the fleet"
        with running(
            *(Replica(tmp_path / name, world, state=state, key=key, workers=1) for name in "ab")
        ) as replicas:
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


def test_replica_with_another_key_shares_with_nobody_and_harms_nobody(
    tmp_path: Path, world: World, redis: Server
) -> None:
    state = {"url": redis.url}
    keys = {"a": "the key of the fleet", "b": "the key of the fleet", "c": "quite another key"}
    with running(
        *(Replica(tmp_path / name, world, state=state, key=key, workers=1) for name, key in keys.items())
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


def signed_by(folder: Path, name: str, algorithm: str, **auth: Any) -> dict[str, Any]:
    """The settings with which questions are signed by this key."""
    (folder / f"{name}.pem").write_text(tokens.private_key(name))
    signed = {"private_key": f"file:{folder}/{name}.pem", "algorithm": algorithm, "key_id": f"{name}-1"}
    return {"client_secret": None, **signed, **auth}


def test_question_is_signed_each_time_anew_and_holds_before_another_library(
    tmp_path: Path, world: World
) -> None:
    algorithms = {"rsa": "RS256", "ec": "ES256", "ed": "Ed25519"}
    world.identity.client_keys = [tokens.jwk(name) for name in algorithms]
    world.identity.audiences = {world.token_url, f"{world.token_url}?ec", "https://id.test/realms/shop"}
    more: More = {
        "ec": (signed_by(tmp_path, "ec", "ES256", token_url=f"{world.token_url}?ec"), {}),
        "ed": (
            signed_by(
                tmp_path,
                "ed",
                "Ed25519",
                token_url=f"{world.token_url}?ed",
                assertion_audience="https://id.test/realms/shop",
            ),
            {},
        ),
    }
    with running(Replica(tmp_path, world, auth=signed_by(tmp_path, "rsa", "RS256"), more=more)) as (replica,):
        assert storm([replica], 50, lambda: None) == {200: 50}
        for _ in range(2):
            assert {replica.fetch(path=path).status for path in ("/things", "/ec", "/ed")} == {200}
            world.identity.revoke()
        told = [json.dumps(replica.admin("GET", page)[1]) for page in ("/metrics", "/api/config")]
        replica.signal(signal.SIGTERM)
        told.append(replica.end()[1])
    taken = world.identity.assertions
    assert Counter((each.kid, each.algorithm) for each in taken) == {
        (f"{name}-1", algorithm): 2 for name, algorithm in algorithms.items()
    }
    assert len({each.jti for each in taken}) == len(world.identity.asked) == 6
    assert all(not asked.headers.get("authorization") for asked in world.identity.asked)
    keys = [tokens.private_key(name).splitlines()[1] for name in algorithms]
    for secret in (*keys, *(each.text for each in taken)):
        assert not [text for text in told if secret in text]
        assert not [shown for shown in world.api.seen if secret in shown]


def test_key_of_signed_questions_is_read_again_and_one_that_does_not_fit_is_refused_and_told(
    tmp_path: Path, world: World
) -> None:
    world.identity.client_keys = [tokens.jwk("rsa", kid="shop")]
    world.identity.audiences = {world.token_url}
    fit = signed_by(tmp_path, "rsa", "PS256", key_id="shop")
    wrong = {
        "thief": {
            **signed_by(tmp_path, "thief", "PS256", key_id="shop"),
            "assertion_audience": world.token_url,
        },
        "nobody": fit | {"key_id": "nobody", "assertion_audience": world.token_url},
        "another": fit | {"assertion_audience": "https://another.test/"},
    }
    more: More = {
        name: (auth | {"token_url": f"{world.token_url}?{name}"}, {}) for name, auth in wrong.items()
    }
    with running(Replica(tmp_path, world, auth=fit, more=more, workers=1)) as (replica,):
        for name in wrong:
            answer = replica.fetch(path=f"/{name}")
            assert (answer.status, answer.code) == (503, "credential_unavailable")
            assert "invalid_client" in answer.body
        assert not world.identity.assertions
        assert not world.api.seen
        assert replica.fetch().status == 200
        world.identity.client_keys = [tokens.jwk("thief", kid="shop")]
        (tmp_path / "rsa.pem").write_text(tokens.private_key("thief"))
        world.identity.revoke()
        until(lambda: replica.fetch().status == 200)
    assert len({each.jti for each in world.identity.assertions}) >= 2


# ----- a token service that is slow, fails, or takes back ------------------------------------------------------------


def test_requests_wait_for_a_slow_token_service_and_none_waits_twice(tmp_path: Path, world: World) -> None:
    world.identity.delay_s = 1.0
    with running(Replica(tmp_path, world)) as replicas:
        assert storm(replicas, 100, lambda: None) == {200: 100}
        assert replicas[0].fetch().status == 200
    assert len(world.identity.asked) == 1


def test_token_is_refreshed_while_the_old_one_serves(tmp_path: Path, world: World) -> None:
    world.identity.life_s = 8.0
    with running(Replica(tmp_path, world, workers=1)) as (replica,):
        assert replica.fetch().status == 200
        world.identity.go_on.clear()
        until(lambda: replica.fetch().status == 200 and len(world.identity.asked) == 2)
        assert {replica.fetch().status for _ in range(5)} == {200}, "nobody waits for the refresh"
        assert len(set(world.api.seen)) == 1
        world.identity.go_on.set()
        until(lambda: replica.fetch().status == 200 and len(set(world.api.seen)) == 2)
    assert len(world.identity.asked) == 2
    assert world.api.refused == 0


def test_requests_wait_for_a_token_five_seconds_or_as_long_as_their_route_and_the_service_may_take(
    tmp_path: Path, world: World
) -> None:
    world.identity.go_on.clear()
    more: More = {
        "bounded": ({"token_url": f"{world.token_url}?bounded"}, {"timeout": "500ms"}),
        "silent": ({"token_url": f"{world.token_url}?silent", "timeout": "300ms"}, {}),
    }
    with running(Replica(tmp_path, world, workers=1, more=more)) as (replica,), ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        patient = pool.submit(replica.fetch)
        assert replica.fetch(path="/bounded").status == 504
        answer = replica.fetch(path="/silent")
        assert (answer.status, answer.code) == (503, "credential_unavailable")
        metrics = replica.admin("GET", "/metrics")[1]
        assert 'ambassador_token_requests_total{upstream="silent",result="timeout"} 1' in metrics
        answer = patient.result()
        assert (answer.status, answer.code) == (503, "credential_unavailable")
        assert time.monotonic() - began > 4.5
        world.identity.go_on.set()
        for path in ("/things", "/bounded", "/silent"):
            until(partial(is_served, replica, path))
    assert Counter(asked.query for asked in world.identity.asked)[""] == 1, "it is there for the next"


def is_served(replica: Replica, path: str) -> bool:
    return replica.fetch(path=path).status == 200


FAILURES = {
    "page": (500, b"<html>an error page with s3cret details</html>", "failed"),
    "client": (401, b'{"error":"invalid_client","error_description":"s3cret details"}', "refused"),
    "garbage": (200, b"s3cret garbage", "malformed"),
    "field": (200, b'{"access_token":"s3cret\\r\\nx: y","token_type":"Bearer"}', "malformed"),
    "elsewhere": (302, b"s3cret", "malformed"),
}
"""What a token service answers, by the upstream that it is asked for, and what that is called."""


def test_failing_token_service_is_a_coded_answer_and_is_left_alone(tmp_path: Path, world: World) -> None:
    world.identity.answers = {name: (status, body) for name, (status, body, _) in FAILURES.items()}
    more: More = {name: ({"token_url": f"{world.token_url}?{name}"}, {}) for name in FAILURES}
    with running(Replica(tmp_path, world, more=more)) as (replica,):
        for name, (_, _, result) in FAILURES.items():
            answers = [replica.fetch(path=f"/{name}") for _ in range(40)]
            assert {(answer.status, answer.code) for answer in answers} == {(503, "credential_unavailable")}
            assert all(answer.retry_after is not None for answer in answers)
            asked = sum(asked.query == name for asked in world.identity.asked)
            assert asked <= 4
            assert ("invalid_client" in answers[0].body) is (result == "refused")
            assert not [answer for answer in answers if "s3cret" in answer.body]
            metrics = replica.admin("GET", "/metrics")[1]
            (told,) = (
                each["token"] for each in replica.admin("GET", "/api/upstreams")[1] if each["name"] == name
            )
            assert told["valid_for_s"] is None
            assert told["problem"].startswith(("answered", "an answer", "a token"))
            assert (
                f'ambassador_token_requests_total{{upstream="{name}",result="{result}"}} {asked}' in metrics
            )
        assert not world.api.seen
        world.identity.answers = {}
        for name in FAILURES:
            until(partial(is_served, replica, f"/{name}"))
        replica.signal(signal.SIGTERM)
        _, errors = replica.end()
    assert errors.count("no token from") >= len(FAILURES)
    assert "s3cret" not in errors
    assert not world.api.refused


def test_token_service_that_fails_is_not_felt_while_the_token_is_good(tmp_path: Path, world: World) -> None:
    world.identity.life_s = 6.0
    with running(Replica(tmp_path, world, workers=1)) as (replica,):
        assert replica.fetch().status == 200
        world.identity.status = 500
        until(lambda: replica.fetch().status == 200 and len(world.identity.asked) > 1)
        assert {replica.fetch().status for _ in range(5)} == {200}
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
