"""An upstream that can be killed: `python -m loadtest.mortal PORT` answers 200 with two bytes, over and over."""

import asyncio
import sys

_END = b"\r\n\r\n"
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"


class _Connection(asyncio.Protocol):
    """Requests without bodies, pipelined or not."""

    def __init__(self) -> None:
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *whole, self._seen = (self._seen + data).split(_END)
        self._transport.write(_ANSWER * len(whole))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(
        _Connection, "127.0.0.1", port, backlog=1024, reuse_address=True
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
