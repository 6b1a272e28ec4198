"""TLS on a socket of the lane. The far end is an object of `ssl` between buffers, so that the test says when which byte
arrives.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import tempfile
from collections.abc import Iterator

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ambassador.errors import CertificateRefused, TlsFailed
from ambassador.proxy.lane import READ, WRITE, Lane, Link
from ambassador.proxy.tls_socket import RECORD, ClientSide, TlsSocket, begin_server, connect_failure, reason
from ambassador.proxy.wire import SCRATCH, SCRATCH_SIZE, Wire
from tests.proxy.secure import CA, Holder, client_context, server_context

SERVER = server_context()
CLIENT = client_context()


class Far:
    """The other end: what it says arrives when the test sends it on."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        self.sock = sock
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=name is None, server_hostname=name)
        self.is_done = False

    def said(self) -> bytes:
        """What it has to send, after what has come for it."""
        self.hear()
        if not self.is_done:
            try:
                self.tls.do_handshake()
                self.is_done = True
            except ssl.SSLWantReadError:
                pass
        return self._out.read()

    def hear(self) -> None:
        try:
            while data := self.sock.recv(1 << 20):
                self._in.write(data)
            self._in.write_eof()
        except BlockingIOError:
            pass

    def says(self, *data: bytes) -> bytes:
        """Each in a record of its own, encrypted and not yet sent."""
        for piece in data:
            self.tls.write(piece)
        return self._out.read()

    def send(self, *data: bytes) -> None:
        self.sock.sendall(self.says(*data))

    def read(self) -> bytes:
        """All that has come."""
        self.hear()
        got = b""
        try:
            while data := self.tls.read(1 << 20):
                got += data
        except ssl.SSLWantReadError:
            pass
        return got

    def ends(self) -> bytes:
        """Its good-bye, not yet sent."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self._out.read()


class Pair:
    """A wire with TLS of the lane, and the far end of it."""

    def __init__(self, lane: Lane, *, server: bool, far: ssl.SSLContext, near: ssl.SSLContext) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        self.theirs = theirs
        self.link = lane.link(ours)
        self.wire = Wire(self.link)
        self.far = Far(theirs, far, "localhost" if server else None)
        if server:
            self.near = begin_server(self.link, Holder(near))
        else:
            self.near = ClientSide(Holder(near), "localhost").begin(self.link)

    def shake_hands(self) -> None:
        while self.near.shake_hands() or not self.far.is_done:
            self.theirs.sendall(self.far.said())
        self.theirs.sendall(self.far.said())
        self.link.ready = READ | WRITE

    def close(self) -> None:
        self.link.close()
        self.theirs.close()


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane()
    yield lane
    lane._stop()


@pytest.fixture
def pair(lane: Lane) -> Iterator[Pair]:
    """A client's connection behind its handshake."""
    with contextlib.closing(Pair(lane, server=True, far=CLIENT, near=SERVER)) as pair:
        pair.shake_hands()
        yield pair


@pytest.fixture
def upstream(lane: Lane) -> Iterator[Pair]:
    """A connection to an upstream behind its handshake: its tickets have arrived."""
    with contextlib.closing(Pair(lane, server=False, far=SERVER, near=CLIENT)) as pair:
        pair.shake_hands()
        yield pair


def read(wire: Wire, size: int = SCRATCH_SIZE) -> bytes | None:
    count = wire.read(size)
    return None if count is None else bytes(SCRATCH[:count])


# The handshake


