r"""The access log: one JSON line per request, written by a thread that can never hold up the worker.

`write` encodes and appends to a queue, and that is all a request pays. The thread takes whole lines off the queue 50 ms
after the first one came, or as soon as 64 KiB wait, and writes them at once, so that lines of several processes that
append to one file do not mix. Behind a reader that stopped, the queue grows to 4 MiB; then lines are dropped and
counted, requests go on. An idle worker's thread sleeps without a timer.

The queue is a deque because its append and popleft are atomic: no lock is on the request's path. Each count has one
writing side. `reopen` travels through the queue as well, so lines from before it are in the old file.

A line is valid JSON and pure ASCII whatever a client sends. Control characters are escaped, DEL and everything beyond
ASCII too, since some terminals obey C1 controls; bytes that are not UTF-8 appear as `\xNN`. Values of parameters
(of the query, of the path's segments) that look like credentials are masked.

Measured (CPython 3.11, CPU time, best of 9, one typical line of 445 bytes): a record 0.45 µs, its line 1.4, with a
harmless query of two parameters 2.1, with a masked one 3.4, with bytes beyond ASCII 4.6; `write` 1.8 with the thread's
share. Where only times and ids change from line to line, a `LineTemplate` and `put` cost a third of that. Bytes put
together by hand after a regular expression had found nothing to escape took 1.4 µs where encoding a Struct took 1.0, so
msgspec it is.
"""

from __future__ import annotations

import logging
import os
import random
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ambassador.observe.secret_names import names_a_secret

_FLUSH_EVERY_S = 0.05
_FLUSH_BYTES = 64 * 1024
_BATCH_BYTES = 256 * 1024  # so that room is given back piece by piece when a long queue is written
QUEUE_BYTES: Final = 4 * 1024 * 1024
"""How many bytes wait for a slow reader before lines are dropped."""

_LONGEST_MS = 1e12  # beyond it, and for nan: null

MASK: Final = b"***"

_log = logging.getLogger(__name__)


class AccessRecord(msgspec.Struct, kw_only=True, gc=False):
    """What is known of a request when it is settled. The line has these fields (contract 7.17), the query in `path`."""

    ts: float
    """When the request arrived, in unix seconds."""
    request_id: bytes
    trace_id: bytes
    client: str | None = None
    """The client's name from the config."""
    client_ip: str
    method: str
    host: str
    path: bytes
    """As matched, without the query; of its segments' parameters, credentials are masked in the line likewise."""
    query: bytes | None = None
    """As received; what looks like a credential is masked in the line."""
    protocol: str = "HTTP/1.1"
    status: int
    """What was answered; 0 if the client left before."""
    code: str | None = None
    """Why the ambassador itself answered (contract 3)."""
    bytes_in: int
    """Of the request's body."""
    bytes_out: int
    """Of the answer's body."""
    duration_ms: float
    """From the request's first byte to the answer's last, by the clock that the worker reads once per batch of events:
    0 for what is answered within one, as most answers made here are."""
    upstream_ms: float | None = None
    """Of the last attempt, by the same clock; None without one."""
    route: str = "-"
    upstream: str | None = None
    endpoint: str | None = None
    attempts: int = 0
    flags: tuple[str, ...] = ()
    """Words for what else happened to it."""


class _Line(msgspec.Struct, gc=False):
    """The line, field by field in its order. Made by position: keywords would cost as much as the encoding."""

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
    flags: tuple[str, ...]


# ----- lines ----------------------------------------------------------------------------------------------------------

_ENCODE = msgspec.json.Encoder().encode
_BEYOND_ASCII = re.compile("[\x7f-\U0010ffff]")


class LineMaker:
    """Turns records into lines. It remembers the text of the last second."""

    __slots__ = ("_instant", "_prefix", "_second", "_stamp")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""
        self._instant = -1.0
        self._stamp = b""

    def stamp(self, ts: float) -> bytes:
        """The time of day as lines have it. Remembered, since the requests of a batch began together."""
        if ts != self._instant:
            self._instant = ts
            self._stamp = self._time(ts).encode()
        return self._stamp

    def _time(self, ts: float) -> str:
        second, millisecond = divmod(int(ts * 1000.0 + 0.5), 1000)
        if second != self._second:
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._second = second
        return f"{self._prefix}{millisecond:03}Z"

    def line(self, record: AccessRecord) -> bytes:
        """The record's line, with its newline."""
        path = record.path
        if b";" in path:
            path = _MATRIX.sub(_without_value, path)
        if record.query is not None:
            path = b"%b?%b" % (path, mask_query(record.query))
        duration = record.duration_ms
        if 0.0 <= duration < _LONGEST_MS:
            duration = int(duration * 1000.0) / 1000.0  # a third of what round() costs
        upstream = record.upstream_ms
        if upstream is not None and 0.0 <= upstream < _LONGEST_MS:
            upstream = int(upstream * 1000.0) / 1000.0
        fields = _Line(
            self._time(record.ts),
            record.request_id.decode("utf-8", "backslashreplace"),
            record.trace_id.decode(),
            record.client,
            record.client_ip,
            record.method,
            record.host,
            path.decode("utf-8", "backslashreplace"),
            record.protocol,
            record.status,
            record.code,
            record.bytes_in,
            record.bytes_out,
            duration,
            upstream,
            record.route,
            record.upstream,
            record.endpoint,
            record.attempts,
            record.flags,
        )
        try:
            line = _ENCODE(fields)
        except UnicodeEncodeError:
            line = _ENCODE(_without_surrogates(fields))
        if not line.isascii() or b"\x7f" in line:
            line = _BEYOND_ASCII.sub(_escape, line.decode()).encode()
        return line + b"\n"


