"""The endpoints that a Service's EndpointSlices tell of. Pure: the API's objects in, servers out.

Sources: the API reference of `discovery.k8s.io/v1` (unknown conditions, several slices, duplicates, named ports), and
what kube-proxy does where it leaves a choice: only the first address of an endpoint counts, and while no pod is ready,
those that still serve as they terminate take the traffic (KEP-1669).
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec import Raw, Struct

from ambassador.config.addresses import endpoint_url
from ambassador.config.discover import Server
from ambassador.config.units import Wrong

_FAMILIES: Final = ("IPv4", "IPv6", "FQDN")
"""Of a service that has several, the first that has an endpoint: each pod of a dual-stack service is in two."""

_READ: Final[dict[str, Callable[[str], object]]] = {
    "IPv4": ipaddress.IPv4Address,
    "IPv6": lambda text: f"[{ipaddress.IPv6Address(text)}]",
    "FQDN": str,
}


class Conditions(Struct, frozen=True):
    """None: not known, which means ready; `serving` then is as `ready`."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(Struct, frozen=True):
    """One pod, as a rule."""

    addresses: list[str] | None = None
    conditions: Conditions | None = None
    zone: str | None = None


class SlicePort(Struct, frozen=True):
    """A port that all endpoints of the slice have. `port` None: every port."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class Metadata(Struct, frozen=True, rename="camel"):
    """Of an object."""

    name: str = ""
    resource_version: str = ""


class ListMetadata(
    Struct, frozen=True, rename={"resource_version": "resourceVersion", "continue_": "continue"}
):
    """Of a list; `continue_` is where its next page begins, empty on the last one."""

    resource_version: str = ""
    continue_: str = ""


class EndpointSlice(Struct, frozen=True, rename="camel"):
    """Some of the endpoints of a service: lists may be null."""

    metadata: Metadata = Metadata()
    address_type: str = ""
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None


class SliceList(Struct, frozen=True):
    """A page of a list."""

    metadata: ListMetadata = ListMetadata()
    items: list[EndpointSlice] | None = None


class WatchEvent(Struct, frozen=True):
    """A line of a watch. `type`: ADDED, MODIFIED, DELETED, BOOKMARK, ERROR."""

    type: str
    object: Raw


class ApiStatus(Struct, frozen=True):
    """What the API says of a failure, in an answer's body or in an ERROR event."""

    code: int = 0
    reason: str = ""
    message: str = ""


class Merged(Struct, frozen=True):
    """All slices together, in order of the URLs. `problem`: why the wanted port is not to be had."""

    servers: tuple[Server, ...]
    problem: str | None = None


def merge(slices: Iterable[EndpointSlice], port: str | None) -> Merged:
    """The servers of a service. `port`: a port's name, or a number of the pods; None: the only one there is."""
    slices = list(slices)
    name, problem = port, None
    if port is None:
        names = sorted({each.name or "" for slice_ in slices for each in _tcp(slice_)})
        if len(names) > 1:
            return Merged((), f"the service has several ports; name one: {', '.join(names)}")
        name = names[0] if names else ""
    found = {family: list(_pods(slices, family, name)) for family in _FAMILIES}
    if port is not None and not any(found.values()) and any(each.endpoints for each in slices):
        known = sorted({each.name or str(each.port) for slice_ in slices for each in _tcp(slice_)})
        problem = f"the service has no port '{port}'" + (f"; it has {', '.join(known)}" if known else "")
    for usable in (_is_ready, _is_leaving):
        for family in _FAMILIES:
            servers = {url: Server(url, 1, pod.zone or "") for url, pod in found[family] if usable(pod)}
            if servers:
                return Merged(tuple(servers[url] for url in sorted(servers)))
    return Merged((), problem)


def _tcp(slice_: EndpointSlice) -> Iterator[SlicePort]:
    return (each for each in slice_.ports or () if each.protocol in (None, "TCP"))


def _pods(
    slices: Iterable[EndpointSlice], family: str, port: str | None
) -> Iterator[tuple[str, SliceEndpoint]]:
    """Each endpoint of the family with its URL; one that is in several slices comes several times."""
    for slice_ in slices:
        if slice_.address_type != family:
            continue
        number = _number(slice_, port or "")
        for pod in slice_.endpoints or ():
            if pod.addresses and number:
                host = pod.addresses[0]
                with contextlib.suppress(Wrong, ValueError):  # not what its family says
                    yield endpoint_url(f"http://{_READ[family](host)}:{number}"), pod


def _number(slice_: EndpointSlice, port: str) -> int | None:
    """The port of this slice's pods: the same name may be another number in each."""
    wanted = int(port) if port.isdigit() else None
    if not slice_.ports:
        return wanted
    for each in _tcp(slice_):
        if wanted is None and (each.name or "") == port and each.port is not None:
            return each.port
        if wanted is not None and each.port in (None, wanted):
            return wanted
    return None


def _is_ready(pod: SliceEndpoint) -> bool:
    return pod.conditions is None or pod.conditions.ready is not False


def _is_leaving(pod: SliceEndpoint) -> bool:
    """Whether it terminates and yet serves."""
    conditions = pod.conditions or Conditions()
    serving = conditions.ready if conditions.serving is None else conditions.serving
    return bool(conditions.terminating) and serving is not False
