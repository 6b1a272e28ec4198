"""The address of a Redis: what the setting `state` may say, and what it means.

    redis://[user[:password]@]host[:port][/db]            one server, or what stands behind one address
    unix:/path[?db=0]                                     likewise, by its socket; unix:///path too
    redis+sentinel://[user[:password]@]h1[:port],h2/name[/db]    the master `name`, as the Sentinels know it
    redis+cluster://[user[:password]@]h1[:port],h2        a Redis Cluster, found through any of its nodes

With `rediss` in place of `redis` all connections are TLS, and the server's certificate and name are always verified,
with the system's authorities or with those of `?ca=FILE`. `?cert=FILE&key=FILE` is a certificate of the client's own.
Where the Sentinels themselves ask for a password: `?sentinel_user=…&sentinel_password=…`.

Nothing else is accepted. redis-py's own reader of URLs takes any option of its connections, and some of those, a retry
above all, would break what `redis.py` promises.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_OPTIONS: Final = {
    "server": {"ca", "cert", "key", "db"},
    "sentinel": {"ca", "cert", "key", "sentinel_user", "sentinel_password"},
    "cluster": {"ca", "cert", "key"},
}


class Address(msgspec.Struct, frozen=True):
    """Where a Redis is and how it is spoken to."""

    kind: str
    """"server", "sentinel" or "cluster"."""
    hosts: tuple[tuple[str, int], ...] = ()
    """Of the server, the Sentinels, or some of the cluster's nodes. Empty with `path`."""
    path: str | None = None
    """Of a unix socket."""
    tls: bool = False
    ca: str | None = None
    """A file of authorities; None: the system's."""
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = None
    db: int = 0
    master: str = ""
    """The name that the Sentinels know it by."""
    sentinel_user: str | None = None
    sentinel_password: str | None = None

    def __repr__(self) -> str:
        return f"Address({self.shown()})"

    def shown(self) -> str:
        """The address without its secrets, for logs and `/api/status`."""
        if self.path is not None:
            return f"unix:{self.path}"
        scheme = ("rediss" if self.tls else "redis") + ("" if self.kind == "server" else f"+{self.kind}")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return (
            f"{scheme}://{hosts}" + (f"/{self.master}" if self.master else "") + f"/{self.db}" * bool(self.db)
        )


def parse_address(url: str) -> Address:
    """What `url` means.

    Raises:
        ValueError: it is not one of the forms above; the message says what is wrong, without any secret.
    """
    if url.startswith("unix:"):
        return _unix(urlsplit(url))
    parts = urlsplit(url)
    base, _, variant = parts.scheme.partition("+")
    if base not in ("redis", "rediss") or variant not in ("", "sentinel", "cluster"):
        raise ValueError("the scheme must be redis, rediss, unix, redis+sentinel or redis+cluster")
    kind = variant or "server"
    tls = base == "rediss"
    options = _options(parts, kind)
    if not tls and options.keys() & {"ca", "cert", "key"}:
        raise ValueError("`ca`, `cert` and `key` need rediss")
    if ("cert" in options) != ("key" in options):
        has, lacks = ("cert", "key") if "cert" in options else ("key", "cert")
        raise ValueError(f"`{has}` needs its `{lacks}`")
    if empty := next((name for name in ("ca", "cert", "key") if options.get(name) == ""), None):
        raise ValueError(f"`{empty}` names no file")
    credentials, _, places = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    hosts = tuple(
        _host(place, _SENTINEL_PORT if kind == "sentinel" else _PORT) for place in places.split(",")
    )
    if kind == "server" and len(hosts) > 1:
        raise ValueError("several hosts need redis+sentinel or redis+cluster")
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    master = ""
    if kind == "sentinel":
        if not segments:
            raise ValueError("the master's name is missing: redis+sentinel://host/NAME")
        master = segments.pop(0)
    if kind == "cluster" and segments not in ([], ["0"]):
        raise ValueError("a cluster has only database 0")
    if len(segments) > 1:
        raise ValueError("too many segments in the path")
    return Address(
        kind,
        hosts,
        tls=tls,
        user=unquote(user) or None,
        password=unquote(password) or None,
        db=_database(options.pop("db", segments[0] if segments else "0")),
        master=master,
        **options,
    )


def _unix(parts: SplitResult) -> Address:
    options = _options(parts, "server")
    if options.keys() - {"db"}:
        raise ValueError("a unix socket has no TLS")
    if not parts.path.startswith("/"):
        raise ValueError("the path of the socket must be absolute: unix:/path")
    credentials, _, host = parts.netloc.rpartition("@")
    if host:
        raise ValueError("a unix socket has no host: unix:/path")
    user, _, password = credentials.partition(":")
    return Address(
        "server",
        path=unquote(parts.path),
        user=unquote(user) or None,
        password=unquote(password) or None,
        db=_database(options.get("db", "0")),
    )


def _options(parts: SplitResult, kind: str) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(options.keys() - _OPTIONS[kind])
    if unknown:
        raise ValueError(f"unknown option `{unknown[0]}`")
    if parts.fragment:
        raise ValueError("a # in a password is written %23")
    return options


def _host(place: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        port = parts.port
    except ValueError:
        raise ValueError("a host is written host:port") from None
    if not parts.hostname:
        raise ValueError("a host is missing")
    return unquote(parts.hostname), default_port if port is None else port


def _database(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError("the database must be a number")
    return int(text)