class LineTemplate:
    """Lines of requests that differ only in their times, ids, the size of the answer and the endpoint: 0.9 µs each.

    Made from the line of one of them. The names of fields are found by their quotes, which no value holds unescaped.
    """

    __slots__ = ("_after_ids", "_lines")

    def __init__(self, lines: LineMaker, line: bytes) -> None:
        self._lines = lines
        self._after_ids = line[
            line.index(b'","client":') : line.index(b'"bytes_out":') + len(b'"bytes_out":')
        ]

    @staticmethod
    def tail_of(line: bytes) -> bytes:
        """Where the request went, from the line of one that went there."""
        return line[line.index(b'"route":') :]

    def line(  # noqa: PLR0917 - keywords cost 0.1 µs
        self,
        ts: float,
        request_id: bytes,
        trace_id: bytes,
        bytes_out: int,
        duration_ms: float,
        upstream_ms: float,
        tail: bytes,
    ) -> bytes:
        """The line of one of them. The ids hold nothing that JSON escapes; no time is negative."""
        return b'{"ts":"%b","request_id":"%b","trace_id":"%b%b%d,"duration_ms":%.3f,"upstream_ms":%.3f,%b' % (
            self._lines.stamp(ts), request_id, trace_id, self._after_ids, bytes_out, duration_ms, upstream_ms, tail,
        )  # fmt: skip


def _without_surrogates(fields: _Line) -> _Line:
    """Half a pair, as an error handler may have put in, is no text: shown as an escape."""
    shown: list[Any] = [_shown(value) for value in msgspec.structs.astuple(fields)]
    return _Line(*shown)


