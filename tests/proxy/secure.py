"""Both ends of TLS for tests: an authority of the tests' own, its certificates, clients and origins that speak TLS."""

from __future__ import annotations

import ssl

import trio
import trustme

from tests.proxy.harness import Origin, Plane, Talk

CA = trustme.CA()


class Holder:
    """A context as the data plane asks for it; a test may put another one in its place."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context


def server_context(*names: str, ca: trustme.CA = CA, client_ca: trustme.CA | None = None) -> ssl.SSLContext:
    """Of a server with a certificate for these names (127.0.0.1 and localhost where none are given)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    ca.issue_cert(*(names or ("127.0.0.1", "localhost"))).configure_cert(context)
    if client_ca is not None:
        client_ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: trustme.CA = CA, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """Of a client that trusts the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    ca.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


class SecureTalk(Talk):
    """One end of a TLS connection. `cut` ends the TCP connection without a good-bye."""

    stream: trio.SSLStream[trio.SocketStream]  # type: ignore[assignment]

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        super().__init__(stream)  # type: ignore[arg-type]

    @property
    def transport(self) -> trio.SocketStream:
        return self.stream.transport_stream

    def cut(self) -> None:
        self.transport.socket.close()

    async def goodbye(self) -> None:
        """close_notify, and a FIN after it."""
        await self.stream.aclose()

    def reset(self) -> None:
        self.transport.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
        self.transport.socket.close()

    def close(self) -> None:
        self.transport.socket.close()


class SecureOrigin(Origin):
    """An origin that speaks TLS."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.context = context or server_context()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.address[1]}"

    async def accept(self) -> SecureTalk:
        stream = trio.SSLStream(
            await self._listener.accept(), self.context, server_side=True, https_compatible=False
        )
        try:
            await stream.do_handshake()
        except BaseException:
            stream.transport_stream.socket.close()
            raise
        return SecureTalk(stream)


async def secure_connect(
    plane: Plane, context: ssl.SSLContext | None = None, *, name: str = "localhost"
) -> SecureTalk:
    """A client of the plane, behind its handshake."""
    stream = trio.SSLStream(
        await trio.open_tcp_stream(*plane.address),
        context or client_context(),
        server_hostname=name,
        https_compatible=False,
    )
    await stream.do_handshake()
    return SecureTalk(stream)
