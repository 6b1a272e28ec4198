"""The access log: one JSON line for each request, never at the cost of one.

A worker encodes a line (1 us) and appends it to a buffer; a thread writes whole lines in batches, every 50 ms or 64
KiB. Where the reader is slow or gone the buffer fills to its bound and further lines are dropped and counted: a blocked
pipe stops neither the worker nor, beyond a deadline, its exit.

Values of query parameters that look like secrets are masked.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import threading
import time
from typing import Final

import msgspec

_FLUSH_S: Final = 0.05
_BATCH_BYTES: Final = 65536
_MAX_BYTES: Final = 4 * 1024 * 1024
_SECRET: Final = re.compile(
    r"(?i)([?&;](?:[^=&;]*(?:token|secret|password|passwd|signature|credential|api_?key)[^=&;]*|key|sig|code|auth)=)[^&;]*"
)


class AccessRecord(msgspec.Struct):
    """One line (contract 7.17). Durations in milliseconds, sizes in bytes on the wire; None becomes null."""

    ts: str
    request_id: str
    trace_id: str
    client: str | None
    client_ip: str
    method: str
    host: str
    path: str
    protocol: str
    status: int
    code: str | None
    bytes_in: int
    bytes_out: int
    duration_ms: float
    upstream_ms: float | None
    route: str
    upstream: str | None
    endpoint: str | None
    attempts: int
    flags: str


def mask_query(target: str) -> str:
    """The target with `***` for the values of parameters whose name says that they are secret."""
    return _SECRET.sub(r"\1***", target) if "?" in target else target


class Timestamps:
    """Times of day as RFC 3339 in UTC with milliseconds; the text of a second is made once."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def text(self, wall_s: float) -> str:
        """`wall_s` in unix seconds as text."""
        second = int(wall_s)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int((wall_s - second) * 1000):03d}Z"


class AccessLog:
    """Lines to a descriptor (which becomes the log's own) or to a file that is appended to.

    `sample`: the share of requests with a status under 400 that is written; others always are.
    """

    def __init__(self, target: int | str, *, sample: float = 1.0) -> None:
        self._path = target if isinstance(target, str) else None
        self._fd = target if isinstance(target, int) else _open(target)
        self._sample = sample
        self._encode_into = msgspec.json.Encoder().encode_into
        self._buffer = bytearray()
        self._scratch = bytearray(1024)
        self._wake = threading.Event()
        self._written = threading.Condition()
        self._closing = False
        self._reopen = False
        self.timestamps = Timestamps()
        self.dropped = 0
        """Lines that were not written because the reader is too slow."""
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def takes(self, status: int) -> bool:
        """Whether a request with this status is in the sample."""
        return self._sample >= 1.0 or status >= 400 or random.random() < self._sample

    def write(self, record: AccessRecord) -> None:
        """Append a line. Never blocks, never raises."""
        buffer = self._buffer
        if len(buffer) >= _MAX_BYTES:
            self.dropped += 1
            return
        scratch = self._scratch
        self._encode_into(record, scratch)
        scratch += b"\n"
        buffer += scratch
        if len(buffer) >= _BATCH_BYTES:
            self._wake.set()

    def reopen(self) -> None:
        """Open the file again by its name, after it was moved away. Nothing for a descriptor."""
        self._reopen = self._path is not None
        self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Write what is there, for at most `timeout_s`, and end the thread."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait(_FLUSH_S)
            self._wake.clear()
            closing = self._closing
            if self._reopen:
                self._reopen = False
                self._open_again()
            if self._buffer:
                # The worker appends to whichever buffer it finds; the swap is one store.
                full, self._buffer = self._buffer, bytearray()
                self._write_all(full)
            if closing:
                os.close(self._fd)
                return

    def _open_again(self) -> None:
        assert self._path is not None
        with contextlib.suppress(OSError):
            fresh = _open(self._path)
            os.close(self._fd)
            self._fd = fresh

    def _write_all(self, data: bytearray) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError:
                self.dropped += bytes(view).count(b"\n")
                return


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
