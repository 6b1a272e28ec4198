"""The ambassador's own HTTP calls: the one module that imports httpcore.

Each call has a connection of its own, which ends with it: a pool would tell of the connection that it kept, not of
whether one can be made now. Errors of the library end here as `CallFailed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import httpcore
import trio
from msgspec import Struct


class CallFailed(Exception):
    """There was no answer; the text says why, in few words."""


class Place(Struct, frozen=True):
    """Where to connect: an IP `address` and `port`, or the `path` of a unix socket."""

    address: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


async def get_status(place: Place, target: str, *, authority: bytes, agent: bytes, timeout_s: float) -> int:
    """The status that `GET target` is answered with, over a connection of its own.

    `authority` is sent as Host, `agent` as User-Agent; `timeout_s` bounds all of it, connecting too. Raises
    `CallFailed`.
    """
    headers = [(b"host", authority), (b"user-agent", agent), (b"accept", b"*/*"), (b"connection", b"close")]
    try:
        with trio.fail_after(timeout_s):
            return await _status(place, target, headers)
    except trio.TooSlowError:
        raise CallFailed(f"no answer within {timeout_s:g} s") from None
    except (httpcore.ConnectError, httpcore.ConnectTimeout):
        raise CallFailed("cannot connect") from None
    except httpcore.NetworkError:
        raise CallFailed("the connection was reset") from None
    except httpcore.ProtocolError:
        raise CallFailed("what came is not HTTP/1.1") from None


async def _status(place: Place, target: str, headers: Sequence[tuple[bytes, bytes]]) -> int:
    host, port = place.address.encode("ascii") or b"localhost", place.port or 80
    connection = httpcore.AsyncHTTPConnection(
        httpcore.Origin(b"http", host, port), uds=place.path, http2=False, retries=0
    )
    try:
        url = httpcore.URL(scheme=b"http", host=host, port=port, target=target.encode("ascii"))
        response = await connection.handle_async_request(httpcore.Request("GET", url, headers=headers))
        return response.status
    finally:
        await connection.aclose()


async def can_connect(place: Place, *, timeout_s: float) -> None:
    """Whether a connection can be made. Raises `CallFailed`."""
    try:
        with trio.fail_after(timeout_s):
            stream = (
                await trio.open_unix_socket(place.path)
                if place.path is not None
                else await trio.open_tcp_stream(place.address, place.port)
            )
            await stream.aclose()
    except trio.TooSlowError:
        raise CallFailed(f"no connection within {timeout_s:g} s") from None
    except OSError:
        raise CallFailed("cannot connect") from None
