from __future__ import annotations

import logging
import socket

import pytest
import trio

from ambassador.config.load import load_text
from ambassador.control.names import Names, host_names

LOG = logging.getLogger("test")


def test_only_names_are_looked_up() -> None:
    config = load_text(
        """\
version: 1
listen: 127.0.0.1:0
upstreams:
  a: {endpoints: ["http://one.example:80", "http://127.0.0.1:1", "http://[::1]:1", "unix:/s"]}
routes:
  - {name: a, to: a}
"""
    )
    assert host_names(config) == {"one.example"}


async def test_changes_are_pushed_and_failures_keep_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[str | None] = ["10.0.0.1", "10.0.0.1", "10.0.0.2", None]

    async def getaddrinfo(host: str, port: None, *, type: int) -> list[tuple[object, ...]]:  # noqa: A002
        await trio.lowlevel.checkpoint()
        answer = answers.pop(0)
        if answer is None:
            raise socket.gaierror
        return [(socket.AF_INET, type, 6, "", (answer, 0))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    pushed: list[dict[str, tuple[str, ...]]] = []
    names = Names(LOG, pushed.append)
    await names.want(["a.example"])
    for _ in range(3):
        await names._look_up(["a.example"])
    assert pushed == [{"a.example": ("10.0.0.1",)}, {"a.example": ("10.0.0.2",)}]
    assert names.known == {"a.example": ("10.0.0.2",)}


async def test_a_slow_name_does_not_hold_up_a_start(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        await trio.sleep(100)
        return []

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    begun = trio.current_time()
    await Names(LOG, lambda _: None).want(["slow.example"])
    assert trio.current_time() - begun == 1.0
