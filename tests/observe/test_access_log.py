from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.observe.access_log import (
    AccessLog,
    AccessRecord,
    LineMaker,
    LineTemplate,
    mask_query,
    mask_target,
)

FIELDS = [
    "ts",
    "request_id",
    "trace_id",
    "client",
    "client_ip",
    "method",
    "host",
    "path",
    "protocol",
    "status",
    "code",
    "bytes_in",
    "bytes_out",
    "duration_ms",
    "upstream_ms",
    "route",
    "upstream",
    "endpoint",
    "attempts",
    "flags",
]
PATIENCE_S = 10.0  # for a thread that has nothing to wait for


def record(**changes: Any) -> AccessRecord:
    plain = AccessRecord(
        ts=1790000000.1234,
        request_id=b"id-1",
        trace_id=b"4bf92f3577b34da6a3ce929d0e0e4736",
        client_ip="10.0.0.7",
        method="GET",
        host="billing.internal",
        path=b"/v1/accounts",
        status=200,
        bytes_in=0,
        bytes_out=92,
        duration_ms=1.2345,
        upstream_ms=1.0,
        route="billing",
        upstream="billing",
        endpoint="http://127.0.0.1:9000",
        attempts=1,
    )
    return msgspec.structs.replace(plain, **changes)


def parsed(one: AccessRecord) -> dict[str, Any]:
    line = LineMaker().line(one)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    tree: dict[str, Any] = json.loads(line)
    return tree


# Lines


@given(
    path=st.binary(max_size=60) | st.just(b'/","client":"bytes_out":7,"route":'),
    query=st.none() | st.binary(max_size=60),
    host=st.text(max_size=20),
    endpoint=st.none() | st.text(max_size=8),
    size=st.integers(0, 1 << 40),
    duration=st.floats(0, 1e6),
    bytes_in=st.sampled_from([0, 5]),
)
def test_template_makes_the_line_that_the_record_would(  # noqa: PLR0917 - hypothesis
    path: bytes,
    query: bytes | None,
    host: str,
    endpoint: str | None,
    size: int,
    duration: float,
    bytes_in: int,
) -> None:
    one = record(
        path=path, query=query, host=host, endpoint=endpoint, bytes_in=bytes_in, request_id=b"a" * 32
    )
    other = msgspec.structs.replace(one, ts=3.5, bytes_out=size, duration_ms=duration * 1e3, upstream_ms=0.5)
    lines = LineMaker()
    line = lines.line(one)
    elsewhere = lines.line(msgspec.structs.replace(one, endpoint="http://elsewhere:1", bytes_in=5))
    made = LineTemplate(lines, elsewhere if bytes_in == 5 else line).line(
        3.5, b"a" * 32, other.trace_id, size, duration * 1e3, 0.5, LineTemplate.tail_of(line)
    )
    tree = json.loads(made)
    wanted = parsed(other)
    assert list(tree) == FIELDS
    assert tree.pop("duration_ms") == pytest.approx(wanted.pop("duration_ms"), abs=0.0011)
    assert tree == wanted
    assert made.endswith(b"}\n")
    assert made.isascii()


def test_line_has_the_fields_in_their_order() -> None:
    tree = parsed(record())
    assert list(tree) == FIELDS
    assert tree["ts"] == "2026-09-21T14:13:20.123Z"
    assert tree["duration_ms"] == 1.234
    assert (tree["status"], tree["client"], tree["code"], tree["flags"]) == (200, None, None, [])


def test_timestamp_follows_the_second_forwards_and_backwards() -> None:
    line = LineMaker().line
    stamps = [json.loads(line(record(ts=ts)))["ts"][-7:] for ts in (59.9994, 59.9996, 60.0, 59.0)]
    assert stamps == ["59.999Z", "00.000Z", "00.000Z", "59.000Z"]


@given(
    path=st.binary(max_size=60),
    query=st.none() | st.binary(max_size=60),
    host=st.text(max_size=20),
    request_id=st.binary(max_size=20),
    method=st.text(max_size=8),
    route=st.text(max_size=8),
    flags=st.lists(st.text(max_size=5)).map(tuple),
    duration=st.floats(),
    upstream=st.none() | st.floats(),
)
def test_line_is_ascii_json_with_the_same_values_whatever_the_bytes(  # noqa: PLR0917 - hypothesis
    path: bytes,
    query: bytes | None,
    host: str,
    request_id: bytes,
    method: str,
    route: str,
    flags: tuple[str, ...],
    duration: float,
    upstream: float | None,
) -> None:
    one = record(
        path=path, query=query, host=host, request_id=request_id, method=method, route=route, flags=flags
    )
    one = msgspec.structs.replace(one, duration_ms=duration, upstream_ms=upstream)
    line = LineMaker().line(one)
    assert line[:-1].isascii()
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    tree = json.loads(line)
    target = path if query is None else path + b"?" + mask_query(query)
    assert tree["path"] == target.decode("utf-8", "backslashreplace")
    assert tree["request_id"] == request_id.decode("utf-8", "backslashreplace")
    assert [tree["host"], tree["method"], tree["route"], *tree["flags"]] == [host, method, route, *flags]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b'/\r\n{"forged": 1}', '/\r\n{"forged": 1}'),
        (b"/\x1b[31m\x00\x7f", "/\x1b[31m\x00\x7f"),
        ("/\x9b31m\u2028\U0001f600".encode(), "/\x9b31m\u2028\U0001f600"),
        (b"/\xff\xc0\xaf", "/\\xff\\xc0\\xaf"),
    ],
)
def test_hostile_path_stays_inside_its_string(path: bytes, shown: str) -> None:
    assert parsed(record(path=path))["path"] == shown