@pytest.mark.parametrize("server", [True, False], ids=["client's", "upstream's"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_handshake_goes_on_with_each_byte(lane: Lane, *, server: bool, version: ssl.TLSVersion) -> None:
    far = client_context() if server else server_context()
    far.maximum_version = version
    pair = Pair(lane, server=server, far=far, near=SERVER if server else CLIENT)
    while not (pair.far.is_done and not pair.near.wanted):
        if pair.near.wanted:
            pair.near.shake_hands()
        flight = pair.far.said()
        for at in range(len(flight)):
            if not pair.near.wanted:
                pair.theirs.sendall(flight[at:])
                break
            assert pair.near.shake_hands() == READ
            pair.theirs.send(flight[at : at + 1])
        if pair.near.wanted and flight:
            pair.near.shake_hands()
    pair.link.ready = READ | WRITE
    pair.theirs.sendall(pair.far.said())
    pair.far.send(b"hello")
    assert read(pair.wire) == b"hello"
    pair.wire.write(b"answer")
    assert pair.far.read() == b"answer"
    pair.close()


def test_handshake_that_the_far_end_leaves_fails(lane: Lane) -> None:
    pair = Pair(lane, server=True, far=CLIENT, near=SERVER)
    pair.theirs.sendall(pair.far.said()[:20])
    assert pair.near.shake_hands() == READ
    pair.theirs.close()
    with pytest.raises(OSError) as raised:
        pair.near.shake_hands()
    assert reason(raised.value) == "the other side closed the connection"
    pair.close()


def test_names_are_those_of_a_verified_certificate(lane: Lane) -> None:
    theirs = CA.issue_cert("caller.internal", "10.0.0.7")
    near = server_context(client_ca=CA)
    pair = Pair(lane, server=True, far=client_context(certificate=theirs), near=near)
    pair.shake_hands()
    assert pair.near.names == (("DNS", "caller.internal"), ("IP Address", "10.0.0.7"))
    pair.close()


def test_names_are_empty_where_none_is_asked_for(pair: Pair) -> None:
    assert pair.near.names == ()


def refusal(lane: Lane, near: ssl.SSLContext, far: ssl.SSLContext) -> OSError:
    """How the handshake with an upstream fails."""
    pair = Pair(lane, server=False, far=far, near=near)
    pair.near.shake_hands()
    try:
        pair.theirs.sendall(pair.far.said())
    except ssl.SSLError:
        pair.theirs.sendall(pair.far._out.read())
    with pytest.raises(OSError) as raised:
        pair.near.shake_hands()
    pair.close()
    return raised.value


def test_other_authority_is_refused(lane: Lane) -> None:
    failure = connect_failure(refusal(lane, CLIENT, server_context(ca=trustme.CA())))
    assert isinstance(failure, CertificateRefused)
    assert failure.detail == "TLS: unable to get local issuer certificate"


def test_other_name_is_refused(lane: Lane) -> None:
    failure = connect_failure(refusal(lane, CLIENT, server_context("other.example", "127.0.0.1")))
    assert isinstance(failure, CertificateRefused)
    assert failure.detail == "TLS: the certificate is for another name"


def test_older_version_is_refused(lane: Lane) -> None:
    near, far = client_context(), server_context()
    near.minimum_version = ssl.TLSVersion.TLSv1_3
    far.maximum_version = ssl.TLSVersion.TLSv1_2
    failure = connect_failure(refusal(lane, near, far))
    assert type(failure) is TlsFailed
    assert failure.detail == "TLS: tlsv1 alert protocol version"


# Reading


def test_short_read_has_taken_every_record(pair: Pair) -> None:
    pair.far.send(b"one ", b"two ", b"three")
    assert read(pair.wire) == b"one two three"
    assert not pair.link.ready & READ
    pair.link.ready |= READ
    assert read(pair.wire) is None
    assert not pair.link.ready & READ


def test_recv_takes_every_record(pair: Pair) -> None:
    pair.far.send(b"one ", b"two ", b"three")
    assert pair.near.recv(65536) == b"one two three"


def test_read_of_a_part_leaves_the_rest(pair: Pair) -> None:
    pair.far.send(b"0123456789")
    assert read(pair.wire, 4) == b"0123"
    assert pair.link.ready & READ
    assert read(pair.wire, 4) == b"4567"
    assert read(pair.wire, 4) == b"89"
    assert not pair.link.ready & READ


def test_record_that_comes_byte_by_byte_is_read_with_its_last(pair: Pair) -> None:
    record = pair.far.says(b"hello")
    for at in range(len(record)):
        pair.link.ready |= READ
        assert read(pair.wire) is None
        pair.theirs.send(record[at : at + 1])
    assert read(pair.wire) == b"hello"


def test_part_of_a_record_behind_a_whole_one_waits(pair: Pair) -> None:
    whole, part = pair.far.says(b"whole"), pair.far.says(b"part")
    for at in range(len(part)):
        pair.theirs.sendall(whole + part[:at])
        assert read(pair.wire) == b"whole"
        assert not pair.link.ready & READ
        pair.link.ready |= READ
        pair.theirs.sendall(part[at:])
        assert read(pair.wire) == b"part"
        whole, part = pair.far.says(b"whole"), pair.far.says(b"part")


def test_long_body_is_read_as_much_as_is_asked_for(pair: Pair) -> None:
    body = bytes(range(256)) * 400
    pair.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    pair.far.send(*(body[at : at + RECORD] for at in range(0, len(body), RECORD)))
    assert read(pair.wire, 65536) == body[:65536]
    assert read(pair.wire, 65536) == body[65536:]
    assert not pair.link.ready & READ


def test_flood_of_small_records_gives_others_a_turn(pair: Pair) -> None:
    events = pair.link.lane._epoll
    events.poll(0)
    pair.far.send(*([b"x"] * 40))
    events.poll(0)
    assert events.poll(0) == []
    assert read(pair.wire) == b"x" * 17
    assert not pair.link.ready & READ
    ((fd, flags),) = events.poll(0)  # told again, though nothing new has come
    assert fd == pair.link.fd
    assert flags & READ
    assert read(pair.wire) == b"x" * 17
    assert read(pair.wire) == b"x" * 6


def test_end_with_a_goodbye_is_an_end(pair: Pair) -> None:
    pair.theirs.sendall(pair.far.says(b"last") + pair.far.ends())
    assert read(pair.wire) == b"last"
    assert pair.wire.read(100) == 0
    assert pair.near.recv(100) == b""


@pytest.mark.parametrize("cut", [0, 1, 7], ids=["between records", "in a header", "in a record"])
def test_end_without_a_goodbye_is_an_error(pair: Pair, cut: int) -> None:
    pair.theirs.sendall(pair.far.says(b"some") + pair.far.says(b"more")[:cut])
    pair.theirs.close()
    assert read(pair.wire) == b"some"
    with pytest.raises(OSError):
        pair.wire.read(100)
    with pytest.raises(OSError):
        pair.wire.read(100)


def test_error_behind_data_wakes_whoever_has_read_it(pair: Pair) -> None:
    events = pair.link.lane._epoll
    pair.theirs.sendall(pair.far.says(b"some") + b"\x17\x03\x03\x00\x20" + bytes(32))
    events.poll(0)
    assert read(pair.wire) == b"some"
    assert any(flags & READ for _, flags in events.poll(0))
    with pytest.raises(OSError):
        pair.near.recv(100)


def test_goodbye_behind_data_wakes_whoever_has_read_it(pair: Pair) -> None:
    events = pair.link.lane._epoll
    pair.theirs.sendall(pair.far.says(b"some") + pair.far.ends())
    events.poll(0)
    assert read(pair.wire) == b"some"
    assert any(flags & READ for _, flags in events.poll(0))  # though there is no FIN
    assert pair.near.recv(100) == b""
    pair.wire.write(b"answer")
    pair.far.hear()
    assert pair.far.tls.read(100) == b"answer"


def test_tickets_leave_a_connection_quiet(upstream: Pair) -> None:
    assert upstream.wire.is_quiet()
    assert not upstream.link.ready & READ


def test_data_goodbye_and_cut_make_a_connection_not_quiet(lane: Lane) -> None:
    for end in ("data", "goodbye", "cut"):
        pair = Pair(lane, server=False, far=SERVER, near=CLIENT)
        pair.shake_hands()
        if end == "cut":
            pair.theirs.close()
        else:
            pair.theirs.sendall(pair.far.says(b"x") if end == "data" else pair.far.ends())
        assert not pair.wire.is_quiet()
        pair.close()


# Writing


def test_write_that_blocks_goes_on_where_it_was(pair: Pair) -> None:
    body = bytes(range(256)) * 2000
    pair.wire.write(body)
    assert pair.wire.blocked is not None
    assert not pair.link.ready & WRITE
    got = b""
    while not pair.wire.flush():
        got += pair.far.read()
        assert pair.wire.bytes_written % RECORD == 0
    got += pair.far.read()
    assert got == body
    assert pair.wire.bytes_written == len(body)


@pytest.mark.parametrize("size", [0, 1, RECORD - 10, RECORD, 100_000])
def test_write_of_head_and_body_is_whole(pair: Pair, size: int) -> None:
    head, body = b"head line\r\n\r\n", bytearray(b"b" * size)
    pair.wire.write_with(head, memoryview(body))
    body[:] = b"c" * size  # a buffer that is used again
    got = b""
    while not pair.wire.flush():
        got += pair.far.read()
    got += pair.far.read()
    assert got[: len(head)] == head
    assert len(got) == len(head) + size
    assert pair.wire.bytes_written == len(got)


def test_head_longer_than_a_record_is_whole(pair: Pair) -> None:
    head = b"h" * (RECORD + 5)
    pair.wire.write_with(head, b"b" * 9000)
    got = b""
    while not pair.wire.flush():
        got += pair.far.read()
    assert got + pair.far.read() == head + b"b" * 9000


def test_write_to_a_far_end_that_is_gone_fails(pair: Pair) -> None:
    pair.theirs.close()
    pair.wire.write(b"x")
    assert pair.wire.write_failed


def test_answer_reaches_a_far_end_that_has_said_goodbye(pair: Pair) -> None:
    pair.theirs.sendall(pair.far.ends())
    assert pair.wire.read(100) == 0
    pair.wire.write(b"answer")
    pair.far.hear()
    assert pair.far.tls.read(100) == b"answer"


def test_write_that_must_read_first_is_woken_by_what_comes(pair: Pair) -> None:
    events, write = pair.link.lane._epoll, pair.near._write

    def wants_to_read(_: object) -> int:
        raise ssl.SSLWantReadError

    events.poll(0)
    pair.near._write = wants_to_read
    pair.wire.write(b"answer")
    assert pair.wire.blocked is not None
    assert not pair.link.ready & WRITE
    assert events.poll(0) == []
    pair.near._write = write
    pair.far.send(b"x")
    assert any(flags & WRITE for _, flags in events.poll(0))
    assert pair.wire.flush()
    assert pair.far.read() == b"answer"


def test_read_that_must_write_first_is_woken_by_room(pair: Pair) -> None:
    events, read_on = pair.link.lane._epoll, pair.near._read

    def wants_to_write(*_: object) -> int:
        raise ssl.SSLWantWriteError

    pair.wire.write(b"a" * 1_000_000)  # so that there is no room
    pair.far.send(b"request")
    events.poll(0)
    pair.near._read = wants_to_write
    assert read(pair.wire) is None
    assert not pair.link.ready & READ
    assert events.poll(0) == []
    pair.near._read = read_on
    while not pair.wire.flush():
        pair.far.read()
    pair.far.read()
    assert any(flags & READ for _, flags in events.poll(0))
    assert read(pair.wire) == b"request"


# The end


def test_close_says_goodbye(pair: Pair) -> None:
    pair.link.close()
    pair.far.hear()
    assert pair.far.tls.read(100) == b""


def test_cut_says_nothing(pair: Pair) -> None:
    pair.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair.link.close()
    pair.far.hear()
    with pytest.raises(ssl.SSLEOFError):
        pair.far.tls.read(100)


def test_shutdown_says_goodbye_and_what_comes_is_not_decrypted(pair: Pair) -> None:
    pair.near.shutdown(socket.SHUT_WR)
    pair.far.hear()
    assert pair.far.tls.read(100) == b""
    pair.theirs.send(b"not TLS at all")
    assert read(pair.wire) == b"not TLS at all"
    pair.theirs.close()
    pair.link.ready |= READ
    assert pair.wire.read(100) == 0


def test_plain_bytes_in_place_of_a_handshake_are_told_as_such(lane: Lane) -> None:
    pair = Pair(lane, server=False, far=SERVER, near=CLIENT)
    pair.near.shake_hands()
    pair.theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ssl.SSLError) as failed:
        pair.near.shake_hands()
    assert reason(failed.value).endswith("(does it speak TLS at all?)")
    pair.close()


# Sessions


def connect(lane: Lane, side: ClientSide, context: ssl.SSLContext = SERVER) -> Pair:
    pair = Pair.__new__(Pair)
    ours, pair.theirs = socket.socketpair()
    ours.setblocking(False)
    pair.theirs.setblocking(False)
    pair.link = lane.link(ours)
    pair.wire = Wire(pair.link)
    pair.far = Far(pair.theirs, context, None)
    pair.near = side.begin(pair.link)
    pair.shake_hands()
    pair.wire.is_quiet()  # reads the tickets
    return pair


@pytest.mark.parametrize("is_open", [True, False])
def test_connection_resumes_the_session_before(lane: Lane, *, is_open: bool) -> None:
    side = ClientSide(Holder(CLIENT), "localhost")
    first = connect(lane, side)
    assert not first.near.resumed
    if not is_open:
        first.close()
        del first.near, first.link, first.wire
    second = connect(lane, side)
    assert second.near.resumed
    third = connect(lane, side)
    assert third.near.resumed
    for pair in (second, third):
        pair.close()
    if is_open:
        first.close()


def test_other_context_begins_anew(lane: Lane) -> None:
    holder = Holder(CLIENT)
    side = ClientSide(holder, "localhost")
    first = connect(lane, side)
    holder.context = client_context()
    second = connect(lane, side)
    assert not second.near.resumed
    third = connect(lane, side)
    assert third.near.resumed
    for pair in (first, second, third):
        pair.close()


def test_session_is_not_resumed_after_the_end_of_its_certificate(lane: Lane) -> None:
    wall = [0.0]
    side = ClientSide(Holder(CLIENT), "localhost", lambda: wall[0])
    first = connect(lane, side)
    validity = first.near.validity
    assert validity is not None
    wall[0] = validity[1] - 1
    second = connect(lane, side)
    assert second.near.resumed
    assert second.near.validity == validity
    wall[0] = validity[1]
    third = connect(lane, side)
    assert not third.near.resumed
    for pair in (first, second, third):
        pair.close()


def chained(last: dt.datetime, more: bytes = b"") -> tuple[trustme.CA, ssl.SSLContext, bytes]:
    """An authority; a server whose certificate comes from another one below it, which ends then, and which sends that
    and `more`; and that one's PEM.
    """
    root = trustme.CA(key_type=trustme.KeyType.ECDSA)
    below = root.create_child_ca(key_type=trustme.KeyType.ECDSA)
    key = serialization.load_pem_private_key(root.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    made = x509.load_pem_x509_certificate(below.cert_pem.bytes())
    builder = x509.CertificateBuilder(
        issuer_name=made.issuer,
        subject_name=made.subject,
        public_key=made.public_key(),
        serial_number=made.serial_number,
        not_valid_before=last - dt.timedelta(days=1),
        not_valid_after=last,
        extensions=list(made.extensions),
    )
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    leaf = below.issue_cert("localhost", not_after=last + dt.timedelta(days=300))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(leaf.private_key_pem.bytes() + leaf.cert_chain_pems[0].bytes() + pem + more)
        file.flush()
        context.load_cert_chain(file.name)
    return root, context, pem


def test_session_is_not_resumed_after_the_end_of_an_authority_on_the_way(lane: Lane) -> None:
    last = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=1)
    root, server, _ = chained(last)
    wall = [0.0]
    side = ClientSide(Holder(client_context(root)), "localhost", lambda: wall[0])
    pairs = [connect(lane, side, server)]
    for wall[0] in (last.timestamp() - 2, last.timestamp() - 1):
        pairs.append(connect(lane, side, server))
        assert pairs[-1].near.resumed
    assert {pair.near.validity for pair in pairs} == {pairs[0].near.validity}, (
        "of the handshake before them all"
    )
    validity = pairs[0].near.validity
    assert validity is not None
    assert validity[1] == last.timestamp()
    wall[0] = last.timestamp()
    pairs.append(connect(lane, side, server))
    assert not pairs[-1].near.resumed
    for pair in pairs:
        pair.close()


def test_end_of_what_is_sent_and_not_needed_does_not_matter(lane: Lane) -> None:
    last = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=1)
    _, _, ended = chained(last - dt.timedelta(hours=2))
    root, server, _ = chained(last, ended)
    pair = connect(lane, ClientSide(Holder(client_context(root)), "localhost"), server)
    assert len(pair.near._ssl.get_unverified_chain()) == 3
    validity = pair.near.validity
    assert validity is not None
    assert validity[1] == last.timestamp()
    pair.close()


