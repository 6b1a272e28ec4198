"""A plane with a credential for its upstream, and both ends of it in the test's hands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.proxy.harness import OK, Origin, Plane, Talk, a_plane

REFUSED = b"HTTP/1.1 401 Unauthorized\r\ndate: Fri, 27 Nov 2026 06:44:34 GMT\r\ncontent-length: 0\r\n\r\n"
FAILED = REFUSED.replace(b"401 Unauthorized", b"503 Busy")
ANSWER = OK.replace(b"\r\ncontent", b"\r\ndate: Fri, 27 Nov 2026 06:44:34 GMT\r\ncontent")


def authed(url: str, auth: str, *, route: str = "", upstreams: str = "") -> str:
    return (
        "version: 1\nlisten: 127.0.0.1:80\n"
        f"upstreams: {{u: {{endpoints: [{url}], auth: {auth}}}{upstreams}}}\n"
        f"routes: [{{name: r, to: u{route}}}]"
    )


def fields(head: bytes, name: bytes) -> list[bytes]:
    """The values of a field."""
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    return [value for key, _, value in lines if key.lower().replace(b"_", b"-") == name]


async def seen(client: Talk, upstream: Talk, request: bytes, answer: bytes = ANSWER) -> bytes:
    """The head with which a request arrives upstream."""
    await client.send(request)
    head = await upstream.head()
    await upstream.send(answer)
    await client.answer()
    return head


def asks(*lines: bytes) -> bytes:
    return b"\r\n".join((b"GET /x HTTP/1.1", b"host: a", *lines, b"", b""))


class Stage:
    """A plane and an origin; what talks to them is closed in the end."""

    def __init__(self, plane: Plane, origin: Origin) -> None:
        self.plane = plane
        self._origin = origin
        self.talks: list[Talk] = []

    async def client(self) -> Talk:
        self.talks.append(await self.plane.connect())
        return self.talks[-1]

    async def upstream(self) -> Talk:
        self.talks.append(await self._origin.accept())
        return self.talks[-1]

    def close(self) -> None:
        for talk in self.talks:
            talk.close()


@asynccontextmanager
async def a_stage(origin: Origin, config: str) -> AsyncIterator[Stage]:
    async with a_plane(config) as plane:
        stage = Stage(plane, origin)
        try:
            yield stage
        finally:
            stage.close()


async def begun(stage: Stage) -> tuple[Talk, Talk]:
    """Both ends, after a first request: the next one finds an idle connection, and takes the short way."""
    client = await stage.client()
    await client.send(asks())
    upstream = await stage.upstream()
    await upstream.head()
    await upstream.send(ANSWER)
    await client.answer()
    return client, upstream
