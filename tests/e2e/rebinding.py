"""Names that lead somewhere public first, and then to where nobody from outside may lead the ambassador.

Run by `test_rebinding.py` in a network of its own: there is a name server that answers as a test says, and every
address of `PUBLIC` and `CLOSED` is here, with a server that writes down at which address it was called. So what is
shown is not what the ambassador thinks of an address, but which ones it has ever dialled.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.e2e.origins import serving
from tests.e2e.programs import Ambassador, ambassador, program, wait_until
from tests.e2e.raw import fetch

PUBLIC = "93.184.216.34"
CLOSED = (
    "10.9.8.7", "172.16.5.4", "192.168.1.1", "100.64.3.2", "127.0.0.1", "169.254.169.254", "100.100.100.200",
    "168.63.129.16", "198.18.0.1", "::1", "fd00:ec2::254", "fc00::7", "::ffff:10.9.8.7", "64:ff9b::a09:807",
)  # fmt: skip
"""Private addresses, this host's, link-local ones, those of metadata services; plain, and inside of others."""
_ROUNDS = 4


class NameServer:
    """Answers A and AAAA by UDP, with a time to live of 0. What names lead to may change with each question."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self._leads: dict[str, list[list[str]]] = {}
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 53))

    def lead(self, name: str, *turns: list[str]) -> None:
        """The name has the addresses of each turn, one question (of each kind) after the other, round and round."""
        self._leads[name] = list(turns)

    def serve(self) -> None:
        """Until an empty question comes."""
        with self._sock:
            while True:
                wire, client = self._sock.recvfrom(4096)
                if not wire:
                    return
                self._sock.sendto(self._reply(wire), client)

    def stop(self) -> None:
        self._sock.sendto(b"", ("127.0.0.1", 53))

    def _reply(self, wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        name = query.question[0].name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        turns = self._leads.get(name)
        if turns is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
            return reply.to_wire()
        addresses = turns[self.asked[f"{name} {kind}"] % len(turns)]
        self.asked[f"{name} {kind}"] += 1
        fit = [address for address in addresses if (":" in address) == (kind == "AAAA")]
        if fit:
            reply.answer.append(dns.rrset.from_text_list(query.question[0].name, 0, "IN", kind, fit))
        return reply.to_wire()


class Everywhere(ThreadingHTTPServer):
    """A server at all addresses of this network. Each connection is for one answer."""

    address_family = socket.AF_INET6
    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.dialled: Counter[str] = Counter()
        super().__init__(("::", port), Answerer)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        sock, address = super().get_request()
        self.dialled[sock.getsockname()[0].removeprefix("::ffff:")] += 1
        return sock, address


class Answerer(BaseHTTPRequestHandler):
    """`ok`, or a token that is soon to be replaced."""

    def do_GET(self) -> None:
        self._say(b"ok")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._say(json.dumps({"access_token": "t", "token_type": "Bearer", "expires_in": 1}).encode())

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    """The name server, and the addresses."""
    where = Path("/etc/resolv.conf").read_text()
    assert where == "nameserver 127.0.0.1\n", "only in a network of its own"
    ip = program("ip")
    assert ip is not None
    commands = ["link set lo up"]
    commands += [f"addr add {address} dev lo" for address in (PUBLIC, *CLOSED) if not _is_there(address)]
    subprocess.run([ip, "-batch", "-"], input="\n".join(commands), text=True, check=True)
    server = NameServer()
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.stop()
    thread.join()


def _is_there(address: str) -> bool:
    """Loopback comes with the network, and what is mapped is of IPv4."""
    return address in {"127.0.0.1", "::1"} or address.startswith("::ffff:")


@contextlib.contextmanager
def everywhere(port: int) -> Iterator[Everywhere]:
    server = Everywhere(port)
    with serving(server):
        yield server


def test_every_closed_address_is_there_to_be_dialled(names: NameServer) -> None:
    with everywhere(80) as server:
        for address in (PUBLIC, *CLOSED):
            socket.create_connection((address, 80), timeout=5).close()
        wait_until(lambda: server.dialled.total() == len(CLOSED) + 1, "the connections")
        assert set(server.dialled) == {PUBLIC, *CLOSED} - {"::ffff:10.9.8.7"}
        assert names.asked.total() == 0


def statuses(service: Ambassador, routes: list[str]) -> dict[str, int]:
    """What each route is answered with now."""
    return {route: fetch(service.url, f"/{route}").status for route in routes}


def test_endpoints_whose_names_come_to_lead_elsewhere_are_not_dialled_there(names: NameServer) -> None:
    body = "egress: {}\ndefaults: {retry: off}\nupstreams:\n"
    routes = []
    for number in range(len(CLOSED)):
        for kind, where in (
            ("found", f"discover: {{dns: 'n{number}.test:80'}}"),
            ("named", f"endpoints: ['http://n{number}.test']"),
        ):
            routes.append(f"{kind}{number}")
            health = ", health: {path: /up, every: 1s, timeout: 1s}" if number % 2 else ""
            body += f"  {kind}{number}: {{{where}{health}}}\n"
        names.lead(f"n{number}.test", [PUBLIC])
    body += "  mixed: {endpoints: ['http://mixed.test']}\n"
    names.lead("mixed.test", [PUBLIC, *CLOSED])
    body += "routes:\n"
    body += "".join(
        f"  - {{match: {{path: /{name}}}, to: {name}, name: r-{name}}}\n" for name in [*routes, "mixed"]
    )
    with everywhere(80) as server, ambassador(body, workers=2) as service:
        wait_until(lambda: set(statuses(service, routes).values()) == {200}, "the public address")
        for number, address in enumerate(CLOSED):
            names.lead(f"n{number}.test", [address])
        wait_until(lambda: set(statuses(service, routes).values()) == {503}, "the other addresses")
        for number, address in enumerate(CLOSED):
            names.lead(f"n{number}.test", [PUBLIC], [address], [address, PUBLIC])
        asked = names.asked["n0.test A"]
        seen: Counter[int] = Counter()
        while names.asked["n0.test A"] < asked + _ROUNDS:
            seen.update(statuses(service, routes).values())
            assert statuses(service, ["mixed"]) == {"mixed": 200}
        assert seen[200] > 0, "what is public is dialled"
        assert set(seen) <= {200, 502, 503}
        refused = service.samples("ambassador_egress_refused_total{")
        assert {line.split('"')[1] for line in refused if not line.endswith(" 0")} >= set(routes)
    assert set(server.dialled) == {PUBLIC}


def test_own_calls_to_names_that_come_to_lead_elsewhere_are_not_made_there(names: NameServer) -> None:
    body = """
        egress: {}
        defaults: {retry: off}
        clients:
          nobody: {jwt: {issuer: i, audience: a, jwks: 'https://keys.test/jwks'}}
        upstreams:
          api:
            endpoints: ['http://127.0.0.1:8000']
            auth: {oauth2: {token_url: 'http://id.test/token', client_id: c, client_secret: 'env:PATH', allow_plaintext: true}}
        routes: [{name: r, to: api, access: off}]
        """
    names.lead("id.test", [PUBLIC])
    names.lead("keys.test", [PUBLIC], *([address] for address in CLOSED))
    with everywhere(80) as tokens, everywhere(443) as keys, everywhere(8000), ambassador(body) as service:
        assert statuses(service, ["a"]) == {"a": 200}
        names.lead("id.test", *([address] for address in CLOSED))
        asked = names.asked["id.test A"] + 2

        def is_cut_off() -> bool:
            """Both were asked for again, more than once."""
            refused = fetch(service.url, "/a").status == 503
            return refused and names.asked["id.test A"] >= asked and names.asked["keys.test A"] >= 3

        wait_until(is_cut_off, "the other addresses")
        log = service.running.output()
    assert set(tokens.dialled) == set(keys.dialled) == {PUBLIC}
    assert "egress: " in log
