"""With real files and a real clock: each test waits for what is told, never for a time."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ambassador.config.discover import Server
from ambassador.control.discovery.file import FileWatch
from loadtest.volume import Volume

A, B = "http://a.test:80", "http://b.test:80"


class Heard:
    """What was told: lists of URLs, and problems as texts."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[list[str] | str](math.inf)
        self.servers: tuple[Server, ...] = ()

    async def tell(self, servers: tuple[Server, ...]) -> None:
        self.servers = servers
        self._send.send_nowait([server.url for server in servers])

    def trouble(self, problem: str | None) -> None:
        if problem is not None:
            self._send.send_nowait(problem)

    async def next(self) -> list[str] | str:
        return await self._receive.receive()


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[Heard]:
    heard = Heard()
    async with trio.open_nursery() as nursery:
        watch = FileWatch(str(path), heard.tell, heard.trouble, look_every_s=0.001)
        nursery.start_soon(watch.run)
        yield heard
        nursery.cancel_scope.cancel()


async def test_file_is_read_in_yaml_and_json(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("- http://A.test\n- {url: 'unix:/run/b', weight: 3}\n")
    async with watching(path) as heard:
        assert await heard.next() == [A, "unix:/run/b"]
        assert heard.servers[1].weight == 3
        path.write_text('[{"url": "http://b.test"}]')
        assert await heard.next() == [B]


async def test_file_that_is_replaced_by_a_rename_is_read(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text(f"[{A}]")
    async with watching(path) as heard:
        assert await heard.next() == [A]
        other.write_text(f"[{B}]")
        os.replace(other, path)
        assert await heard.next() == [B]


async def test_link_of_a_config_map_is_followed(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    volume.put({"a.yaml": f"[{A}]".encode()})
    async with watching(tmp_path / "a.yaml") as heard:
        assert await heard.next() == [A]
        volume.put({"a.yaml": f"[{B}]".encode()})
        assert await heard.next() == [B]


async def test_empty_list_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("[]")
    async with watching(path) as heard:
        assert await heard.next() == []


async def test_broken_file_is_told_with_its_place_until_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text(f"- {A}\n- {{url: {B}, wieght: 2}}\n")
    async with watching(path) as heard:
        problem = await heard.next()
        assert problem == f"{path}:2:27: error: [1]: unknown key 'wieght'; did you mean 'weight'?"
        path.write_text(f"- {A}\n- {{url: {B}, weight: 2}}\n")
        assert await heard.next() == [A, B]


async def test_file_that_is_missing_is_told_and_read_when_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    async with watching(path) as heard:
        assert "No such file" in await heard.next()
        path.write_text(f"[{A}]")
        assert await heard.next() == [A]
        path.unlink()
        assert "No such file" in await heard.next()
