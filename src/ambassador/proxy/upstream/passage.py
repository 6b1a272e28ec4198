"""The way of a call of the ambassador's own through an egress proxy: of health checks, questions to token services,
and fetches of key sets.

The same ways that requests of clients go (`via.py`), by the same greetings: a tunnel to `https`, and by SOCKS5 to
whatever it is; the whole URL to `http`. Who makes the call dials `proxy`, and says what is given here.

No I/O, no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ambassador.proxy.upstream.via import authority, basic, greeting

if TYPE_CHECKING:
    from ambassador.proxy.upstream.greeting import Greeting
    from ambassador.proxy.upstream.via import Config


class Passage:
    """How the egress proxy of `config` leads to the host of a URL. `password` is the proxy's, if it wants one.

    `tunnel`: by a tunnel in any case, for who wants to know no more than whether one can be made.
    """

    __slots__ = ("_config", "_host", "_password", "_port", "proxy", "tunnels")

    def __init__(self, config: Config, password: str | None, url: str, *, tunnel: bool = False) -> None:
        where = urlsplit(url)
        secure = where.scheme == "https"
        self._config = config
        self._password = password
        self._host, self._port = where.hostname or "", where.port or (443 if secure else 80)
        self.proxy = config.place
        """Host and port of what is dialled."""
        self.tunnels = tunnel or secure or config.is_socks
        """Connections are led on; else requests have the whole URL."""

    def greeting(self) -> Greeting | None:
        """What leads a new connection on; None: nothing has to. Raises `ConnectFailed`."""
        return greeting(self._config, self._password, self._host, self._port) if self.tunnels else None

    def target(self, path: str) -> str:
        """What is asked for, of a path (with its query)."""
        if self.tunnels:
            return path
        return f"http://{authority(self._host, self._port).removesuffix(b':80').decode()}{path}"

    def fields(self) -> list[tuple[bytes, bytes]]:
        """What the proxy is shown with the request: nothing, where it was shown that in the greeting."""
        shown = None if self.tunnels else basic(self._config.user, self._password)
        return [] if shown is None else [(b"proxy-authorization", shown)]

    def is_refusal(self, status: int) -> bool:
        """Whether an answer is the proxy's own, which wants other credentials."""
        return status == 407 and not self.tunnels
