"""Where an upstream's endpoints are found while the service runs (`discover`): its settings, what they are called.

Who looks is `control/discovery`. Two upstreams with the same settings share one source, and a reload that keeps them
keeps what is known: a `Discover` is its own key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Final
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from ambassador.proxy.loopback import is_this_host
from ambassador.settings import Secret, Section

__all__ = ["SOURCES", "Discover", "Found", "Kubernetes", "Server", "own_host", "source_name"]

SOURCES: Final = ("dns", "srv", "file", "kubernetes")


class Kubernetes(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ready pods of a Service, as its EndpointSlices tell, watched. The account needs the verbs `list` and `watch`
    on `endpointslices` of the group `discovery.k8s.io` in the service's namespace.
    """

    shorthand: ClassVar[str | None] = "service"

    service: Annotated[str, Meta(extra={"form": "kubernetes_name"})]
    """The name of the Service."""

    namespace: Annotated[str, Meta(extra={"form": "kubernetes_name"})] | None = None
    """Its namespace. Unset: that of this pod."""

    port: Annotated[str, Meta(extra={"form": "kubernetes_port"})] | None = None
    """The name of a port of the Service, or the number that the pods listen on. Unset: the only one there is."""

    server: Annotated[str, Meta(extra={"form": "api_server"})] | None = None
    """The address of the API server, `https://host:port`. Unset: this pod's cluster."""

    token: Secret | None = None
    """The token to show there, read again for each request. Unset: this pod's service account's, and none where
    `server` is set."""

    ca: Annotated[str, Meta(extra={"form": "file_path"})] | None = None
    """A file with the authority that the API server's certificate comes from. Unset: this pod's service account's;
    where `server` is set, the system's."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """What belongs to a server that is not named; a token that everybody could read."""
        for key in ("token", "ca"):
            if getattr(self, key) is not None and self.server is None:
                yield key, "needs the 'server' that it is for"
        if self.server is None:
            return
        if self.namespace is None:
            yield None, "with a 'server', the 'namespace' must be named too"
        url = urlsplit(self.server)
        if url.scheme == "http":
            if self.ca is not None:
                yield "ca", "has no effect with a server on http"
            if self.token is not None and not is_this_host(url.hostname or ""):
                yield "token", "is not sent over plaintext HTTP to another host"


class Discover(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where endpoints are found while the service runs. Exactly one of the fields is set.

    While a source cannot be asked, what it said last holds.
    """

    dns: Annotated[str, Meta(extra={"form": "host_port"})] | None = None
    """`name:port`: every address of the name is an endpoint. Looked up again when its time to live ends (1 s to 5 min);
    an answer without addresses changes nothing. `Host` is the name."""

    srv: Annotated[str, Meta(extra={"form": "srv_name"})] | None = None
    """The name of SRV records, `_http._tcp.api.internal`: every record is an endpoint, with its weight and priority."""

    file: Annotated[str, Meta(extra={"form": "file_path"})] | None = None
    """The absolute path of a YAML or JSON file with a list as `endpoints` has it. Read again when it changes, also when
    another is put in its place; one with mistakes changes nothing, an empty list leaves no endpoint."""

    kubernetes: Kubernetes | None = None
    """The ready pods of a Kubernetes Service."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Not exactly one of the fields."""
        if sum(getattr(self, kind) is not None for kind in SOURCES) != 1:
            yield None, f"needs exactly one of {', '.join(SOURCES)}"


class Server(Struct, frozen=True, array_like=True):
    """An endpoint that was found. `url` as `schema.Endpoint` has it; `zone` is empty where it has none."""

    url: str
    weight: int = 1
    zone: str = ""
    priority: int = 0


class Found(Struct, frozen=True):
    """What a source says now, each URL once; `addresses` are those that the names in the URLs have."""

    source: Discover
    servers: tuple[Server, ...]
    addresses: dict[str, tuple[str, ...]]


def source_name(source: Discover) -> str:
    """What people call a source: `dns api.internal:8080`, `kubernetes shop/web:http`."""
    kind = next(kind for kind in SOURCES if getattr(source, kind) is not None)
    where = source.kubernetes
    if where is None:
        return f"{kind} {getattr(source, kind)}"
    name = where.service if where.namespace is None else f"{where.namespace}/{where.service}"
    return f"{kind} {name}" if where.port is None else f"{kind} {name}:{where.port}"


def own_host(source: Discover, default_port: int = 80) -> str | None:
    """The `Host` of all its endpoints, without the port if that is the default; None where each has its own."""
    if source.dns is not None:
        return source.dns.removesuffix(f":{default_port}")
    if source.kubernetes is not None:
        where = source.kubernetes
        return where.service if where.namespace is None else f"{where.service}.{where.namespace}.svc"
    return None
