from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ambassador.control.checking import (
    _SAMPLE,
    CHECKING_MODULE,
    Checked,
    check_file,
    check_text,
)
from ambassador.control.child import start_child
from tests.control.service import PATIENCE_S, children, is_alive, until

GOOD = "version: 1\nlisten: 127.0.0.1:0\nroutes:\n  - {name: a, respond: 200}\n"


def test_a_good_text() -> None:
    checked = check_text(GOOD)
    assert checked.errors == ()
    assert checked.config is not None


def test_every_error_of_a_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("version: 1\nlisten: nowhere\nroutes:\n  - {name: a, respond: 7}\n")
    checked = check_file(str(file))
    assert checked.config is None
    assert [error.partition(": ")[0] for error in checked.errors] == [f"{file}:2:9", f"{file}:4:24"]


def test_the_sample_that_warms_has_one_mistake_and_no_other() -> None:
    (error,) = check_text(_SAMPLE).errors
    assert "did you mean 'respond'" in error


@contextmanager
def checking() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    process, control = start_child(CHECKING_MODULE, socket.SOCK_SEQPACKET)
    with process, control:
        yield process, control
        control.close()
        assert process.wait(PATIENCE_S) == 0


def ask(control: socket.socket, path: Path) -> bytes:
    reads, writes = os.pipe()
    socket.send_fds(control, [os.fsencode(path)], [writes])
    os.close(writes)
    with open(reads, "rb") as answer:
        return answer.read()


def test_one_process_checks_again_and_again_and_ends_with_its_socket(tmp_path: Path) -> None:
    file = tmp_path / "ä.yaml"
    with checking() as (process, control):
        for text in (GOOD, "version: 2\n", GOOD.replace("200", "201")):
            file.write_text(text)
            answer = ask(control, file)
            assert msgspec.msgpack.decode(answer, type=Checked) == check_file(str(file))
        assert process.poll() is None


def test_it_holds_nothing_but_its_socket(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)), checking() as (process, control):
        ask(control, tmp_path / "none")
        folder = Path(f"/proc/{process.pid}/fd")
        held = {fd.name: os.readlink(fd) for fd in folder.iterdir()}
        assert [where for fd, where in held.items() if int(fd) > 2] == [
            next(where for where in held.values() if where.startswith("socket:"))
        ]
        assert held["0"] == os.devnull


def test_a_check_under_way_ends_with_the_process(tmp_path: Path) -> None:
    pipe = tmp_path / "a.yaml"
    os.mkfifo(pipe)
    with checking() as (process, control):
        reads, writes = os.pipe()
        socket.send_fds(control, [os.fsencode(pipe)], [writes])
        os.close(writes)
        until(lambda: children(process.pid))
        (fork,) = children(process.pid)
        control.close()
        process.wait(PATIENCE_S)
        until(lambda: not is_alive(fork))
        os.close(reads)
