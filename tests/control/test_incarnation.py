from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from ambassador.control.incarnation import Incarnation
from ambassador.control.orders import Commit
from tests.control.service import is_alive


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A worker that says one thing, and then does as its name says."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "odd_worker.py").write_text(
        "import socket, struct, sys, time\nimport msgspec\nfrom ambassador.control.orders import Failed, Ready\n"
        "sock = socket.socket(fileno=int(sys.argv[1]))\n"
        "def say(message):\n"
        "    body = msgspec.msgpack.encode(message)\n"
        "    sock.sendall(struct.pack('!I', len(body)) + body)\n"
        "if sys.stdin.read(1):\n    sys.exit('not reached: its input is empty')\n"
        "say(Ready())\nsock.recv(1)\nsay(Failed(error='as ordered'))\nsys.exit(7)\n"
    )
    return "odd_worker"


async def test_its_life_is_told(nursery: trio.Nursery, module: str) -> None:
    worker = Incarnation(0, module)
    nursery.start_soon(worker.attend)
    await worker.settled.wait()
    assert worker.ready
    assert not await worker.commit(Commit(generation=2), timeout_s=10)
    await worker.gone.wait()
    assert (worker.ready, worker.error, worker.exit_status) == (False, "as ordered", 7)
    assert await worker.ask("tasks", 10) is None
    worker.kill()


async def test_a_killed_worker_is_reaped(nursery: trio.Nursery, module: str) -> None:
    worker = Incarnation(0, module)
    nursery.start_soon(worker.attend)
    await worker.settled.wait()
    worker.kill()
    await worker.gone.wait()
    assert worker.exit_status == -9
    assert not is_alive(worker.pid)


async def test_a_supervisor_that_is_cancelled_leaves_no_process(module: str) -> None:
    async with trio.open_nursery() as nursery:
        worker = Incarnation(0, module)
        nursery.start_soon(worker.attend)
        await worker.settled.wait()
        nursery.cancel_scope.cancel()
    assert not is_alive(worker.pid)


async def test_one_that_cannot_be_imported_ends_before_it_is_ready(nursery: trio.Nursery) -> None:
    worker = Incarnation(0, "no_such_module_at_all")
    nursery.start_soon(worker.attend)
    await worker.settled.wait()
    assert (worker.ready, worker.ended, worker.exit_status) == (False, True, 1)