def test_end_of_a_clients_chain_is_that_of_the_first_that_ends(lane: Lane) -> None:
    authority = trustme.CA()
    below = authority.create_child_ca()
    client = client_context(certificate=below.issue_cert("client"))
    pair = Pair(lane, server=True, far=client, near=server_context(client_ca=authority))
    pair.shake_hands()
    chain = [each.get_info() for each in pair.near._ssl.get_verified_chain()]
    assert len(chain) == 3
    validity = pair.near.validity
    assert validity is not None
    assert validity[1] == min(ssl.cert_time_to_seconds(each["notAfter"]) for each in chain)
    pair.close()


def test_end_of_a_certificate_is_told_unless_the_connection_is_closed(lane: Lane) -> None:
    pair = Pair(lane, server=True, far=CLIENT, near=SERVER)
    pair.shake_hands()
    told: list[int] = []
    pair.near.end_at(lane, lane.now - 1, lambda: told.append(1))
    lane._expire()
    assert told == [1]
    pair.near.end_at(lane, lane.now - 1, lambda: told.append(2))
    pair.near.close()
    pair.theirs.close()
    lane._expire()
    assert told == [1]


def test_link_of_the_lane_is_not_held_by_its_socket(lane: Lane) -> None:
    pair = Pair(lane, server=True, far=CLIENT, near=SERVER)
    link: Link = pair.link
    assert isinstance(link.sock, TlsSocket)
    pair.close()
    assert lane.link_count == 0
