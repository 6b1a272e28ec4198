"""CPU time and memory from /proc's text."""

import os
import socket

import pytest

from loadtest import procfs
from loadtest.procfs import Cpu, Stat


def stat(pid: int, parent: int, session: int, *, user: int = 0, reaped_user: int = 0) -> Stat:
    return Stat(pid, "x", parent, session, user, 0, reaped_user, 0)


def test_parse_stat_takes_names_with_blanks_and_brackets() -> None:
    text = "42 (a) b (c) S 7 8 9 0 -1 4194560 1 2 3 4 11 12 13 14 20 0 1 0 100 0 0"
    assert procfs.parse_stat(text) == Stat(42, "a) b (c", 7, 9, 11, 12, 13, 14)


def test_tree_holds_descendants_and_orphans_of_the_session() -> None:
    stats = [
        stat(10, 1, 10),
        stat(11, 10, 10),
        stat(12, 11, 12),  # in a session of its own
        stat(13, 1, 10),  # its parent died
        stat(14, 13, 14),
        stat(20, 1, 20),
    ]
    assert [member.pid for member in procfs.tree_of(10, reversed(stats))] == [10, 11, 12, 13, 14]


def test_tree_of_a_dead_root_holds_what_is_left_of_its_session() -> None:
    assert [member.pid for member in procfs.tree_of(10, [stat(13, 1, 10), stat(20, 1, 20)])] == [13]
    assert procfs.tree_of(10, [stat(20, 1, 20)]) == []


def test_total_cpu_does_not_go_back_when_a_child_is_reaped() -> None:
    before = [stat(10, 1, 10, user=100), stat(11, 10, 10, user=250)]
    after = [stat(10, 1, 10, user=100, reaped_user=250)]
    assert (
        procfs.total_cpu(before, ticks_per_s=100) == procfs.total_cpu(after, ticks_per_s=100) == Cpu(3.5, 0.0)
    )


def test_cpu_since() -> None:
    assert Cpu(3.0, 2.0).since(Cpu(1.0, 0.5)) == Cpu(2.0, 1.5)
    assert Cpu(2.0, 1.5).total_s == 3.5


def test_busiest_is_the_one_that_worked_between_the_readings() -> None:
    before = {1: stat(1, 0, 1, user=500), 2: stat(2, 1, 1, user=5)}
    after = {1: stat(1, 0, 1, user=510), 2: stat(2, 1, 1, user=90), 3: stat(3, 1, 1, user=20)}
    assert procfs.busiest(before, after) == 2


def test_parse_memory() -> None:
    text = "00-7f ---p 00000000 00:00 0    [rollup]\nRss:     4076 kB\nPss:      948 kB\nPss_Dirty: 1 kB\n"
    assert procfs.parse_memory(text) == procfs.Memory(rss_kib=4076, pss_kib=948)


def test_parse_core_busy_ticks_leaves_out_idle_iowait_and_steal() -> None:
    text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 4 100 200 8 16 300 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\n"
    assert procfs.parse_core_busy_ticks(text, 0) == 31
    with pytest.raises(LookupError):
        procfs.parse_core_busy_ticks(text, 7)


def test_this_process_can_be_read() -> None:
    assert os.getpid() in [member.pid for member in procfs.read_tree(os.getpid())]
    assert procfs.read_cpu(os.getpid()).total_s > 0


def test_parse_tcp_tells_both_ports_of_a_socket() -> None:
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4242 1\n"
    )
    assert procfs.parse_tcp(text) == {4242: (8080, 50000)}


def test_connections_are_those_of_the_process() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        ports = client.getsockname()[1], server.getsockname()[1]
        assert ports in procfs.connections(os.getpid())
        assert procfs.connections(2**22) == []
