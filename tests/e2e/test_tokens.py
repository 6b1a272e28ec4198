"""Tokens that are fetched for an upstream: by real workers, from a token service that does what such services do."""

from __future__ import annotations

import contextlib
import http.client
import json
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.control.service import Service, until
from tests.e2e.identity import CLIENT, SECRET, Api, Identity
from tests.e2e.origins import wsgi
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
        auth: dict[str, Any] | None = None,
        key: str = "",
        **route: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "secret").write_text(SECRET)
        oauth2 = {
            "token_url": world.token_url,
            "client_id": CLIENT,
            "client_secret": f"file:{folder}/secret",
            "scopes": ["read"],
            **(auth or {}),
        }
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
                    "auth": {"oauth2": oauth2},
                    "connections": {"max": 8, "max_pending": 2000},
                }
            },
            "routes": [{"name": "r", "to": "api", "timeout": "40s", **route}],
        }
        file = folder / "amb.yaml"
        file.write_text(json.dumps(config))
        super().__init__(["ambassador", "run", "-c", str(file)], folder / "c.sock")
        self.workers = workers

    def start(self) -> None:
        self.wait_until_up()
        self.wait_for_workers(self.workers)

    def get_(self, method: str = "GET", body: bytes = b"") -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, "/things", body or None)
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
    assert len(world.identity.asked) == 1
    (asked,) = world.identity.asked
    assert asked.form == {"grant_type": "client_credentials", "scope": "read"}
    assert asked.headers["content_type"] == "application/x-www-form-urlencoded"
    assert set(world.api.seen) == {f"Bearer {token}" for token in world.identity.valid}
