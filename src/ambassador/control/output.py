"""Standard output, shared by the supervisor and its workers' access logs, line by whole line.

Each worker writes into a pipe of its own; the supervisor reads the pipes and hands whole lines to a thread, which
writes them. Writing may block as long as it likes (a paused pager) without holding up the loop: the queue is bounded,
and when it is full the pipes are not read, so the workers drop lines and count them. An inherited standard output
never gets O_NONBLOCK: the flag belongs to the terminal, which the shell shares.
"""

from __future__ import annotations

import os
import threading
from collections import deque

import trio

_READ = 64 * 1024
_QUEUE_BYTES = 1024 * 1024
_LONGEST_LINE = 1024 * 1024
_FULL_RETRY_S = 0.05


class Output:
    """Writes blocks of whole lines to a descriptor, in order, from a thread of its own.

    `waits`: for `put_first`. What comes before it is written after it.
    """

    def __init__(self, fd: int, *, waits: bool = False) -> None:
        self._fd = fd
        self._waits = waits
        self._blocks: deque[bytes] = deque()
        self._held = 0
        self._changed = threading.Condition()
        self._closing = False
        self._broken = False
        self._thread = threading.Thread(target=self._write, name="output", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether the writer is behind by as much as is held."""
        return self._held >= _QUEUE_BYTES

    def put(self, lines: bytes) -> None:
        """Write `lines`, which end with a newline, some time soon. Never waits."""
        with self._changed:
            if not self._broken:
                self._blocks.append(lines)
                self._held += len(lines)
                self._changed.notify()

    def put_first(self, lines: bytes) -> None:
        """Write `lines` before everything else that is still held."""
        with self._changed:
            self._waits = False
            if not self._broken:
                self._blocks.appendleft(lines)
                self._held += len(lines)
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Wait until everything is written, for at most `timeout_s`. The descriptor stays open."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _write(self) -> None:
        while True:
            with self._changed:
                while (self._waits or not self._blocks) and not self._closing:
                    self._changed.wait()
                if not self._blocks:
                    return
                block = self._blocks.popleft()
            self._write_out(block)
            with self._changed:
                self._held -= len(block)

    def _write_out(self, block: bytes) -> None:
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            # Nobody reads any more (EPIPE), or never did: lines are of no use then, and are not kept.
            with self._changed:
                self._broken = True
                self._held -= sum(map(len, self._blocks))
                self._blocks.clear()


async def copy_lines(fd: int, output: Output) -> None:
    """Copy whole lines from a pipe to `output` until its last writer has closed it, then close `fd`.

    A last line without its newline was cut by its writer's death and is dropped.
    """
    held = b""
    os.set_blocking(fd, False)
    try:
        while True:
            await trio.lowlevel.wait_readable(fd)
            while output.full:  # noqa: ASYNC110 - the writer is a thread, and late anyway
                await trio.sleep(_FULL_RETRY_S)
            try:
                data = os.read(fd, _READ)
            except BlockingIOError:
                continue
            if not data:
                return
            lines, newline, rest = data.rpartition(b"\n")
            if newline:
                output.put(held + lines + newline)
                held = rest
            elif len(held) < _LONGEST_LINE:
                held += data
    finally:
        os.close(fd)
