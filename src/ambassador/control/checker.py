"""The supervisor's side of `checking`: one process that is kept warm, so that a reload need not wait for a start.

A fresh one takes 0.13 s of CPU to import what checks a config, which is more than a second where every core is busy; a
warm one answers as soon as it is scheduled, and who has slept is scheduled first. It is not a worker, holds no socket
of a listener, and ends with the supervisor. It has 25 MiB resident, half of them its own.

Measured on two cores that wrk keeps busy, 10 routes, `ambassador reload` in all: 800 ms with a fresh one, 100 ms so.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import msgspec
import trio

from ambassador.control.checking import CHECKING_MODULE, Checked
from ambassador.control.child import start_child

CHECK_TIMEOUT_S: Final = 30.0
_CHECKED: Final = msgspec.msgpack.Decoder(Checked)


class _Lost(Exception):
    """There is no answer; the text says why."""


class _Process:
    """The process, until it has ended."""

    def __init__(self, module: str) -> None:
        self._process, self._sock = start_child(module, socket.SOCK_SEQPACKET, private=True)
        self._sock.setblocking(False)
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)  # now: `kill` buries one that has ended

    async def check(self, path: str) -> Checked:
        """Have a file checked. Raises `_Lost`."""
        try:
            return _CHECKED.decode(await self._answer(path))
        except OSError as error:
            raise _Lost(f"the process that does it cannot be reached: {error.strerror}") from error
        except msgspec.ValidationError as error:
            raise _Lost(f"the installed version is another than the one that runs: {error}") from None
        except msgspec.DecodeError:
            raise _Lost("the process that did it died; the service's standard error may say why") from None

    async def _answer(self, path: str) -> bytes:
        reads, writes = os.pipe2(os.O_CLOEXEC)
        async with trio.lowlevel.FdStream(reads) as answer:
            try:
                socket.send_fds(self._sock, [os.fsencode(path)], [writes])
            finally:
                os.close(writes)
            return b"".join([part async for part in answer])

    def dismiss(self) -> None:
        """Have it end; a check that is under way ends with it."""
        self._sock.close()

    def kill(self) -> None:
        """End it now, with the checks that are under way."""
        self._process.kill()

    async def attend(self) -> None:
        """Be with it to its end, or end it when cancelled."""
        try:
            await trio.lowlevel.wait_readable(self._pidfd)
        finally:
            os.close(self._pidfd)
            self._sock.close()
            self._process.kill()
            self._process.wait()


class Checker:
    """`run` must run as long as the rest is called, from tasks of the same trio loop.

    A check that finds no process, or whose process has been killed under it, starts one.
    """

    def __init__(self, module: str = CHECKING_MODULE) -> None:
        self._module = module
        self._process: _Process | None = None
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the processes, until cancelled; none is left then."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    @property
    def pid(self) -> int | None:
        """The process that waits for work, if there is one."""
        return None if self._process is None else self._process.pid

    def warm(self) -> None:
        """Have a process ready. If none can be had now, the next check tries again."""
        try:
            self._present()
        except OSError:
            return

    def renew(self) -> None:
        """Have the code as it is now installed check from now on; where there is no process, nothing happens."""
        process, self._process = self._process, None
        if process is not None:
            process.dismiss()
            self.warm()

    async def check(self, path: str) -> Checked:
        """Read and check the file."""
        reason = f"it took longer than {CHECK_TIMEOUT_S:g} s"
        with trio.move_on_after(CHECK_TIMEOUT_S):
            try:
                return await self._ask(path)
            except _Lost:
                # Killed under us, or of code that is no more: a fresh one decides.
                pass
            try:
                return await self._ask(path)
            except _Lost as lost:
                reason = str(lost)
        return Checked(config=None, errors=(f"{path}: cannot be checked: {reason}",))

    async def _ask(self, path: str) -> Checked:
        try:
            process = self._present()
        except OSError as error:
            raise _Lost(f"no process can be had for it: {error.strerror}") from error
        try:
            return await process.check(path)
        except BaseException:
            self._drop(process)
            raise

    def _present(self) -> _Process:
        if self._process is None:
            assert self._nursery is not None
            self._process = _Process(self._module)
            self._nursery.start_soon(self._attend, self._process)
        return self._process

    async def _attend(self, process: _Process) -> None:
        await process.attend()
        self._drop(process)

    def _drop(self, process: _Process) -> None:
        process.kill()
        if self._process is process:
            self._process = None
