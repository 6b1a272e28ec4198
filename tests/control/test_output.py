from __future__ import annotations

import os

import trio

from ambassador.control.output import Output, copy_lines


def read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


async def test_lines_of_many_writers_stay_whole() -> None:
    out_read, out_write = os.pipe()
    output = Output(out_write)
    async with trio.open_nursery() as nursery:
        for writer in range(3):
            reads, writes = os.pipe()
            nursery.start_soon(copy_lines, reads, output)
            os.write(writes, b"%d half " % writer)
            await trio.testing.wait_all_tasks_blocked()
            os.write(writes, b"and half\n%d cut" % writer)
            os.close(writes)
    output.close(5.0)
    os.close(out_write)
    assert sorted(read_all(out_read).splitlines()) == [b"%d half and half" % writer for writer in range(3)]


def test_first_lines_are_waited_for() -> None:
    reads, writes = os.pipe()
    output = Output(writes, waits=True)
    output.put(b"a request that came early\n")
    output.put_first(b"announcement\n")
    output.put(b"another\n")
    output.close(5.0)
    os.close(writes)
    assert read_all(reads) == b"announcement\na request that came early\nanother\n"


def test_lines_without_first_lines_are_written_at_the_end() -> None:
    reads, writes = os.pipe()
    output = Output(writes, waits=True)
    output.put(b"a request that came early\n")
    output.close(5.0)
    os.close(writes)
    assert read_all(reads) == b"a request that came early\n"


def test_a_writer_that_is_stuck_holds_up_nobody() -> None:
    reads, writes = os.pipe()
    output = Output(writes)
    line = b"x" * 65535 + b"\n"
    while not output.full:
        output.put(line)
    output.close(0.01)
    os.set_blocking(reads, False)
    while output._thread.is_alive():
        try:
            os.read(reads, 1 << 20)
        except BlockingIOError:
            continue
    os.close(reads)
    os.close(writes)


def test_when_nobody_reads_lines_are_dropped() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    output = Output(writes)
    output.put(b"a\n")
    output.put(b"b\n")
    output.close(5.0)
    assert not output._thread.is_alive()
    assert not output.full
    os.close(writes)
