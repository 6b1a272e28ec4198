"""An API server of Kubernetes that knows EndpointSlices only, and does with them what the API's documentation says.

Lists have pages (`limit`, `continue`), watches are chunked streams of JSON lines from a `resourceVersion` on, with
bookmarks for who allows them. What is older than `oldest` has been forgotten: a watch from there, or a page of a list
that was begun before, is 410 Gone, as a status or as an ERROR event. Who shows another token is 401.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio

PATH = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"
SELECTOR = "kubernetes.io/service-name="


class FakeApi:
    def __init__(self) -> None:
        self.url = ""
        self.token: str | None = None
        self.namespace = "shop"
        self.oldest = 0
        self.gone_as = "status"
        """Or `event`: what a watch from a forgotten version gets."""
        self.status: tuple[int, str] | None = None
        """What every request is answered with."""
        self.watch_status: tuple[int, str] | None = None
        """What every watch is answered with."""
        self.forgets_always = False
        """However new a version is, it is gone when a watch begins there."""
        self.chunk = 1 << 20
        """Bytes of a chunk: lines are cut anywhere."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        """(`list` or `watch`, query) of all that were authorised."""
        self.tokens: list[str | None] = []
        self.bookmarked = trio.Event()
        self._version = 100
        self.slices: dict[str, dict[str, Any]] = {}
        self._history: list[tuple[int, str, dict[str, Any]]] = []
        self._news = trio.Event()
        self._cut = trio.Event()
        self._breaks = False

    # What happens in the cluster

    def put(
        self, name: str, *addresses: str, service: str = "web", port: int = 8080, ready: bool = True
    ) -> None:
        """Add a slice, or change it."""
        kind = "MODIFIED" if name in self.slices else "ADDED"
        self.slices[name] = {
            "metadata": {"name": name, "namespace": self.namespace, "labels": {SELECTOR[:-1]: service}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": [address], "conditions": {"ready": ready}, "nodeName": "n", "zone": "z"}
                for address in addresses
            ],
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        }
        self._note(kind, name)

    def delete(self, name: str) -> None:
        self._note("DELETED", name)
        del self.slices[name]

    def _note(self, kind: str, name: str) -> None:
        self._version += 1
        self.slices[name]["metadata"]["resourceVersion"] = str(self._version)
        self._add(kind, json.loads(json.dumps(self.slices[name])))

    def _add(self, kind: str, what: dict[str, Any]) -> None:
        self._history.append((self._version, kind, what))
        self._news.set()
        self._news = trio.Event()

    def advance(self) -> None:
        """Something else changes in the cluster: who watches hears of it by a bookmark."""
        self._version += 10
        version = {"resourceVersion": str(self._version)}
        self._add("BOOKMARK", {"kind": "EndpointSlice", "metadata": version})

    def compact(self) -> None:
        """Forget all versions before the present one."""
        self.oldest = self._version

    def end_watches(self) -> None:
        """As the server does when `timeoutSeconds` have passed."""
        self._cut.set()
        self._cut = trio.Event()

    def break_watches(self) -> None:
        """As a network does: they end without an end."""
        self._breaks = True
        self.end_watches()

    def say(self, line: bytes) -> None:
        """Have watches bring a line that is no event of the history."""
        self._version += 1
        self._add("RAW", {"line": line.decode()})

    # The server

    async def serve(self, stream: trio.abc.Stream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = await stream.receive_some(4096)
            if not part:
                return
            head += part
        lines = head.decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        token = fields.get("authorization", "").removeprefix("Bearer ") or None
        self.tokens.append(token)
        target = urlsplit(lines[0].split()[1])
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        selected = query.pop("labelSelector", "")
        if self.status is not None:
            await self._fail(stream, *self.status)
        elif token != self.token:
            await self._fail(stream, 401, "Unauthorized")
        elif target.path != PATH.format(self.namespace) or not selected.startswith(SELECTOR):
            await self._fail(stream, 404, "the server could not find the requested resource")
        else:
            self.requests.append(("watch" if query.get("watch") else "list", query))
            service = selected.removeprefix(SELECTOR)
            await (self._watch if query.get("watch") else self._list)(stream, query, service)

    async def _list(self, stream: trio.abc.Stream, query: dict[str, str], service: str) -> None:
        version, _, start = query.get("continue", f"{self._version}/0").partition("/")
        if int(version) < self.oldest:
            await self._fail(stream, 410, "The provided continue parameter is too old")
            return
        limit = int(query.get("limit", "1000"))
        items = [
            each for each in self.slices.values() if each["metadata"]["labels"][SELECTOR[:-1]] == service
        ]
        page = items[int(start) : int(start) + limit]
        more = f"{version}/{int(start) + limit}" if len(items) > int(start) + limit else ""
        body = {
            "kind": "EndpointSliceList",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"resourceVersion": version, "continue": more},
            "items": page,
        }
        await self._answer(stream, 200, body)

    async def _watch(self, stream: trio.abc.Stream, query: dict[str, str], service: str) -> None:
        seen = int(query["resourceVersion"])
        if self.watch_status is not None:
            await self._fail(stream, *self.watch_status)
            return
        is_gone = seen < self.oldest or self.forgets_always
        if is_gone and self.gone_as == "status":
            await self._fail(stream, 410, "too old resource version")
            return
        cut = self._cut  # it may be set as soon as who watches has the head
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        if is_gone:
            await self._send(stream, {"type": "ERROR", "object": _status(410, "too old resource version")})
            await stream.send_all(b"0\r\n\r\n")
            return
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await cut.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            while True:
                news = self._news
                if cut.is_set():
                    await trio.sleep_forever()  # what happens from then on is for the next watch
                for version, kind, what in list(self._history):
                    if version > seen:
                        seen = version
                        await self._tell(stream, kind, what, service, query)
                await news.wait()
        if not self._breaks:
            await stream.send_all(b"0\r\n\r\n")

    async def _tell(
        self, stream: trio.abc.Stream, kind: str, what: dict[str, Any], service: str, query: dict[str, str]
    ) -> None:
        if kind == "RAW":
            await self._chunks(stream, what["line"].encode() + b"\n")
        elif kind == "BOOKMARK":
            if query.get("allowWatchBookmarks") == "true":
                await self._send(stream, {"type": kind, "object": what})
                self.bookmarked.set()
        elif what["metadata"]["labels"][SELECTOR[:-1]] == service:
            await self._send(stream, {"type": kind, "object": what})

    async def _send(self, stream: trio.abc.Stream, event: dict[str, Any]) -> None:
        await self._chunks(stream, json.dumps(event).encode() + b"\n")

    async def _chunks(self, stream: trio.abc.Stream, line: bytes) -> None:
        for start in range(0, len(line), self.chunk):
            part = line[start : start + self.chunk]
            await stream.send_all(b"%x\r\n%b\r\n" % (len(part), part))

    async def _fail(self, stream: trio.abc.Stream, code: int, message: str) -> None:
        await self._answer(stream, code, _status(code, message))

    async def _answer(self, stream: trio.abc.Stream, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        await stream.send_all(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (code, len(data), data))


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "message": message, "reason": "X", "code": code}


@asynccontextmanager
async def serving(api: FakeApi, tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeApi]:
    """The API on a port of the loopback."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    api.url = f"{'https' if tls else 'http'}://127.0.0.1:{listeners[0].socket.getsockname()[1]}"

    async def serve(raw: trio.SocketStream) -> None:
        stream: trio.abc.Stream = raw
        if tls is not None:
            stream = trio.SSLStream(raw, tls, server_side=True, https_compatible=True)
        try:
            await api.serve(stream)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield api
        nursery.cancel_scope.cancel()
