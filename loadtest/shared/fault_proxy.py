"""A TCP proxy between a client and a server that does to the connection what networks and dying servers do.

It runs in threads of its own, so it serves blocking clients and other processes alike. Faults are switched while
connections are open, and hold for what is passed on from then on.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, Self

_CHUNK: Final = 65_536
Target = tuple[str, int] | str


class FaultProxy:
    """Listens on `host`:`port`, and passes on to `target`: (host, port), or the path of a unix socket.

    - `delay_s` holds every chunk up, in both directions, for so long; `jitter_s` for up to so much more, by chance.
    - `swallow_replies`: the server gets what is sent, and its answers are thrown away.
    - `cut_after_requests`: so many chunks more are passed to the server, then both sides are reset, answers unread.
    - `refuse`: nothing listens any more. `accept_again` undoes it.
    - `hang`: connections are accepted and nothing is passed on, in either direction.
    - `mute_events`: a connection on which the client said SUBSCRIBE gets nothing any more.
    - `cut` resets what is open.
    """

    def __init__(self, target: Target, host: str = "127.0.0.1") -> None:
        self._target = target
        self.host = host
        self.port = 0
        self.delay_s = 0.0
        self.jitter_s = 0.0
        self.swallow_replies = False
        self.cut_after_requests: int | None = None
        self.hang = False
        self.mute_events = False
        self.connections = 0
        """How many were accepted in all."""
        self.chunks_sent = 0
        """To the server."""
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._subscribed: set[socket.socket] = set()
        """Clients that listen to events."""
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.accept_again()

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def listening_on(self) -> int:
        """The port."""
        return self.port

    def heal(self) -> None:
        """No faults for new connections; those that were hung or swallowed stay as they are, and are cut."""
        self.delay_s = self.jitter_s = 0.0
        self.swallow_replies = self.hang = self.mute_events = False
        self.cut_after_requests = None
        self.cut()
        if self._listener is None:
            self.accept_again()

    def accept_again(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._run(self._accept, listener)

    def refuse(self) -> None:
        """New connections are refused, and those there are cut."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset what is open."""
        with self._lock:
            victims, self._open = self._open, set()
        for victim in victims:
            _reset(victim)

    def close(self) -> None:
        self.refuse()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True, name="fault proxy")
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = _connect(self._target)
            except OSError:
                _reset(client)
                continue
            with self._lock:
                self._open |= {client, server}
            self._run(self._pass_on, client, server)
            self._run(self._pass_back, server, client)

    def _is_last_chunk(self) -> bool:
        if self.cut_after_requests is None:
            return False
        self.cut_after_requests -= 1
        if self.cut_after_requests > 0:
            return False
        self.cut_after_requests = None
        return True

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        self._pass_on(server, client, to_server=False)

    def _pass_on(self, source: socket.socket, sink: socket.socket, *, to_server: bool = True) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if self.delay_s or self.jitter_s:
                    time.sleep(self.delay_s + self.jitter_s * random.random())
                if to_server and b"SUBSCRIBE" in data:
                    self._subscribed.add(source)
                if self.hang or (self.swallow_replies and not to_server):
                    continue
                if self.mute_events and not to_server and sink in self._subscribed:
                    continue
                last = to_server and self._is_last_chunk()
                if last:
                    self.swallow_replies = True
                self.chunks_sent += to_server
                sink.sendall(data)
                if last:
                    time.sleep(0.05)  # the server does what it was asked
                    self.cut()
                    self.swallow_replies = False
                    return
        with self._lock:
            self._open -= {source, sink}
            self._subscribed -= {source, sink}
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _connect(target: Target) -> socket.socket:
    if isinstance(target, str):
        server = socket.socket(socket.AF_UNIX)
        server.connect(target)
        return server
    return socket.create_connection(target, timeout=None)


def _reset(victim: socket.socket) -> None:
    """RST where there is such a thing; in any case it wakes who reads."""
    with contextlib.suppress(OSError):
        victim.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with contextlib.suppress(OSError):
        victim.shutdown(socket.SHUT_RDWR)
    victim.close()
