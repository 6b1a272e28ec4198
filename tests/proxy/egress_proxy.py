"""Egress proxies for tests: HTTP (CONNECT and whole URLs) and SOCKS5, which lead to where the test says."""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

LOGIN = ("ambassador", "s3cret:word")


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class EgressProxy:
    """Leads every connection to `leads_to`, whatever it is asked for, and remembers what that was.

    `login`: what it wants to be shown. `piecemeal`: its own words come byte by byte.
    """

    scheme = "http"

    def __init__(self, leads_to: tuple[str, int], *, login: bool = False, piecemeal: bool = False) -> None:
        self.leads_to = leads_to
        self.login = login
        self.piecemeal = piecemeal
        self.closes_after: int | None = None
        """So many answers to whole URLs, of one connection, which then ends without a word."""
        self.heads: list[bytes] = []
        """What it was asked: heads of HTTP, or `host:port` of SOCKS."""
        self.connections = 0
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(self.sock))

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.sock.getsockname()[1]}"

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._serve, await self._listener.accept())

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        try:
            async with stream:
                await self.serve(stream)
        except (EOFError, trio.BrokenResourceError, OSError):
            pass

    async def say(self, stream: trio.SocketStream, data: bytes) -> None:
        if not self.piecemeal:
            return await stream.send_all(data)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(data)):
            await stream.send_all(data[at : at + 1])
            for _ in range(3):
                await trio.lowlevel.checkpoint()

    async def serve(self, stream: trio.SocketStream) -> None:
        left = b""
        answers = 0
        while True:
            if answers == self.closes_after:
                return
            while b"\r\n\r\n" not in left:
                data = await stream.receive_some()
                if not data:
                    return
                left += data
            head, _, left = left.partition(b"\r\n\r\n")
            head += b"\r\n\r\n"
            self.heads.append(head)
            shown = b"Basic " + b64encode(":".join(LOGIN).encode())
            if self.login and b"proxy-authorization: " + shown + b"\r\n" not in head:
                refusal = (
                    b"HTTP/1.1 407 No\r\nproxy-authenticate: Basic realm=x\r\ncontent-length: 3\r\n\r\nno\n"
                )
                await self.say(stream, refusal)
                continue
            target = head.split(b" ", 2)[1]
            if head.startswith(b"CONNECT "):
                async with await trio.open_tcp_stream(*self.leads_to) as upstream:
                    await self.say(stream, b"HTTP/1.1 200 Connection established\r\nvia: 1.1 proxy\r\n\r\n")
                    await self.relay(stream, upstream, left)
                return
            assert target.startswith(b"http://")
            async with await trio.open_tcp_stream(*self.leads_to) as upstream:
                lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"proxy-")]
                path = b"/" + target.split(b"/", 3)[3] if target.count(b"/") > 2 else b"/"
                lines[0] = lines[0].replace(target, path, 1)
                await upstream.send_all(b"\r\n".join([*lines[:-2], b"connection: close", b"", b""]))
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in lines
                        if line.lower().startswith(b"content-length:")
                    ),
                    0,
                )
                while len(left) < length:
                    left += await stream.receive_some()
                await upstream.send_all(left[:length])
                left = left[length:]
                while data := await upstream.receive_some():
                    await stream.send_all(data)
                    if data.endswith(b"ok"):
                        answers += 1
                        break

    async def relay(self, one: trio.SocketStream, other: trio.SocketStream, early: bytes = b"") -> None:
        async with trio.open_nursery() as nursery:

            async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                try:
                    while data := await source.receive_some():
                        await sink.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                nursery.cancel_scope.cancel()

            if early:
                await other.send_all(early)
            nursery.start_soon(copy, one, other)
            nursery.start_soon(copy, other, one)


class SocksProxy(EgressProxy):
    """The same by SOCKS5."""

    scheme = "socks5"

    async def serve(self, stream: trio.SocketStream) -> None:
        exactly = partial(_exactly, stream)
        version, count = await exactly(2)
        methods = await exactly(count)
        assert version == 5
        if self.login:
            if 2 not in methods:
                await self.say(stream, b"\5\xff")
                return
            await self.say(stream, b"\5\2")
            _, length = await exactly(2)
            user = (await exactly(length)).decode()
            (length,) = await exactly(1)
            good = (user, (await exactly(length)).decode()) == LOGIN
            await self.say(stream, b"\1\0" if good else b"\1\1")
            if not good:
                return
        else:
            await self.say(stream, b"\5\0")
        _, command, _, kind = await exactly(4)
        assert command == 1
        if kind == 3:
            (length,) = await exactly(1)
            host = (await exactly(length)).decode()
        else:
            family, length = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, await exactly(length))
        port = int.from_bytes(await exactly(2), "big")
        self.heads.append(f"{host}:{port}".encode())
        async with await trio.open_tcp_stream(*self.leads_to) as upstream:
            await self.say(stream, b"\5\0\0\3\4here\0\1")
            await self.relay(stream, upstream)


@asynccontextmanager
async def running(proxy: EgressProxy) -> AsyncIterator[EgressProxy]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()
    proxy.sock.close()
