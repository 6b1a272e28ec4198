"""The parts that run in processes of their own: the origin, the clients, the proxy before Redis."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from loadtest.shared import driver, witness
from loadtest.shared.apart import Apart, ApartError
from loadtest.shared.driver import Driver, Gate, Stream
from loadtest.shared.fault_proxy import FaultProxy
from loadtest.shared.witness import HANG, Witness

PATIENCE_S = 10.0


class Thing:
    def __init__(self, number: int) -> None:
        self.number = number
        self.other = 0

    def sum(self, more: int) -> int:
        return self.number + self.other + more

    def fail(self) -> None:
        raise LookupError("nothing")

    def pid(self) -> int:
        return os.getpid()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_apart_calls_and_sets_elsewhere() -> None:
    with Apart(Thing, 3) as thing:
        assert thing.call("pid") != os.getpid()
        thing.set(other=4)
        assert thing.call("sum", 5) == 12
        with pytest.raises(ApartError, match="LookupError: nothing"):
            thing.call("fail")
        assert thing.call("sum", more=0) == 7


@pytest.fixture
def origin() -> Iterator[Witness]:
    serving = Witness()
    yield serving
    serving.close()


def test_witness_writes_down_what_it_saw(origin: Witness) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", origin.port(), timeout=PATIENCE_S)
    origin.behave(2, 503)
    for path, status in (("/1/7", 200), ("/2/8", 503)):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, len(answer.read())) == (status, 92)
    until(lambda: len(origin._seen) == 12)
    first, second = witness.unpack(origin.take())
    assert [(each.case, each.key, each.status) for each in (first, second)] == [(1, 7, 200), (2, 8, 503)]
    assert first.arrived_ns <= first.ended_ns <= second.arrived_ns
    assert first.port == connection.sock.getsockname()[1]
    assert origin.take() == b""
    connection.close()


def test_witness_hangs_until_the_client_goes(origin: Witness) -> None:
    origin.behave(1, 200, HANG)
    with socket.create_connection(("127.0.0.1", origin.port())) as sock:
        sock.sendall(b"GET /1/2 HTTP/1.1\r\n\r\n")
    until(lambda: len(origin._seen) == 6)
    [seen] = witness.unpack(origin.take())
    assert (seen.case, seen.status) == (1, 0)


def test_driver_sends_what_is_due_and_keeps_what_became_of_it(origin: Witness) -> None:
    origin.behave(1, 429)
    clients = Driver()
    clients.connect([Gate(origin.port(), os.getpid())])
    clients.start(
        [
            Stream(case=0, rate=200, end_s=0.2, weights=(1.0,)),
            Stream(case=1, rate=100, end_s=0.2, weights=(1.0,), first_key=5, fresh=True),
        ]
    )
    answers = list(driver.unpack(clients.wait()))
    clients.close()
    seen = list(witness.unpack(origin.take()))
    assert len(answers) == len(seen) > 0
    assert {(each.case, each.status, each.gate, each.made) for each in answers} == {
        (0, 200, 0, 0),
        (1, 429, 0, 0),
    }
    fresh = sorted(each.key for each in answers if each.case == 1)
    assert fresh == list(range(5, 5 + len(fresh)))
    assert all(each.took_ns > 0 for each in answers)


def echo(listener: socket.socket) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(sock,), daemon=True).start()


def _echo(sock: socket.socket) -> None:
    with sock:
        while data := sock.recv(100):
            sock.sendall(data)


def test_fault_proxy_mutes_only_who_subscribed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        with FaultProxy(listener.getsockname()) as proxy:
            listens = socket.create_connection(proxy.address, timeout=PATIENCE_S)
            other = socket.create_connection(proxy.address, timeout=PATIENCE_S)
            with listens, other:
                listens.sendall(b"SUBSCRIBE x")
                assert listens.recv(100) == b"SUBSCRIBE x"
                proxy.mute_events = True
                listens.sendall(b"lost")
                other.sendall(b"heard")
                assert other.recv(100) == b"heard"
                listens.setblocking(False)
                with pytest.raises(BlockingIOError):
                    listens.recv(100)
        listener.shutdown(socket.SHUT_RDWR)
