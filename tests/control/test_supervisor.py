"""The supervisor and real worker processes, whose planes are stubs."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ambassador.config.schema import Admin, Config, Drain, Listener, Respond, Route
from tests.control.service import Service, ask, is_alive, stop_process, until


def config(control: Path, *, port: int = 0, routes: tuple[str, ...] = (), **more: Any) -> Config:
    listed = tuple(Route(name=name, respond=Respond(status=200), line=0, file="") for name in routes)
    listeners = more.pop("listeners", (Listener(address=f"127.0.0.1:{port}"),))
    drain = more.pop("drain", Drain(delay=0.3, timeout=3.0))
    return Config(listeners=listeners, control=f"unix:{control}", routes=listed, drain=drain, **more)


def write(path: Path, value: Config) -> None:
    path.write_bytes(msgspec.json.encode(value))


Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Service] = []

    def start_one(
        workers: int = 2, value: Config | None = None, *, name: str = "one", **environ: str
    ) -> Service:
        control = tmp_path / f"{name}.sock"
        file = tmp_path / f"{name}.json"
        write(file, value or config(control))
        service = Service(["tests.control.stub_service", str(file), str(workers)], control, **environ)
        running.append(service)
        return service

    yield start_one
    for service in running:
        service.__exit__()


@contextmanager
def load(service: Service) -> Iterator[list[BaseException]]:
    """New connections, one after the other from each of four threads; the errors that they met."""
    errors: list[BaseException] = []
    done = threading.Event()
    served = [0]

    def client() -> None:
        while not done.is_set():
            try:
                service.get()
                served[0] += 1
            except (OSError, HTTPException, ValueError) as error:
                errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert served[0]


def test_clients_are_served_by_all_workers(start: Start) -> None:
    service = start(2).wait_until_up()
    pids = service.wait_for_workers(2)
    until(lambda: service.get()["pid"] == pids[0])
    until(lambda: service.get()["pid"] == pids[1])


def test_a_killed_worker_loses_nothing_but_what_it_had_in_hand(start: Start) -> None:
    service = start(2).wait_until_up()
    pids = service.wait_for_workers(2)
    with load(service) as errors:
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: service.pids().get(0, pids[0]) != pids[0])
    assert len(errors) <= 4, errors  # one request in hand for each client
    assert service.status()["worker_restarts"] == 1


def test_a_slot_without_a_worker_is_served_by_a_neighbour(start: Start, tmp_path: Path) -> None:
    service = start(2).wait_until_up()
    pids = service.wait_for_workers(2)
    # The workers that would take its place fail: the slot stays empty.
    for _ in range(3):
        current = service.pids().get(0, pids[0])
        if is_alive(current):
            os.kill(current, signal.SIGKILL)
        assert {service.get()["pid"] for _ in range(10)}


def test_twenty_reloads_under_load_lose_nothing(start: Start, tmp_path: Path) -> None:
    service = start(2).wait_until_up()
    service.wait_for_workers(2)
    with load(service) as errors:
        for number in range(20):
            write(tmp_path / "one.json", config(service.control, routes=(f"r{number}",)))
            status, answer = service.admin("POST", "/api/reload")
            assert (status, answer["generation"]) == (200, number + 2), answer
            assert service.get()["routes"] == f"r{number}"
    assert not errors


def test_hup_takes_effect(start: Start, tmp_path: Path) -> None:
    service = start(2).wait_until_up()
    write(tmp_path / "one.json", config(service.control, routes=("new",)))
    service.signal(signal.SIGHUP)
    until(lambda: service.get()["routes"] == "new")


def test_the_process_that_checks_is_no_worker_and_ends_with_the_service(start: Start, tmp_path: Path) -> None:
    service = start(2).wait_until_up()
    service.wait_for_workers(2)
    (checking,) = service.others()
    assert service.admin("POST", "/api/reload")[0] == 200
    assert service.others() == [checking]
    service.signal(signal.SIGUSR2)
    until(lambda: service.others() not in ([], [checking]) and not is_alive(checking))
    (checking,) = service.others()
    service.process.kill()
    until(lambda: not is_alive(checking))


def test_a_killed_checking_process_does_not_stop_reloads(start: Start, tmp_path: Path) -> None:
    service = start(1).wait_until_up()
    service.wait_for_workers(1)
    (checking,) = service.others()
    os.kill(checking, signal.SIGKILL)
    write(tmp_path / "one.json", config(service.control, routes=("new",)))
    assert service.admin("POST", "/api/reload")[0] == 200
    assert service.get()["routes"] == "new"


@pytest.mark.parametrize("broken", [b"{", None], ids=["the check", "a worker"])
def test_a_reload_that_is_refused_leaves_what_was(start: Start, tmp_path: Path, broken: bytes | None) -> None:
    service = start(2).wait_until_up()
    service.wait_for_workers(2)
    (tmp_path / "one.json").write_bytes(
        broken or msgspec.json.encode(config(service.control, routes=("refused",)))
    )
    status, answer = service.admin("POST", "/api/reload")
    assert status == 409
    assert answer["errors"]
    assert service.get()["routes"] == ""
    told = service.status()
    assert told["generation"] == 1
    assert told["last_reload"]["ok"] is False
    assert told["last_reload"]["errors"] == answer["errors"]


def test_a_reload_adds_and_removes_listeners(start: Start, tmp_path: Path) -> None:
    service = start(2).wait_until_up()
    first = Listener(address="127.0.0.1:0")
    path = tmp_path / "listener.sock"
    added = Listener(address=f"unix:{path}")
    write(tmp_path / "one.json", config(service.control, listeners=(first, added)))
    assert service.admin("POST", "/api/reload")[0] == 200
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    write(tmp_path / "one.json", config(service.control, listeners=(first,)))
    assert service.admin("POST", "/api/reload")[0] == 200
    assert not path.exists()
    assert service.get()["routes"] == ""


def test_every_listener_on_port_0_is_served_on_a_port_of_its_own(start: Start, tmp_path: Path) -> None:
    listeners = tuple(Listener(address="127.0.0.1:0") for _ in range(3))
    service = start(2, config(tmp_path / "one.sock", listeners=listeners)).wait_until_up()
    told = [listener["url"] for listener in service.status()["listeners"]]
    assert len(set(told)) == 3
    for url in told:
        service.port = int(url.rpartition(":")[2])
        assert service.get()["pid"]


def test_a_listener_that_cannot_be_bound_refuses_the_reload(start: Start, tmp_path: Path) -> None:
    service = start(1).wait_until_up()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listeners = (Listener(address="127.0.0.1:0"), Listener(address=address))
        write(tmp_path / "one.json", config(service.control, listeners=listeners))
        status, answer = service.admin("POST", "/api/reload")
    assert status == 409
    assert address in answer["errors"][0]
    assert service.get()["routes"] == ""


def test_usr2_replaces_every_worker_and_loses_nothing(start: Start) -> None:
    service = start(2).wait_until_up()
    before = service.wait_for_workers(2)
    with load(service) as errors:
        service.signal(signal.SIGUSR2)
        until(lambda: len(service.pids()) == 2 and not set(service.pids().values()) & set(before.values()))
    assert not errors
    until(lambda: not any(map(is_alive, before.values())))


def test_ttin_and_ttou_lose_nothing(start: Start) -> None:
    service = start(1).wait_until_up()
    with load(service) as errors:
        service.signal(signal.SIGTTIN)
        service.wait_for_workers(2)
        service.signal(signal.SIGTTIN)
        service.wait_for_workers(3)
        for _ in range(4):
            service.signal(signal.SIGTTOU)
            time.sleep(0.05)
        service.wait_for_workers(1)
        until(lambda: len(service.status()["workers"]) == 1)
    assert not errors


def test_workers_can_be_asked_for_by_number(start: Start) -> None:
    service = start(1).wait_until_up()
    assert service.admin("POST", "/api/workers", {"workers": 2}) == (200, {"workers": 2})
    service.wait_for_workers(2)
    assert service.admin("POST", "/api/workers", {"workers": 0})[0] == 400
    assert service.admin("POST", "/api/workers", {"wokers": 1})[0] == 400


def test_term_serves_what_came_before_the_end_of_the_delay(start: Start) -> None:
    service = start(2).wait_until_up()
    busy = service.connect()
    busy.request("GET", "/sleep")
    service.signal(signal.SIGTERM)
    until(lambda: service.admin("GET", "/readyz")[0] == 503)
    assert service.get()["pid"]
    assert busy.getresponse().read()
    busy.close()
    status, errors = service.end()
    assert status == 0, errors
    with pytest.raises(ConnectionRefusedError):
        service.connect()
    assert not service.control.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_comes_after_the_delay_of_a_drain_is_refused_at_once(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    listeners = (Listener(address="127.0.0.1:0"), Listener(address=f"unix:{tmp_path}/client.sock"))
    value = config(tmp_path / "one.sock", listeners=listeners, drain=Drain(delay=0.3, timeout=5.0))
    service = start(2, value).wait_until_up()
    service.wait_for_workers(2)
    idle = service.connect()
    ask(idle)
    service.signal(number)

    def refuses(where: socket.socket, address: object) -> bool:
        with where as sock:
            try:
                sock.connect(address)  # type: ignore[arg-type]
            except ConnectionRefusedError:
                return True
            return False

    until(lambda: refuses(socket.socket(), (service.host, service.port)))
    until(lambda: refuses(socket.socket(socket.AF_UNIX), f"{tmp_path}/client.sock"))
    for _ in range(8):  # the sockets of both slots are closed
        assert refuses(socket.socket(), (service.host, service.port))
    assert service.status()["draining"]
    assert ask(idle)["pid"]
    idle.close()
    status, errors = service.end()
    assert status == 0, errors


def test_idle_connections_are_closed_in_the_last_second_of_a_drain(start: Start, tmp_path: Path) -> None:
    value = config(tmp_path / "one.sock", drain=Drain(delay=0.0, timeout=4.0))
    service = start(1, value).wait_until_up()
    idle = service.connect()
    ask(idle)
    service.signal(signal.SIGTERM)
    until(lambda: service.status()["draining"])
    # When that is has its test with a clock of its own (`test_duties.py`): here it is not cut with the rest.
    assert service.process.stdout is not None
    assert b"closing what is idle\n" in iter(service.process.stdout.readline, b"")
    assert service.end()[0] == 0
    idle.close()


def test_a_second_interrupt_ends_it_at_once(start: Start, tmp_path: Path) -> None:
    service = start(2).wait_until_up()
    pids = service.wait_for_workers(2)
    busy = service.connect()
    ask(busy)
    begun = time.monotonic()
    service.signal(signal.SIGINT)
    until(lambda: service.status()["draining"])
    service.signal(signal.SIGINT)
    service.end()
    assert time.monotonic() - begun < 5.0  # what the drain after a first interrupt takes
    assert not any(map(is_alive, pids.values()))
    busy.close()


def test_workers_end_when_the_supervisor_is_killed(start: Start) -> None:
    service = start(2).wait_until_up()
    pids = service.wait_for_workers(2)
    busy = service.connect()
    busy.request("GET", "/sleep")
    until(lambda: sum(worker["inflight"] for worker in service.status()["workers"]) == 1)
    service.process.kill()
    assert busy.getresponse().read()
    busy.close()
    until(lambda: not any(map(is_alive, pids.values())))


def test_a_second_instance_on_the_same_address_is_refused(start: Start, tmp_path: Path) -> None:
    service = start(2).wait_until_up()
    other = start(1, config(tmp_path / "two.sock", port=service.port), name="two")
    status, errors = other.end()
    assert status == 1
    assert f"127.0.0.1:{service.port}: address already in use" in errors
    assert service.get()["pid"]


def test_a_second_instance_on_the_same_control_socket_is_refused(start: Start) -> None:
    service = start(1).wait_until_up()
    status, errors = start(1, config(service.control), name="two").end()
    assert status == 1
    assert f"control socket {service.control}: another process listens there" in errors
    assert service.status()["pid"] == service.process.pid


def test_a_dead_control_socket_is_replaced(start: Start, tmp_path: Path) -> None:
    service = start(1).wait_until_up()
    service.process.kill()
    service.end()
    assert service.control.exists()
    assert start(1).wait_until_up().status()["generation"] == 1


def test_when_no_worker_can_start_its_error_is_told(start: Start) -> None:
    status, errors = start(2, STUB_FAILS="1").end()
    assert status == 1
    assert "RuntimeError: the stub was told to fail" in errors


def test_a_stalled_worker_is_replaced(start: Start) -> None:
    service = start(2).wait_until_up()
    pids = service.wait_for_workers(2)
    stop_process(pids[0])
    try:
        until(lambda: service.pids().get(0, pids[0]) != pids[0])
        assert {service.get()["pid"] for _ in range(10)}
    finally:
        os.kill(pids[0], signal.SIGKILL)


def test_a_worker_that_is_told_to_end_is_replaced_first(start: Start) -> None:
    service = start(1).wait_until_up()
    pids = service.wait_for_workers(1)
    with load(service) as errors:
        os.kill(pids[0], signal.SIGTERM)
        until(lambda: not is_alive(pids[0]))
    assert not errors


def test_workers_ignore_what_reaches_the_process_group(start: Start) -> None:
    service = start(1).wait_until_up()
    (pid,) = service.wait_for_workers(1).values()
    for number in (
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTTIN,
        signal.SIGTTOU,
    ):
        os.kill(pid, number)
    assert service.get()["pid"] == pid


def test_log_lines_reach_standard_output_whole(start: Start) -> None:
    service = start(2).wait_until_up()
    service.wait_for_workers(2)
    service.signal(signal.SIGUSR1)
    assert service.process.stdout is not None
    lines = [service.process.stdout.readline() for _ in range(4)]
    assert lines[2:] == [b"reopened\n", b"reopened\n"]


def test_workers_answer_questions(start: Start) -> None:
    service = start(2).wait_until_up()
    service.wait_for_workers(2)
    assert service.admin("GET", "/api/tasks") == (200, [[{"name": "tasks", "count": 1}]] * 2)


def test_it_is_ready_once_every_slot_has_had_a_worker(start: Start, tmp_path: Path) -> None:
    service = start(2, STUB_WAITS=str(tmp_path / "go")).wait_until_up()
    assert service.admin("GET", "/readyz") == (503, "not every worker is ready yet\n")
    assert not service.status()["ready"]
    (tmp_path / "go").touch()
    until(lambda: service.admin("GET", "/readyz") == (200, "ok\n"))
    (tmp_path / "go").unlink()
    os.kill(service.pids()[0], signal.SIGKILL)
    assert service.admin("POST", "/api/workers", {"workers": 3})[0] == 200
    until(lambda: len(service.pids()) < 2)
    assert service.admin("GET", "/readyz") == (200, "ok\n")
    (tmp_path / "go").touch()


def test_a_drain_serves_the_slots_of_workers_that_were_still_starting(start: Start) -> None:
    service = start(4).wait_until_up()
    busy = [service.connect() for _ in range(16)]
    for connection in busy:
        connection.request("GET", "/")
    service.signal(signal.SIGTERM)
    for connection in busy:
        assert connection.getresponse().read()
        connection.close()
    assert service.end()[0] == 0


def test_a_reload_moves_the_admin_api(start: Start, tmp_path: Path) -> None:
    service = start(1).wait_until_up()
    assert service.status()["admin"] is None
    first, second = tmp_path / "a1.sock", tmp_path / "a2.sock"
    for path in (first, second):
        write(tmp_path / "one.json", config(service.control, admin=Admin(address=f"unix:{path}")))
        assert service.admin("POST", "/api/reload")[0] == 200
        assert service.status()["admin"] == f"unix:{path}"
        until(path.exists)
    until(lambda: not first.exists())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        write(tmp_path / "one.json", config(service.control, admin=Admin(address=address)))
        assert service.admin("POST", "/api/reload")[0] == 409
    assert service.status()["admin"] == f"unix:{second}"


def test_the_admin_api_moves_away_and_back_at_once(start: Start, tmp_path: Path) -> None:
    service = start(1).wait_until_up()
    first, second = tmp_path / "a1.sock", tmp_path / "a2.sock"
    for path in (first, second, first, second, first):
        write(tmp_path / "one.json", config(service.control, admin=Admin(address=f"unix:{path}")))
        assert service.admin("POST", "/api/reload")[0] == 200
        assert service.status()["admin"] == f"unix:{path}"
    until(lambda: not second.exists())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listeners = (Listener(address=f"127.0.0.1:{taken.getsockname()[1]}"),)
        for path in (second, first):  # moves away, and fails to move back at once
            admin = Admin(address=f"unix:{path}")
            more: dict[str, Any] = {} if path == second else {"listeners": listeners}
            write(tmp_path / "one.json", config(service.control, admin=admin, **more))
            assert service.admin("POST", "/api/reload")[0] == (200 if path == second else 409)
    assert service.status()["admin"] == f"unix:{second}"
    until(lambda: not first.exists())
    service.signal(signal.SIGTERM)
    assert service.end()[0] == 0
    assert not second.exists()


def test_a_reload_to_a_token_that_cannot_be_read_is_refused(start: Start, tmp_path: Path) -> None:
    admin = Admin(address=f"unix:{tmp_path}/a.sock")
    service = start(1, config(tmp_path / "one.sock", admin=admin)).wait_until_up()
    admin = Admin(address=admin.address, token=f"file:{tmp_path}/none")
    write(tmp_path / "one.json", config(service.control, admin=admin))
    status, answer = service.admin("POST", "/api/reload")
    assert status == 409
    assert answer["errors"] == [f"file:{tmp_path}/none: cannot be read"]


def test_it_can_be_ended_before_it_has_begun(start: Start) -> None:
    service = start(2)
    until(service.control.exists)
    service.signal(signal.SIGTERM)
    assert service.end()[0] == 0
