"""The real data plane as a worker composes it, in this process."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import pytest
import trio

from ambassador.config.load import load_text
from ambassador.config.schema import Config
from ambassador.control.deployment import encode_config
from ambassador.control.duties import CannotServe
from ambassador.control.orders import Brief, Kept, KeptFiles, KeptKeys, KeySetName, Start
from ambassador.control.pages import block_keys
from ambassador.control.sums import UpstreamStatus, UpstreamSums
from ambassador.control.worker import WorkerPlane, open_plane
from ambassador.observe.metrics import NO_NAME, BlockKey, Page, Registry, encode_blocks
from ambassador.proxy.jose import read_keys
from ambassador.proxy.key_files import ServerConfig, named_files
from tests.proxy.clients.tokens import jwks
from tests.proxy.pem import Authority

ADDRESS = "127.0.0.1:1"
NOTHING = Kept()


def config(mark: str, log: str = "off") -> Config:
    return load_text(
        f"""\
version: 1
listen: {ADDRESS}
telemetry: {{access_log: {log}}}
routes:
  - {{name: {mark}, match: {{path: /mark}}, respond: {{body: {mark}}}}}
  - {{name: named, to: "http://upstream.example:80"}}
"""
    )


class Running:
    def __init__(self, plane: WorkerPlane, registry: Registry, page: Page, port: int) -> None:
        self.plane = plane
        self.registry = registry
        self.page = page
        self.port = port

    def brief(self, generation: int, config: Config) -> Brief:
        return brief(self.registry, generation, config)

    async def get(self, path: str) -> bytes:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            await stream.send_all(b"GET %b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % path.encode())
            return b"".join([data async for data in stream])


def brief(
    registry: Registry,
    generation: int,
    config: Config,
    unhealthy: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    kept: Kept = NOTHING,
) -> Brief:
    blocks = registry.place(block_keys(config))
    return Brief(
        generation=generation,
        config=encode_config(config),
        blocks=encode_blocks(blocks),
        page_size=registry.size,
        addresses={},
        unhealthy=unhealthy,
        kept=kept,
    )


@asynccontextmanager
async def running(
    first: Config,
    log_fd: int | None = None,
    unhealthy: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    kept: Kept = NOTHING,
) -> AsyncIterator[Running]:
    registry = Registry()
    given = brief(registry, 1, first, unhealthy, kept)
    start = Start(slot=0, instance="me", replica="me-1", started=0.0, brief=given, sockets=())
    page = Page.create(registry.size)
    log = os.open(os.devnull, os.O_WRONLY) if log_fd is None else log_fd
    supervisors, store = socket.socketpair()
    with supervisors, socket.create_server(("127.0.0.1", 0)) as listener:
        async with open_plane(start, first, os.dup(page.fd), log, store.detach()) as plane:
            plane.add(ADDRESS, listener)
            yield Running(plane, registry, page, listener.getsockname()[1])
            plane.remove(ADDRESS, listener)
    page.close()


@pytest.fixture
async def worker() -> AsyncIterator[Running]:
    async with running(config("one")) as made:
        yield made


async def test_requests_are_served_and_counted(worker: Running) -> None:
    assert (await worker.get("/mark")).endswith(b"\r\n\r\none")
    assert worker.plane.beat() > 0
    block = worker.registry.blocks[BlockKey("one", NO_NAME)]
    assert worker.page.slots[block + 2] == 1
    assert worker.page.heartbeat_ns > 0


def prepare(worker: Running, generation: int, config: Config) -> None:
    for _ in worker.plane.prepare(config, worker.brief(generation, config)):
        pass


async def test_another_generation_is_served_from_its_commit(worker: Running) -> None:
    second = config("two")
    prepare(worker, 2, second)
    assert (await worker.get("/mark")).endswith(b"one")
    worker.plane.commit()
    assert (await worker.get("/mark")).endswith(b"two")
    third = config("three")
    prepare(worker, 3, third)
    worker.plane.abort()
    worker.plane.commit()
    assert (await worker.get("/mark")).endswith(b"two")


async def test_a_log_file_that_cannot_be_opened_refuses_the_generation(worker: Running) -> None:
    second = config("two", log="/none/log")
    with pytest.raises(
        CannotServe, match=r"^telemetry.access_log: '/none/log' cannot be opened: no such file"
    ):
        prepare(worker, 2, second)
    assert (await worker.get("/mark")).endswith(b"one")


async def test_clients_are_served_between_the_steps_of_a_preparation(worker: Running) -> None:
    second = config("two")
    steps = worker.plane.prepare(second, worker.brief(2, second))
    for number in range(len(second.routes)):
        next(steps)
        assert (await worker.get("/mark")).endswith(b"one"), number
    for _ in steps:
        pass
    worker.plane.commit()
    assert (await worker.get("/mark")).endswith(b"two")


async def test_log_lines_are_written_by_the_end(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    async with running(config("one", log="stdout"), writes) as worker:
        await worker.get("/mark")
        second = config("two", log=str(tmp_path / "log"))
        prepare(worker, 2, second)
        worker.plane.commit()
        await worker.get("/mark")
    with os.fdopen(reads, "rb") as pipe:
        assert json.loads(pipe.read())["route"] == "one"
    assert json.loads((tmp_path / "log").read_text())["route"] == "two"


async def test_a_drain_says_close_and_unhealthy(worker: Running) -> None:
    worker.plane.drain(last=True)
    assert b"HTTP/1.1 503 " in await worker.get("/.well-known/ambassador/health")


def answered(worker: Running, what: str) -> bytes:
    answers: list[bytes] = []
    worker.plane.answer(what, answers.append)
    (answer,) = answers
    return answer


def upstream_of(worker: Running) -> UpstreamStatus:
    sums = UpstreamSums()
    for _ in sums.add([answered(worker, "upstreams")]):
        pass
    (told,) = sums.upstreams()
    return told


async def test_questions(worker: Running) -> None:
    assert upstream_of(worker).endpoints[0].healthy is False
    worker.plane.set_addresses("upstream.example", ("10.0.0.1",))
    told = upstream_of(worker)
    assert (told.name, told.endpoints[0].address) == ("named", "10.0.0.1")
    names = {task["name"] for task in json.loads(answered(worker, "tasks"))}
    assert "ambassador.proxy.lane.Lane.run" in names


def checked(extra: str = "", health: str = "/up") -> Config:
    return load_text(
        f"""\