def test_half_a_surrogate_pair_is_shown_as_text() -> None:
    tree = parsed(record(host="a\udcff", flags=("\udcff",)))
    assert (tree["host"], tree["flags"]) == ("a\\udcff", ["\\udcff"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_duration_that_is_no_number_is_null(value: float) -> None:
    assert parsed(record(duration_ms=value))["duration_ms"] is None


# Credentials


@pytest.mark.parametrize(
    ("query", "masked"),
    [
        (b"", b""),
        (b"page=2&size=10", b"page=2&size=10"),
        (b"token=abc", b"token=***"),
        (b"page=2&access_token=a=b&x=1", b"page=2&access_token=***&x=1"),
        (b"key=a;sig=b;x=1", b"key=***;sig=***;x=1"),
        (
            b"API-Key=a&apiKey=b&password=c&client_secret=d",
            b"API-Key=***&apiKey=***&password=***&client_secret=***",
        ),
        (b"X-Amz-Signature=a&X-Amz-Credential=b", b"X-Amz-Signature=***&X-Amz-Credential=***"),
        (b"%74oken=a&%2574oken=b", b"%74oken=***&%2574oken=***"),
        (b"user[password]=a", b"user[password]=***"),
        (b"token", b"token"),
        (b"token=", b"token=***"),
        (b"code=a&design=b&passenger=c", b"code=***&design=b&passenger=c"),
        (b"q=token&next=/login%3Fa", b"q=token&next=/login%3Fa"),
    ],
)
def test_query_loses_its_credentials_and_nothing_else(query: bytes, masked: bytes) -> None:
    assert mask_query(query) == masked
    assert masked.decode() in parsed(record(query=query))["path"]


@pytest.mark.parametrize(
    ("path", "masked"),
    [
        (b"/a;jsessionid=S/b;x=1;token=S", "/a;jsessionid=***/b;x=1;token=***"),
        (b"/a;v=1;token", "/a;v=1;token"),
        (b"/a;=S;b", "/a;=S;b"),
    ],
)
def test_parameters_of_a_path_lose_their_credentials(path: bytes, masked: str) -> None:
    assert parsed(record(path=path))["path"] == masked


@pytest.mark.parametrize(
    ("target", "masked"),
    [
        (b"/../a?token=S", b"/../a?token=***"),
        (b"/%zz?api_key=S&b=c", b"/%zz?api_key=***&b=c"),
        (b"http://user:S@x/any", b"http://***@x/any"),
        (b"http://u:S@S@x", b"http://***@x"),
        (b"ftp://user@x/a@b?key=S", b"ftp://***@x/a@b?key=***"),
        (b"http://x:99999/a?token=S", b"http://x:99999/a?token=***"),
        (b"user:S@x:443", b"***@x:443"),
        (b"*?token=S", b"*?token=***"),
        (b"/a?token=S#f", b"/a?token=***#f"),
        (b"/a?b=c#access_token=S", b"/a?b=c#access_token=***"),
        (b"/a#access_token=S?x=1", b"/a#access_token=***"),
        (b"/a?u=http://x@y", b"/a?u=http://x@y"),
        (b"/a/b@c", b"/a/b@c"),
        (b"", b""),
    ],
)
def test_target_loses_its_user_and_credentials_and_nothing_else(target: bytes, masked: bytes) -> None:
    assert mask_target(target) == masked


def test_query_with_too_many_parameters_is_masked_from_the_64th_on() -> None:
    assert mask_query(b"&".join([b"a=1"] * 64)) == b"&".join([b"a=1"] * 64)
    many = mask_query(b"&".join([*[b"a=1"] * 100, b"token=SECRET"]))
    assert many == b"&".join([b"a=1"] * 64) + b"&***"


@given(st.binary(max_size=40), st.sampled_from([b"&", b";"]))
def test_token_never_shows_whatever_comes_before(before: bytes, separator: bytes) -> None:
    assert b"SECRET" not in mask_query(before + separator + b"token=SECRET")


# Writing


def read_all(fd: int) -> list[bytes]:
    """The lines of a pipe whose writers have gone."""
    with os.fdopen(fd, "rb") as file:
        return file.read().splitlines(keepends=True)


def test_log_writes_whole_lines_in_order_and_closes_its_descriptor() -> None:
    reader, writer = os.pipe()
    log = AccessLog(writer)
    for number in range(100):
        log.write(record(bytes_out=number))
    assert log.close(PATIENCE_S)
    assert [json.loads(line)["bytes_out"] for line in read_all(reader)] == list(range(100))
    assert log.dropped == 0


def test_log_writes_without_being_closed() -> None:
    reader, writer = os.pipe()
    log = AccessLog(writer)
    for number in range(3):
        log.write(record(bytes_out=number))
        with os.fdopen(os.dup(reader), "rb") as file:
            assert json.loads(file.readline())["bytes_out"] == number
    log.close(PATIENCE_S)
    os.close(reader)


def test_blocked_pipe_holds_up_neither_worker_nor_exit() -> None:
    reader, writer = os.pipe()
    log = AccessLog(writer, limit=256 * 1024)
    size = len(LineMaker().line(record()))
    count = 2 * 256 * 1024 // size
    for _ in range(count):
        log.write(record())
    assert log.dropped >= count - 256 * 1024 // size - fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) // size - 1
    assert not log.close(0.01)
    os.close(reader)  # lets the thread go: the write fails


def test_room_comes_back_when_the_reader_goes_on() -> None:
    reader, writer = os.pipe()
    size = len(LineMaker().line(record()))
    log = AccessLog(writer, limit=size)
    with os.fdopen(reader, "rb") as file:
        log.write(record(bytes_out=11))
        log.write(record(bytes_out=12))
        assert log.dropped == 1
        file.readline()
        # The room is given back just after the line could be read, so the first of these may be too early.
        dropped = -1
        while dropped != log.dropped:
            dropped = log.dropped
            log.write(record(bytes_out=13))
        assert json.loads(file.readline())["bytes_out"] == 13
    log.close(PATIENCE_S)


def test_reader_that_left_costs_the_lines_only() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = AccessLog(writer)
    for _ in range(5):
        log.write(record())
    assert log.close(PATIENCE_S)
    assert log.dropped == 5


def test_line_after_the_end_is_counted_as_dropped() -> None:
    log = AccessLog(os.open("/dev/null", os.O_WRONLY))
    log.close(PATIENCE_S)
    log.write(record())
    assert log.dropped == 1


def test_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    log = AccessLog(writer)
    count = 2 * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) // len(LineMaker().line(record()))
    for _ in range(count):
        log.write(record())
    log._closing = True
    assert len(read_all(reader)) == count
    assert log.close(PATIENCE_S)


def test_line_that_an_error_cut_is_ended_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    real = os.write
    size = len(LineMaker().line(record()))
    plan: list[int | OSError] = [size + 10, OSError(errno.ENOSPC, "full")]

    def write(fd: int, data: bytes) -> int:
        step = plan.pop(0) if fd == writer and plan else len(data)
        if isinstance(step, OSError):
            raise step
        return real(fd, data[:step])

    log = AccessLog(writer)
    monkeypatch.setattr(os, "write", write)
    log._write_lines([LineMaker().line(record())] * 3, 3 * size)
    assert log.dropped == 2
    log._write_lines([LineMaker().line(record())], size)
    log.close(PATIENCE_S)
    lines = read_all(reader)
    assert [len(line) for line in lines] == [size, 11, size]
    assert log.dropped == 2


def test_reopen_puts_later_lines_into_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    log.write(record(bytes_out=1))
    path.rename(tmp_path / "old")
    log.reopen()
    log.write(record(bytes_out=2))
    assert log.close(PATIENCE_S)
    assert json.loads((tmp_path / "old").read_bytes())["bytes_out"] == 1
    assert json.loads(path.read_bytes())["bytes_out"] == 2


def test_reopen_that_fails_goes_on_with_the_old_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = AccessLog(str(folder / "access.log"))
    folder.rename(tmp_path / "moved")
    log.reopen()
    log.write(record())
    assert log.close(PATIENCE_S)
    assert (tmp_path / "moved" / "access.log").read_bytes().count(b"\n") == 1
    assert "cannot open the access log again" in caplog.text


def test_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    for _ in range(2):
        log = AccessLog(str(path))
        log.write(record())
        log.close(PATIENCE_S)
    assert path.read_bytes().count(b"\n") == 2


def test_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AccessLog(str(tmp_path / "missing" / "access.log"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device or address"):
        AccessLog(str(tmp_path / "fifo"))


def test_sample_drops_successes_only() -> None:
    reader, writer = os.pipe()
    chances = iter([0.05, 0.5])
    log = AccessLog(writer, sample=0.1, chance=lambda: next(chances))
    kinds: list[dict[str, Any]] = [{}, {}, {"status": 503}, {"code": "limited"}]
    for number, changes in enumerate(kinds):
        log.write(record(bytes_out=number, **changes))
    log.close(PATIENCE_S)
    assert [json.loads(line)["bytes_out"] for line in read_all(reader)] == [0, 2, 3]
    assert log.dropped == 0
