"""The clients of a config with keys in hand, and requests of theirs."""

from __future__ import annotations

from collections.abc import Callable

from ambassador.config.load import load_text
from ambassador.messages import Request
from ambassador.proxy import jose
from ambassador.proxy.clients.key_sets import KeySets
from ambassador.proxy.clients.mtls import Names
from ambassador.proxy.clients.who import Clients, Found
from ambassador.proxy.fields import wire_lines
from ambassador.secret import Secrets
from tests.proxy.clients import tokens

NOW = 1_800_000_000.0
HEAD = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, respond: 200}]\nclients:\n"
TOKEN_CLIENT = (
    f"  a: {{jwt: {{issuer: '{tokens.ISSUER}', audience: {tokens.AUDIENCE}, jwks: 'https://id.test/jwks',"
    " claims: {sub: svc-a}}}\n"
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def tick(self) -> None:
        """A test moves it."""


class Conn:
    def __init__(self, *sans: tuple[str, str]) -> None:
        self.names = sans
        self.validity: tuple[float, float] | None = None


class World:
    """The clients of a config with keys in hand."""

    def __init__(self, clients: str, *, fed: bool = True) -> None:
        self.clock = Clock()
        self.wall = NOW
        self.secrets = Secrets()
        self.key_sets = KeySets(self.clock)
        self.asked: list[str] = []
        config = load_text(HEAD + clients)
        self.clients = Clients(config.clients, self.secrets, self.key_sets, count=self._count)
        if fed:
            self.feed(tokens.jwks())

    def _count(self, name: str) -> Callable[[], None]:
        return lambda: self.asked.append(name)

    def feed(self, document: bytes) -> None:
        for key_set in self.key_sets:
            key_set.begin()
            key_set.feed(jose.read_keys(document))

    def wall_s(self) -> float:
        return self.wall

    def find(self, *fields: tuple[bytes, bytes], ip: str = "", sans: Names = ()) -> Found:
        credentials = self.clients.credentials(list(fields))
        return self.clients.find(credentials, Conn(*sans), ip, self.wall_s)

    def request(self, *fields: tuple[bytes, bytes]) -> Request:
        request = Request("GET", b"/", list(fields), 1)
        request.passing = list(fields)
        request.lines = wire_lines(request.passing)
        return request


def bearer(token: bytes) -> tuple[bytes, bytes]:
    return (b"Authorization", b"Bearer " + token)