version: 1
listen: {ADDRESS}
telemetry: {{access_log: off}}
upstreams:
  u: {{endpoints: [http://10.0.0.1:80, http://10.0.0.2:80], health: {health}{extra}}}
routes: [{{name: r, to: u}}]
"""
    )


def health_of(worker: Running) -> list[tuple[bool, str | None]]:
    return [(each.healthy, each.why) for each in upstream_of(worker).endpoints]


async def test_worker_knows_from_its_start_what_is_unhealthy_and_keeps_it_through_a_reload() -> None:
    down = {"http://10.0.0.2:80": "unhealthy: down"}
    async with running(checked(), unhealthy={"u": down, "other": down}) as worker:
        assert health_of(worker) == [(True, None), (False, "unhealthy: down")]
        second = checked(", slow_start: 1s")
        prepare(worker, 2, second)
        worker.plane.set_unhealthy({"u": {"http://10.0.0.1:80": "unhealthy: up and down"}})
        worker.plane.commit()
        assert health_of(worker) == [(False, "unhealthy: up and down"), (True, None)]
        prepare(worker, 3, checked(health="off"))
        worker.plane.commit()
        assert health_of(worker) == [(True, None), (True, None)]


async def test_beat_tells_of_sets_of_keys_that_cannot_be_read_and_no_more_once_they_can(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "jwks"
    jwt = f"{{issuer: i, jwks: {keys}}}"
    shown = load_text(
        f"version: 1\nlisten: {ADDRESS}\ntelemetry: {{access_log: off}}\nroutes: [{{name: r, respond: 204}}]\n"
        f"clients: {{a: {{jwt: {jwt}}}, b: {{jwt: {jwt}}}}}\n"
    )
    async with running(shown) as worker:
        with trio.fail_after(20):
            while not worker.plane.key_set_troubles:  # noqa: ASYNC110 - a thread reads the file
                await trio.sleep(0.01)
        assert list(worker.plane.key_set_troubles) == ["a"], "what both have is told once"
        trouble = worker.plane.key_set_troubles["a"]
        assert (trouble.problem, trouble.has_keys) == ("cannot be read: No such file or directory", False)
        assert abs(trouble.since - time.time()) < 60
        for key_set in worker.plane.key_sets:
            key_set.feed(read_keys(jwks("ec")))
        assert not worker.plane.key_set_troubles


def proving(directory: Path) -> Config:
    """A listener with TLS, an upstream with a secret and clients with keys: each in a file that may not be there."""
    pair = f"{{cert: {directory}/a.b.crt, key: {directory}/a.b.key}}"
    return load_text(f"""\
version: 1
listeners: [{{address: "{ADDRESS}", tls: {pair}}}]
telemetry: {{access_log: off}}
clients: {{c: {{jwt: {{issuer: i, audience: a, jwks: 'file:{directory}/jwks'}}}}}}
upstreams: {{u: {{endpoints: ["http://127.0.0.1:1"], auth: {{bearer: 'file:{directory}/token'}}}}}}
routes: [{{name: r, to: u, access: [c]}}]
""")


async def test_worker_that_starts_while_files_are_away_has_what_others_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Authority(tmp_path).issue("a.b")
    files = tuple(named_files(ServerConfig(cert=pair.cert, key=pair.key)))
    name = KeySetName(f"file:{tmp_path}/jwks", None, None)
    kept = Kept(
        secrets={f"file:{tmp_path}/token": "s3kr3t"},
        blobs=tuple(tmp_path.joinpath(f"a.b.{kind}").read_bytes() for kind in ("crt", "key")),
        tls=(KeptFiles(files, (0, 1)),),
        key_sets=(KeptKeys(name, jwks("ec"), 60.0),),
    )
    config = proving(tmp_path)
    tmp_path.joinpath("a.b.crt").unlink()
    with pytest.raises(ExceptionGroup) as caught:
        async with running(config):
            pass
    assert caught.group_contains(CannotServe), "the first worker has nothing to go on with"
    caplog.clear()
    async with running(config, kept=kept) as worker:
        assert f"cert '{pair.cert}' cannot be read" in caplog.text
        assert upstream_of(worker).credential is None
        with trio.fail_after(20):
            while not worker.plane.key_set_troubles:  # noqa: ASYNC110 - a thread reads the file
                await trio.sleep(0.01)
        assert worker.plane.key_set_troubles["c"].has_keys
        assert worker.plane.keys_read() == [], "what could not be read is not told"


async def test_sets_of_keys_that_are_read_are_told_once(tmp_path: Path) -> None:
    Authority(tmp_path).issue("a.b")
    (tmp_path / "jwks").write_bytes(jwks("ec"))
    async with running(proving(tmp_path)) as worker:
        with trio.fail_after(20):
            while not (read := worker.plane.keys_read()):  # noqa: ASYNC110 - a thread reads the file
                await trio.sleep(0.01)
        assert [(each.name.source, each.document) for each in read] == [(f"file:{tmp_path}/jwks", jwks("ec"))]
        assert worker.plane.keys_read() == []


async def test_beat_tells_of_ejections_once_there_were_any() -> None:
    async with running(checked(", outlier: {}")) as worker:
        assert worker.plane.ejections == {}
