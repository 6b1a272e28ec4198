from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from ambassador.control.checker import CHECK_TIMEOUT_S, Checker
from ambassador.control.checking import Checked, check_file
from tests.control.service import is_alive, until

GOOD = "version: 1\nlisten: 127.0.0.1:0\nroutes:\n  - {name: a, respond: 200}\n"


@pytest.fixture
async def checker(nursery: trio.Nursery) -> AsyncIterator[Checker]:
    made = Checker()
    await nursery.start(made.run)
    yield made
    nursery.cancel_scope.cancel()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a.yaml"
    file.write_text(GOOD)
    return file


async def test_nothing_is_started_before_it_is_needed(checker: Checker, file: Path) -> None:
    assert checker.pid is None
    checker.renew()
    assert checker.pid is None
    assert await checker.check(str(file)) == check_file(str(file))
    assert checker.pid is not None


async def test_one_process_does_all_checks(checker: Checker, file: Path) -> None:
    checker.warm()
    pid = checker.pid
    assert await checker.check(str(file)) == check_file(str(file))
    file.write_text("version: 2\n")  # noqa: ASYNC240
    assert await checker.check(str(file)) == check_file(str(file))
    assert (await checker.check(str(file.with_name("none")))).errors
    checker.warm()
    assert checker.pid == pid


async def test_one_that_was_killed_is_replaced(checker: Checker, file: Path) -> None:
    checker.warm()
    pid = checker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert (await checker.check(str(file))).config is not None
    assert checker.pid not in (None, pid)
    assert not is_alive(pid)


async def test_renewed_it_checks_with_the_code_as_it_is_now(checker: Checker, file: Path) -> None:
    checker.warm()
    pid = checker.pid
    assert pid is not None
    checker.renew()
    assert checker.pid not in (None, pid)
    assert (await checker.check(str(file))).config is not None
    await end_of(pid)


async def test_the_end_of_its_owner_is_its_end(file: Path) -> None:
    async with trio.open_nursery() as nursery:
        checker = Checker()
        await nursery.start(checker.run)
        checker.warm()
        nursery.cancel_scope.cancel()
    assert checker.pid is not None
    assert not is_alive(checker.pid)


async def test_a_check_that_hangs_is_given_up(
    checker: Checker, tmp_path: Path, nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    os.mkfifo(tmp_path / "pipe")
    checker.warm()
    pid = checker.pid
    assert pid is not None
    given: list[Checked] = []

    async def check() -> None:
        given.append(await checker.check(str(tmp_path / "pipe")))

    nursery.start_soon(check)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(CHECK_TIMEOUT_S)
    await end_of(pid)
    assert given[0].errors == (f"{tmp_path}/pipe: cannot be checked: it took longer than 30 s",)
    assert checker.pid is None


async def end_of(pid: int) -> None:
    """Wait until it has ended and is buried."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)
    await trio.testing.wait_all_tasks_blocked()
    assert not is_alive(pid)


DIES = "raise SystemExit(3)"
ANSWERS_ODDLY = """\
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=int(sys.argv[1]))
_, (pipe,), _, _ = socket.recv_fds(sock, 9999, 1)
os.write(pipe, b"\\x81\\xa6config\\x01")
"""


@pytest.mark.parametrize(
    ("code", "reason"),
    [(DIES, "the process that did it died"), (ANSWERS_ODDLY, "the installed version is another")],
)
async def test_what_it_cannot_do_is_told(
    nursery: trio.Nursery, file: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(file.parent), prepend=os.pathsep)
    file.with_name("odd_checking.py").write_text(code)
    checker = Checker("odd_checking")
    await nursery.start(checker.run)
    checked = await checker.check(str(file))
    assert checked.config is None
    assert checked.errors[0].startswith(f"{file}: cannot be checked: {reason}")
    nursery.cancel_scope.cancel()


HANGS_AT_FIRST = """\
import os, signal, sys
from ambassador.control.checking import check_file, obey
def check(path):
    try:
        os.mkdir(path + ".asked")
    except FileExistsError:
        return check_file(path)
    signal.pause()
obey(int(sys.argv[1]), int(sys.argv[2]), check)
"""


async def test_a_check_survives_a_renewal(
    nursery: trio.Nursery, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(file.parent), prepend=os.pathsep)
    file.with_name("odd_checking.py").write_text(HANGS_AT_FIRST)
    checker = Checker("odd_checking")
    await nursery.start(checker.run)

    async def renew() -> None:
        await trio.to_thread.run_sync(until, Path(f"{file}.asked").exists)
        checker.renew()
        renewed.append(checker.pid)

    renewed: list[int | None] = []
    nursery.start_soon(renew)
    assert (await checker.check(str(file))).config is not None
    assert renewed == [checker.pid]
    nursery.cancel_scope.cancel()


async def test_without_descriptors_the_reason_is_told(
    checker: Checker, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe2", fail)
    (error,) = (await checker.check(str(file))).errors
    assert error.endswith("the process that does it cannot be reached: Too many open files")
