"""The addresses on which the admin API is served: the one that is configured, and the control socket."""

from __future__ import annotations

import logging
import os
import socket

from ambassador.config.addresses import split_address
from ambassador.config.schema import Admin
from ambassador.control.admin import http
from ambassador.control.admin.rules import Door, refusal
from ambassador.control.slots import BindError, bind_error, url_of
from ambassador.control.unix_socket import InUse, NamedSocket
from ambassador.proxy.loopback import is_loopback
from ambassador.secret import SecretError, read_secret

_BACKLOG = 128


class AdminDoor:
    """The configured admin address, bound and listening."""

    def __init__(self, admin: Admin) -> None:
        """Raises `BindError`, and `SecretError` when the token cannot be read."""
        self.admin = admin
        if admin.token is not None:
            read_secret(admin.token)
        self._named: NamedSocket | None = None
        try:
            if admin.address.startswith("unix:"):
                self._named = NamedSocket(admin.address.removeprefix("unix:"), mode=0o600)
                self.sock = self._named.sock
            else:
                self.sock = _bind(admin.address)
            self.sock.listen(_BACKLOG)
        except OSError as error:
            raise bind_error(admin.address, error) from error
        port = None
        self._local = True
        """Only this host reaches it: told by where it is bound, since a name may lead anywhere."""
        if self._named is None:
            bound = self.sock.getsockname()
            port, self._local = int(bound[1]), is_loopback(bound[0])
        self.url = url_of(admin.address, port)

    def door(self) -> Door:
        """The rules of this address. The token is read each time, so a changed one holds at once."""
        token = None
        if self.admin.token is not None:
            try:
                token = read_secret(self.admin.token)
            except SecretError:
                # A token that nobody can know: closed until the secret is back.
                token = os.urandom(16).hex()
        host = None if self._named is not None else split_address(self.admin.address)[0]
        return Door(local=self._local, host=host, token=token, open_metrics=self.admin.metrics == "open")

    def close(self) -> None:
        """Close the socket; a unix socket's file goes."""
        if self._named is not None:
            self._named.close()
        self.sock.close()


class ControlDoor:
    """The control socket: the same API for this user and root, without a token."""

    def __init__(self, path: str) -> None:
        """Raises `BindError`; for a path where another instance listens, it says so."""
        try:
            self._named = NamedSocket(path, mode=0o600)
            self._named.sock.listen(_BACKLOG)
        except InUse as error:
            reason = (error.strerror or "in use").lower()
            raise BindError(f"control socket {path}: {reason} (is another instance running?)") from error
        except OSError as error:
            raise bind_error(f"unix:{path}", error) from error
        self.path = path
        self.sock = self._named.sock
        self._door = Door(local=True, uids=frozenset({0, os.getuid()}))

    def door(self) -> Door:
        """The rules of this socket."""
        return self._door

    def close(self) -> None:
        """Close the socket and remove its file."""
        self._named.close()


async def serve_door(door: AdminDoor | ControlDoor, handler: http.Handler, log: logging.Logger) -> None:
    """Serve the API behind its rules until cancelled."""

    async def guarded(request: http.Request) -> http.Response:
        refused = refusal(door.door(), request)
        return await handler(request) if refused is None else refused

    await http.serve(door.sock, guarded, log)


def _bind(address: str) -> socket.socket:
    host, port = split_address(address)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, where = min(found, key=lambda each: each[0] != socket.AF_INET)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except BaseException:
        sock.close()
        raise
    return sock
