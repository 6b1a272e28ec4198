from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ambassador.control.slots import BindError, Binding, url_of


def test_all_slots_of_port_0_share_the_port_of_the_first() -> None:
    binding = Binding("127.0.0.1:0", range(3))
    for _, fd in binding.sockets():
        with socket.socket(fileno=os.dup(fd)) as sock:
            assert sock.getsockname()[1] == binding.port
    assert binding.url() == f"http://127.0.0.1:{binding.port}"
    assert binding.url(secure=True) == f"https://127.0.0.1:{binding.port}"
    binding.close()


def test_a_second_instance_is_refused() -> None:
    binding = Binding("127.0.0.1:0", range(2))
    binding.listen([0, 1])
    with pytest.raises(BindError, match="address already in use"):
        second(f"127.0.0.1:{binding.port}")
    binding.close()


def second(address: str) -> Binding:
    binding = Binding(address, range(2))
    binding.listen([0, 1])
    return binding


def test_a_slot_gets_connections_only_once_it_listens() -> None:
    binding = Binding("127.0.0.1:0", [0])
    binding.listen([0])
    binding.extend([1])
    listening = dict(binding.sockets())
    first = next(fd for ref, fd in listening.items() if ref.slot == 0)
    clients = [socket.create_connection(("127.0.0.1", binding.port or 0)) for _ in range(20)]
    with socket.socket(fileno=os.dup(first)) as own:
        accepted = [own.accept()[0] for _ in clients]
    for sock in (*clients, *accepted):
        sock.close()
    binding.close()


def test_queued_connections_outlive_the_process_that_served_them() -> None:
    binding = Binding("127.0.0.1:0", [0])
    binding.listen([0])
    ((_, fd),) = binding.sockets()
    worker = socket.socket(fileno=os.dup(fd))
    client = socket.create_connection(("127.0.0.1", binding.port or 0))
    worker.close()
    with socket.socket(fileno=os.dup(fd)) as successor:
        successor.accept()[0].close()
    assert client.recv(1) == b""
    client.close()
    binding.close()


def test_a_unix_listener_has_one_socket_and_takes_its_file_away(tmp_path: Path) -> None:
    path = tmp_path / "s"
    binding = Binding(f"unix:{path}", range(3))
    assert [ref.slot for ref, _ in binding.sockets()] == [None]
    binding.listen(range(3))
    with pytest.raises(BindError, match="in use"):
        Binding(f"unix:{path}", [0])
    assert path.exists()
    binding.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [("192.0.2.1:0", "not an address of this host"), ("no.such.host.invalid:0", "not an address")],
)
def test_an_address_that_is_not_ours(address: str, reason: str) -> None:
    with pytest.raises(BindError, match=reason):
        Binding(address, [0])


def test_urls() -> None:
    assert url_of("[::1]:0", 8080) == "http://[::1]:8080"
    assert url_of("0.0.0.0:80", 80) == "http://0.0.0.0:80"
    assert url_of("unix:/a", None) == "unix:/a"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_after_the_end_of_listening_clients_are_refused_though_others_have_the_sockets_open(
    kind: str, tmp_path: Path
) -> None:
    binding = Binding("127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s", range(2))
    binding.listen([0])
    others = [os.dup(fd) for _, fd in binding.sockets()]
    binding.stop_listening()
    family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
    where = ("127.0.0.1", binding.port) if kind == "tcp" else f"{tmp_path}/s"
    with socket.socket(family) as client, pytest.raises(ConnectionRefusedError):
        client.connect(where)
    for fd in others:
        os.close(fd)
    binding.close()