def _shown(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return tuple(map(_shown, value)) if isinstance(value, tuple) else value


def _escape(match: re.Match[str]) -> str:
    """A character as JSON escapes it, in two units beyond the first 65,536. In a line it is always inside a string."""
    units = match[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


# ----- credentials in query strings -----------------------------------------------------------------------------------

_MOST_PARAMETERS: Final = 64  # what an 8 KiB query of `&` may cost is bounded; the rest of it is masked
_SEPARATORS = re.compile(rb"([&;])")
_MATRIX = re.compile(rb";([^;/=]+)=[^;/]*")
_QUERY_MARK = re.compile(rb"([?#])")
_FRAGMENT_MARK = re.compile(rb"(#)")


def mask_query(query: bytes) -> bytes:
    """The query with `***` for the value of every parameter whose name looks like that of a credential.

    What follows the first 64 parameters is masked as one.
    """
    if b";" not in query:
        for part in query.split(b"&", _MOST_PARAMETERS):
            if names_a_secret(part.partition(b"=")[0]):
                break
        else:
            if query.count(b"&") < _MOST_PARAMETERS:
                return query
    parts = _SEPARATORS.split(query, _MOST_PARAMETERS)
    if len(parts) > 2 * _MOST_PARAMETERS:
        parts[-1] = MASK
    return b"".join(_masked(part) if b"=" in part else part for part in parts)


def _without_value(parameter: re.Match[bytes]) -> bytes:
    """A parameter of a path's segment (`;jsessionid=…`), without what is probably secret."""
    return b";%b=%b" % (parameter[1], MASK) if names_a_secret(parameter[1]) else parameter[0]


def mask_target(target: bytes) -> bytes:
    """A request target as received, of a request that was refused for it or its host, without what may be secret.

    The user and password of an absolute-form target become `***`, and its query is masked as `mask_query` does it, a
    fragment likewise, which no request should have.
    """
    before, mark, after = _QUERY_MARK.split(target, 1) if _QUERY_MARK.search(target) else (target, b"", b"")
    scheme, slashes, rest = before.partition(b"://")
    if not slashes or b"/" in scheme:
        scheme, slashes, rest = b"", b"", before
    authority, slash, path = rest.partition(b"/")
    if b"@" in authority:
        authority = MASK + b"@" + authority.rpartition(b"@")[2]
    return b"".join((
        scheme, slashes, authority, slash, path, mark, *map(mask_query, _FRAGMENT_MARK.split(after)),
    ))  # fmt: skip


def _masked(part: bytes) -> bytes:
    key = part.partition(b"=")[0]
    return key + b"=" + MASK if names_a_secret(key) else part


# ----- writing --------------------------------------------------------------------------------------------------------


class AccessLog:
    """Writes records to a file, by path, or to a descriptor, which it then owns.

    `sample` is the share of successful requests that is written, 0..1: those with a status under 400 and no `code`.
    All others always are. `limit` bounds the bytes that wait. Raises OSError if the file cannot be opened.
    """

    def __init__(
        self,
        target: int | str,
        *,
        sample: float = 1.0,
        limit: int = QUEUE_BYTES,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._path = target if isinstance(target, str) else None
        self._fd = target if isinstance(target, int) else open_file(target)
        self._sample = sample
        self._limit = limit
        self._chance = chance
        self.lines = LineMaker()
        self._lines: deque[bytes | None] = deque()  # None: open the file again
        self._wake = threading.Event()
        self._idle = False
        self._hurried = False
        self._closing = False
        self._abandoned = False
        self._torn = False
        # Written by the worker only:
        self._accepted = 0
        self._refused = 0
        # Written by the thread only:
        self._settled = 0
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were not written: no room, or an error of the file or pipe."""
        return self._refused + self._lost

    def write(self, record: AccessRecord) -> None:
        """Have the record's line written some time soon, or dropped. Never waits."""
        if self.wants(record.status, record.code):
            self.put(self.lines.line(record))

    def wants(self, status: int, code: str | None = None) -> bool:
        """Whether this request is one of those that are written."""
        return self._sample >= 1.0 or status >= 400 or code is not None or self._chance() < self._sample

    def put(self, line: bytes) -> None:
        """Have a line written some time soon, or dropped. Never waits."""
        waiting = self._accepted - self._settled + len(line)
        if waiting > self._limit or self._closing:
            self._refused += 1
            return
        self._lines.append(line)
        self._accepted += len(line)
        if self._idle:
            self._idle = False
            self._wake.set()
        elif waiting > _FLUSH_BYTES and not self._hurried:
            self._hurried = True
            self._wake.set()

    def reopen(self) -> None:
        """Open the file again by its name, after it was moved away; the old one goes on if that fails."""
        if self._path is not None:
            self._lines.append(None)
            self._wake.set()

    def close(self, timeout_s: float) -> bool:
        """Write what waits, for at most `timeout_s`. Whether all was written or lost to an error by then.

        Behind a reader that stopped, the thread is left where it is: it is a daemon and does not keep the process.
        """
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        self._abandoned = True
        return not self._thread.is_alive()

    # The thread's side.

    def _run(self) -> None:
        while True:
            self._idle = True  # set before looking: whoever appends after the look sees it
            if not self._lines and not self._closing:
                self._wake.wait()
            self._idle = False
            self._wake.clear()
            if not self._closing:
                self._wake.wait(_FLUSH_EVERY_S)  # until 64 KiB wait, or the end
                self._wake.clear()
            self._hurried = False
            while self._lines and not self._abandoned:
                self._write_batch()
            if self._closing and not self._lines:
                break
            if self._abandoned:
                return
        os.close(self._fd)

    def _write_batch(self) -> None:
        lines: list[bytes] = []
        size = 0
        while self._lines and size < _BATCH_BYTES:
            line = self._lines.popleft()
            if line is None:
                self._write_lines(lines, size)
                self._open_again()
                return
            lines.append(line)
            size += len(line)
        self._write_lines(lines, size)

    def _write_lines(self, lines: list[bytes], size: int) -> None:
        if not lines:
            return
        data = b"".join(lines)
        if self._torn:
            data = b"\n" + data  # ends the line that an error cut
        written = 0
        try:
            while written < len(data):
                written += self._write_some(data[written:] if written else data)
            self._torn = False
        except OSError:
            done = data[:written]
            self._lost += len(lines) - (done.count(b"\n") - int(self._torn and written > 0))
            if done:
                self._torn = not done.endswith(b"\n")
        self._settled += size

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            # Somebody else made the description non-blocking.
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll()
            return 0

    def _open_again(self) -> None:
        assert self._path is not None
        try:
            fd = open_file(self._path)
        except OSError as error:
            _log.warning("cannot open the access log again, going on with the old file: %s", error)
            return
        os.close(self._fd)
        self._fd = fd
        self._torn = False


def open_file(path: str) -> int:
    """A descriptor of the log's file, which is made if it is not there. Raises OSError."""
    # Without O_NONBLOCK a FIFO that nobody reads would hold up the start for ever; so it is an error.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
    os.set_blocking(fd, True)
    return fd
